"""What a simulated desk is made of: its tables, related objects and time, and chance.

Holds no record: where they come from is `generated` and `replayed`. Nothing here knows of
requests or of the query language.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import orjson

Record = dict[str, Any]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

SECOND = 1_000_000
DAY = 86_400 * SECOND
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros_of(moment: datetime) -> int:
    """Microseconds since 1970; a naive moment is UTC."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def midnight(day: date) -> int:
    """The day's first microsecond in UTC, counted since 1970."""
    return micros_of(datetime(day.year, day.month, day.day, tzinfo=UTC))


def instant(micros: int, style: int = 0) -> str:
    """A time as the API writes it. One and the same answer mixes the three styles (A.3, CC-4).

    Only style 1 has a fraction; the others hold whole seconds.
    """
    if style == 2:
        return (_EPOCH + timedelta(microseconds=micros, hours=2)).isoformat()[:19] + "+02:00"
    moment = (_EPOCH + timedelta(microseconds=micros)).isoformat()
    if style == 1:
        return f"{moment[:19]}.{micros % SECOND:06d}Z"
    return moment[:19] + "Z"


_WORD = (1 << 64) - 1


def _mixed(value: int) -> int:
    """A 64-bit value scattered by the finaliser of SplitMix64: the same input, the same output."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


class Dice:
    """Draws that depend on nothing but the seed; `random.Random` costs too much per record."""

    __slots__ = ("_bits", "_state")

    def __init__(self, *seed: int) -> None:
        state = 0
        for part in seed:
            state = state * 0xD1342543DE82EF95 + part
        self._bits = self._state = _mixed(state & _WORD)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; `limit` is at most 2**40."""
        if self._bits < limit << 16:
            self._state = self._bits = _mixed(self._state)
        self._bits, drawn = divmod(self._bits, limit)
        return drawn

    def one_in(self, times: int) -> bool:
        return self.below(times) == 0

    def of(self, choices: tuple[Any, ...]) -> Any:
        return choices[self.below(len(choices))]


class Table:
    """The rows of one entity. A row's number never changes; `order` is the listing.

    `mixes_styles` says that times are written in the style of their record's id modulo 3.

    Records are built from their row number when they are asked for: a million of them,
    rendered, would not fit into memory.
    """

    def __init__(self, kind: str, ids: Rows, created: Rows, updated: Rows, build: Callable[[int], Record]):
        self.kind = kind
        self.ids, self.created, self.updated = ids, created, updated
        self.versions = np.zeros(len(ids), np.int64)
        self.build = build
        self.mixes_styles = False
        self.order = np.arange(len(ids))
        self.unlisted = self.order[:0]
        self.malformed: dict[int, str] = {}
        self.deleted: dict[int, int] = {}
        self.changes = 0
        self._digests: dict[int, bytes] = {}

    def unlist(self, count: int) -> None:
        """Takes the last `count` rows out of the listing; they are found by id only."""
        listed = len(self.order) - count
        self.order, self.unlisted = self.order[:listed], self.order[listed:]

    def sort_by_change(self) -> None:
        """Lists by change time instead of id, so that a changed row moves to the end."""
        self.order = self.order[np.lexsort((self.ids[self.order], self.updated[self.order]))]

    def row_of(self, identity: int) -> int | None:
        """The row with that id, listed or not; None for unknown and deleted ones."""
        if identity > int(self.ids[-1] if len(self.ids) else 0):
            return None
        row = int(np.searchsorted(self.ids, identity))
        return row if self.ids[row] == identity and row not in self.deleted else None

    def touch(self, row: int, moment: int) -> None:
        """Changes a row at `moment`, the latest of all."""
        self.updated[row] = moment
        self.versions[row] += 1
        self._digests.pop(row, None)
        self.order = np.append(self.order[self.order != row], row)
        self.changes += 1

    def add(self, moment: int) -> None:
        """A new row, created at `moment`, the latest of all."""
        self.order = np.append(self.order, len(self.ids))
        self.ids = np.append(self.ids, self.ids[-1] + 1)
        self.created, self.updated = np.append(self.created, moment), np.append(self.updated, moment)
        self.versions = np.append(self.versions, 0)
        self.changes += 1

    def remove(self, row: int, moment: int) -> None:
        """Deletes a row for good."""
        self.order = self.order[self.order != row]
        self.deleted[row] = moment
        self.changes += 1

    def truth(self, rows: Rows) -> Iterator[bytes]:
        """Members `"<id>":{"updated_at":…,"sha256":…}` of an object, malformed records left out.

        The hash is that of `orjson.dumps(record, option=OPT_SORT_KEYS)` of the record as
        `select=*` gives it.
        """
        separator = b""
        for row in rows.tolist():
            if row in self.malformed:
                continue
            digest = self._digests.get(row)
            if digest is None:
                whole = orjson.dumps(self.build(row), option=orjson.OPT_SORT_KEYS)
                digest = self._digests[row] = hashlib.sha256(whole).digest()
            updated = instant(int(self.updated[row]), 1)
            text = f'"{self.ids[row]}":{{"updated_at":"{updated}","sha256":"{digest.hex()}"}}'
            yield separator + text.encode()
            separator = b","


@dataclass
class World:
    """Everything one simulated desk holds.

    Attributes:
        tables: by entity.
        catalogs: related objects that are configuration, such as statuses: by `_type`, then id.
        clock: the desk's own time, in microseconds since 1970.
        detail: finds related objects that belong to one ticket, such as its events.
    """

    tables: dict[str, Table]
    catalogs: dict[str, dict[int, Record]]
    clock: int
    detail: Callable[[str, int], Record | None] = lambda _kind, _id: None

    def related(self, kind: str, identity: int) -> Record | None:
        """A related object with all of its own fields; None if nothing is known of it."""
        if catalog := self.catalogs.get(kind):
            return catalog.get(identity)
        for table in self.tables.values():
            if table.kind == kind:
                row = table.row_of(identity)
                return None if row is None else table.build(row)
        return self.detail(kind, identity)

    def is_steady(self, kind: str) -> bool:
        """Whether such objects stay as they are while the desk is served: only tickets change."""
        return kind in self.catalogs or kind in ("Account", "User")


def stub(kind: str, identity: int) -> Record:
    """A related object as it stands in a record that does not select into it."""
    return {"id": identity, "_type": kind}


def catalog_of(kind: str, names: dict[int, str], **more: dict[int, Any]) -> dict[int, Record]:
    """Related objects by id, from their names and from further fields, by id too."""
    return {
        identity: {**stub(kind, identity), "name": name, **{k: v[identity] for k, v in more.items()}}
        for identity, name in names.items()
    }
