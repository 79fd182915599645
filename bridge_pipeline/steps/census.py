"""What one extraction has seen, kept on disk so that memory does not grow with the rows.

Implements `connector_kit.connector.Census` over a scratch SQLite file, and spools the
rejected records until the batch is committed. Nothing here outlives the extraction: after
a crash it is built again from the page journal.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

_TABLES = """
create table seen (id text, version text, inside integer, sweep integer, primary key (id, version))
    without rowid;
create table pages (digest blob primary key, sightings blob) without rowid;
create table rejected (sha256 text primary key, reason text, pointer text, detail text,
    record_id text, raw blob, page integer, position integer, fetched_at text) without rowid;
create table gone (id text primary key, changed integer, seen integer, page integer, position integer)
    without rowid;
"""
_REPORT = """
insert into gone values (?, ?, ?, ?, ?) on conflict (id) do update
set changed = excluded.changed, seen = excluded.seen, page = excluded.page, position = excluded.position
"""
# Of each id, for each version: whether it lies in the window, and the sweep that saw it last.
_Versions = dict[str, dict[str, tuple[bool, int]]]
# SQLite allows 32,766 variables in a statement.
_AT_ONCE = 30_000


class Sighting(NamedTuple):
    """One record of a page: its id (`sha256:…` for a rejected one), version, and window."""

    id: str
    version: str
    inside: bool
    rejected: bool = False


@dataclass(frozen=True)
class RejectedRecord:
    """A rejected record as it goes to quarantine."""

    sha256: str
    reason: str
    pointer: str
    detail: str
    record_id: str | None
    raw: bytes
    page: int
    position: int
    fetched_at: datetime


@dataclass(frozen=True)
class GoneReport:
    """A record that the source lists as deleted: when it says so, when it was read, and where.

    Times are in µs since 1970.
    """

    id: str
    changed_at: int | None
    seen_at: int
    page: int
    position: int


class DiskCensus:
    """See `connector_kit.connector.Census`."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        # A scratch file: durability would only cost time.
        self._db.execute("pragma journal_mode = off")
        self._db.execute("pragma synchronous = off")
        self._db.executescript(_TABLES)
        self._sweep = 0
        self._unseen = self._in_window = self._swept = self._repeated = 0

    @property
    def unseen(self) -> int:
        return self._unseen

    @property
    def in_window(self) -> int:
        return self._in_window

    @property
    def swept_in_window(self) -> int:
        return self._swept

    @property
    def repeated(self) -> int:
        return self._repeated

    @property
    def missed(self) -> int:
        query = """select count(*) from
            (select 1 from seen group by id having max(inside) = 1 and max(sweep) < ?)"""
        return int(self._db.execute(query, (self._sweep,)).fetchone()[0])

    def begin_sweep(self) -> None:
        self._sweep += 1
        self._unseen = self._swept = self._repeated = 0

    def enter(self, page: list[Sighting]) -> list[bool]:
        """Enters the records of a page, in order; says of each whether this version is new."""
        ids = {sighting.id for sighting in page}
        known = self._known(ids)
        fresh = self._compare(page, known) if known or len(ids) < len(page) else self._add(page)
        rows = [(record_id, version, inside, self._sweep) for record_id, version, inside, _ in page]
        with self._transaction():
            self._db.executemany("insert or replace into seen values (?, ?, ?, ?)", rows)
        return fresh

    def _add(self, page: list[Sighting]) -> list[bool]:
        """Counts records of which none was seen before."""
        inside = sum(sighting.inside for sighting in page)
        counted = sum(sighting.inside and not sighting.rejected for sighting in page)
        self._unseen += inside
        self._in_window += counted
        self._swept += counted
        self._repeated = 0
        return [True] * len(page)

    def _compare(self, page: list[Sighting], known: _Versions) -> list[bool]:
        """Counts records of which some were seen before, on this page or on others."""
        fresh, self._repeated = [], 0
        for record_id, version, inside, rejected in page:
            versions = known.setdefault(record_id, {})
            repeated = counted = swept = False
            for was_inside, sweep in versions.values():
                repeated |= sweep == self._sweep
                counted |= was_inside
                swept |= was_inside and sweep == self._sweep
            self._repeated += repeated
            if inside:
                self._unseen += not counted
                if not rejected:
                    self._in_window += not counted
                    self._swept += not swept
            fresh.append(version not in versions)
            versions[version] = (inside, self._sweep)
        return fresh

    def keep_page(self, digest: bytes, ids: list[str], versions: list[str], inside: list[bool]) -> None:
        """Keeps what a page held, none of it rejected, under the SHA-256 of its bytes."""
        held = orjson.dumps([ids, versions, inside])
        self._db.execute("insert or ignore into pages values (?, ?)", (digest, held))

    def page(self, digest: bytes) -> list[Sighting]:
        """What was kept of the page with these bytes; empty if nothing."""
        row = self._db.execute("select sightings from pages where digest = ?", (digest,)).fetchone()
        return list(map(Sighting, *orjson.loads(row[0]))) if row else []

    def reject(self, records: list[RejectedRecord]) -> None:
        """Spools rejected records; one already spooled is kept once."""
        rows = [(*list(vars(r).values())[:-1], r.fetched_at.isoformat()) for r in records]
        with self._transaction():
            self._db.executemany("insert or ignore into rejected values (?,?,?,?,?,?,?,?,?)", rows)

    def rejected(self) -> Iterator[RejectedRecord]:
        """The spooled records, ordered by where they were read."""
        for row in self._db.execute("select * from rejected order by page, position"):
            values: tuple[Any, ...] = (*row[:-1], datetime.fromisoformat(row[-1]))
            yield RejectedRecord(*values)

    def report_gone(self, reports: list[GoneReport]) -> None:
        """Spools records that the source lists as deleted; of one record the last report counts."""
        with self._transaction():
            self._db.executemany(_REPORT, [tuple(vars(report).values()) for report in reports])

    def gone(self) -> Iterator[GoneReport]:
        """The spooled reports, by id."""
        for row in self._db.execute("select * from gone order by id"):
            yield GoneReport(*row)

    def close(self) -> None:
        """Closes the scratch file."""
        self._db.close()

    def _known(self, ids: set[str]) -> _Versions:
        known: _Versions = {}
        wanted = list(ids)
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"select id, version, inside, sweep from seen where id in ({marks})"
            for record_id, version, inside, sweep in self._db.execute(query, part):
                known.setdefault(record_id, {})[version] = (bool(inside), sweep)
        return known

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("commit" if kind is None else "rollback")
