"""Verdicts: what blocks, who may let it through, and that nothing reads what is blocked."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline import connectors
from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.audit import audit_window
from bridge_pipeline.steps.check import check, check_newest
from bridge_pipeline.steps.extract import extract, landing_of
from bridge_pipeline.steps.load import BatchBlocked, EquationBroken, load
from bridge_pipeline.steps.tables import bring_up_to_date
from tests.integration.desk import Desk, ticket, user
from tests.integration.flow import (
    NAME,
    arrived,
    beside,
    beside_at,
    connect,
    day,
    execute,
    land,
    process,
    quarantined,
    rows,
    table,
)

DAY = day("2024-03-01")
NOON = "2024-03-01T12:00:00Z"


@pytest.fixture
def desk(workspace: Workspace, desk: Desk) -> Desk:
    """The desk, connected for tickets alone: no parents are looked up."""
    connect(workspace, desk, entities=("tickets",))
    return desk


def fill(desk: Desk, good: int, bad: int, entity: str = "tickets") -> None:
    """Records of which some have no id."""
    make = {"tickets": ticket, "users": user}[entity]
    desk.page_size = 60
    desk.records[entity] = [
        *(make(number, NOON) for number in range(1, good + 1)),
        *(json.dumps({"name": f"no id {number}", "updated_at": NOON}).encode() for number in range(bad)),
    ]


def accept(workspace, batch: Batch) -> Batch:
    with workspace.database.engine.begin() as connection:
        return ledger.accept(connection, batch.id, "Grace Hopper", "looked at all of them")


def results(workspace, batch: Batch) -> dict[str, ledger.CheckResult]:
    with workspace.database.engine.connect() as connection:
        return {result.name: result for result in ledger.checks_of(connection, batch.id)}


def refused(workspace, entity: str = "tickets") -> list[str]:
    """What refuses to read the newest batch, all of it tried by hand."""
    told = []
    for step in (bring_up_to_date, audit_window):
        with pytest.raises(BatchBlocked) as caught:
            step(workspace, NAME, entity, DAY)
        told.append(str(caught.value))
    return told


@pytest.mark.parametrize(
    ("good", "bad", "verdict"),
    [(95, 5, "passed"), (94, 6, "blocked"), (50, 49, "passed"), (0, 100, "blocked"), (0, 0, "passed")],
)
def test_a_share_of_rejected_records_above_the_limit_blocks_larger_batches(
    workspace, desk, good, bad, verdict
):
    fill(desk, good, bad)
    batch = land(workspace, "tickets", DAY)
    assert (batch.verdict, batch.quarantined, batch.landed) == (verdict, bad, good)
    assert len(quarantined(workspace, "tickets")) == bad
    assert results(workspace, batch)["quarantined_share"].passed == (verdict == "passed")


def bad_ticket(number: int, changed: str) -> bytes:
    """A ticket that cannot be accepted, but says when it changed."""
    return b'{"id": "no number %d", "updated_at": "%s"}' % (number, changed.encode())


@pytest.mark.parametrize("neighbours", [0, 200])
def test_good_records_of_other_days_do_not_hide_a_share_of_rejected_ones(workspace, desk, neighbours):
    desk.filtering = "ignored"
    desk.records["tickets"] = [
        *(ticket(number, NOON) for number in range(1, 95)),
        *(bad_ticket(number, NOON) for number in range(6)),
        *(ticket(1_000 + number, "2024-02-10T12:00:00Z") for number in range(neighbours)),
    ]
    assert land(workspace, "tickets", DAY).verdict == "blocked"


def test_rejected_records_of_other_days_do_not_block_a_good_day(workspace, desk):
    desk.filtering = "ignored"
    desk.records["tickets"] = [
        *(ticket(number, NOON) for number in range(1, 101)),
        *(bad_ticket(number, "2024-02-10T12:00:00Z") for number in range(30)),
    ]
    batch = land(workspace, "tickets", DAY)
    assert (batch.verdict, batch.quarantined, batch.landed) == ("passed", 30, 100)


def test_a_blocked_batch_reaches_nothing_until_it_is_accepted(workspace, desk):
    fill(desk, 94, 6)
    batch = land(workspace, "tickets", DAY)
    for told in refused(workspace):
        assert f"bridge accept {batch.id} --by NAME" in told
    with pytest.raises(BatchBlocked):
        load(workspace, batch)
    assert table(workspace, "tickets") == {}
    assert list(workspace.home.audit.rglob("*.csv")) == []

    accepted = accept(workspace, batch)
    assert (accepted.verdict, accepted.accepted_by) == ("accepted", "Grace Hopper")
    assert accepted.accept_reason == "looked at all of them"
    assert check(workspace, batch.id).batch.verdict == "accepted"
    assert len(bring_up_to_date(workspace, NAME, "tickets", DAY).loads) == 1
    (file,) = audit_window(workspace, NAME, "tickets", DAY)
    assert (len(arrived(workspace, "tickets")), file.rows) == (94, 94)


def test_only_a_blocked_batch_can_be_accepted(workspace, desk):
    fill(desk, 3, 0)
    with pytest.raises(ValueError, match="is passed; only a blocked batch"):
        accept(workspace, land(workspace, "tickets", DAY))


def test_a_batch_whose_checks_have_not_run_is_not_read(workspace, desk):
    fill(desk, 3, 0)
    extract(workspace, NAME, "tickets", DAY)
    assert all("materialise its checks" in told for told in refused(workspace))
    verdict = check_newest(workspace, NAME, "tickets", DAY)
    assert verdict is not None
    assert verdict.batch.verdict == "passed"
    assert len(bring_up_to_date(workspace, NAME, "tickets", DAY).loads) == 1


@pytest.mark.slow
def test_a_blocked_batch_keeps_what_was_loaded_and_a_good_extraction_takes_its_place(workspace, desk):
    fill(desk, 95, 0)
    process(workspace, DAY, ["tickets"])
    fill(desk, 96, 7)
    blocked = land(workspace, "tickets", DAY)
    refused(workspace)
    assert len(arrived(workspace, "tickets")) == 95
    fill(desk, 97, 0)
    batch, update, (file,) = process(workspace, DAY, ["tickets"])["tickets"]
    assert [result.batch.id for result in update.loads] == [batch.id]
    assert (len(arrived(workspace, "tickets")), file.version, file.rows) == (97, 2, 97)
    assert not rows(workspace, "select 1 from bridge.loads where batch_id = :id", id=blocked.id)


@pytest.mark.slow
def test_parents_fetched_by_id_do_not_hide_that_a_batch_is_blocked(workspace, desk):
    connect(workspace, desk, entities=("users", "tickets"))
    fill(desk, 94, 6, "users")
    land(workspace, "users", DAY)
    desk.records["tickets"] = [ticket(1, NOON)]
    process(workspace, DAY, ["tickets"])
    assert arrived(workspace, "users") == {"1"}
    refused(workspace, "users")


@pytest.mark.slow
def test_warnings_never_block_and_their_examples_are_masked(workspace, desk):
    secret = "Wilhelmina Murray"
    desk.records["users"] = [
        user(number, NOON, name=secret * 40, email=f"{secret} at example {number}", status="on holiday")
        for number in range(1, 121)
    ]
    desk.records["tickets"] = [
        ticket(
            1, NOON, subject=secret * 100, created_at="2024-03-05T00:00:00Z", priority={"name": "Whenever"}
        )
    ]
    for entity, failing in (
        ("users", {"name_length", "email_shape", "status_known"}),
        ("tickets", {"subject_length", "created_at_before_updated_at", "priority_known"}),
    ):
        batch = land(workspace, entity, DAY)
        found = results(workspace, batch)
        assert batch.verdict == "passed"
        assert {name for name, result in found.items() if not result.passed} == failing
        assert all(
            found[name].severity == "warn" and found[name].unexpected == batch.landed for name in failing
        )
        assert all(1 <= len(found[name].examples) <= 10 for name in failing)
        assert secret not in repr(found)
    assert found["priority_known"].examples == [{"id": "1", "priority": "Whenever"}]
    assert found["subject_length"].examples == [
        {"id": "1", "subject": f"W… ({100 * len(secret)} characters)"}
    ]


NO_FIRE = Expectation(
    "no_fire", "quarantine", "Nothing burns.", "ExpectColumnValuesToNotMatchRegex", ("subject",),
    {"column": "subject", "regex": "(?i)fire"},
)  # fmt: skip
BURNING = (
    b'{ "id" : 7,"subject":"Fire \\u0041larm 1.50", "cost": 1.50 ,  "updated_at":"2024-03-01T12:00:00Z" }'
)


@pytest.fixture
def no_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helpdesk connector with an expectation that takes rows out."""
    changed = dataclasses.replace(connectors.get("helpdesk"), expectations={"tickets": (NO_FIRE,)})
    monkeypatch.setitem(connectors.all_connectors(), "helpdesk", changed)


