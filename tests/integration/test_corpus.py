"""Every class of malformed record is loaded equal to what was sent, or kept with its bytes and the right
reason; and its neighbours load."""

import csv
import dataclasses
import functools
import json
import re
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit.pages import Rejected, parse_list
from bridge_pipeline.connectors.helpdesk.streams import STREAMS
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from tests.integration.corpus import CASES, Case
from tests.integration.desk import ticket
from tests.integration.flow import NAME, connect, day, land, process, rows
from tests.unit.test_collect import Extraction

DAY = day("2024-03-01")
NOON = "2024-03-01T12:00:00Z"
TIMES = ("created_at", "updated_at", "resolved_at", "responded_at", "closed_at")
CONSUMED = {"id", "subject", "description", "tags", *TIMES}
NUMBERED = {100 + 2 * index: case for index, case in enumerate(CASES)}


@pytest.fixture
def unhurried(workspace):
    """A workspace in which no share of rejected records blocks."""
    return dataclasses.replace(
        workspace, settings=workspace.settings.model_copy(update={"max_quarantined_share": 1.0})
    )


def neighbours(number: int) -> tuple[int, int]:
    return number * 10, number * 10 + 1


def page(number: int, case: Case) -> list[Any]:
    before, after = neighbours(number)
    return [ticket(before, NOON), case.sent(number), ticket(after, NOON)]


