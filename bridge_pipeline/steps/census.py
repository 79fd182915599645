"""What one extraction has seen, kept on disk so that memory does not grow with the rows.

Implements `connector_kit.connector.Census` over a scratch SQLite file, and spools the
rejected records until the batch is committed. Nothing here outlives the extraction: after
a crash it is built again from the page journal.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from bridge_pipeline.steps.prints import Fingerprints

_TABLES = """
create table seen (id text, version text, inside integer, page integer, primary key (id, version))
    without rowid;
create table pages (page integer primary key, sweep integer, records integer, inside integer, digest blob);
create index pages_by_digest on pages (digest) where digest is not null;
create table spooled (page integer primary key, ids blob, versions blob, inside blob);
create table rejected (sha256 text primary key, reason text, pointer text, detail text,
    record_id text, raw blob, page integer, position integer, fetched_at text) without rowid;
create table gone (id text primary key, changed integer, seen integer, page integer, position integer)
    without rowid;
"""
# Of ids, and the same where no id stands in two places.
_MISSED = """
select count(*) from (
    select 1 from seen join pages using (page)
    group by id having max(seen.inside) = 1 and max(sweep) < ?
)
"""
_MISSED_PAGES = "select coalesce(sum(inside), 0) from pages where sweep < ?"
_REPORT = """
insert into gone values (?, ?, ?, ?, ?) on conflict (id) do update
set changed = excluded.changed, seen = excluded.seen, page = excluded.page, position = excluded.position
"""
# Of each id, for each version: whether it lies in the window, the sweep that saw it last, and its page.
_Versions = dict[str, dict[str, tuple[bool, int, int]]]
# Of the records of a page: those seen in this sweep already; those of the window that were not.
_SWEPT = """
with swept as (
    select s.inside as own, max(o.inside) as other from seen as s
    join seen as o on o.id = s.id join pages as p on p.page = o.page and p.sweep = :sweep
    where s.page = :page group by s.id
)
select count(*), coalesce(sum(own and other), 0) from swept
"""
_SEE = "insert or replace into seen values (?, ?, ?, ?)"
_INSIDE = attrgetter("inside")
# SQLite allows 32,766 variables in a statement.
_AT_ONCE = 30_000


class Sighting(NamedTuple):
    """One record of a page: its id, version, and window.

    A rejected one has an id apart (`rejected:…`), as it counts apart from those that were accepted, or one
    of its bytes (`sha256:…`) where it has no proper id. Its version are its bytes.
    """

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
    """See `connector_kit.connector.Census`.

    Each version belongs to the page that brought it last, and when it was seen is kept of the page. So a
    page that comes again with the same bytes is entered at once, however many records it has.

    `settle` is called before anything is answered: who takes the pages may not have entered all of them.

    Until a record may stand in two places, pages are spooled whole: nobody looks for one of their records.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.settle: Callable[[], None] = lambda: None
        self._db = sqlite3.connect(path, isolation_level=None)
        # A scratch file: durability would only cost time.
        self._db.execute("pragma journal_mode = off")
        self._db.execute("pragma synchronous = off")
        self._db.executescript(_TABLES)
        self._sweep = self._page = 0
        self._unseen = self._in_window = self._swept = self._repeats = 0
        self._prints = Fingerprints(path.parent)
        # Whether no record stands in two places.
        self._disjoint = True
        # Whether pages are spooled; none stands in `seen` then.
        self._spooling = True

    @property
    def unseen(self) -> int:
        self.settle()
        return self._unseen

    @property
    def in_window(self) -> int:
        self.settle()
        return self._in_window

    @property
    def swept_in_window(self) -> int:
        self.settle()
        return self._swept

    @property
    def repeats(self) -> int:
        self.settle()
        return self._repeats

    @property
    def repeats_entered(self) -> int:
        return self._repeats

    @property
    def missed(self) -> int:
        self.settle()
        query = _MISSED_PAGES if self._disjoint else _MISSED
        return int(self._db.execute(query, (self._sweep,)).fetchone()[0])

    def begin_sweep(self) -> None:
        self.settle()
        self._sweep += 1
        self._unseen = self._swept = self._repeats = 0

    def enter(self, page: list[Sighting], digest: bytes | None = None) -> list[bool]:
        """Enters the records of a page, in order; says of each whether this version is new.

        Args:
            digest: SHA-256 of the page's bytes, for `enter_again`.
        """
        columns = list(zip(*page, strict=True)) or [()] * len(Sighting._fields)
        ids, _, insides, _ = columns
        known = self._known(self._prints.add(ids))
        distinct = len(set(ids)) == len(page)
        alone = distinct and not known
        if not alone:
            self._unspool()
        fresh = self._add(page) if alone else self._compare(page, known)
        self._disjoint &= alone
        self._page += 1
        number, inside = self._page, sum(insides)
        kept = digest if page and distinct else None
        with self._transaction():
            self._disown(page, known)
            self._db.execute(
                "insert into pages values (?, ?, ?, ?, ?)", (number, self._sweep, len(page), inside, kept)
            )
            self._keep(columns[:3], alone)
        return fresh

    def _keep(self, columns: list[tuple[Any, ...]], alone: bool) -> None:
        """Keeps the ids, versions and windows of the page that is entered."""
        if alone and self._spooling:
            values = (self._page, *map(orjson.dumps, columns))
            self._db.execute("insert into spooled values (?, ?, ?, ?)", values)
        else:
            self._db.executemany(_SEE, zip(*columns, repeat(self._page)))

    def _unspool(self) -> None:
        """From now on each record can be found."""
        if not self._spooling:
            return
        self._spooling = False
        with self._transaction():
            for page, *columns in self._db.execute("select * from spooled"):
                ids, versions, inside = map(orjson.loads, columns)
                rows = [(*row, page) for row in zip(ids, versions, inside, strict=True)]
                self._db.executemany(_SEE, rows)
            self._db.execute("delete from spooled")

    def enter_again(self, digest: bytes) -> int:
        """Enters a page with bytes that were entered before, none of it rejected.

        Returns:
            How many records it has, none of them new; 0 if its bytes are not known.
        """
        query = "select page, sweep, records, inside from pages where digest = ?"
        found = self._db.execute(query, (digest,)).fetchone()
        if found is None:
            return 0
        page, sweep, records, inside = found
        if sweep == self._sweep:
            self._repeats += 1
            return records
        repeated, elsewhere = (0, 0) if self._disjoint else self._swept_elsewhere(page)
        self._repeats = self._repeats + 1 if repeated == records else 0
        self._swept += inside - elsewhere
        self._db.execute("update pages set sweep = ? where page = ?", (self._sweep, page))
        return records

    def knows(self, digest: bytes) -> bool:
        """Whether `enter_again` knows a page with these bytes."""
        return self._db.execute("select 1 from pages where digest = ?", (digest,)).fetchone() is not None

    def _swept_elsewhere(self, page: int) -> tuple[int, int]:
        """How many records of a page other pages of this sweep had; how many of them lie in the window."""
        self._db.execute("create index if not exists seen_by_page on seen (page)")
        found = self._db.execute(_SWEPT, {"page": page, "sweep": self._sweep}).fetchone()
        return int(found[0]), int(found[1])

    def _add(self, page: list[Sighting]) -> list[bool]:
        """Counts records of which none was seen before."""
        inside = sum(map(_INSIDE, page))
        counted = inside - sum(inside and rejected for _, _, inside, rejected in page)
        self._unseen += inside
        self._in_window += counted
        self._swept += counted
        self._repeats = 0 if page else self._repeats
        return [True] * len(page)

    def _compare(self, page: list[Sighting], known: _Versions) -> list[bool]:
        """Counts records of which some were seen before, on this page or on others."""
        fresh, again = [], 0
        seen = {record_id: dict(versions) for record_id, versions in known.items()}
        for record_id, version, inside, rejected in page:
            versions = seen.setdefault(record_id, {})
            repeated = counted = swept = False
            for was_inside, sweep, _ in versions.values():
                repeated |= sweep == self._sweep
                counted |= was_inside
                swept |= was_inside and sweep == self._sweep
            again += repeated
            if inside:
                self._unseen += not counted
                if not rejected:
                    self._in_window += not counted
                    self._swept += not swept
            fresh.append(version not in versions)
            versions[version] = (inside, self._sweep, 0)
        self._repeats = self._repeats + 1 if again == len(page) else 0
        return fresh

    def _disown(self, page: list[Sighting], known: _Versions) -> None:
        """Forgets the bytes of pages that lose a version to the one that is entered."""
        if not known:
            return
        pages = {
            known[sighting.id][sighting.version][2]
            for sighting in page
            if sighting.version in known.get(sighting.id, ())
        }
        forget = "update pages set digest = null where page = ?"
        self._db.executemany(forget, [(each,) for each in pages])

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

    def _known(self, wanted: list[str]) -> _Versions:
        """The versions that were seen of ids."""
        known: _Versions = {}
        if wanted:
            self._unspool()
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            query = (
                "select id, version, seen.inside, sweep, page from seen join pages using (page)"
                f" where id in ({marks})"
            )
            for record_id, version, inside, sweep, page in self._db.execute(query, part):
                known.setdefault(record_id, {})[version] = (bool(inside), sweep, page)
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
