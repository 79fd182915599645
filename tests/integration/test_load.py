"""What loading does to the rows: counts, links, deletions, and values that must survive."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import listening
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.load import LoadResult, load
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
        "batch": first, "loaded": 3, "unchanged": 0, "superseded": 0, "placeholders": 0, "first": True
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


@pytest.mark.parametrize("few", [0, 20_000], ids=["many", "few"])
def test_a_version_that_was_seen_again_later_stays(workspace, desk, monkeypatch, few):
    monkeypatch.setattr("bridge_pipeline.steps.load._FEW", few)
    desk.records["tickets"] = [ticket(1, NOON), ticket(2, NOON)]
    process(workspace, day(DAY), ["tickets"])
    # Nothing but its content changes, and back again.
    desk.find("tickets", 1)["subject"] = desk.find("tickets", 2)["subject"] = "other"
    waiting = land(workspace, "tickets", day(DAY))
    desk.records["tickets"] = [ticket(1, NOON), desk.find("tickets", 2)]
    again = load(workspace, land(workspace, "tickets", day(DAY)))
    assert (again.loaded, again.unchanged) == (1, 1)
    found = load(workspace, waiting)
    assert (found.loaded, found.unchanged, found.superseded) == (0, 1, 1)
    subjects = {key: row["subject"] for key, row in table(workspace, "tickets").items()}
    assert subjects == {"1": "Printer 1 is on fire", "2": "other"}


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


def test_what_the_table_holds_is_not_copied_to_be_compared(workspace, desk):
    desk.records["tickets"] = [ticket(number, NOON) for number in range(1, 7)]
    process(workspace, day(DAY), ["tickets"])
    whole = load_again(workspace)
    assert (whole.unchanged, whole.loaded) == (6, 0)

    # Two rows that say the same of themselves, a deleted one, one that has no hash, and a stray version.
    altered = {
        "2": "content_hash = (select content_hash from desk.tickets where id = '1')",
        "3": "deleted_at = now()",
        "4": "content_hash = null, placeholder = true",
        "5": "content_hash = 'short'",
        "6": "updated_at = updated_at - interval '1 year'",
    }
    for record_id, change in altered.items():
        execute(workspace, f"update desk.tickets set {change} where id = :id", id=record_id)
    result = load_again(workspace, copied=True)
    assert (result.loaded, result.unchanged) == (4, 2)
    held = table(workspace, "tickets")
    assert [held[each]["content_hash"] for each in "25"] == [hash_of(workspace, each) for each in "25"]
    assert not any(row["deleted_at"] or row["placeholder"] for row in held.values())


@pytest.mark.slow
def test_the_rows_of_a_table_are_told_as_they_are(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON), ticket(2, NOON), ticket(3, "no time")]
    for found in (2, 3):
        _, update, _ = process(workspace, day(DAY), ["tickets"])["tickets"]
        with workspace.database.engine.connect() as connection:
            assert update.rows == ledger.rows_in_table(connection, NAME, "tickets") == found
        assert [result.first for result in update.loads] == [found == 2]
        desk.records["tickets"][2] = ticket(3, NOON)


def load_again(workspace: Workspace, copied: bool = False) -> LoadResult:
    """Loads the tickets of the day once more; `copied` says whether rows are to be copied for that."""
    passed: list[str] = []
    batch = land(workspace, "tickets", day(DAY))
    with listening(passed.append):
        result = load(workspace, batch)
    assert ("copy.part" in passed) is copied
    return result


def hash_of(workspace: Workspace, record_id: str) -> str:
    """What the newest landed batch says of a record."""
    (newest,) = rows(workspace, "select max(id) as id from bridge.batches where entity = 'tickets'")
    with workspace.database.engine.connect() as connection:
        batch = ledger.batch(connection, newest["id"])
    landed = pa.concat_tables(read_landed(landing_of(workspace, batch), batch.files, "tickets"))
    return landed.filter(pc.field("id") == record_id)["content_hash"][0].as_py()


def test_few_rows_are_looked_up_one_by_one_in_a_table_that_nobody_has_counted(workspace, desk):
    execute(
        workspace,
        """insert into desk.tickets (tenant, connection, id, updated_at, fetched_at, content_hash, batch_id)
        select 'acme', :name, number::text, '2024-02-01', '2024-02-02', repeat('0', 64), 0
        from generate_series(1, 5000) as number""",
        name=NAME,
    )
    desk.records["tickets"] = [ticket(number, NOON) for number in range(1, 401)]
    before = read(workspace)
    batch = land(workspace, "tickets", day(DAY))
    assert load(workspace, batch).loaded == 400
    assert read(workspace) - before < 3_000


def read(workspace: Workspace) -> int:
    """How many rows of the table of tickets the server has read so far."""
    with workspace.database.engine.connect() as connection:
        connection.execute(sa.text("select pg_stat_force_next_flush()"))
        connection.commit()
    query = "select seq_tup_read + idx_tup_fetch as found from pg_stat_user_tables where relname = 'tickets'"
    return rows(workspace, query)[0]["found"]
