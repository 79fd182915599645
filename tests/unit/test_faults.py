"""Failpoints act only in a home that was made for them, at the passing that was named."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_pipeline import failpoints
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.faults import ALLOWED, VARIABLE, Failed, InvalidFailpoint, arm_from_environment
from bridge_pipeline.naming import Home

NOWHERE = Database.of("postgresql://localhost:1/nowhere")


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.listen(None)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / ALLOWED).touch()
    return Home(tmp_path)


def test_a_home_that_was_not_made_for_them_ignores_them(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "file.written=error")
    assert arm_from_environment(Home(tmp_path), NOWHERE) is None
    failpoints.reach("file.written")


def test_without_the_variable_nothing_is_armed(home, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert arm_from_environment(home, NOWHERE) is None
    assert failpoints.listener() is None


@pytest.mark.parametrize(("plan", "passings"), [("file.written=error", 1), ("file.written=error@3", 3)])
def test_it_acts_at_the_passing_that_was_named_and_not_again(home, monkeypatch, plan, passings):
    monkeypatch.setenv(VARIABLE, plan)
    arm_from_environment(home, NOWHERE)
    for _ in range(passings - 1):
        failpoints.reach("file.written")
        failpoints.reach("file.renaming")
    # Another workspace of the process does not begin to count anew.
    arm_from_environment(home, NOWHERE)
    with pytest.raises(Failed, match=r"failpoint file\.written"):
        failpoints.reach("file.written")
    failpoints.reach("file.written")


def test_a_full_disk_is_an_error_of_the_operating_system(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "file.written=full")
    arm_from_environment(home, NOWHERE)
    with pytest.raises(OSError, match="No space left") as caught:
        failpoints.reach("file.written")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "plan", ["nowhere=kill", "file.written=explode", "file.written", "file.written=kill@0"]
)
def test_what_names_no_point_or_action_is_refused(home, monkeypatch, plan):
    monkeypatch.setenv(VARIABLE, plan)
    with pytest.raises(InvalidFailpoint, match="POINT=ACTION@HIT"):
        arm_from_environment(home, NOWHERE)
