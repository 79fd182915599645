"""From a source's record to a row of landing: canonical values, custom fields, hash.

One record at a time and in memory only; what happens to rows is decided in `collect`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Record, Refused
from bridge_pipeline.model import Kind

# A time finer than microseconds, which no column holds whole.
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")
_COARSE = len("2024-03-01T12:00:00.123456Z")


@dataclass(frozen=True)
class Row:
    """A parsed record. `values` are the canonical ones in order, times in µs since 1970 (UTC)."""

    id: str
    changed_at: int | None
    values: tuple[Any, ...]
    people: str | None
    custom_fields: str
    content_hash: str


class RecordParser:
    """Parses the records of one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._consumed = {key for field in stream.fields for key in field.consumes}
        self._changed = stream.entity.column_names.index("updated_at")
        self._json = [c.kind is Kind.JSON for c in stream.entity.columns]
        self._times = [
            key
            for column, field in zip(stream.entity.columns, stream.fields, strict=True)
            if column.kind is Kind.TIMESTAMP
            for key in field.consumes
        ]

    def parse(self, record: Record, latest: int) -> Row:
        """The row of a record.

        Args:
            latest: µs since 1970 after which no change time can be true.

        Raises:
            Refused: it cannot be accepted; with reason and JSON pointer.
        """
        values = [field.read(record) for field in self._stream.fields]
        changed_at = values[self._changed]
        if changed_at is None and not self._stream.entity.reference:
            raise Refused("change_time_missing", "/updated_at")
        if changed_at is not None and changed_at > latest:
            raise Refused("change_time_in_future", "/updated_at", str(record.get("updated_at"))[:60])
        for index, is_json in enumerate(self._json):
            if is_json and values[index] is not None:
                values[index] = to_json(values[index])
        people = self._people(record)
        custom = to_json(self._custom(record))
        content = to_json([*values, people, custom])
        digest = hashlib.sha256(content.encode()).hexdigest()
        return Row(values[0], changed_at, tuple(values), people, custom, digest)

    def _custom(self, record: Record) -> dict[str, Any]:
        """All that no column holds whole."""
        custom = {key: value for key, value in record.items() if key not in self._consumed}
        for key in self._times:
            value = record.get(key)
            if value is not None and len(value) > _COARSE and _FINER.search(value):
                custom[key] = value
        return custom

    def _people(self, record: Record) -> str | None:
        if self._stream.people is None:
            return None
        found = {(person.user, person.part) for person in self._stream.people(record)}
        return to_json([{"user_id": user, "part": part} for user, part in sorted(found)])


def to_json(value: Any) -> str:
    """Canonical JSON: keys in order, no blanks, every number exact."""
    try:
        return orjson.dumps(value, _as_sent, orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        # Integers beyond 64 bits and deep nesting are beyond orjson.
        return _written(value)


def _as_sent(value: Any) -> orjson.Fragment:
    """A number that no double holds, in its own digits."""
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} is no JSON value")


@dataclass(frozen=True)
class _Mark:
    text: str


def _written(value: Any) -> str:
    # Without recursion: how deep it may go would depend on who calls.
    parts: list[str] = []
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, _Mark):
            parts.append(item.text)
        elif isinstance(item, dict):
            pending.append(_Mark("}"))
            for place, key in reversed(list(enumerate(sorted(item)))):
                head = f"{',' if place else ''}{json.dumps(key, ensure_ascii=False)}:"
                pending += [item[key], _Mark(head)]
            pending.append(_Mark("{"))
        elif isinstance(item, list | tuple):
            pending.append(_Mark("]"))
            for place, inner in reversed(list(enumerate(item))):
                pending += [inner, _Mark("," if place else "")]
            pending.append(_Mark("["))
        else:
            parts.append(str(item) if isinstance(item, Decimal) else json.dumps(item, ensure_ascii=False))
    return "".join(parts)
