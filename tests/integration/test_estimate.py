"""What a run would cost is estimated from the ledger, and the limits are shown, without asking the source."""

import json

import pytest
import sqlalchemy as sa

from bridge_pipeline import cli
from bridge_pipeline.steps.extract import extract
from tests.integration.desk import TOKEN, Answer, ticket, user
from tests.integration.flow import NAME, connect, day, process, rows

DAYS = [f"2025-03-{number:02d}" for number in range(1, 8)]


@pytest.fixture
def busy(workspace, desk):
    """A desk with ten tickets a day, limited, of which some days were extracted."""
    connect(workspace, desk, requests_per_minute=10_000)
    desk.records["tickets"] = [
        ticket(100 * number + n, f"{when}T10:{n:02d}:00Z")
        for number, when in enumerate(DAYS, 1)
        for n in range(10)
    ]
    desk.records["users"] = [user(1, f"{DAYS[0]}T10:00:00Z")]
    for when in DAYS[:2]:
        extract(workspace, NAME, "tickets", day(when))
    extract(workspace, NAME, "tickets", day(DAYS[0], DAYS[4]))
    return desk


def told(capsys, *arguments):
    code = cli.execute([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def dry_run(capsys, first, last, *more):
    return told(capsys, "run", NAME, "--from", first, "--to", last, "--dry-run", *more)


def test_without_history_nothing_is_pretended(workspace, desk, capsys):
    code, found = dry_run(capsys, DAYS[0], DAYS[1], "--entities", "tickets")
    assert code == 0
    assert not found["complete"]
    (entity,) = found["entities"]
    assert (entity["calls"], entity["records"]) == (None, None)
    assert entity["rests_on"].startswith("nothing")


def test_of_what_was_never_read_the_source_is_asked_for_its_count(busy, capsys):
    """The desk counts as the vendor's envelope does where it is asked to; others have no count."""
    asked = len(busy.requests)
    busy.before = lambda request: Answer(200, b'{"page":1,"more":false,"count":4321,"data":[{"id":1}]}')
    _, found = dry_run(capsys, DAYS[0], DAYS[0], "--entities", "users,tickets")
    users, tickets = found["entities"]
    assert users["records"] == 4321
    assert 0 < users["calls"] <= 4321
    assert "count of all users" in users["rests_on"]
    assert tickets["rests_on"].startswith("3 earlier")
    assert [request.entity for request in busy.requests[asked:]] == ["users"]


@pytest.mark.slow
def test_a_source_that_cannot_be_asked_leaves_the_estimate_incomplete(busy, capsys):
    busy.before = lambda request: Answer(403, b"{}")
    code, found = dry_run(capsys, DAYS[0], DAYS[0], "--entities", "users,tickets")
    assert (code, found["complete"]) == (0, False)
    assert [each["calls"] is None for each in found["entities"]] == [True, False]


@pytest.mark.slow
def test_calls_follow_the_records_of_earlier_extractions(busy, workspace, capsys):
    _, one = dry_run(capsys, DAYS[5], DAYS[5], "--entities", "tickets")
    _, whole = dry_run(capsys, DAYS[0], DAYS[6], "--entities", "tickets")
    assert (one["entities"][0]["records"], whole["entities"][0]["records"]) == (10, 70)
    before = len(busy.requests)
    extract(workspace, NAME, "tickets", day(DAYS[0], DAYS[6]))
    needed = len(busy.requests) - before
    assert one["calls"] < whole["calls"]
    assert abs(whole["calls"] - needed) <= max(2, 0.3 * needed)
    assert whole["complete"]
    assert whole["entities"][0]["rests_on"].startswith("3 earlier extractions")


def test_an_estimate_from_history_asks_the_source_nothing_and_changes_nothing(busy, workspace, capsys):
    tables = ("batches", "quota_buckets", "quota_uses", "quota_waiters", "quota_connections")

    def state():
        return [rows(workspace, f"select * from bridge.{table} order by 1, 2") for table in tables]

    asked, before = len(busy.requests), state()
    dry_run(capsys, DAYS[0], DAYS[6], "--entities", "tickets")
    assert len(busy.requests) == asked
    assert state() == before
    assert not workspace.home.dagster.joinpath("dagster.yaml").exists()


@pytest.mark.parametrize(("limit", "windows"), [(1_000, 0), (5, 1)])
def test_time_is_what_the_limits_make_of_it(limit, windows, busy, workspace, capsys):
    connect(workspace, busy, requests_per_minute=limit, quota_reserve=0.0)
    with workspace.database.engine.begin() as connection:
        # Nothing was asked lately.
        connection.execute(sa.text("delete from bridge.quota_uses"))
        connection.execute(sa.text("update bridge.quota_buckets set units = :n, used = 0"), {"n": limit})
    _, found = dry_run(capsys, DAYS[0], DAYS[4], "--entities", "tickets")
    (bucket,) = found["buckets"]
    assert (bucket["units"], bucket["limit"], bucket["left"]) == (found["calls"], limit, limit)
    expected = 60 * -(-max(0, found["calls"] - limit) // limit)
    assert bucket["seconds"] == expected
    assert (expected > 0) == bool(windows)
    assert found["seconds"] >= expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("2025-03-02", "2025-03-01"), "lies before"),
        (("2025-03-01", "2999-03-01"), "not over yet"),
        (("2025-03-01", "2025-03-01", "--entities", "assets"), "has no assets"),
    ],
)
def test_what_cannot_be_run_cannot_be_estimated(arguments, said, desk, capsys):
    first, last, *more = arguments
    assert cli.execute(["run", NAME, "--from", first, "--to", last, "--dry-run", *more]) == 2
    assert said in capsys.readouterr().err


def test_people_read_an_estimate_too(busy, workspace, capsys):
    assert cli.execute(["run", NAME, "--from", DAYS[0], "--to", DAYS[4], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # Nothing is known of accounts.
    assert "at least" in shown
    assert "3 earlier extractions" in shown


@pytest.mark.slow
def test_status_shows_what_is_left_to_those_who_share_a_credential(busy, workspace, capsys):
    connect(workspace, busy, "umbrella-desk", "umbrella", requests_per_minute=10_000)
    extract(workspace, "umbrella-desk", "tickets", day(DAYS[0]))
    code, found = told(capsys, "status")
    (quota,) = found["quota"]
    (bucket,) = quota["buckets"]
    assert code == 0
    assert quota["connections"] == [NAME, "umbrella-desk"]
    assert (bucket["bucket"], bucket["limit"], bucket["seconds"]) == ("requests", 10_000, 60)
    assert (bucket["used"], bucket["left"]) == (len(busy.requests), 8_000 - len(busy.requests))
    credential = rows(workspace, "select credential from bridge.quota_buckets")[0]["credential"]
    cli.execute(["status"])
    assert "umbrella-desk" in (shown := capsys.readouterr().out)
    assert credential not in shown + str(found)
    assert TOKEN not in shown + str(found)


@pytest.mark.slow
def test_a_batch_knows_what_it_took_and_how_long_it_waited(workspace, desk):
    done = process(workspace, day(DAYS[0]))
    for batch, _, _ in done.values():
        assert batch.quota["requests"] == {"used": batch.requests, "waited": 0.0}
