"""What a source lists: every id with its change mark, on disk, as one reading of its whole listing saw it.

Nothing is compared here; see `reckon`.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bridge_pipeline import progress
from bridge_pipeline.connector_kit import reckoning
from bridge_pipeline.connector_kit.connector import Client, Page, Reading, Stream
from bridge_pipeline.connector_kit.fields import Refused
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import Rejected
from bridge_pipeline.steps.census import DiskCensus, Sighting

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A source whose clock runs ahead by more than this does not tell the time.
_AHEAD = timedelta(hours=24)
_TABLES = """
create table listed (id text primary key, changed integer, state text, seen integer) without rowid;
create table nameless (sha256 text primary key, page integer, position integer) without rowid;
"""
_ENTER = """
insert into listed values (?, ?, ?, ?) on conflict (id) do update
set changed = excluded.changed, state = excluded.state, seen = excluded.seen
"""


@dataclass
class IdBook:
    """The ids that a listing brought, in a scratch SQLite file; the newest sighting of each counts.

    `nameless` are records without a usable id, known by the SHA-256 of their bytes. `began` and
    `ended` are the times of the first and last page.
    """

    path: Path
    proof: dict[str, Any] = field(default_factory=dict)
    requests: int = 0
    began: datetime | None = None
    ended: datetime | None = None

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("pragma journal_mode = off")
        self._db.execute("pragma synchronous = off")
        self._db.executescript(_TABLES)

    def enter(
        self,
        page: Page,
        named: list[tuple[str, int | None, str | None]],
        nameless: list[tuple[str, int]],
    ) -> None:
        """Enters a page: (id, change mark in µs or None, state), and (SHA-256, position)."""
        seen = micros(page.fetched_at)
        self._db.execute("begin")
        self._db.executemany(_ENTER, [(*entry, seen) for entry in named])
        rows = [(digest, page.number, position) for digest, position in nameless]
        self._db.executemany("insert or ignore into nameless values (?, ?, ?)", rows)
        self._db.execute("commit")
        self.began = min(self.began or page.fetched_at, page.fetched_at)
        self.ended = max(self.ended or page.fetched_at, page.fetched_at)

    @property
    def ids(self) -> int:
        """How many different ids were listed."""
        return self._one("select count(*) from listed")

    def lists(self, record_id: str) -> bool:
        """Whether that id was listed."""
        return self._db.execute("select 1 from listed where id = ?", (record_id,)).fetchone() is not None

    @property
    def usable(self) -> bool:
        """Whether the listing says enough: every record has an id, and change marks come at all."""
        unmarked = self._one("select count(*) = sum(changed is null) from listed") if self.ids else 0
        return not unmarked and not self._one("select count(*) from nameless")

    def listed(self) -> Iterator[tuple[str, int | None, str | None, int]]:
        """(id, change mark in µs or None, state, time of the page in µs), by id."""
        return iter(self._db.execute("select * from listed order by id"))

    def marks(self, ids: Sequence[str]) -> dict[str, int]:
        """The change marks in µs of those of these ids, at most 30,000, that were listed with one."""
        places = ",".join("?" * len(ids))
        query = f"select id, changed from listed where changed is not null and id in ({places})"
        return dict(self._db.execute(query, ids))

    def nameless(self) -> Iterator[tuple[str, int, int]]:
        """(SHA-256 of the bytes, page, position) of the records without a usable id."""
        return iter(self._db.execute("select * from nameless order by page, position"))

    def close(self) -> None:
        """Closes the scratch file."""
        self._db.close()

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])


def list_source(client: Client, stream: Stream, work: Path, journal: Journal, narrow: bool) -> IdBook:
    """Reads the source's whole listing, without a filter, until it is whole.

    Args:
        work: scratch folder.
        narrow: whether the client's own way to list ids may be taken, if it has one.

    Raises:
        SourceError: the source did not answer, or its listing never became whole.
    """
    book = IdBook(work / f"{stream.entity.name}.listed.sqlite")
    census = DiskCensus(work / f"{stream.entity.name}.census.sqlite")
    reader, began = _Reader(stream, journal), datetime.now(UTC)
    try:
        reading = Reading(stream, None, census, journal)
        for page in reckoning.id_pages(client, reading, book.proof, narrow):
            census.enter(reader.enter(book, page))
            progress.report("list", stream.entity.name, book.ids, "ids")
    except BaseException:
        book.close()
        raise
    finally:
        census.close()
    # A listing may have no page of its own, as that of comments where there are no tickets.
    book.began, book.ended = book.began or began, book.ended or datetime.now(UTC)
    book.requests = journal.written
    progress.report("list", stream.entity.name, book.ids, "ids", finished=True)
    return book


class _Reader:
    """Reads ids and change marks out of pages."""

    def __init__(self, stream: Stream, journal: Journal) -> None:
        names = stream.entity.column_names
        self._stream = stream
        self._journal = journal
        self._id = stream.fields[names.index("id")].read
        self._changed = stream.fields[names.index("updated_at")].read

    def enter(self, book: IdBook, page: Page) -> list[Sighting]:
        """Enters a page into the book; gives what the census is to know of it."""
        latest = micros(page.fetched_at + _AHEAD)
        named, nameless, sightings = [], [], []
        for position, record in enumerate(page.content.records):
            if (found := self._name(record)) is None:
                digest = hashlib.sha256(self._exact(page, position)).hexdigest()
                nameless.append((digest, position))
                sightings.append(Sighting(f"sha256:{digest}", digest, True, rejected=True))
            else:
                changed = self._mark(record, latest)
                named.append((found, changed, reckoning.state_of(self._stream, record)))
                sightings.append(Sighting(found, str(changed), True))
        book.enter(page, named, nameless)
        return sightings

    def _name(self, record: Any) -> str | None:
        if isinstance(record, Rejected):
            return self._stream.id_in(record.raw) or record.record_id
        try:
            return str(self._id(record)) if isinstance(record, dict) else None
        except Refused:
            return None

    def _mark(self, record: Any, latest: int) -> int | None:
        """The change mark in µs; None where it is missing, unreadable or in the future (rule 3)."""
        try:
            changed = self._changed(record) if isinstance(record, dict) else None
        except Refused:
            return None
        return changed if changed is not None and changed <= latest else None

    def _exact(self, page: Page, position: int) -> bytes:
        record = page.content.records[position]
        if isinstance(record, Rejected):
            return record.raw
        if page.content.exact is not None:
            return page.content.exact[position]
        return self._stream.exact_records(self._journal.body(page.number))[position]


def micros(moment: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (moment - _EPOCH) // _MICROSECOND
