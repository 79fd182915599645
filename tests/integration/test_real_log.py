"""The real incident log goes through the whole pipeline: day by day, then as one range."""

import csv
import gzip
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge_pipeline.automation.runs import run_days
from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from bridge_pipeline.database import ledger
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.model import Window
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.audit import audit_window
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.tables import bring_up_to_date
from tests.integration.flow import ENTITIES, NAME, connect

SHARED = Path(os.environ.get("BRIDGE_SHARED", PROJECT_ROOT.parent / "shared"))
LOG = SHARED / "data" / "servicenow-incident-log" / "incident_event_log_2016_q1.csv.gz"

pytestmark = pytest.mark.skipif(not LOG.is_file(), reason=f"the real incident log is not at {LOG}")

FIRST_CLOCK = datetime(2016, 3, 4, tzinfo=UTC)
SECOND_CLOCK = datetime(2016, 3, 20, tzinfo=UTC)
FIRST_DAY = date(2016, 2, 29)


def incidents_at(clock: datetime) -> dict[str, tuple[datetime, str]]:
    """The newest version of every incident before `clock`, read from the file alone: time and state."""
    newest: dict[str, tuple[datetime, int, str]] = {}
    with gzip.open(LOG, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            moment = datetime.strptime(row["sys_updated_at"], "%d/%m/%Y %H:%M").replace(tzinfo=UTC)
            version = (moment, int(row["sys_mod_count"]), row["incident_state"])
            number = str(int(row["number"].removeprefix("INC")))
            if moment < clock and (number not in newest or version[:2] >= newest[number][:2]):
                newest[number] = version
    return {number: (moment, state) for number, (moment, _, state) in newest.items()}


def tickets(workspace: Workspace) -> dict[str, tuple[datetime, str]]:
    query = sa.text("select id, updated_at, status from desk.tickets where not placeholder")
    with workspace.database.engine.connect() as connection:
        return {row.id: (row.updated_at, row.status) for row in connection.execute(query)}


def warned(workspace: Workspace) -> set[str]:
    query = sa.text("select distinct name from bridge.checks where not passed and severity = 'warn'")
    with workspace.database.engine.connect() as connection:
        return set(connection.execute(query).scalars())


@pytest.fixture
def opened(workspace: Workspace) -> Workspace:
    """The workspace with Dagster's database, which a run needs."""
    return open_workspace(workspace.settings)


def day_by_day(opened: Workspace, first: date) -> None:
    """Extracts the days from `first` to the first clock, each by itself, and looks at what arrived."""
    with serving(SimulatorOptions(event_log=LOG, clock=FIRST_CLOCK, faults="calm", page_size=500)) as desk:
        connect(opened, desk.url)
        for number in range((FIRST_CLOCK.date() - first).days):
            day = first + timedelta(days=number)
            window = Window.of_days(day, day)
            for entity in ENTITIES:
                assert check(opened, extract(opened, NAME, entity, window).id).batch.verdict == "passed"
                bring_up_to_date(opened, NAME, entity, window)
                audit_window(opened, NAME, entity, window)
    since = datetime(first.year, first.month, first.day, tzinfo=UTC)
    expected = {number: each for number, each in incidents_at(FIRST_CLOCK).items() if each[0] >= since}
    assert tickets(opened) == expected


def test_every_incident_of_a_day_arrives_with_its_newest_version(opened: Workspace) -> None:
    day_by_day(opened, FIRST_CLOCK.date() - timedelta(days=1))


@pytest.mark.long
def test_every_incident_arrives_with_its_newest_version_at_two_clock_times(opened: Workspace) -> None:
    day_by_day(opened, FIRST_DAY)
    with serving(
        SimulatorOptions(event_log=LOG, clock=SECOND_CLOCK, faults="typical", page_size=500)
    ) as desk:
        connect(opened, desk.url)
        outcome = run_days(opened, NAME, FIRST_CLOCK.date(), SECOND_CLOCK.date() - timedelta(days=1))
    assert outcome.success, outcome.failures
    assert tickets(opened) == incidents_at(SECOND_CLOCK)

    # The log's own states and priorities and its unknown locations are warned of by name; they block nothing.
    assert {"status_known", "priority_known", "account_id_present"} <= warned(opened)
    with opened.database.engine.connect() as connection:
        days = ledger.complete_days(connection, NAME, ENTITIES, opened.settings.settle_lag)
    assert days == set(Window.of_days(FIRST_DAY, SECOND_CLOCK.date() - timedelta(days=1)).days())
