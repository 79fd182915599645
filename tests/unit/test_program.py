"""Whether two landings were made by the same program."""

import time
from pathlib import Path

import orjson
import pytest

from bridge_pipeline.steps.program import fingerprint_of

LATER = time.time() + 86_400


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "parse.py").write_text("A = 1")
    (tmp_path / "naming.py").write_text("B = 2")
    return tmp_path


def test_the_same_program_is_known_again(sources):
    assert fingerprint_of("helpdesk", sources, LATER) == fingerprint_of("helpdesk", sources, LATER)


def test_whatever_may_parse_otherwise_is_another_program(sources, monkeypatch):
    found = [fingerprint_of("helpdesk", sources, LATER), fingerprint_of("zendesk", sources, LATER)]
    (sources / "steps" / "parse.py").write_text("A = 3")
    found.append(fingerprint_of("helpdesk", sources, LATER))
    (sources / "steps" / "parse.py").rename(sources / "parse.py")
    found.append(fingerprint_of("helpdesk", sources, LATER))
    monkeypatch.setattr(orjson, "__version__", "0")
    found.append(fingerprint_of("helpdesk", sources, LATER))
    assert len(set(found)) == 5
    assert None not in found


def test_a_program_that_changed_since_it_was_imported_is_not_known(sources):
    began = max(path.stat().st_ctime for path in sources.rglob("*.py"))
    assert fingerprint_of("helpdesk", sources, began) is None
    assert fingerprint_of("helpdesk", sources, began + 1)


def test_a_program_without_sources_is_not_known(tmp_path):
    assert fingerprint_of("helpdesk", tmp_path, LATER) is None
