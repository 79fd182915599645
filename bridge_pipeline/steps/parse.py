"""From a source's record to a row of landing: canonical values, custom fields, hash.

One record at a time and in memory only; what happens to rows is decided in `collect`.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import orjson

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Record, Refused
from bridge_pipeline.model import Kind


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
        custom = to_json({key: value for key, value in record.items() if key not in self._consumed})
        content = to_json([*values, people, custom])
        digest = hashlib.sha256(content.encode()).hexdigest()
        return Row(values[0], changed_at, tuple(values), people, custom, digest)

    def _people(self, record: Record) -> str | None:
        if self._stream.people is None:
            return None
        found = {(person.user, person.part) for person in self._stream.people(record)}
        return to_json([{"user_id": user, "part": part} for user, part in sorted(found)])


def to_json(value: Any) -> str:
    """Canonical JSON: keys in order, no blanks.

    Raises:
        Refused: `too_deep` for what is nested deeper than it can be written.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        # Integers beyond 64 bits and deep nesting are beyond orjson.
        try:
            return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:
            raise Refused("too_deep", "") from None