def exactly(value: Any) -> Any:
    """A JSON value in which numbers are equal if they are the same number, and nothing else is."""
    if isinstance(value, dict):
        return {key: exactly(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exactly(inner) for inner in value]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return ("number", Decimal(value))
    return (type(value).__name__, value)


def read(text: str | bytes) -> Any:
    return exactly(json.loads(text, parse_float=Decimal))


def moment(text: str) -> datetime:
    """A time as a column holds it: microseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)


def disarmed(cell: str) -> str:
    return cell[1:] if cell.startswith("'") else cell


def test_every_class_loads_equal_or_is_kept_with_its_reason(unhurried, desk, request):
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    connect(unhurried, desk, entities=("tickets",))
    desk.page_size = 3
    desk.records["tickets"] = [record for number, case in NUMBERED.items() for record in page(number, case)]
    batch, _, (audit,) = process(unhurried, DAY, ["tickets"])["tickets"]

    assert batch.verdict == "passed", "quarantined rows alone fail nothing"
    assert batch.fetched == batch.outside + batch.duplicate + batch.quarantined + batch.landed
    names = {case.sent(number): case.name for number, case in NUMBERED.items()}
    kept = {case.name: (case.reason, case.pointer) for case in CASES if case.reason}
    found = rows(unhurried, "select raw, reason, pointer from bridge.quarantine")
    refused = {names[bytes(row["raw"])]: (row["reason"], row["pointer"]) for row in found}
    differing = sorted(refused.items() ^ kept.items())
    assert not differing, f"each with what was found or what was expected: {differing}"
    assert batch.quarantined == len(kept)

    # Only now: the flow itself must not need it.
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(10_000)
    table = {row["id"]: row for row in rows(unhurried, SELECT)}
    sound = {number: case for number, case in NUMBERED.items() if not case.reason}
    around = {str(each) for number in NUMBERED for each in neighbours(number)}
    assert set(table) == around | {str(number) for number in sound}
    landed = _landed(unhurried, batch)
    written = _written(audit.path)
    assert set(written) == set(table)
    for number, case in sound.items():
        sent = json.loads(case.sent(number), parse_float=Decimal)
        row, cells = table[str(number)], written[str(number)]
        _equal(case.name, sent, row)
        assert read(landed[str(number)]) == exactly(sent), case.name
        assert read(disarmed(cells["custom_fields"])) == read(row["custom_fields"]), case.name
        assert disarmed(cells["description"]) == (row["description"] or ""), case.name


SELECT = f"""
select id, subject, description, status, tags::text as tags, custom_fields::text as custom_fields,
    {", ".join(TIMES)} from desk.tickets where not placeholder
"""


def _equal(name: str, sent: dict[str, Any], row: dict[str, Any]) -> None:
    """Whether the columns and custom fields together hold what was sent, no more and no less."""
    custom = json.loads(row["custom_fields"], parse_float=Decimal)
    finer = {key for key in TIMES if isinstance(sent.get(key), str) and re.search(r"\.\d{7}", sent[key])}
    expected = {key: value for key, value in sent.items() if key not in CONSUMED - finer}
    assert exactly(custom) == exactly(expected), name
    assert (row["id"], row["subject"]) == (str(sent["id"]), sent["subject"]), name
    assert row["description"] == sent.get("description"), name
    tags = sent.get("tags")
    assert (read(row["tags"]) if row["tags"] is not None else None) == (
        exactly(tags) if tags is not None else None
    ), name
    for key in TIMES:
        assert row[key] == (moment(sent[key]) if sent.get(key) else None), name


def _landed(workspace, batch) -> dict[str, str]:
    tables = read_landed(landing_of(workspace, batch), batch.files, "tickets", ("id", "raw"))
    return {row["id"]: row["raw"] for each in tables for row in each.to_pylist()}


def _written(path) -> dict[str, dict[str, str]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_null_and_empty_differ_in_the_audit_file(unhurried, desk):
    connect(unhurried, desk, entities=("tickets",))
    desk.records["tickets"] = [ticket(1, NOON, description=""), ticket(2, NOON, description=None)]
    *_, (audit,) = process(unhurried, DAY, ["tickets"])["tickets"]
    _, empty, null = audit.path.read_text().splitlines()
    assert '"Printer 1 is on fire","",' in empty
    assert '"Printer 2 is on fire",,' in null


@pytest.mark.slow
def test_the_same_id_twice_keeps_the_newest_and_counts_both(unhurried, desk):
    connect(unhurried, desk, entities=("tickets",))
    desk.page_size = 3
    desk.records["tickets"] = [
        json.dumps(ticket(1, NOON, subject="first")).encode(),
        json.dumps(ticket(1, NOON, subject="second")).encode(),
        json.dumps(ticket(1, NOON, subject="second"), sort_keys=True).encode(),
        json.dumps(ticket(2, NOON)).encode(),
        json.dumps(ticket(2, "2024-03-01T11:00:00Z", subject="older, on another page")).encode(),
    ]
    batch = land(unhurried, "tickets", DAY)
    assert batch.landed == 4
    process(unhurried, DAY, ["tickets"])
    assert {row["id"]: row["subject"] for row in rows(unhurried, SELECT)} == {
        "1": "second",
        "2": "Printer 2 is on fire",
    }


@pytest.mark.slow
def test_the_same_bytes_are_kept_once_for_each_connection_and_entity(unhurried, desk):
    bad = b'{"id":null,"updated_at":"2024-03-01T12:00:00Z"}'
    desk.records = {"accounts": [bad, bad], "users": [bad], "tickets": [bad]}
    process(unhurried, DAY)
    connect(unhurried, desk, "other-desk", entities=("tickets",))
    process(unhurried, DAY, ["tickets"], "other-desk")
    found = rows(unhurried, "select connection, entity, times_seen from bridge.quarantine order by 1, 2")
    assert [tuple(row.values()) for row in found] == [
        (NAME, "accounts", 1), (NAME, "tickets", 1), (NAME, "users", 1), ("other-desk", "tickets", 1)
    ]  # fmt: skip


# --- Any bytes ----------------------------------------------------------------------------------

PIECES = [
    b'"id":1',
    b'"id":2',
    b'"id":null',
    b'"updated_at":"2025-03-01T12:00:00Z"',
    b'"updated_at":""',
    b'"tags":[]',
    b'"cf":1e400',
    b'"cf":0.12345678901234567890',
    b'"cf":' + b"9" * 30,
    b'"cf":NaN',
    b'"a":"\\u0000"',
    b'"a":"\\ud800"',
    b'"a":"\xff"',
    b'"a":true',
    b'"a":1',
    b'"b":"\\u003a"',
    b'"account":{"id":"x"}',
    b'"":{"":[]}',
    b"x",
    b"",
]
pieces = st.sampled_from(PIECES)
anything = st.lists(pieces, max_size=6).map(lambda parts: b"{" + b",".join(parts) + b"}") | st.sampled_from(
    [b"null", b"[]", b'"\\""', b"-", b"", b"truth", b"\xff"]
)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.lists(anything, max_size=6))
def test_every_record_of_any_page_is_accounted_for(tmp_path_factory, found):
    neighbour = b'{"id":7,"updated_at":"2025-03-01T12:00:00Z"}'
    body = b"[" + b",".join([neighbour, *found, neighbour.replace(b"7", b"8")]) + b"]"
    extraction = Extraction(tmp_path_factory.mktemp("extraction"))
    content = parse_list(body, STREAMS[2].names)
    assert len(content.records) == len(found) + 2
    for raw, record in zip(found, content.records[1:], strict=False):
        if not isinstance(record, Rejected):
            assert exactly(record) == read(raw)
    rows, rejected = extraction.read(body)
    counts = extraction.collector.counts
    assert counts.fetched == counts.outside + counts.duplicate + counts.quarantined + counts.landed
    assert {"7", "8"} <= {row["id"] for row in rows}
    assert all(item.raw in found for item in rejected)
