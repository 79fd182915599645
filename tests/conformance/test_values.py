"""Whatever a record's values are, its row holds them, or the record is refused and says where.

Values of other types than the vendor documents, at every key: a row may lose none, and parsing never fails.
"""

import json
from contextlib import suppress
from typing import Any

import pytest

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Refused, microseconds
from bridge_pipeline.model import Kind
from tests.conformance.faultproxy import proxying
from tests.conformance.reading import extract
from tests.connectors.parsed import parsed, together

NOTHING = object()
ODD = [
    NOTHING,
    None,
    "",
    "x",
    "12345",
    "2024-13-01T00:00:00Z",
    "2024-01-01T00:00:00",
    "2024-01-01 00:00:00",
    "2024-01-01T00:00:00.1234567Z",
    "=1+1 \u202eé😀",
    0,
    1,
    -1,
    1.5,
    2**63,
    2**70,
    True,
    False,
    [],
    [None],
    ["a", 1, None],
    [{"id": "1"}],
    {},
    {"id": None, "value": None},
    {"display_value": "d", "value": "v", "link": "l"},
]


@pytest.fixture
def sent(subject, simulator, folder):
    """A record of each list that has any, as the simulator sends it."""
    found: dict[str, dict[str, Any]] = {}
    with proxying(simulator.url) as proxy:
        for stream in subject.connector.streams:
            bodies: list[bytes] = []
            proxy.rewrite = lambda answer, bodies=bodies: bodies.append(answer.body) or answer
            extract(subject, proxy.url, stream.entity.name, folder / stream.entity.name)
            for record in _acceptable(stream, bodies):
                found[stream.entity.name] = record
    return found


def _acceptable(stream, bodies):
    """The records of list answers; others may have been asked for as well."""
    for body in bodies:
        with suppress(ValueError):
            for record in map(json.loads, stream.exact_records(body)):
                with suppress(Refused):
                    parsed(stream, record)
                    yield record


def variants(stream: Stream, record: dict[str, Any]) -> Any:
    """The record with every odd value at every key that it has or that a column is read from."""
    for key in {*record, *(key for field in stream.fields for key in (*field.consumes, *field.reads))}:
        for value in ODD:
            changed = record | {key: value}
            if value is NOTHING:
                del changed[key]
            yield changed


def lost(stream: Stream, record: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """The keys whose values the row holds neither in a column nor in `custom_fields`."""
    custom, held = json.loads(row["custom_fields"]), {}
    for column, field in zip(stream.entity.columns, stream.fields, strict=True):
        for key in field.consumes:
            held[key] = _holds(column.kind, row[column.name], record.get(key))
    return [key for key, value in record.items() if not (held.get(key) or custom.get(key, NOTHING) == value)]


def accepted(stream: Stream, record: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The row of a record, or what of it was refused."""
    try:
        return parsed(stream, record), ""
    except Refused as refused:
        return None, refused.pointer


def _holds(kind: Kind, value: Any, sent: Any) -> bool:
    # ServiceNow's `""` is its null (vendor-apis D.3).
    if sent is None or value is None:
        return value is None and sent in (None, "")
    if kind is Kind.TIMESTAMP:
        return value == microseconds(sent if "T" in sent else f"{sent}Z", "")
    if kind is Kind.JSON:
        return json.loads(value) == sent
    return type(sent) in (str, int, bool) and str(value) == str(sent)


def test_a_row_holds_what_was_sent_or_says_where_it_cannot(subject, sent):
    assert subject.entity in sent
    for entity, record in sent.items():
        stream = subject.connector.stream(entity)
        assert lost(stream, record, parsed(stream, record)) == []
        rows, sound = [], []
        for changed in variants(stream, record):
            row, pointer = accepted(stream, changed)
            assert (row is None) == pointer.startswith("/"), pointer
            if row:
                rows.append(row)
                sound.append(changed)
                assert lost(stream, changed, row) == [], changed
        assert rows, entity
        assert together(stream, sound) == rows, "records of one page are parsed as each of them alone"
