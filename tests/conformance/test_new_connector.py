"""`bridge new-connector`: what it writes, what the kit says of it, and that the page leads to a fifth one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_pipeline import cli
from bridge_pipeline.commands.new_connector import NotWritten, write_connector
from bridge_pipeline.settings import PROJECT_ROOT

NAME = "fifth_desk"
SPECIFICATION = "tests/conformance/test_specification.py"
# What the page asks for, for an imagined API: `/v1/tickets?page=2` gives `{"tickets": […]}`.
ANSWERS = {
    "the id of a record as text": "return str(number)",
    "what a request proves itself with": 'return {"Authorization": f"Bearer {token}"}',
    "what asks for a page of a list": 'return {"page": str(page)}',
    "a record as the API writes it": (
        'times = dict.fromkeys(("created_at", "updated_at"), changed.isoformat())\n'
        '    named = {"name": f"Name {number}", "subject": f"Subject {number}"}\n'
        '    return {"id": number, **named, "requester_id": 1, **times}'
    ),
    "a page of a list in its envelope": (
        'page = int(query.get("page", "1"))\n    return {entity: records[(page - 1) * size : page * size]}'
    ),
    "one record in its envelope": 'return {entity.removesuffix("s"): record}',
    "the token of a request": (
        'kind, _, token = request.headers.get("authorization", "").partition(" ")\n'
        '    return token if kind == "Bearer" else None'
    ),
}
_RAISED = re.compile(r'raise NotImplementedError\(\s*"[^"]*: ([^":]*)"\s*\)')
# The kit as it stands, with one more folder of connectors.
_KIT = """
import sys, pytest
from bridge_pipeline import connectors
connectors.__path__.append(sys.argv[1])
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--tb=line", "-k", sys.argv[2], *sys.argv[3:]]))
"""


def kit(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the kit over the connector in `folder`."""
    command = [sys.executable, "-c", _KIT, str(folder), NAME, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, check=False)
    return done.returncode, done.stdout + done.stderr


def fill(folder: Path, files: str = "*") -> None:
    """Does to the new folder what docs/adding-a-connector.md says."""
    for path in sorted((folder / NAME).glob(files)):
        text = path.read_text()
        text = _RAISED.sub(lambda found: ANSWERS[found[1]], text).replace("/WRITE/", "/v1/")
        text = re.sub(r"^ *# WRITE:.*\n", "", text, flags=re.M).replace("WRITE: ", "As agreed: ")
        path.write_text(text)


@pytest.mark.parametrize("entities", [["accounts", "users", "tickets"], ["groups", "assets", "changes"]])
def test_what_is_written_passes_the_checks_of_the_code(tmp_path, entities):
    written = write_connector(NAME, tmp_path, entities)
    modules = ("__init__", "client", "expectations", "simulator", "streams")
    assert {path.name for path in written} == {"README.md", *(f"{name}.py" for name in modules)}
    ours = ["--config", str(PROJECT_ROOT / "pyproject.toml")]
    first_party = ["--config", 'lint.isort.known-first-party=["bridge_pipeline"]']
    for check in (["check", *ours, *first_party], ["format", "--check", *ours]):
        command = [Path(sys.executable).with_name("ruff"), *check, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_kit_says_what_is_to_be_written_and_where(tmp_path):
    write_connector(NAME, tmp_path, ["accounts", "users", "tickets"])
    code, said = kit(tmp_path, SPECIFICATION)
    assert code == 1
    left = set(re.findall(r"(\w+\.(?:py|md)):\d+: ", said))
    assert left >= {"README.md", "client.py", "simulator.py", "streams.py"}
    assert f"connectors/{NAME}/client.py, _params: what asks for a page of a list" in said
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", said, flags=re.M))
    # The rest of the specification holds from the first moment.
    assert "test_nothing_is_left_to_write" in failed
    assert not failed & {
        "test_the_folder_has_its_files",
        "test_the_config_is_strict_and_explains_itself",
        "test_credentials_are_secret",
        "test_streams_are_of_known_entities_parents_first",
        "test_the_readme_names_its_entities_and_its_config",
    }


@pytest.mark.long
def test_a_simulator_says_what_it_lacks(tmp_path):
    write_connector(NAME, tmp_path, ["tickets"])
    fill(tmp_path, "client.py")
    code, said = kit(tmp_path, f"{SPECIFICATION}::test_good_credentials_may_read_every_entity")
    assert code == 1
    assert f"connectors/{NAME}/simulator.py, _credential: the token of a request" in said


@pytest.mark.long
def test_a_connector_written_by_the_page_passes_the_whole_kit(tmp_path):
    write_connector(NAME, tmp_path, ["accounts", "users", "tickets"])
    fill(tmp_path)
    code, said = kit(tmp_path, "tests/conformance", "--ignore", __file__)
    assert code == 0, said[-4_000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) > 150


def test_the_page_names_every_place_that_is_to_be_written(tmp_path):
    write_connector(NAME, tmp_path, ["tickets"])
    page = (PROJECT_ROOT / "docs" / "adding-a-connector.md").read_text()
    functions = [
        found[1]
        for path in sorted((tmp_path / NAME).glob("*.py"))
        for found in re.finditer(rf"{path.name}, (\w+): ", path.read_text())
    ]
    assert len(functions) == len(ANSWERS)
    assert [name for name in functions if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Jira", "cannot be a connector"),
        ("9lives", "cannot be a connector"),
        ("class", "cannot be a connector"),
        ("a-b", "cannot be a connector"),
        ("../x", "cannot be a connector"),
        ("", "cannot be a connector"),
        ("a" * 42, "cannot be a connector"),
        ("helpdesk", "already"),
    ],
)
def test_a_name_that_cannot_be_writes_nothing(tmp_path, name, why):
    with pytest.raises(NotWritten, match=why):
        write_connector(name, tmp_path, ["tickets"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_touched(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(NotWritten, match="already"):
        write_connector(NAME, tmp_path, ["tickets"])
    with pytest.raises(NotWritten, match="no folder"):
        write_connector(NAME, tmp_path / "missing", ["tickets"])
    with pytest.raises(NotWritten, match="no entity invoices"):
        write_connector("other", tmp_path, ["tickets", "invoices"])
    assert list(tmp_path.rglob("*")) == [tmp_path / NAME]


def test_the_command_says_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)
    assert cli.execute(["new-connector", NAME, "--into", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / NAME)
    assert len(told["files"]) == 6
    assert any(f"-k {NAME}" in step for step in told["next"])
    assert cli.execute(["new-connector", NAME, "--into", str(tmp_path)]) == 2
    assert "already" in capsys.readouterr().err
