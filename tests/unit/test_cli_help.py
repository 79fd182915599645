"""The command line: every command explains itself, answers as JSON, and fails in one line."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bridge_pipeline import cli

# They serve until they are stopped and answer nothing.
SERVING = {("up",), ("simulate",)}


def _walk(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _walk(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_walk(typer.main.get_command(cli.app)))


@pytest.fixture(autouse=True)
def _unlogged(monkeypatch, no_logging):
    """Commands set up logging for their process; these run in the tests'."""
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.execute(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_commands_are_those_of_the_design():
    assert {" ".join(path) for path in COMMANDS} == {
        "demo",
        "up",
        "down",
        "status",
        "doctor",
        "simulate",
        "new-connector",
        "run",
        "show",
        "accept",
        "certify",
        "report",
        "connections list",
        "connections add",
        "connections apply",
        "connections form",
        "connections test",
        "connections remove",
        "expectations list",
        "deliveries list",
        "deliveries send",
        "deliveries test",
        "quarantine list",
        "quarantine show",
        "audit verify",
        "audit head",
        "audit rotate-key",
        "quarantine replay",
        "secrets rotate",
        "backup",
        "restore",
        "upgrade",
        "tenants add",
        "tenants analyst",
        "tenants list",
        "tenants remove",
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(path, capsys):
    code, out, _ = run(capsys, *path, "--help")
    assert code == 0
    assert COMMANDS[path].help
    assert f"bridge {' '.join(path)}" in COMMANDS[path].epilog
    assert "Examples:" in out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is_for(path):
    assert [each.name for each in COMMANDS[path].params if not each.help] == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_that_answers_does_so_as_json(path):
    has_json = any("--json" in parameter.opts for parameter in COMMANDS[path].params)
    assert has_json == (path not in SERVING)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "No such command"),
        (["run", "acme", "--from", "2025-02-30", "--to", "2025-03-01"], "not a day"),
        (["run", "acme", "--from", "20250201", "--to", "2025-03-01"], "not a day"),
        (["run", "acme"], "--from"),
        (["simulate", "nothing"], "there is no connector 'nothing'"),
        (["simulate", "helpdesk", "--faults", "many"], "calm"),
        (["simulate", "helpdesk", "--event-log", "log.csv"], "clock"),
        (
            ["connections", "add", "acme", "--tenant", "a", "--connector", "helpdesk", "--set", "x"],
            "KEY=VALUE",
        ),
        (["connections", "apply", "missing.yaml"], "missing.yaml"),
        (["audit", "verify", "no-such-folder"], "no folder"),
        (["audit", "verify", "--head", "123"], "--head takes 64"),
        (["audit", "verify", "--key", "x" * 20], "--key takes 16"),
        (["deliveries", "list", "--status", "lost"], "pending, sent, failed, withdrawn"),
        (["accept", "1", "--by", " ", "--reason", "because"], "must say something"),
        (["certify", "x", "--accept-deletions", "--by", "Ann"], "needs --by and --reason"),
        (["certify", "x", "--by", "Ann"], "go with --accept-deletions"),
        (["certify", "x", "--from", "2025-03-01"], "go together"),
        (["connections", "remove", "x", "--purge", "--by", "Ann"], "needs --by NAME and --reason"),
        (["connections", "remove", "x", "--yes"], "go with --purge"),
        (["restore", "missing.backup"], "missing.backup"),
        (["restore", "README.md", "--sha256", "abc"], "--sha256 takes 64"),
    ],
)
def test_wrong_usage_is_told_in_words(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_an_error_is_one_json_document_where_one_is_asked_for(capsys):
    code, out, err = run(capsys, "connections", "apply", "missing.yaml", "--json")
    assert code == 2
    assert "missing.yaml" in json.loads(out)["error"]
    assert "missing.yaml" in err


@pytest.mark.parametrize(
    ("name", "value"), [("BRIDGE_ATTEMPTS", "none"), ("BRIDGE_HOME", "/srv/100%safe/%s")]
)
def test_a_setting_that_cannot_be_is_named(name, value, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    code, _, err = run(capsys, "status")
    assert code == 2
    assert name in err


def test_a_home_that_leads_to_one_that_cannot_be_is_none(capsys, monkeypatch, tmp_path):
    (tmp_path / "100%safe").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "100%safe")
    monkeypatch.setenv("BRIDGE_HOME", str(tmp_path / "home"))
    code, _, err = run(capsys, "status")
    assert code == 2
    assert "100%safe has a % in it" in " ".join(err.split())


def test_an_unreachable_database_is_told_without_its_password(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRIDGE_DATABASE_URL", "postgresql://ann:hunter2hunter2@127.0.0.1:1/bridge")
    code, out, err = run(capsys, "status", "--json")
    assert code == 1
    assert "127.0.0.1:1" in json.loads(out)["error"]
    assert "hunter2" not in out + err


def test_an_error_nobody_expected_shows_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.settings.load", lambda: 1 / 0)
    code, out, err = run(capsys, "status", "--json")
    assert code == 1
    assert "not expected" in err
    assert "Traceback" not in out + err


def test_status_answers_with_one_document(capsys, workspace):
    code, out, _ = run(capsys, "status", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["home"] == str(workspace.home.root)
    assert document["database_url"] == workspace.database.libpq(show_secrets=False)
    assert document["connections"] == []
    assert {"journal", "landing", "audit", "reports", "dagster_home", "logs"} <= document.keys()


def test_help_imports_nothing_heavy():
    code = "import sys, bridge_pipeline.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & {
        "dagster",
        "dlt",
        "sqlalchemy",
        "pyarrow",
        "pandas",
        "pydantic",
        "great_expectations",
    }


def test_a_command_ends_with_its_code_once_what_it_left_to_the_end_is_done_and_all_is_written():
    program = """
import atexit, sys
from bridge_pipeline import cli

class Costly:
    def __del__(self):
        print("freed", file=sys.stderr)

def execute(arguments):
    kept.append(Costly())
    atexit.register(lambda: sys.stdout.write("left to the end\\n"))
    sys.stdout.write("x" * 100_000 + "\\n")
    return 7

kept = []
cli.execute = execute
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout == "x" * 100_000 + "\nleft to the end\n"
    assert done.stderr == ""


PRINTING = """
from bridge_pipeline import cli
from bridge_pipeline.commands.answers import print_json

def execute(arguments):
    for _ in range(100):
        print_json({"much": "x" * 10_000})
    return 7

cli.execute = execute
cli.main()
"""


def test_who_has_read_enough_of_an_answer_changes_neither_its_code_nor_is_complained_of():
    source, sink = os.pipe()
    os.close(source)
    command = [sys.executable, "-c", PRINTING]
    done = subprocess.run(command, stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    os.close(sink)
    assert (done.returncode, done.stderr) == (7, "")


def test_where_nobody_can_be_answered_the_code_is_that_of_the_work():
    command = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, PRINTING]
    assert subprocess.run(command, check=False).returncode == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_an_answer_that_cannot_be_written_is_a_failure_without_traceback():
    command = [sys.executable, "-m", "bridge_pipeline.cli", "connections", "list", "--nonsense", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such option: --nonsense")
    assert "Traceback" not in done.stderr


def test_a_pipe_that_breaks_in_the_work_is_told(capsys, monkeypatch):
    def load():
        raise BrokenPipeError(errno.EPIPE, "the server has gone")

    monkeypatch.setattr("bridge_pipeline.settings.load", load)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    code, out, err = run(capsys, "status", "--json")
    assert code == 1
    assert "the server has gone" in json.loads(out)["error"]
    assert "the server has gone" in err
