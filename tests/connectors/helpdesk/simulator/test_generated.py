"""A made-up desk is as varied, as broken and as restless as its options say."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import httpx
import pytest

from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from bridge_pipeline.connectors.helpdesk.simulator.malformed import MALFORMED
from tests.connectors.helpdesk.simulator.reader import Record, ask, every, ids, instant, poke, raw_pages

# --- Records ---


def test_the_three_time_formats_are_mixed_in_one_answer(tickets: list[Record]) -> None:
    endings = {ticket["updated_at"][19:] for ticket in tickets[:30]}
    assert {"Z", "+02:00"} <= endings
    assert any(ending.startswith(".") and ending.endswith("Z") for ending in endings)


def test_changes_lie_in_the_days_asked_for_and_on_both_sides_of_each_midnight(
    tickets: list[Record],
) -> None:
    changed = [instant(ticket["updated_at"]) for ticket in tickets]
    assert {moment.date() for moment in changed} == {
        date(2025, 1, 1) + timedelta(days=number) for number in range(60)
    }
    assert all(instant(t["created_at"]) <= instant(t["updated_at"]) for t in tickets)
    for day in range(2, 60):
        midnight = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=day)
        assert midnight in changed
        assert any(timedelta() < midnight - moment <= timedelta(seconds=1) for moment in changed)


def test_tickets_are_as_varied_as_recorded_ones(tickets: list[Record]) -> None:
    assert {t["assignee"] and t["assignee"]["_type"] for t in tickets} == {"User", "Role", None}
    assert all(t["created_by_email"] for t in tickets if t["created_by_user"] is None)
    assert {type(t["related_module"]["_type"]) for t in tickets if t["related_module"]} == {int}
    assert any(t["tenant_a_remedy_password"] for t in tickets)
    assert {t["status"]["closed"] for t in tickets} == {True, False}


@pytest.mark.slow
def test_some_tickets_refer_to_records_that_no_listing_holds() -> None:
    with serving(SimulatorOptions(tickets=12_000, faults="calm", page_size=1_000)) as simulator:
        known = {entity: set(ids(every(simulator, entity))) for entity in ("accounts", "users")}
        unlisted = simulator.truth()["unlisted"]
        found: Counter[int] = Counter()
        for ticket in every(simulator, "tickets", select="account,customer_user"):
            for entity, field in (("accounts", "account"), ("users", "customer_user")):
                if (identity := ticket[field]["id"]) not in known[entity]:
                    answer = ask(simulator, f"/api/v1/{entity}/{identity}.json")
                    found[answer.status_code] += 1
                    assert (answer.status_code == 200) == (str(identity) in unlisted[entity])
    assert 12 <= found[200] <= 80
    assert 1 <= found[404] <= 12


# --- Malformed records ---


def test_every_kind_of_malformed_record_is_served_and_known() -> None:
    with serving(SimulatorOptions(tickets=4_000, faults="typical")) as simulator:
        truth = simulator.truth()
        body = b"".join(raw_pages(simulator, "tickets"))
    reasons = Counter(entry["reason"] for entry in truth["malformed"])
    assert set(reasons) == set(MALFORMED)
    assert 36 <= sum(reasons.values()) <= 40
    for fragment in (
        b'{"_type":"Ticket","type"',
        b'"id":null',
        b'"id":"T-',
        b'"id":-5',
        b'"id":1180591620717',
        b"\\u0000after",
        b"half a pair: \\ud83d",
        b":NaN",
        b":1e400",
        b'"2025-02-30T10:00:00Z"',
        b'"yesterday, about noon"',
        b'"updated_at":null',
        b"[" * 1_500,
        b'"subject":12345',
        b'"Ticket 50',
        b'[["id",50',
    ):
        assert fragment in body, fragment
    for entry in truth["malformed"]:
        assert str(entry["id"]) not in truth["entities"][entry["entity"]]


def test_undated_records_are_found_by_no_window_but_by_the_whole_listing() -> None:
    with serving(SimulatorOptions(tickets=4_000, faults="typical", page_size=1_000)) as simulator:
        windowed = b"".join(raw_pages(simulator, "tickets", filter="updated_at > '1990-01-01'"))
        whole = b"".join(raw_pages(simulator, "tickets"))
    for fragment in (b'"updated_at":null', b'"yesterday, about noon"'):
        assert fragment in whole
        assert fragment not in windowed


# --- Change while read ---


def test_a_listing_that_changes_while_it_is_read_loses_rows_for_who_reads_it_once() -> None:
    with serving(SimulatorOptions(tickets=4_000, faults="typical", page_size=20)) as simulator:
        before = set(simulator.truth()["entities"]["tickets"])
        seen = b"".join(raw_pages(simulator, "tickets", select="id"))
        truth = simulator.truth()
        changed = {i: v for i, v in truth["entities"]["tickets"].items() if v["updated_at"] > "2025-03-02"}
        lost = {identity for identity in before if f'"id":{identity},'.encode() not in seen}
    assert lost
    assert changed
    assert not lost & set(changed)


def test_a_changed_ticket_carries_the_desks_own_time_and_a_new_version() -> None:
    with serving(SimulatorOptions(tickets=300, faults="typical")) as simulator:
        before = simulator.truth()["entities"]["tickets"]
        for number in range(200):
            poke(simulator, f"/api/v1/tickets/{500_001 + number}.json")
        truth = simulator.truth()
        changed = {i: v for i, v in truth["entities"]["tickets"].items() if v != before.get(i)}
        assert len(changed) >= 8
        assert all(
            instant(value["updated_at"]) > datetime(2025, 3, 2, tzinfo=UTC) for value in changed.values()
        )
        assert max(value["updated_at"] for value in changed.values()) <= truth["clock"]


def test_deleted_tickets_are_gone_for_good_and_new_ones_appear() -> None:
    with serving(SimulatorOptions(tickets=500, faults="hostile")) as simulator:
        for number in range(420):
            poke(simulator, "/api/v1/accounts.json", page=number)
        truth = simulator.truth()
        deleted = truth["deleted"]["tickets"]
        assert deleted
        assert not set(deleted) & set(truth["entities"]["tickets"])
        assert max(map(int, truth["entities"]["tickets"])) > 500_500
        answers = [poke(simulator, f"/api/v1/tickets/{next(iter(deleted))}.json") for _ in range(3)]
    assert 404 in {answer.status_code for answer in answers if isinstance(answer, httpx.Response)}
