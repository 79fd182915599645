"""What loading does to the rows: counts, links, deletions, and values that must survive."""

from datetime import UTC, datetime
from typing import Any

import pytest

from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.load import load
from bridge_pipeline.steps.tables import bring_up_to_date
from tests.integration.desk import Desk, account, ticket, user
from tests.integration.flow import NAME, arrived, connect, day, execute, land, process, rows, table

DAY = "2024-03-01"
NOON = "2024-03-01T12:00:00Z"


@pytest.fixture
def desk(workspace: Workspace, desk: Desk) -> Desk:
    """The desk, connected for tickets alone: no parents are looked up."""
    connect(workspace, desk, entities=("tickets",))
    return desk


def person(number: int, kind: str = "User") -> dict[str, Any]:
    return {"id": number, "_type": kind}


def links(workspace) -> set[tuple[str, str, str]]:
    """All rows of ticket_users as ticket, user, part."""
    found = rows(workspace, "select ticket_id, user_id, part from desk.ticket_users")
    return {(row["ticket_id"], row["user_id"], row["part"]) for row in found}


def test_every_landed_row_is_loaded_unchanged_or_superseded(workspace, desk):
    desk.records["accounts"] = [account(1, NOON)]
    desk.records["users"] = [user(1, NOON)]
    process(workspace, day(DAY), ["accounts", "users"])
    desk.records["tickets"] = [ticket(number, NOON) for number in (1, 2, 3)]
    first = land(workspace, "tickets", day(DAY))
    assert vars(load(workspace, first)) == {
        "batch": first, "loaded": 3, "unchanged": 0, "superseded": 0, "placeholders": 0
    }  # fmt: skip

    desk.records["tickets"] = [
        ticket(1, NOON),
        ticket(2, "2024-03-01T13:00:00Z", account={"id": 8}, assignee=person(9)),
        ticket(3, "2024-03-01T11:00:00Z"),
        ticket(4, NOON),
    ]
    second = land(workspace, "tickets", day(DAY))
    result = load(workspace, second)
    assert (result.loaded, result.unchanged, result.superseded, result.placeholders) == (2, 1, 1, 2)
    assert table(workspace, "tickets")["3"]["updated_at"] == datetime(2024, 3, 1, 12, tzinfo=UTC)
    (kept,) = rows(workspace, "select loaded, unchanged, superseded, placeholders from bridge.loads where batch_id = :id", id=second.id)  # noqa: E501 # fmt: skip
    assert kept == {"loaded": 2, "unchanged": 1, "superseded": 1, "placeholders": 2}
    assert {row["batch_id"] for row in table(workspace, "tickets").values()} == {first.id, second.id}


def test_versions_seen_while_a_listing_changes_are_counted_and_the_newest_is_loaded(workspace, desk):
    desk.page_size = 2
    desk.records["tickets"] = [ticket(number, NOON) for number in (1, 2, 3, 4)]

    def change(request: Any) -> None:
        if len(desk.lists("tickets")) == 2:
            desk.records["tickets"][0] = ticket(1, "2024-03-01T13:00:00Z", subject="changed")

    desk.before = change
    batch = land(workspace, "tickets", day(DAY))
    result = load(workspace, batch)
    assert (batch.landed, result.loaded, result.superseded) == (5, 4, 1)
    assert table(workspace, "tickets")["1"]["subject"] == "changed"


@pytest.mark.slow
def test_the_people_of_a_ticket_are_replaced_with_each_version(workspace, desk):
    desk.records["tickets"] = [
        ticket(1, NOON, assignee=person(5), user_watchers=[person(6), person(7)]),
        ticket(2, NOON, assignee=person(5, "Role"), created_by_user=person(1)),
    ]
    process(workspace, day(DAY), ["tickets"])
    assert links(workspace) == {
        ("1", "1", "requester"), ("1", "5", "assignee"), ("1", "6", "watcher"), ("1", "7", "watcher"),
        ("2", "1", "requester"), ("2", "1", "creator"),
    }  # fmt: skip
    desk.records["tickets"][0] = ticket(
        1, "2024-03-01T13:00:00Z", customer_user=None, user_watchers=[person(7)]
    )
    process(workspace, day(DAY), ["tickets"])
    assert links(workspace) == {("1", "7", "watcher"), ("2", "1", "requester"), ("2", "1", "creator")}


@pytest.mark.slow
def test_a_placeholder_becomes_the_record_when_it_arrives(workspace, desk):
    desk.by_id = False
    process(workspace, day("2024-02-28"), ["accounts"])
    desk.records["tickets"] = [ticket(1, NOON)]
    process(workspace, day(DAY), ["tickets"])
    row = table(workspace, "accounts")["1"]
    assert (row["placeholder"], row["updated_at"], row["name"]) == (True, None, None)
    desk.records["accounts"] = [account(1, "2024-03-02T10:00:00Z")]
    process(workspace, day("2024-03-02"), ["accounts"])
    row = table(workspace, "accounts")["1"]
    assert (row["placeholder"], row["name"]) == (False, "Account 1")


