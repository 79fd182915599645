"""Fields of the payload: what is counted of them, and when they count as new, vanished or retyped."""

import json

import pytest

from bridge_pipeline import connectors, redaction
from bridge_pipeline.database.ledger import Inventory
from bridge_pipeline.steps import drift
from bridge_pipeline.steps.inventory import FieldInventory, look_at, sampled
from tests.integration.desk import ticket

STREAM = connectors.get("helpdesk").stream("tickets")
TIME = "2024-03-01T12:00:00Z"


def taken(records: list) -> Inventory:
    inventory = FieldInventory(STREAM.keys)
    inventory.add(look_at(records, 0, STREAM.keys))
    return inventory.found


def tickets(number: int, without: str | None = None, **more) -> list[dict]:
    made = [ticket(n, TIME, **more) for n in range(1, number + 1)]
    return [{key: value for key, value in each.items() if key != without} for each in made]


def changes(before: list[dict], now: list[dict], declared: bool) -> dict[str, str]:
    wanted = drift.declared(STREAM) if declared else drift.others(STREAM)
    found = drift.compare(taken(now), [(taken(before), False)], wanted)
    return {change.field: change.change for change in found.changes}


@pytest.mark.parametrize(
    ("now", "of_columns", "of_others"),
    [
        (tickets(20), {}, {}),
        (tickets(1), {}, {}),
        (tickets(20, without="subject"), {"/subject": "vanished, subject is read from it"}, {}),
        (tickets(2, without="subject"), {"/subject": "vanished, subject is read from it"}, {}),
        (tickets(20, subject=None), {}, {}),
        ([*tickets(20, without="subject"), ticket(99, TIME)], {}, {}),
        (
            tickets(20, subject={"en": "fire"}),
            {"/subject": "another type in most records"},
            {"/subject/en": "new"},
        ),
        (
            [*tickets(12), *tickets(8, subject={"en": "fire"})],
            {},
            {"/subject/en": "new"},
        ),
        (tickets(20, without="cf_building"), {}, {"/cf_building": "vanished"}),
        (tickets(1, subject={"en": "fire"}), {}, {"/subject/en": "new"}),
        (tickets(20, cf_floor=3), {}, {"/cf_floor": "new"}),
        (tickets(20, cf_room={"id": 1, "name": "x"}), {}, {"/cf_room": "new"}),
        (tickets(20, cf_building="Other"), {}, {"/cf_building": "another type"}),
        (
            tickets(20, cf_building={"id": "374", "name": "x"}),
            {},
            {"/cf_building/id": "another type", "/cf_building/_type": "vanished"},
        ),
        (tickets(20, cf_building={"id": 374, "_type": 370}), {}, {"/cf_building/name": "vanished"}),
    ],
)  # fmt: skip
def test_what_changed_is_named(now, of_columns, of_others):
    before = tickets(30)
    assert changes(before, now, declared=True) == of_columns
    assert changes(before, now, declared=False) == of_others


def test_a_rare_field_that_is_missing_from_a_small_batch_has_not_vanished():
    before = [*tickets(95, without="cf_building"), *tickets(5)]
    assert changes(before, tickets(10, without="cf_building"), declared=False) == {}
    before = [*tickets(95, without="subject"), *tickets(5)]
    assert changes(before, tickets(10, without="subject"), declared=True) == {}


@pytest.mark.parametrize(("objects", "vanished"), [(1, {}), (3, {"/cf_building/name": "vanished"})])
def test_what_lies_below_a_field_is_missed_in_those_that_have_one(objects, vanished):
    before = [*tickets(95, without="cf_building"), *tickets(5)]
    now = [*tickets(95, without="cf_building"), *tickets(objects, cf_building={"id": 374, "_type": 370})]
    assert changes(before, now, declared=False) == vanished


def test_what_was_never_filled_had_no_type_to_change():
    before = tickets(30, cf_building=None)
    assert "/cf_building" not in changes(before, tickets(20), declared=False)


def test_an_accepted_batch_is_the_new_shape():
    gone = taken(tickets(20, without="subject"))
    full, wanted = taken(tickets(30)), drift.declared(STREAM)
    assert drift.compare(gone, [(gone, False), (full, False)], wanted).changes
    assert not drift.compare(gone, [(gone, True), (full, False)], wanted).changes


def test_what_is_usual_is_said_by_the_latest_batches_with_enough_records():
    without, full = taken(tickets(200, without="cf_building")), taken(tickets(300))
    now, others = taken(tickets(20, without="cf_building")), drift.others(STREAM)
    assert drift.compare(now, [(without, False), (full, False)], others).changes == []
    few = taken(tickets(20, without="cf_building"))
    assert drift.compare(now, [(few, False), (full, False)], others).changes


def test_no_value_and_no_key_that_may_be_one_is_kept():
    redaction.remember("s3cret_token_value")
    keys = ["ann@example.com", "0431 555 0100", "x4915112345678", "Ann Lee", "\ud800", "a\x00b", "k" * 80]
    hostile = dict.fromkeys(keys, "Wilhelmina") | {"s3cret_token_value": 1, "cf": {"ann@example.com": 1}}
    kept = taken(tickets(3, **hostile)).fields
    text = json.dumps(kept)
    assert {"/*", "/cf/*", "/subject"} <= kept.keys()
    for forbidden in (*keys, "Wilhelmina", "s3cret", "Printer"):
        assert forbidden not in text


def test_the_inventory_is_bounded_and_every_record_is_looked_at_for_declared_keys():
    wide = {f"cf_{letter}{n}": n for letter in "abc" for n in range(1_000)}
    found = taken([{"id": 1, "updated_at": TIME} | wide])
    assert len(found.fields) == 2_000
    many = [{"id": n} for n in range(1_000)] + [{"id": 1_000, "subject": "at last"}]
    found = taken(many)
    assert (found.records, "subject" in found.absent, "status" in found.absent) == (1_001, False, True)
    assert found.sampled < 400
    deep = taken([{"id": 1, "cf": {"a": {"b": {"c": 1}}}}, 7])
    assert {"/cf", "/cf/a", "/cf/a/b"} == {pointer for pointer in deep.fields if pointer.startswith("/cf")}
    assert deep.records == 1


def test_what_pages_have_is_added_up():
    inventory = FieldInventory(STREAM.keys)
    for records in ([{"id": 1}, {"id": "2"}], [{"id": 3, "subject": "x"}]):
        inventory.add(look_at(records, 0, STREAM.keys))
    assert inventory.found.fields == {"/id": {"number": 2, "string": 1}, "/subject": {"string": 1}}


@pytest.mark.parametrize("size", [1, 7, 64, 100, 1_000])
def test_the_sample_is_the_same_however_a_listing_is_cut_into_pages(size):
    found = [
        start + place for start in range(0, 1_000, size) for place in sampled(start, min(size, 1_000 - start))
    ]
    assert found == [*range(300), *range(320, 1_000, 64)]
