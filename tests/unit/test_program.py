"""Whether two landings were made by the same program."""

import shutil
import time
from pathlib import Path

import orjson
import psutil
import pytest

from bridge_pipeline.steps import program
from bridge_pipeline.steps.program import fingerprint_of

LATER = time.time() + 86_400


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "parse.py").write_text("A = 1")
    (tmp_path / "naming.py").write_text("B = 2")
    return tmp_path


def known(sources, connector="helpdesk", began=LATER):
    return fingerprint_of(connector, sources, sources.stat(), began)


def test_the_same_program_is_known_again(sources):
    assert known(sources) == known(sources)


def test_whatever_may_parse_otherwise_is_another_program(sources, monkeypatch):
    found = [known(sources), known(sources, "zendesk")]
    (sources / "steps" / "parse.py").write_text("A = 3")
    found.append(known(sources))
    (sources / "steps" / "parse.py").rename(sources / "parse.py")
    found.append(known(sources))
    monkeypatch.setattr(orjson, "__version__", "0")
    found.append(known(sources))
    assert len(set(found)) == 5
    assert None not in found


def test_a_program_that_changed_since_it_was_imported_is_not_known(sources):
    began = max(path.stat().st_ctime for path in sources.rglob("*.py"))
    assert known(sources, began=began) is None
    assert known(sources, began=began + 1)


def test_a_program_that_changes_while_its_process_runs_is_known_no_longer(tmp_path, monkeypatch):
    """A process that is started then, to parse, parses by what it has become."""
    source = tmp_path / "parse.py"
    source.write_text("A = 1")
    monkeypatch.setattr(program, "_FOLDER", tmp_path)
    monkeypatch.setattr(program, "_ORIGIN", tmp_path.stat())
    monkeypatch.setattr(program, "_BEGAN", source.stat().st_ctime + 1e-6)
    assert program.fingerprint("helpdesk")
    while source.stat().st_ctime < program._BEGAN:
        source.write_text("A = 2")
    assert program.fingerprint("helpdesk") is None


def test_what_was_imported_before_this_module_counts_too():
    assert psutil.Process().create_time() >= program._BEGAN


def test_another_program_of_the_same_name_is_not_known_though_it_is_older(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parse.py").write_text(f"A = '{name}'")
    link = tmp_path / "current"
    link.symlink_to("first")
    origin = link.stat()
    assert fingerprint_of("helpdesk", link, origin, LATER)
    link.unlink()
    link.symlink_to("second")
    assert fingerprint_of("helpdesk", link, origin, LATER) is None


def test_a_program_that_is_gone_is_not_known(sources):
    origin = sources.stat()
    shutil.rmtree(sources)
    assert fingerprint_of("helpdesk", sources, origin, LATER) is None


def test_a_program_without_sources_is_not_known(tmp_path):
    assert known(tmp_path) is None
