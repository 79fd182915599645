"""A replayed log is the log as it stood at the clock, dirt included."""

import csv
import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from tests.connectors.helpdesk.simulator.reader import Record, every, instant, poke, raw_pages

SHARED = Path(os.environ.get("BRIDGE_SHARED") or Path(__file__).parents[5] / "shared")
LOG = SHARED / "data/servicenow-incident-log/incident_event_log_2016_q1.csv.gz"


def log_time(text: str) -> datetime | None:
    return None if text == "?" else datetime.strptime(text, "%d/%m/%Y %H:%M").replace(tzinfo=UTC)


def past(text: str, clock: datetime) -> str | None:
    moment = log_time(text)
    return None if moment is None or moment > clock else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def expected_ticket(row: dict[str, str], clock: datetime) -> Record:
    created = log_time(row["sys_created_at"]) or log_time(row["opened_at"])
    assert created
    return {
        "id": int(row["number"].removeprefix("INC")),
        "status": row["incident_state"],
        "closed": row["incident_state"] == "Closed",
        "priority": row["priority"],
        "account": None if row["location"] == "?" else row["location"],
        "caller": None if row["caller_id"] == "?" else row["caller_id"],
        "assignee": None if row["assigned_to"] == "?" else row["assigned_to"],
        "groups": [] if row["assignment_group"] == "?" else [row["assignment_group"]],
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "updated_at": past(row["sys_updated_at"], clock),
        "resolved_at": past(row["resolved_at"], clock),
        "closed_at": past(row["closed_at"], clock),
        "cmdb_ci": row["cmdb_ci"],
        "sys_mod_count": row["sys_mod_count"],
    }


def served_ticket(ticket: Record) -> Record:
    name = lambda stub: stub and stub["name"]  # noqa: E731
    return {
        "id": ticket["id"],
        "status": ticket["status"]["name"],
        "closed": ticket["status"]["closed"],
        "priority": ticket["priority"]["name"],
        "account": name(ticket["account"]),
        "caller": name(ticket["customer_user"]),
        "assignee": name(ticket["assignee"]),
        "groups": [name(role) for role in ticket["assignee_roles"]],
    } | {
        key: ticket[key]
        for key in (
            "created_at",
            "updated_at",
            "resolved_at",
            "closed_at",
            "cmdb_ci",
            "sys_mod_count",
        )
    }


def rows_before(file: Path, clock: datetime) -> list[dict[str, str]]:
    with gzip.open(file, "rt") as lines:
        return [row for row in csv.DictReader(lines) if (log_time(row["sys_updated_at"]) or clock) < clock]


@pytest.mark.slow
@pytest.mark.skipif(not LOG.exists(), reason=f"the incident log is not at {LOG}; set BRIDGE_SHARED")
@pytest.mark.parametrize("clock", [datetime(2016, 3, 7, 9, 30), datetime(2016, 4, 20, tzinfo=UTC)])
def test_a_replayed_log_is_the_log_as_it_stood_at_the_clock(clock: datetime) -> None:
    moment = clock.replace(tzinfo=UTC)
    rows = rows_before(LOG, moment)
    newest = {}
    for row in sorted(rows, key=lambda r: (log_time(r["sys_updated_at"]), int(r["sys_mod_count"]))):
        newest[row["number"]] = row
    first_seen: dict[str, datetime] = {}
    for row in rows:
        for column in ("caller_id", "assigned_to", "location"):
            if row[column] != "?":
                seen = log_time(row["sys_updated_at"])
                assert seen
                first_seen[row[column]] = min(seen, first_seen.get(row[column], seen))

    options = SimulatorOptions(event_log=LOG, clock=clock, faults="calm", page_size=1_000)
    with serving(options) as simulator:
        select = "*,status.*,priority.name,account.name,customer_user.name,assignee.name,assignee_roles.name"
        served = [served_ticket(ticket) for ticket in every(simulator, "tickets", select=select)]
        people = every(simulator, "users") + every(simulator, "accounts")
        truth = simulator.truth()

    assert served == [expected_ticket(newest[number], moment) for number in sorted(newest)]
    assert {person["name"]: instant(person["updated_at"]) for person in people} == first_seen
    assert set(truth["entities"]["tickets"]) == {str(ticket["id"]) for ticket in served}
    assert truth["clock"] == moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert truth["malformed"] == []


COLUMNS = (
    *("number", "incident_state", "sys_mod_count", "caller_id", "opened_by", "opened_at", "sys_created_at"),
    *("sys_updated_at", "location", "category", "subcategory", "u_symptom", "priority", "assignment_group"),
    *("assigned_to", "closed_code", "resolved_by", "resolved_at", "closed_at"),
)


def log_of(*rows: dict[str, str]) -> str:
    """A log in which all that is not named is unknown."""
    usual = dict.fromkeys(COLUMNS, "?") | {"number": "INC0000045", "sys_mod_count": "0"}
    usual |= {"opened_at": "1/3/2016 08:00", "closed_code": "code 1", "closed_at": "2/3/2016 10:00"}
    return "\n".join([",".join(COLUMNS), *(",".join((usual | row).values()) for row in rows)])


def test_dirt_in_a_log_stays_and_equal_minutes_are_ordered_by_count(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    same = {"sys_updated_at": "1/3/2016 09:05"}
    file.write_text(
        log_of(
            {"incident_state": "New", "sys_updated_at": "1/3/2016 09:00", "caller_id": "Caller 7"},
            {"incident_state": "-100", "sys_mod_count": "10", "location": "Location 3"} | same,
            {"incident_state": "Active", "sys_mod_count": "9", "priority": "9 - Odd"} | same,
            {"number": "INC0000046", "sys_updated_at": "2/3/2016 10:00"},
        )
    )
    options = SimulatorOptions(event_log=file, clock=datetime(2016, 3, 2, 10), faults="hostile")
    with serving(options) as simulator:
        (body,) = raw_pages(simulator, "tickets", select="*,status.name")
        (ticket,) = json.loads(body)["data"]
        assert list(simulator.truth()["entities"]["users"]) == ["1000007"]
    assert (ticket["id"], ticket["status"]["name"]) == (45, "-100")
    assert ticket["created_at"] == "2016-03-01T08:00:00Z"
    assert (ticket["account"]["id"], ticket["customer_user"], ticket["u_symptom"]) == (3, None, "?")
    # The outcome is known at the very minute of the clock, not before.
    assert (ticket["closed_at"], ticket["closed_code"]) == ("2016-03-02T10:00:00Z", "code 1")
    assert ticket["resolved_at"] is None


def test_a_replayed_desk_does_not_change_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log.csv.gz"
    file.write_bytes(gzip.compress(log_of({"sys_updated_at": "1/3/2016 09:00"}).encode()))
    options = SimulatorOptions(event_log=file, clock=datetime(2016, 3, 2), faults="typical")
    with serving(options) as simulator:
        before = simulator.truth()
        for number in range(60):
            poke(simulator, "/api/v1/tickets.json", page=number)
        assert simulator.truth() == before


def test_offsets_cannot_be_mistaken_in_a_replay_which_has_none(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    numbers = [{"number": f"INC000004{n}", "sys_updated_at": "1/3/2016 09:00"} for n in range(3)]
    file.write_text(log_of(*numbers))
    clock = datetime(2016, 3, 2)
    with serving(
        SimulatorOptions(event_log=file, clock=clock, faults="calm", filter="local_time")
    ) as simulator:
        assert len(every(simulator, "tickets", filter="updated_at < '2016-03-01T09:01:00Z'")) == 3
