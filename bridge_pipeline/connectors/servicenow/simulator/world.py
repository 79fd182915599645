"""What a simulated instance holds: tables of rows, which are texts throughout.

A row's fields are built when they are asked for. How rows come about is `generated` and
`replayed`; how they are shown is `dialect`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson

Fields = dict[str, str]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Built rows are kept up to so many of a table; a query by another column than those of paging builds all.
_KEPT = 40_000


@dataclass(slots=True)
class Row:
    """A row of a table: its key, its number there, and what may change.

    `hidden` rows are those that access rules keep from the user; `appears` is the answer after which
    a row that was stamped earlier can be seen.
    """

    id: str
    number: int
    created: str
    updated: str
    mods: int = 0
    hidden: bool = False
    appears: int = 0


@dataclass
class Table:
    """The rows of one table by key.

    Attributes:
        columns: all fields, in the order in which they are sent.
        references: fields that hold the key of a row of another table.
        build: the fields of a row beside those that every table has.
        timed_by_creation: the table knows no change of a row.
    """

    name: str
    columns: tuple[str, ...]
    references: dict[str, str]
    build: Callable[[Row], Fields]
    timed_by_creation: bool = False
    rows: dict[str, Row] = field(default_factory=dict)
    deleted: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    _built: dict[str, tuple[int, Fields]] = field(default_factory=dict, repr=False)
    _digests: dict[str, tuple[int, str]] = field(default_factory=dict, repr=False)

    def add(self, row: Row) -> None:
        """Enters a row."""
        self.rows[row.id] = row
        self.changes += 1

    def touch(self, row: Row, moment: str) -> None:
        """Changes a row, which moves it to the end of all."""
        row.updated, row.mods = moment, row.mods + 1
        self.changes += 1

    def remove(self, row: Row, moment: str) -> None:
        """Deletes a row for good."""
        del self.rows[row.id]
        self.deleted[row.id] = moment
        self.changes += 1

    def fields(self, row: Row) -> Fields:
        """All fields of a row in raw form; those it does not have are empty."""
        known = self._built.get(row.id)
        if known and known[0] == row.mods:
            return known[1]
        fields = self._fields(row)
        if len(self._built) < _KEPT or known:
            self._built[row.id] = (row.mods, fields)
        return fields

    def _fields(self, row: Row) -> Fields:
        own = self.build(row) | {"sys_id": row.id, "sys_created_on": row.created}
        if not self.timed_by_creation:
            own |= {"sys_updated_on": row.updated, "sys_mod_count": str(row.mods)}
        return {column: own.get(column, "") for column in self.columns}

    def value(self, row: Row, column: str) -> str:
        """One field of a row; those of paging without building the others."""
        match column:
            case "sys_id":
                return row.id
            case "sys_updated_on":
                return row.updated
            case "sys_created_on":
                return row.created
            case _:
                return self.fields(row).get(column, "")

    def truth(self, hidden: bool, answers: int) -> Iterator[bytes]:
        """Members `"<id>":{"updated_at":…,"sha256":…}` of the rows that can be seen, or cannot.

        The hash is that of the raw fields, references as plain keys, as JSON with its keys in order.
        """
        separator = b""
        for row in self.rows.values():
            if (row.hidden or row.appears > answers) != hidden:
                continue
            whole = orjson.dumps(self.fields(row), option=orjson.OPT_SORT_KEYS)
            changed = row.created if self.timed_by_creation else row.updated
            yield (
                separator
                + orjson.dumps(row.id)
                + b":"
                + orjson.dumps(
                    {
                        "updated_at": f"{changed.replace(' ', 'T')}Z",
                        "sha256": hashlib.sha256(whole).hexdigest(),
                    }
                )
            )
            separator = b","


@dataclass
class World:
    """Everything one instance holds; `clock` is its own time."""

    tables: dict[str, Table]
    clock: datetime


def key_of(*parts: object) -> str:
    """A `sys_id` that depends on nothing but `parts`: MD5 of them, joined by `:`."""
    text = ":".join(str(part) for part in parts)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def written(moment: datetime) -> str:
    """A time in the raw form of the Table API."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def read(text: str) -> datetime:
    """The time of a raw text."""
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def duration(length: timedelta) -> str:
    """A duration, which is a time counted from 1970 (D.3)."""
    return written(_EPOCH + length)


class Dice:
    """Draws that depend on nothing but the parts they were made with."""

    def __init__(self, *parts: object) -> None:
        text = ":".join(str(part) for part in parts)
        self._bits = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=64).digest(), "big")

    def below(self, limit: int) -> int:
        """A number from 0 on, below `limit`."""
        self._bits, drawn = divmod(self._bits, max(1, limit))
        return drawn

    def one_in(self, times: int) -> bool:
        return self.below(times) == 0

    def of(self, choices: tuple[str, ...]) -> str:
        return choices[self.below(len(choices))]
