"""The whole flow over Freshservice: days stay whole, details are asked for once, what is gone is found."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from bridge_pipeline.connectors.freshservice.simulator.world import ERASED, LIVE, SPAM, TRASHED
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.certify import Acceptance, certify
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.held import LandedRecords
from bridge_pipeline.steps.load import load
from tests.connectors.freshservice.account import ENTITIES, KEY, Account, asked, serving, truth
from tests.integration import flow

NAME = "acme-freshservice"
DAYS = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 4)}
WEEK = Window.of_days(date(2025, 1, 1), date(2025, 1, 4))
DAY = Window.of_days(date(2025, 1, 2), date(2025, 1, 2))


@pytest.fixture
def account(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")
    account = Account(tickets=40, users=20, accounts=6, **DAYS)
    with serving(account) as simulator:
        connect(workspace, simulator.url)
        account.simulator = simulator
        yield account


def connect(workspace: Workspace, url: str, exclude: tuple[str, ...] = ()) -> ConnectionRecord:
    config = {"base_url": url, "allow_private": True}
    record = ConnectionRecord(NAME, "acme", "freshservice", config, entities=ENTITIES, exclude=exclude)
    box = workspace.sealer.seal(KEY, record.tenant, record.name, "api_key")
    registry.put(workspace.database.engine, record, {"api_key": box})
    return record


def process(workspace, window, *entities):
    return flow.process(workspace, window, entities, NAME)


def take(workspace, window):
    """Tickets extracted, checked and loaded: the batch, and what became of its records."""
    batch = flow.land(workspace, "tickets", window, NAME)
    return batch, load(workspace, batch)


def held(workspace, entity):
    """Id and change mark of what a table holds, placeholders and deleted rows left out."""
    found = flow.table(workspace, entity, NAME)
    return {
        key: row["updated_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        for key, row in found.items()
        if not row["placeholder"] and row["deleted_at"] is None
    }


@pytest.mark.long
def test_the_flow_brings_the_truth_and_doing_it_again_changes_nothing(workspace, account):
    done = process(workspace, WEEK, *ENTITIES)
    for entity in ENTITIES:
        assert held(workspace, entity) == truth(account.simulator, entity, WEEK)
        batch, update, _ = done[entity]
        terms = ("loaded", "unchanged", "superseded")
        sums = sum(update.total(term) for term in terms) + batch.outside + batch.quarantined + batch.duplicate
        assert batch.fetched == sums
    before = {entity: flow.table(workspace, entity, NAME) for entity in ENTITIES}
    again = process(workspace, WEEK, *ENTITIES)
    assert {entity: flow.table(workspace, entity, NAME) for entity in ENTITIES} == before
    assert all(update.total("loaded") == 0 for _, update, _ in again.values())


@pytest.mark.slow
def test_a_day_read_again_is_whole_and_costs_the_details_of_what_changed(workspace, account):
    first, _ = take(workspace, DAY)
    before = len(account.simulator.requests)
    again, result = take(workspace, DAY)
    assert again.landed == first.landed == len(truth(account.simulator, "tickets", DAY)) > 1
    assert (again.proof["details_asked"], again.proof["details_kept"]) == (0, first.landed)
    assert again.requests == len(account.simulator.requests) - before == 2
    assert result.loaded == 0
    changed = next(row for row in account.world.rows["tickets"] if str(row.id) in held(workspace, "tickets"))
    account.changing.touch(changed, int(DAY.end.timestamp()) - 5)
    before = len(account.simulator.requests)
    third, result = take(workspace, DAY)
    assert (third.landed, result.loaded, third.proof["details_asked"]) == (first.landed, 1, 1)
    assert held(workspace, "tickets") == truth(account.simulator, "tickets", DAY)
    paths = [line["path"].split("?")[0] for line in account.simulator.requests[before:]]
    assert [path for path in paths if "/tickets/" in path] == [f"/api/v2/tickets/{changed.id}"]


def test_details_are_asked_for_again_where_those_that_landed_are_damaged(workspace, account):
    first, _ = take(workspace, DAY)
    before = flow.table(workspace, "tickets", NAME)
    (file,) = first.files
    path = landing_of(workspace, first) / file["path"]
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("raw")
    spoilt = [raw.replace('"tags":[', '"tags":["DAMAGED",') for raw in rows["raw"].to_pylist()]
    pq.write_table(rows.set_column(place, rows.schema.field(place), [spoilt]), path)
    again, _ = take(workspace, DAY)
    assert (again.proof["details_asked"], again.proof["details_kept"]) == (first.landed, 0)
    assert flow.table(workspace, "tickets", NAME) == before


def test_what_is_held_is_what_the_table_shows(workspace, account):
    take(workspace, DAY)
    record = registry.get(workspace.database.engine, NAME)
    shown = {key: datetime.fromisoformat(mark) for key, mark in held(workspace, "tickets").items()}
    landed = LandedRecords(workspace, record)
    found = landed.newest("tickets", shown | {"999": None, "x'y": DAY.start})
    assert set(found) == set(shown)
    assert all(f'"id":{key},'.encode() in raw for key, raw in found.items())
    assert landed.newest("tickets", {}) == {}
    # What the source shows in another version is not of use.
    changed, *same = shown
    later = shown | {changed: shown[changed] + timedelta(seconds=1)}
    assert set(landed.newest("tickets", later)) == set(same)
    assert LandedRecords(workspace, replace(record, exclude=("tickets.tags",))).newest("tickets", shown) == {}
    # Neither another connection nor files that are gone bring anything.
    assert LandedRecords(workspace, replace(record, name="other")).newest("tickets", shown) == {}
    for path in workspace.home.landing.rglob("*.parquet"):
        path.unlink()
    assert landed.newest("tickets", shown) == {}


def test_looking_up_page_after_page_reads_what_is_held_once(workspace, account, monkeypatch):
    take(workspace, DAY)
    shown = {key: datetime.fromisoformat(mark) for key, mark in held(workspace, "tickets").items()}
    (path,) = workspace.home.landing_of("acme", NAME, "tickets").rglob("tickets.*.parquet")
    landed_rows = pq.read_table(path)
    pq.write_table(landed_rows, path, row_group_size=2)
    sealed = (
        "update bridge.batches set files = jsonb_set(files, '{0,sha256}', to_jsonb(cast(:sha256 as text)))"
    )
    flow.execute(workspace, sealed, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    groups, listed = -(-len(landed_rows) // 2), landed_rows.column("id").to_pylist()
    read = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, number, columns: read.append((number, *columns)) or group(file, number, columns=columns),
    )
    landed = LandedRecords(workspace, registry.get(workspace.database.engine, NAME))
    assert len(listed) == len(shown)
    assert groups > 1
    assert landed.newest("tickets", {key: mark + timedelta(seconds=1) for key, mark in shown.items()}) == {}
    assert read == []
    for key in listed:
        assert set(landed.newest("tickets", {key: shown[key]})) == {key}
    assert len(read) == len(set(read)) == 2 * groups


@pytest.mark.long
def test_a_certificate_finds_what_was_trashed_called_spam_erased_and_merged(workspace, account):
    load(workspace, flow.land(workspace, "users", WEEK, NAME))
    take(workspace, WEEK)
    tickets = [row for row in account.world.rows["tickets"] if row.state == LIVE][:3]
    for row, state in zip(tickets, (TRASHED, SPAM, ERASED), strict=True):
        row.state = state
    merged, promoted = [row for row in account.world.rows["people"] if not row.agent][:2]
    merged.state, promoted.agent = ERASED, True
    certificate = certify(workspace, NAME, entities=("users", "tickets"))
    gone = {
        entity: {key for key, row in flow.table(workspace, entity, NAME).items() if row["deleted_at"]}
        for entity in ("users", "tickets")
    }
    assert gone == {"users": {str(merged.id)}, "tickets": {str(row.id) for row in tickets}}
    assert certificate.verdict == "complete"
    assert len(asked(account.simulator, f"/requesters/{merged.id}")) == 1
    tickets[0].state = LIVE
    account.changing.touch(tickets[0], int(WEEK.end.timestamp()) - 5)
    take(workspace, WEEK)
    assert str(tickets[0].id) in held(workspace, "tickets")


@pytest.mark.slow
def test_a_day_without_tickets_does_not_look_as_if_fields_had_vanished(workspace, account):
    for row in account.world.rows["tickets"]:
        if DAY.start.timestamp() <= row.updated < DAY.end.timestamp():
            row.updated -= 86_400
    before, after = (Window.of_days(day, day) for day in (date(2025, 1, 1), date(2025, 1, 2)))
    full, _ = take(workspace, before)
    quiet, _ = take(workspace, after)
    assert (quiet.landed, quiet.proof["details_asked"], quiet.verdict) == (0, 0, "passed")
    assert quiet.proof["listed"] > 10
    assert full.landed > 10


@pytest.mark.slow
def test_what_was_said_where_no_ticket_is_left_is_gone_once_that_is_accepted(workspace, account):
    process(workspace, WEEK, "comments")
    assert held(workspace, "comments")
    for row in account.world.rows["tickets"]:
        row.state = TRASHED
    certificate = certify(workspace, NAME, entities=("comments",))
    assert (certificate.verdict, bool(held(workspace, "comments"))) == ("blocked", True)
    acceptance = Acceptance("Ann Lee", "the desk was emptied")
    assert certify(workspace, NAME, entities=("comments",), acceptance=acceptance).verdict == "complete"
    assert held(workspace, "comments") == {}
