"""A process is killed, failed, cut off or out of disk at each named point, and a plain re-run heals it."""

import itertools
import os
from collections.abc import Iterator

import pytest

from bridge_pipeline.database.faults import ACTIONS
from bridge_pipeline.failpoints import POINTS
from tests.torture.attack import Case, Range
from tests.torture.figures import FULL, figures_of
from tests.torture.scenarios import SCENARIOS, Scenario

# Which cases to repeat, as a failed campaign names them.
ONLY = os.environ.get("BRIDGE_TORTURE_CASES", "")
# Points that cases in a row can share a workspace: each re-run comes further than the one before. Where
# one that was cut off has done its work, there is nothing left to pass for the next.
IN_A_ROW = {"flow": 12, "certify": 4, "rotate": 8, "replay": 4}
# What the tests of every machine do to the flow, a row of each action; `make torture` does everything.
ALWAYS = {
    "kill": (
        "journal.kept",
        "land.written",
        "extract.batch_listed",
        "check.verdict_kept",
        "load.statement",
        "load.listed",
        "load.committed",
        "audit.renaming",
        "audit.files_listed",
        "chain.line",
        "report.written",
    ),
    "error": ("extract.validated", "check.judged", "load.counted", "audit.manifest_written", "chain.syncing"),
    "full": ("file.written", "land.syncing", "copy.part", "audit.exported", "audit.syncing"),
    "disconnect": ("extract.rejected_kept", "check.committing", "load.listed", "audit.days_listed"),
}


def own_points(target: Range, scenario: Scenario) -> list[str]:
    """The points that no scenario before this one passes, in the order in which it passes them."""
    before = set[str]()
    for each in SCENARIOS.values():
        _, passed = target.undisturbed(each)
        if each is scenario:
            return [point for point in passed if point not in before]
        before |= passed.keys()
    raise AssertionError("unknown scenario")


def in_rows(cases: list[Case], length: int) -> Iterator[list[Case]]:
    """Cases that attack one workspace after the other."""
    found = iter(cases)
    while row := list(itertools.islice(found, length)):
        yield row


def struck(target: Range, row: list[Case]) -> list[str]:
    """What is wrong after a row of cases, with what repeats it."""
    # Before, not amid the attack: it takes a workspace of its own.
    target.undisturbed(SCENARIOS[row[0].scenario])
    wrong = target.attacked(row)
    repeat = f"BRIDGE_TORTURE_CASES={','.join(map(str, row))}"
    return [f"{each} ({repeat})" for each in wrong]


@pytest.mark.parametrize("action", ALWAYS)
def test_the_flow_heals_where_it_is_cut_off_first(target, action):
    row = [Case("flow", point, action) for point in ALWAYS[action]]
    assert struck(target, row) == []


def test_a_new_sealing_key_is_whole_wherever_its_making_is_killed(target):
    _, passed = target.undisturbed(SCENARIOS["seal"])
    row = [Case("seal", point, "kill") for point in passed]
    assert struck(target, row) == []


@pytest.mark.slow
def test_the_flow_killed_at_any_point_heals_by_a_plain_re_run(target):
    points = own_points(target, SCENARIOS["flow"])
    wrong = []
    for row in in_rows([Case("flow", point, "kill") for point in points], IN_A_ROW["flow"]):
        wrong += struck(target, row)
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
def test_every_declared_point_is_passed_by_a_scenario(target):
    passed = {point for each in SCENARIOS.values() for point in target.undisturbed(each)[1]}
    assert sorted(set(POINTS) - passed) == []
    assert sorted(passed - set(POINTS)) == []


def chosen(target: Range, action: str, scenario: Scenario) -> Iterator[list[Case]]:
    """The cases of an action: each point at its first passing, and at a middle one and the last.

    In the short form only kills come later than at the first, and first passings share workspaces.
    """
    _, passed = target.undisturbed(scenario)
    points = own_points(target, scenario)
    first = [Case(scenario.name, point, action) for point in points]
    yield from in_rows(first, 1 if FULL else IN_A_ROW.get(scenario.name, 1))
    for point in points if FULL or action == "kill" else ():
        for hit in sorted({(passed[point] + 1) // 2, passed[point]} - {1}):
            yield [Case(scenario.name, point, action, hit)]


@pytest.mark.long
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_point_heals_by_a_plain_re_run(target, name, action):
    with figures_of("failpoints", f"{name}-{action}") as figures:
        for row in chosen(target, action, SCENARIOS[name]):
            figures.add(struck(target, row), len(row))


@pytest.mark.skipif(not ONLY, reason="repeats the cases of BRIDGE_TORTURE_CASES")
def test_repeated_cases(target):
    row = [Case.read(each) for each in ONLY.split(",")]
    assert struck(target, row) == []
