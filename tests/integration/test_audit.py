"""Audit files: exact values, harmless cells, honest manifests, versions only where something changed."""

import csv
import hashlib
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps import audit
from bridge_pipeline.steps.audit import AuditFile, audit_days
from tests.integration.desk import Desk, ticket
from tests.integration.flow import NAME, connect, day, execute, land, process, rows, table

DAY = day("2024-03-01")
NOON, LATER = "2024-03-01T12:00:00Z", "2024-03-01T13:00:00Z"

RUNS_IN_A_SPREADSHEET = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\ttab",
    "\rreturn",
    "\nbreak",
    "＝1+1",
    "＋1",
    "－1",
    "＠SUM(A1)",
    " =1+1",
    "'=1+1",
    '=HYPERLINK("http://x","y")',
    "-2+3+cmd|' /C calc'!A0",
]
HARMLESS = [
    "plain",
    "1",
    "a=b",
    "(=1)",
    '"=1"',
    "a,b;c\td",
    "two\nlines\r\nand\rmore",
    'quotes " "" in it',
    "\\.",
    "x\n\\.\ny",
    " blanks ",
    "ü😀",
    "x" * 300_000,
]


@pytest.fixture
def desk(workspace: Workspace, desk: Desk) -> Desk:
    """The desk, connected for tickets alone: no parents are looked up."""
    connect(workspace, desk, entities=("tickets",))
    return desk


def cells(file: AuditFile) -> list[dict[str, str]]:
    """The rows of a file as Python's csv reads them, once it is told of long fields."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        with file.path.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened, strict=True))
    finally:
        csv.field_size_limit(before)


def bare(cell: str) -> str:
    """A cell without its guard."""
    return cell.removeprefix("'")


def manifest(file: AuditFile) -> dict[str, Any]:
    return json.loads(file.path.with_suffix(".json").read_bytes())


def run(workspace, window=DAY) -> AuditFile:
    """The whole flow over tickets; the file of the window's first day."""
    return process(workspace, window, ["tickets"])["tickets"][2][0]


@pytest.mark.slow
def test_the_exact_values_come_back_and_cells_that_would_run_are_guarded(workspace, desk):
    desk.page_size = 40
    texts = [*RUNS_IN_A_SPREADSHEET, *HARMLESS]
    desk.records["tickets"] = [
        ticket(
            number, NOON, subject=text, tags=[text], created_at="2024-02-01T09:00:00.5+02:00", **{text: text}
        )
        for number, text in enumerate(texts, start=1)
    ]
    file = run(workspace)
    found = {row["id"]: row for row in cells(file)}
    held = table(workspace, "tickets")
    assert len(found) == len(held) == len(texts)
    for number, text in enumerate(texts, start=1):
        row = found[str(number)]
        assert row["subject"].startswith("'") == (text in RUNS_IN_A_SPREADSHEET), repr(text)
        assert bare(row["subject"]) == text
        assert json.loads(row["tags"]) == [text]
        assert json.loads(row["custom_fields"]) == held[str(number)]["custom_fields"]
        assert (row["is_closed"], row["account_id"], row["resolved_at"]) == ("false", "1", "")
        assert (row["created_at"], row["updated_at"]) == (
            "2024-02-01T07:00:00.500000Z",
            "2024-03-01T12:00:00.000000Z",
        )
        assert row["content_hash"] == held[str(number)]["content_hash"]


def test_null_is_an_empty_cell_without_quotes_and_an_empty_text_has_them(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON, subject="", description=None)]
    _, line = run(workspace).path.read_text().splitlines()
    assert line.startswith('"1","",,"New"')