@pytest.mark.slow
def test_rows_that_an_expectation_rejects_go_to_quarantine_with_their_exact_bytes(workspace, desk, no_fire):
    desk.page_size = 2
    calm = [ticket(number, NOON, subject="Printer hums") for number in range(1, 7)]
    desk.records["tickets"] = [*calm[:3], BURNING, *calm[3:]]
    batch, update, (file,) = process(workspace, DAY, ["tickets"])["tickets"]
    assert (batch.verdict, batch.landed, batch.rejected, batch.quarantined) == ("passed", 7, 1, 0)
    assert quarantined(workspace, "tickets") == {BURNING: "no_fire"}
    (result,) = update.loads
    assert batch.landed - batch.rejected == result.loaded + result.unchanged + result.superseded
    assert arrived(workspace, "tickets") == {"1", "2", "3", "4", "5", "6"}
    assert (file.rows, b"Fire" in file.path.read_bytes()) == (6, False)

    check(workspace, batch.id)
    (row,) = rows(workspace, "select times_seen, record_id from bridge.quarantine")
    assert row == {"times_seen": 1, "record_id": "7"}
    process(workspace, DAY, ["tickets"])
    assert rows(workspace, "select times_seen from bridge.quarantine") == [{"times_seen": 2}]


@pytest.mark.slow
def test_two_that_check_a_batch_at_once_take_its_rows_out_once(workspace, desk, no_fire):
    desk.records["tickets"] = [ticket(1, NOON, subject="Printer hums"), BURNING]
    batch = extract(workspace, NAME, "tickets", DAY)
    with beside_at("check.rows_taken_out", workspace, check, workspace, batch.id) as others:
        first = check(workspace, batch.id)
    assert others[0].result().batch == first.batch
    assert first.batch.rejected == 1
    assert rows(workspace, "select times_seen from bridge.quarantine") == [{"times_seen": 1}]