def test_seeing_a_record_again_clears_its_deletion(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON)]
    process(workspace, day(DAY), ["tickets"])
    execute(workspace, "update desk.tickets set deleted_at = now()")
    process(workspace, day(DAY), ["tickets"])
    assert table(workspace, "tickets")["1"]["deleted_at"] is None


@pytest.mark.slow
@pytest.mark.parametrize("changed", [NOON, "2024-03-01T13:00:00Z"], ids=["same version", "newer version"])
def test_a_page_fetched_before_a_deletion_was_observed_does_not_clear_it(workspace, desk, changed):
    desk.records["tickets"] = [ticket(1, NOON)]
    process(workspace, day(DAY), ["tickets"])
    desk.records["tickets"] = [ticket(1, changed)]
    early = land(workspace, "tickets", day(DAY))
    execute(workspace, "update desk.tickets set deleted_at = now()")
    load(workspace, early)
    row = table(workspace, "tickets")["1"]
    assert row["deleted_at"] is not None
    assert row["updated_at"] == datetime.fromisoformat(changed)


TEXTS = [
    None,
    "",
    " ",
    "NULL",
    "\\N",
    "\\.",
    "before\n\\.\nafter",
    "before\r\n\\.\r\nafter",
    "\r\\.\r",
    '"',
    '""quoted"", and, commas;',
    "tab\there",
    "\\\\ back \\ slashes \\n",
    "line\u2028separator and next\u0085line",
    "e\u0301 e\u0301 \u202eright to left\u202c \ufeff",
    "👩‍👩‍👧‍👦 🇩🇪 𝕏",
    "\x01\x02\x1b[31m\x7f",
    "x" * 1_500_000,
    "ä\n" * 400_000,
]


@pytest.mark.slow
def test_texts_are_exact_and_null_is_not_empty(workspace, desk):
    desk.page_size = 4
    desk.records["tickets"] = [
        ticket(number, NOON, subject=text, description=text, tags=[text], cf_text=text)
        for number, text in enumerate(TEXTS, start=1)
    ]
    process(workspace, day(DAY), ["tickets"])
    found = table(workspace, "tickets")
    for number, text in enumerate(TEXTS, start=1):
        row = found[str(number)]
        values = (row["subject"], row["description"], row["tags"], row["custom_fields"]["cf_text"])
        assert values == (text, text, [text], text), repr(text)[:80]


@pytest.mark.slow
def test_custom_fields_keep_all_keys_and_exact_numbers(workspace, desk):
    numbers = {"one": 10**30, "two": -(2**70), "three": 2**64 - 1, "four": 2**63 - 1, "five": 1, "six": 0.1}
    many = {f"cf_{number}": {"id": number, "name": f"Choice {number}"} for number in range(2_000)}
    odd = {"": "empty", "A b": 1, "a_b": 2, "AB": 3, "ключ": "значение", "with.dot": 4, "$ref": 5, "'; --": 6}
    desk.records["tickets"] = [ticket(1, NOON, **many, **odd, cf_numbers=numbers)]
    process(workspace, day(DAY), ["tickets"])
    fields = table(workspace, "tickets")["1"]["custom_fields"]
    assert fields["cf_numbers"] == numbers
    assert {key: fields[key] for key in (*many, *odd)} == many | odd
    (text,) = rows(workspace, "select custom_fields->'cf_numbers'->>'two' as two from desk.tickets")
    assert text["two"] == str(-(2**70))


@pytest.mark.slow
def test_deep_nesting_is_kept(workspace, desk):
    deep: Any = "bottom"
    for _ in range(200):
        deep = {"in": [deep]}
    desk.records["tickets"] = [ticket(1, NOON, cf_deep=deep)]
    process(workspace, day(DAY), ["tickets"])
    assert table(workspace, "tickets")["1"]["custom_fields"]["cf_deep"] == deep


@pytest.mark.slow
def test_every_batch_that_touches_the_window_is_loaded_oldest_first(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON), ticket(2, "2024-03-02T12:00:00Z")]
    wide = land(workspace, "tickets", day("2024-03-01", "2024-03-02"))
    narrow = land(workspace, "tickets", day("2024-03-02"))
    update = bring_up_to_date(workspace, NAME, "tickets", day("2024-03-02"))
    assert [result.batch.id for result in update.loads] == [wide.id, narrow.id]
    assert arrived(workspace, "tickets") == {"1", "2"}
    assert bring_up_to_date(workspace, NAME, "tickets", day("2024-03-02")).loads == []


@pytest.mark.slow
def test_a_record_that_reappears_in_an_older_version_is_no_longer_deleted_and_keeps_its_newest(
    workspace, desk
):
    desk.records["tickets"] = [ticket(1, NOON, subject="newest")]
    process(workspace, day(DAY), ["tickets"])
    execute(workspace, "update desk.tickets set deleted_at = now()")
    desk.records["tickets"] = [ticket(1, "2024-03-01T09:00:00Z", subject="from a backup")]
    process(workspace, day(DAY), ["tickets"])
    row = table(workspace, "tickets")["1"]
    assert (row["deleted_at"], row["subject"]) == (None, "newest")