@pytest.mark.slow
def test_a_day_without_records_has_a_file_with_its_header(workspace, desk):
    file = run(workspace)
    assert (file.rows, cells(file)) == (0, [])
    (header,) = file.path.read_text().splitlines()
    assert header.startswith('"id","subject","description"')
    assert manifest(file)["rows"] == 0
    assert manifest(file)["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()


def assert_true(workspace, file: AuditFile) -> None:
    """The manifest tells the truth about its file, and the ledger about both."""
    told, found = manifest(file), cells(file)
    assert told["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    lines = "".join(f"{row['content_hash']}\n" for row in found)
    assert (told["rows"], told["rows_sha256"]) == (len(found), hashlib.sha256(lines.encode()).hexdigest())
    assert told["columns"] == list(found[0]) if found else True
    assert (told["version"], told["day"], told["connection"]) == (file.version, str(file.day), NAME)
    query = "select * from bridge.audit_files where day = :day and version = :version"
    (listed,) = rows(workspace, query, day=file.day, version=file.version)
    manifest_bytes = file.path.with_suffix(".json").read_bytes()
    assert listed["manifest_sha256"] == hashlib.sha256(manifest_bytes).hexdigest()
    assert {key: listed[key] for key in ("rows", "sha256", "rows_sha256")} == {
        key: told[key] for key in ("rows", "sha256", "rows_sha256")
    }
    assert workspace.home.audit / listed["path"] == file.path


def test_a_version_is_added_only_where_rows_changed_and_none_is_rewritten(workspace, desk):
    window = day("2024-03-01", "2024-03-03")
    days = [NOON, "2024-03-02T12:00:00Z", "2024-03-03T12:00:00Z"]
    desk.records["tickets"] = [ticket(number, changed) for number, changed in enumerate(days, start=1)]
    first = process(workspace, window, ["tickets"])["tickets"][2]
    kept = first[0].path.read_bytes()
    desk.records["tickets"][0] = ticket(1, LATER, subject="x" * 3_000_000)
    # Between the two that change lies one that does not.
    desk.records["tickets"][2] = ticket(3, "2024-03-03T13:00:00Z", subject="changed")
    desk.records["tickets"].reverse()
    second = process(workspace, window, ["tickets"])["tickets"][2]
    assert [(file.version, file.added) for file in (*first, *second)] == [
        (1, True),
        (1, True),
        (1, True),
        (2, True),
        (1, False),
        (2, True),
    ]
    assert [[row["id"] for row in cells(file)] for file in second] == [["1"], ["2"], ["3"]]
    assert first[0].path.read_bytes() == kept
    assert manifest(first[0])["previous"] is None
    assert manifest(second[0])["previous"] == {"version": 1, "sha256": manifest(first[0])["sha256"]}
    desk.records["tickets"][2] = ticket(1, "2024-03-01T14:00:00Z", subject="short again")
    third = process(workspace, window, ["tickets"])["tickets"][2]
    assert [(file.version, file.added) for file in third] == [(3, True), (1, False), (2, False)]
    for file in (*first, *second, *third):
        assert_true(workspace, file)


@pytest.mark.slow
def test_the_order_of_rows_does_not_depend_on_the_listing(workspace, desk):
    numbers = [9, 10, 2**53 + 1, 1, 100, 20, 2]
    desk.records["tickets"] = [ticket(number, NOON) for number in numbers]
    first = run(workspace)
    assert [int(row["id"]) for row in cells(first)] == sorted(numbers)
    desk.records["tickets"].sort(key=lambda record: str(record["id"]))
    assert not run(workspace).added


@pytest.mark.slow
def test_ids_that_left_a_day_are_named_with_the_reason(workspace, desk):
    window = day("2024-03-01", "2024-03-03")
    desk.records["tickets"] = [ticket(number, NOON) for number in (1, 2, 3, 4)]
    process(workspace, window, ["tickets"])
    desk.records["tickets"] = [
        ticket(1, NOON),
        ticket(2, "2024-03-03T08:00:00Z"),
        ticket(4, "2024-03-09T08:00:00Z"),
    ]
    execute(workspace, "update desk.tickets set deleted_at = now() where id = '3'")
    first, _, third = process(workspace, window, ["tickets"])["tickets"][2]
    assert manifest(first)["left"] == [
        {"id": "2", "why": "moved", "to": "2024-03-03"},
        {"id": "3", "why": "deleted"},
        {"id": "4", "why": "changed after the days that are extracted so far, or gone"},
    ]
    assert ([row["id"] for row in cells(first)], [row["id"] for row in cells(third)]) == (["1", "3"], ["2"])
    assert (manifest(first)["rows"], manifest(first)["tombstones"]) == (2, 1)
    assert manifest(third)["left"] == []
    assert_true(workspace, first)


def test_the_live_ids_of_a_file_are_read_whatever_block_its_longest_row_fits(tmp_path, monkeypatch):
    tried, read = [], audit._read
    monkeypatch.setattr(audit, "_BLOCKS", (1 << 10, 1 << 14))
    monkeypatch.setattr(audit, "_read", lambda path, block: tried.append(block) or read(path, block))
    path, head = tmp_path / "v0001.csv", '"id","text","deleted_at"\n'
    for longest, blocks in ((10, [1 << 10]), (1 << 11, [1 << 10, 1 << 14]), (1 << 15, [1 << 10, 1 << 14])):
        tried.clear()
        path.write_text(
            head + f'"\'=1","a\n,b",\n"2","{"x" * longest}",\n"3",,"2024-03-01T00:00:00.000000Z"\n'
        )
        assert audit.live_ids(path).to_pylist() == ["=1", "2"]
        assert tried == blocks


@pytest.mark.slow
def test_a_batch_fetched_earlier_never_replaces_the_current_file(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON)]
    wide = land(workspace, "tickets", day("2024-03-01", "2024-03-02"))
    desk.records["tickets"] = [ticket(1, LATER)]
    current = run(workspace)
    # The newer batch may not be read any more, so the older one is the newest that covers the day.
    execute(workspace, "update bridge.batches set verdict = 'blocked' where id > :id", id=wide.id)
    again, _ = audit_days(workspace, NAME, "tickets", day("2024-03-01", "2024-03-02").days())
    assert (again.version, again.added) == (1, False)
    assert cells(again)[0]["updated_at"] == "2024-03-01T13:00:00.000000Z"
    assert sorted(path.name for path in current.path.parent.iterdir()) == ["v0001.csv", "v0001.json"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_files_that_the_ledger_does_not_list_are_removed(workspace, desk, changed):
    desk.records["tickets"] = [ticket(1, NOON)]
    folder = run(workspace).path.parent
    for name in ("v0002.csv", "v0002.json", "v0003.csv", ".v0002.csv.12345.tmp", "notes.txt"):
        (folder / name).write_text("left behind")
    desk.records["tickets"] = [ticket(1, LATER if changed else NOON)]
    file = run(workspace)
    expected = {"v0001.csv", "v0001.json", "notes.txt"} | ({"v0002.csv", "v0002.json"} if changed else set())
    assert {path.name for path in folder.iterdir()} == expected
    assert_true(workspace, file)


@pytest.mark.slow
def test_every_day_of_a_window_has_the_records_of_that_day_in_utc(workspace, desk):
    desk.records["tickets"] = [
        ticket(1, "2024-03-01T23:59:59.999999Z"),
        ticket(2, "2024-03-02T00:00:00Z"),
        ticket(3, "2024-03-02T01:30:00+02:00"),
        ticket(4, "2024-03-01T23:30:00-02:00"),
    ]
    written = process(workspace, day("2024-03-01", "2024-03-03"), ["tickets"])["tickets"][2]
    held = {file.day: [row["id"] for row in cells(file)] for file in written}
    assert held == {date(2024, 3, 1): ["1", "3"], date(2024, 3, 2): ["2", "4"], date(2024, 3, 3): []}
    (folder,) = {file.path.parent.parent for file in written}
    assert folder == workspace.home.audit / "acme" / NAME / "tickets"
    assert [file.path.relative_to(folder) for file in written] == [
        Path(f"2024-03-0{number}/v0001.csv") for number in (1, 2, 3)
    ]


@pytest.mark.slow
def test_the_manifest_names_what_was_excluded_and_when_it_was_fetched(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON, cf_password="hunter2")]
    execute(workspace, """update bridge.connections set exclude = '["tickets.*_password"]'""")
    started = datetime.now(UTC)
    file = run(workspace)
    told = manifest(file)
    assert told["excluded"] == ["tickets.*_password"]
    assert b"hunter2" not in file.path.read_bytes()
    assert started <= datetime.fromisoformat(told["run"]["fetched_from"]) <= datetime.now(UTC)
    assert told["run"]["source_requests"] == len(desk.lists("tickets"))
