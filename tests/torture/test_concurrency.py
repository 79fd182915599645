"""Two to six processes at once, over the same and over other connections: nothing is lost or doubled.

One that must not go on says so: it has met what another has landed and not yet checked. By themselves they
seldom meet: most of their time they wait for each other to extract. So in each round the first at a drawn
point stays there until another comes, or waits for it.
"""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.heads import known_heads
from bridge_pipeline.steps.load import BatchBlocked
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.tables import bring_up_to_date
from resources.dbt import target_folder
from tests.integration import flow
from tests.integration.flow import NAME, connect, day, digest, ended, process, rows, start
from tests.torture.attack import half_done, unsound, unverified
from tests.torture.figures import PARTS, RUNS, SEED, figures_of, runs_of
from tests.torture.scenarios import ENTITIES, FIRST, LAST, SCENARIOS, WINDOW, certified

OTHER = "acme-second"
REFUSED = 5


def backfill(workspace: Workspace) -> None:
    """Both days as one window."""
    process(workspace, WINDOW, ENTITIES)


def first_day(workspace: Workspace) -> None:
    """What the schedule asks for."""
    process(workspace, day(FIRST), ENTITIES)


def last_day(workspace: Workspace) -> None:
    """Another partition of the same connection."""
    process(workspace, day(LAST), ENTITIES)


def other_connection(workspace: Workspace) -> None:
    """The same desk, as another connection of the tenant: one chain, one quota."""
    process(workspace, WINDOW, ENTITIES, OTHER)


def load_again(workspace: Workspace) -> None:
    """The tables alone."""
    for entity in ENTITIES:
        bring_up_to_date(workspace, NAME, entity, WINDOW)


def certificate(workspace: Workspace) -> None:
    """A certificate of all that is there."""
    certify(workspace, NAME)


def report(workspace: Workspace) -> None:
    """The report of the last day."""
    write_report(workspace, NAME, WINDOW.last_day)


def dbt_build(workspace: Workspace) -> None:
    """The models, while their tables are written."""
    places = ("--project-dir", PROJECT_ROOT / "dbt_project", "--profiles-dir", PROJECT_ROOT / "dbt_project")
    with exclusively(workspace, "dbt"), target_folder(workspace) as target:
        subprocess.run(
            [Path(sys.executable).with_name("dbt"), "--quiet", "run", *places, "--target-path", target],
            check=True,
            stdout=subprocess.DEVNULL,
        )


ACTORS: dict[str, Callable[[Workspace], None]] = {
    each.__name__: each
    for each in (backfill, first_day, last_day, other_connection, load_again, certificate, report, dbt_build)
}
# Where they meet: behind each lock, and where a lock is soon to end.
POINTS = (
    "extract.locked",
    "journal.kept",
    "extract.committing",
    "check.rows_taken_out",
    "load.locked",
    "load.committing",
    "audit.locked",
    "chain.signed",
    "audit.committing",
    "chain.syncing",
    "chain.head",
    "report.workbook",
)
# Every round has one of these, so that there is something to meet.
WRITERS = ("backfill", "first_day", "last_day")


def act(meeting: flow.Meeting, name: str) -> None:
    """One of the processes of a round; ends with `REFUSED` if it says why it must not go on."""
    workspace = open_workspace()
    try:
        with meeting.joined(workspace):
            ACTORS[name](workspace)
    except BatchBlocked as error:
        # The loser says which batch it met and what to do.
        raise SystemExit(REFUSED if "is pending; materialise its checks" in str(error) else 1) from error


def drawn(draw: random.Random) -> list[str]:
    """Who takes part in a round."""
    others = [name for name in ACTORS if name != "dbt_build"]
    actors = [draw.choice(WRITERS), *draw.choices(others, k=draw.randint(1, 5))]
    if draw.random() < 0.1:
        actors[-1] = "dbt_build"
    return actors


def doubled(workspace: Workspace) -> list[str]:
    """Extractions that shared a journal."""
    query = """
    select connection, entity, window_start, window_end, extraction, count(*) as times
    from bridge.batches where kind in ('window', 'whole') group by 1, 2, 3, 4, 5 having count(*) > 1
    """
    return [f"two extractions wrote into one journal: {row}" for row in rows(workspace, query)]


def behind(workspace: Workspace) -> list[str]:
    """Where the chain's file, or the head that is kept beside it, is not that of the database."""
    heads = known_heads(workspace.settings, workspace.home).get("acme", [])
    ends = {(head.sequence, head.sha256) for head in heads}
    return unverified(workspace) + [f"not one head: {heads}"] * (len(heads) != 2 or len(ends) != 1)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_processes_at_once_lose_and_double_nothing(target, part):
    scenario = SCENARIOS["flow"]
    with figures_of("concurrency", str(part)) as figures:
        figures.facts = {"processes": 0, "refused": 0}
        expected = alone(target)
        for number in runs_of(part, max(2, RUNS // 5)):
            draw = random.Random(f"concurrency {SEED} {number}")
            actors, point = drawn(draw), draw.choice(POINTS)
            with target.copy(scenario) as workspace:
                connect(workspace, target.desk, OTHER, entities=ENTITIES)
                meeting = flow.Meeting(len(actors), point)
                codes = [ended(each, 300) for each in [start(act, meeting, name) for name in actors]]
                figures.facts["processes"] += len(actors)
                figures.facts["refused"] += codes.count(REFUSED)
                wrong = [
                    f"{name} ended with {code}"
                    for name, code in zip(actors, codes, strict=True)
                    if code not in (0, REFUSED)
                ]
                wrong += half_done(workspace) + doubled(workspace) + behind(workspace)
                wrong += settled(workspace, expected)
            figures.add(
                f"{each} (round {number} of seed {SEED}: {', '.join(actors)} at {point})" for each in wrong
            )


def alone(target) -> object:
    """What both connections come to, one after the other."""
    with target.copy(SCENARIOS["flow"]) as workspace:
        connect(workspace, target.desk, OTHER, entities=ENTITIES)
        return came_to(workspace)


def settled(workspace: Workspace, expected: object) -> list[str]:
    """What differs once everybody has had a plain run."""
    wrong = [] if came_to(workspace) == expected else ["the result differs from that of runs one by one"]
    return wrong + unsound(workspace)


def came_to(workspace: Workspace) -> object:
    """The result of both connections after a plain run of each."""
    for name in (NAME, OTHER):
        process(workspace, WINDOW, ENTITIES, name)
    return [certified(workspace)[0], digest(workspace, OTHER)]  # type: ignore[index]
