"""How canonical values are read out of a source's record, and what is refused.

A stream is a list of `Field`s; each reads one canonical column. A reader returns the
value or raises `Refused`; it never guesses and never changes a value. What a column cannot
hold whole, a time finer than microseconds, stays in `custom_fields` too (see `steps.parse`).

Most columns can be read from a whole page at once, many times faster than record by record:
`Field.read_all` does that where all records are plain, and leaves the others to `Field.read`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Record = Mapping[str, Any]
# See `Field.read_all`.
ReadAll = Callable[[Sequence[Record]], "list[Any] | None"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INT64 = 2**63 - 1
# Postgres and Python both hold these years; the source's offset may push the UTC time out.
_FIRST_INSTANT = -62_135_596_800_000_000
_LAST_INSTANT = 253_402_300_799_999_999
_INSTANT = pa.timestamp("us", "UTC")
# What Arrow and `datetime.fromisoformat` read alike, and a column holds whole. Of that length Arrow reads
# nothing else.
_PLAIN_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_PLAIN_LENGTH = len("2024-03-01T12:00:00Z")


class Refused(ValueError):
    """A value that cannot be accepted; becomes a quarantined record."""

    def __init__(self, reason: str, pointer: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer
        self.detail = detail


@dataclass(frozen=True)
class Field:
    """One canonical column: how it is read, and the record's keys that it holds entirely.

    What `consumes` does not name stays in `custom_fields`. `reads` names the keys that the column is
    read from where they are not those: any one of them is enough. `read_all` gives the values of many
    records as `read` would one by one, or None where one of them is to be read alone.
    """

    column: str
    read: Callable[[Record], Any]
    consumes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    read_all: ReadAll | None = None

    def values(self, records: Sequence[Record]) -> tuple[list[Any], bool]:
        """The values of many records, and whether they were read all at once.

        Raises:
            Refused: as `read` of the first record that is refused.
        """
        found = self.read_all(records) if self.read_all else None
        if found is None:
            return [self.read(record) for record in records], False
        return found, True


def under(records: Sequence[Record], key: str) -> list[Any]:
    """What each of the records holds under a key; None where it holds nothing."""
    try:
        return list(map(itemgetter(key), records))
    except KeyError:
        return [record.get(key) for record in records]


def all_of(values: Sequence[Any], *types: type) -> bool:
    """Whether every value is of exactly one of these types."""
    return set(map(type, values)) <= set(types)


def plain(key: str, *types: type) -> ReadAll:
    """Values that are kept as they are, where all are null or of one of these types."""

    def read_all(records: Sequence[Record]) -> list[Any] | None:
        values = under(records, key)
        return values if all_of(values, NoneType, *types) else None

    return read_all


def ids(key: str) -> ReadAll:
    """Values that are `integer_id`s or null."""
    return lambda records: all_integer_ids(under(records, key))


def within(key: str, read_all: ReadAll) -> ReadAll:
    """What is read from the objects under a key, where all records hold one."""

    def inner(records: Sequence[Record]) -> list[Any] | None:
        objects = under(records, key)
        return read_all(objects) if all_of(objects, dict) else None

    return inner


def identity(column: str = "id", key: str = "id") -> Field:
    """A positive 64-bit integer key, stored as text.

    Refuses `id_missing`, `id_wrong_type`, `id_out_of_range`.
    """

    def read(record: Record) -> str:
        value = record.get(key)
        if value is None:
            raise Refused("id_missing", f"/{key}")
        return _integer_id(value, f"/{key}")

    def read_all(records: Sequence[Record]) -> list[str] | None:
        values = under(records, key)
        return list(map(str, values)) if _are_ids(values) else None

    return Field(column, read, (key,), read_all=read_all)


def text(column: str, key: str | None = None) -> Field:
    """A text or null; anything else is refused as `wrong_type`."""
    name = key or column

    def read(record: Record) -> str | None:
        value = record.get(name)
        if value is None or type(value) is str:
            return value
        raise Refused("wrong_type", f"/{name}", f"expected text, got {type(value).__name__}")

    return Field(column, read, (name,), read_all=plain(name, str))


def boolean(column: str, key: str | None = None) -> Field:
    """A boolean or null; anything else is refused as `wrong_type`."""
    name = key or column

    def read(record: Record) -> bool | None:
        value = record.get(name)
        if value is None or type(value) is bool:
            return value
        raise Refused("wrong_type", f"/{name}", f"expected a boolean, got {type(value).__name__}")

    return Field(column, read, (name,), read_all=plain(name, bool))


def array(column: str, key: str | None = None) -> Field:
    """A list or null; anything else is refused as `wrong_type`."""
    name = key or column

    def read(record: Record) -> list[Any] | None:
        value = record.get(name)
        if value is None or isinstance(value, list):
            return value
        raise Refused("wrong_type", f"/{name}", f"expected a list, got {type(value).__name__}")

    return Field(column, read, (name,), read_all=plain(name, list))


def reference(column: str, key: str | None = None) -> Field:
    """The positive 64-bit integer id of another record, stored as text, or null.

    Refuses `id_wrong_type` and `id_out_of_range`.
    """
    name = key or column
    return Field(column, lambda record: integer_id(record.get(name), f"/{name}"), (name,), read_all=ids(name))


def instant(column: str, key: str | None = None) -> Field:
    """A time stamp with a zone, as microseconds since 1970 in UTC, or null.

    Refuses `wrong_type`, `time_invalid` (impossible or not ISO 8601) and `time_without_zone`.
    """
    name = key or column
    return Field(
        column,
        lambda record: microseconds(record.get(name), f"/{name}"),
        (name,),
        read_all=lambda records: all_microseconds(under(records, name)),
    )


def microseconds(value: Any, pointer: str) -> int | None:
    """Microseconds since 1970 (UTC) of an ISO 8601 text with offset; of finer ones what a column holds."""
    if value is None:
        return None
    if type(value) is not str:
        raise Refused("wrong_type", pointer, f"expected a time, got {type(value).__name__}")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Refused("time_invalid", pointer, value[:60]) from None
    if moment.tzinfo is None:
        raise Refused("time_without_zone", pointer, value[:60])
    since = moment - _EPOCH
    result = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not _FIRST_INSTANT <= result <= _LAST_INSTANT:
        raise Refused("time_invalid", pointer, value[:60])
    return result


def all_microseconds(values: Sequence[Any]) -> list[int | None] | None:
    """`microseconds` of many; None where one of them is to be read alone, for example a finer one."""
    if not all_of(values, NoneType, str):
        return None
    texts = pa.array(values, pa.string())
    if texts.null_count == len(texts):
        return list(values)
    if not _are_plain(texts):
        return None
    try:
        found = texts.cast(_INSTANT).cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    result = found.to_pylist()
    span = [moment for moment in result if moment is not None]
    return result if min(span) >= _FIRST_INSTANT and max(span) <= _LAST_INSTANT else None


def _are_plain(texts: pa.Array) -> bool:
    lengths = pc.call_function("min_max", [pc.call_function("binary_length", [texts])]).as_py()
    if lengths == {"min": _PLAIN_LENGTH, "max": _PLAIN_LENGTH}:
        return True
    matches = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_PLAIN_TIME))
    return not matches.false_count


def from_microseconds(value: int) -> datetime:
    """The UTC time that `microseconds` returned."""
    seconds, rest = divmod(value, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _integer_id(value: Any, pointer: str) -> str:
    if type(value) is not int:
        raise Refused("id_wrong_type", pointer, f"expected an integer, got {type(value).__name__}")
    if not 0 < value <= _MAX_INT64:
        raise Refused("id_out_of_range", pointer, f"{value}"[:60])
    return str(value)


def integer_id(value: Any, pointer: str) -> str | None:
    """An id that refers to another record, as text; null where there is none.

    Refuses `id_wrong_type` and `id_out_of_range`.
    """
    return None if value is None else _integer_id(value, pointer)


def all_integer_ids(values: Sequence[Any]) -> list[str | None] | None:
    """`integer_id` of many; None where one of them is to be read alone."""
    found = [value for value in values if value is not None]
    if not _are_ids(found):
        return None
    return [None if value is None else str(value) for value in values]


def _are_ids(values: Sequence[Any]) -> bool:
    return all_of(values, int) and min(values, default=1) > 0 and max(values, default=1) <= _MAX_INT64
