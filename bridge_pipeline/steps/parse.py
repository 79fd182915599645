"""From a source's records to rows of landing: canonical values, custom fields, hash.

In memory only; what happens to rows is decided in `collect`. A page is parsed column by column where
all of its records can be accepted, else record by record.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Record, Refused, under
from bridge_pipeline.model import Kind
from bridge_pipeline.model.entity import TIMESTAMP

# A time finer than microseconds, which no column holds whole.
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")


class RecordParser:
    """Parses the records of one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._schema = stream.entity.content_schema
        self._consumed = {key for field in stream.fields for key in field.consumes}
        self._columns = list(zip(stream.entity.columns, stream.fields, strict=True))
        self._changed = stream.entity.column_names.index("updated_at")

    def batch(self, records: Sequence[Record], latest: int, exact: Sequence[bytes] | None) -> pa.RecordBatch:
        """The rows of records, in order, as landing holds them, in the entity's `content_schema`.

        Args:
            latest: µs since 1970 after which no change time can be true.
            exact: the records' bytes as the source sent them, where they are known.

        Raises:
            Refused: one of them cannot be accepted; where there is only one, with reason and JSON pointer.
        """
        values, fine = self._values(records)
        self._refuse_times(records, values[self._changed], latest)
        people = self._people(records)
        custom = [to_json(each) for each in self._custom(records, fine)]
        content = zip(*values, people, custom, strict=True)
        hashes = [hashlib.sha256(_dumped(each)).hexdigest() for each in content]
        raw = exact or [orjson.dumps(record) for record in records]
        linked = [people] if self._stream.entity.people else []
        columns = zip([*values, *linked, custom, hashes, raw], self._schema, strict=True)
        return pa.RecordBatch.from_arrays(
            [_array(values, field.type) for values, field in columns], schema=self._schema
        )

    def _values(self, records: Sequence[Record]) -> tuple[list[list[Any]], list[str]]:
        """The canonical values, column by column, and the keys of times that may be finer than theirs."""
        found, fine = [], []
        for column, field in self._columns:
            values, plain = field.values(records)
            if column.kind is Kind.JSON:
                values = [None if value is None else to_json(value) for value in values]
            elif column.kind is Kind.TIMESTAMP and not plain:
                fine += field.consumes
            found.append(values)
        return found, fine

    def _refuse_times(self, records: Sequence[Record], changed: list[int | None], latest: int) -> None:
        if not self._stream.entity.reference and None in changed:
            raise Refused("change_time_missing", "/updated_at")
        if max((moment for moment in changed if moment is not None), default=latest) <= latest:
            return
        for record, moment in zip(records, changed, strict=True):
            if moment is not None and moment > latest:
                raise Refused("change_time_in_future", "/updated_at", str(record.get("updated_at"))[:60])

    def _custom(self, records: Sequence[Record], fine: list[str]) -> list[dict[str, Any]]:
        """All that no column holds whole."""
        consumed = self._consumed
        custom = [{key: value for key, value in record.items() if key not in consumed} for record in records]
        for key in fine:
            for own, value in zip(custom, under(records, key), strict=True):
                if value and _FINER.search(value):
                    own[key] = value
        return custom

    def _people(self, records: Sequence[Record]) -> list[str | None]:
        """The people of records as canonical JSON."""
        read, read_all = self._stream.people, self._stream.all_people
        if read is None:
            return [None] * len(records)
        found = read_all(records) if read_all else None
        return [_linked(each) for each in (map(read, records) if found is None else found)]


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(TIMESTAMP) if kind == TIMESTAMP else pa.array(values, kind)


def _linked(found: Sequence[tuple[str, str]]) -> str:
    """The people of a record as canonical JSON."""
    people = sorted(set(found)) if len(found) > 1 else found
    if all(user.isalnum() and user.isascii() for user, _ in people):
        # As `to_json`, many times faster: there is nothing to escape in these, nor in parts.
        links = [f'{{"part":"{part}","user_id":"{user}"}}' for user, part in people]
        return f"[{','.join(links)}]"
    return to_json([{"user_id": user, "part": part} for user, part in people])


def to_json(value: Any) -> str:
    """Canonical JSON: keys in order, no blanks, every number exact."""
    return _dumped(value).decode()


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value, _as_sent, orjson.OPT_SORT_KEYS)
    except TypeError:
        # Integers beyond 64 bits and deep nesting are beyond orjson.
        return _written(value).encode()


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