def test_rows_that_expectations_reject_count_towards_the_share(workspace, desk, no_fire):
    desk.page_size = 60
    desk.records["tickets"] = [
        ticket(number, NOON, subject="fire" if number <= 6 else "calm") for number in range(1, 101)
    ]
    assert land(workspace, "tickets", DAY).verdict == "blocked"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("tamper", [_flip, _cut, Path.unlink])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_landing_file_that_was_changed_is_found(workspace, desk, no_fire, tamper: Any, accepted):
    fill(desk, 5, 0)
    batch = extract(workspace, NAME, "tickets", DAY)
    tamper(landing_of(workspace, batch) / batch.files[0]["path"])
    verdict = check(workspace, batch.id)
    failed = {result.name for result in verdict.results if not result.passed}
    assert (verdict.batch.verdict, failed) == ("blocked", {"landing_intact"})
    refused(workspace)
    if accepted:
        accept(workspace, batch)
        with pytest.raises(EquationBroken):
            bring_up_to_date(workspace, NAME, "tickets", DAY)
        assert table(workspace, "tickets") == {}


def test_a_batch_that_does_not_add_up_is_blocked(workspace, desk):
    fill(desk, 5, 0)
    batch = land(workspace, "tickets", DAY)
    execute(workspace, "update bridge.batches set fetched = fetched + 1")
    verdict = check(workspace, batch.id)
    assert verdict.batch.verdict == "blocked"
    assert [result.name for result in verdict.results if not result.passed] == ["equation"]


def test_accepting_a_batch_loads_and_audits_it(workspace: Workspace, desk: Desk) -> None:
    fill(desk, good=100, bad=30)
    blocked = land(workspace, "tickets", DAY)
    assert blocked.verdict == "blocked"
    accept_batch(workspace, blocked.id, "Grace Hopper", "the source knows of them")
    with workspace.database.engine.connect() as connection:
        assert ledger.rows_in_table(connection, NAME, "tickets") == 100
        current = ledger.current_audit_file(connection, NAME, "tickets", DAY.start.date())
    assert current is not None
    assert current.rows == 100


def test_results_of_a_stage_that_two_store_at_once_are_those_of_the_last(workspace, desk):
    batch = land(workspace, "tickets", DAY)
    engine = workspace.database.engine
    with engine.connect() as connection:
        (first, *_) = ledger.checks_of(connection, batch.id)
    found = [dataclasses.replace(first, name="of a stage")]

    def store():
        with engine.begin() as connection:
            ledger.record_stage(connection, batch.id, "tables", found)

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            ledger.record_stage(connection, batch.id, "tables", found)
            second = beside(threads, workspace, store)
        second.result()
