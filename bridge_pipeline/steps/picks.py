"""Which rows the audit files of days are made of, and in which order.

Of each record the newest landed version of the day, or its tombstone; ordered by length of id,
then id. DuckDB sorts what decides, on disk where it must; contents are not read here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model.entity import TIMESTAMP
from bridge_pipeline.steps import duck
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import LandingDamaged, read_landed, refuse_damaged
from bridge_pipeline.steps.places import Places

_DECIDING = ("seq", "id", "updated_at", "fetched_at", "content_hash")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROWS_AT_A_TIME = 50_000


@dataclass(frozen=True)
class Part:
    """The landed rows of one batch; `first` is the number of its first row among those of all parts.

    `kept` says of landed rows whether they count.
    """

    batch: Batch
    folder: Path
    first: int
    kept: Callable[[pa.Table], pa.ChunkedArray] | None

    @property
    def rows(self) -> int:
        """How many rows landed."""
        return sum(file["rows"] for file in self.batch.files)

    def read(self, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """All rows with these columns, numbered by `seq` among those of all parts."""
        for rows in read_landed(self.folder, self.batch.files, self.batch.entity, columns):
            place = rows.schema.get_field_index("seq")
            numbers = pc.call_function("add", [rows["seq"], pa.scalar(self.first, pa.int64())])
            yield rows.set_column(place, "seq", numbers)

    def decide(self) -> Iterator[pa.Table]:
        """The rows that count, with what decides."""
        for rows in read_landed(self.folder, self.batch.files, self.batch.entity, _DECIDING):
            kept = rows if self.kept is None else rows.filter(self.kept(rows))
            yield _decision(kept, self.first)


@dataclass(frozen=True)
class Tombstone:
    """The row of a deleted record; `mark` takes the place of the content's hash."""

    id: str
    deleted_at: datetime
    mark: str

    @classmethod
    def of(cls, record_id: str, deleted_at: int) -> "Tombstone":
        """The tombstone of a record that was found deleted so many microseconds after 1970."""
        moment = _EPOCH + timedelta(microseconds=deleted_at)
        said = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return cls(record_id, moment, hashlib.sha256(f"deleted {said} {record_id}".encode()).hexdigest())


@dataclass
class Picked:
    """The rows of one day's file, in its order.

    Attributes:
        first: the place of its first row among the rows of all days.
        sha256: of the rows' content hashes, one a line.
        buried: the places of `tombstones`; those of landed rows are in `places`.
    """

    day: date
    first: int
    rows: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    tombstones: list[Tombstone] = field(default_factory=list)
    buried: list[int] = field(default_factory=list)


def parts_of(
    workspace: Workspace, connection: sa.Connection, batch: Batch, first: date, last: date
) -> list[Part]:
    """The landed rows that the files of a batch's days are made of, later ones winning.

    Those of the batch, of replays that were read when it was or later, and what only a certificate
    brought: no reading of the days shows that (rule 3).

    Raises:
        LandingDamaged: a file of theirs is missing, or not the one that the ledger lists.
    """
    count, parts = 0, list[Part]()

    def add(each: Batch, kept: Callable[[pa.Table], pa.ChunkedArray] | None) -> None:
        nonlocal count
        # What DuckDB's threads meet while they read is told in its words.
        refuse_damaged(landing_of(workspace, each), each.files)
        parts.append(Part(each, landing_of(workspace, each), count, kept))
        count += parts[-1].rows

    add(batch, _accepted(connection, batch))
    for replay in ledger.replays_since(connection, batch):
        add(replay, _accepted(connection, replay, batch.fetched_from))
    values = {"batch": batch.id, "connection": batch.connection, "first": first, "last": last}
    for certified in connection.scalars(sa.text(_CERTIFIED.format(entity=batch.entity)), values).all():
        brought = _brought(connection, batch, certified, first, last)
        try:
            add(ledger.batch(connection, certified), _among(brought))
        except LandingDamaged:
            # Where the days were read since, and show all that it brought, it is not needed.
            if brought.difference(*(_versions(part) for part in parts)):
                raise
    return parts


def _accepted(
    connection: sa.Connection, batch: Batch, since: datetime | None = None
) -> Callable[[pa.Table], pa.ChunkedArray] | None:
    """Whether rows passed the checks, and were fetched since then."""
    r = t.rejections
    refused = pa.array(connection.scalars(sa.select(r.c.seq).where(r.c.batch_id == batch.id)), pa.int64())
    if not len(refused) and since is None:
        return None

    def kept(rows: pa.Table) -> pa.ChunkedArray:
        taken_out = pc.call_function("is_in", [rows["seq"]], pc.SetLookupOptions(refused))
        found = pc.call_function("invert", [taken_out])
        if since is None:
            return found
        later = pc.call_function("greater_equal", [rows["fetched_at"], pa.scalar(since, TIMESTAMP)])
        return pc.call_function("and", [found, later])

    return kept


def _brought(
    connection: sa.Connection, batch: Batch, certified: int, first: date, last: date
) -> set[tuple[str, str]]:
    """Id and content hash of the rows of days that the table has from a certificate's batch."""
    values = {"certified": certified, "connection": batch.connection, "first": first, "last": last}
    rows = connection.execute(sa.text(_BROUGHT.format(entity=batch.entity)), values)
    return {(row.id, row.content_hash) for row in rows}


def _among(versions: set[tuple[str, str]]) -> Callable[[pa.Table], pa.ChunkedArray]:
    def kept(rows: pa.Table) -> pa.ChunkedArray:
        found = zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)
        return pa.chunked_array([pa.array([each in versions for each in found], pa.bool_())])

    return kept


def _versions(part: Part) -> Iterator[tuple[str, str]]:
    """Id and content hash of the rows of a part that count."""
    for rows in part.decide():
        yield from zip(rows["id"].to_pylist(), rows["mark"].to_pylist(), strict=True)


def pick(
    connection: sa.Connection,
    batch: Batch,
    parts: list[Part],
    days: list[date],
    scratch: Path,
    places: Places,
) -> Iterator[Picked]:
    """What the file of each day holds, in the order of the days.

    Records without a change time belong to no day. A record is deleted for a batch that has it if its
    page was fetched before the deletion was observed.

    Args:
        days: in order.
        scratch: an existing folder for what does not fit into memory.
        places: gets the place of each landed row that stands in a file, among the rows of all days.
    """
    # Read before DuckDB asks for rows: it does so from threads of its own.
    deleted = list(_deleted(connection, batch, days[0], days[-1]))
    rows = sum(part.rows for part in parts) + sum(table.num_rows for table in deleted)
    with duck.opened(rows, scratch) as db:
        db.execute("create temporary table deleted (day integer, id text, deleted_at bigint)")
        for table in deleted:
            db.register("rows", table)
            db.execute("insert into deleted select * from rows")
        decisions = chain.from_iterable(part.decide() for part in parts)
        batches = chain.from_iterable(rows.to_batches() for rows in decisions)
        db.register("landed", pa.RecordBatchReader.from_batches(_DECISION, batches))
        first, last = ((day - _EPOCH.date()).days for day in (days[0], days[-1]))
        ordered = db.sql(_ORDERED.format(first=first, last=last))
        yield from _by_day(_newest(ordered.to_arrow_reader(_ROWS_AT_A_TIME)), days, places)


_DECISION = pa.schema(
    {
        "day": pa.int32(),
        "id": pa.string(),
        "seq": pa.int64(),
        "updated_at": pa.int64(),
        "fetched_at": pa.int64(),
        "mark": pa.string(),
    }
)


def _decision(rows: pa.Table, first: int) -> pa.Table:
    """What decides of landed rows; days are counted from 1970, and times in microseconds."""
    updated = rows["updated_at"].cast(pa.timestamp("us"))
    columns = [
        updated.cast(pa.date32()).cast(pa.int32()),
        rows["id"],
        pc.call_function("add", [rows["seq"], pa.scalar(first, pa.int64())]),
        updated.cast(pa.int64()),
        rows["fetched_at"].cast(pa.int64()),
        rows["content_hash"],
    ]
    return pa.table(columns, schema=_DECISION)


# A row of `deleted` is the last of its record, so that it counts where nothing landed.
_ORDERED = """
select day, id, seq, fetched_at, deleted_at, mark from (
    select l.day, l.id, l.seq, l.updated_at, l.fetched_at, d.deleted_at, l.mark
    from landed l left join deleted d on d.day = l.day and d.id = l.id
    where l.day between {first} and {last}
    union all
    select day, id, -1, null, null, deleted_at, '' from deleted
)
order by day, length(id), id, seq < 0, updated_at desc, fetched_at desc, seq desc
"""

_OF_DAYS = """
    d.updated_at >= cast(:first as date)::timestamp at time zone 'UTC'
    and d.updated_at < (cast(:last as date) + 1)::timestamp at time zone 'UTC'
"""

_CERTIFIED = f"""
    select distinct d.batch_id from desk.{{entity}} d join bridge.batches b on b.id = d.batch_id
    where d.connection = :connection and b.proof ->> 'for' = 'certificate' and b.id <> :batch and {_OF_DAYS}
    order by d.batch_id
"""

_BROUGHT = f"""
    select d.id, d.content_hash from desk.{{entity}} d
    where d.connection = :connection and d.batch_id = :certified and {_OF_DAYS}
"""

_DELETED = f"""
    select (updated_at at time zone 'UTC')::date - date '1970-01-01' as day, id,
        (extract(epoch from deleted_at) * 1000000)::bigint as deleted_at
    from desk.{{entity}} d where connection = :connection and deleted_at is not null and {_OF_DAYS}
"""


def _deleted(connection: sa.Connection, batch: Batch, first: date, last: date) -> Iterator[pa.Table]:
    """Day, id and time of the records that `desk` calls deleted."""
    values = {"connection": batch.connection, "first": first, "last": last}
    found = connection.execute(sa.text(_DELETED.format(entity=batch.entity)), values)
    schema = pa.schema({"day": pa.int32(), "id": pa.string(), "deleted_at": pa.int64()})
    for rows in found.partitions(_ROWS_AT_A_TIME):
        yield pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def _newest(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The first row of each day and record."""
    before = None
    for batch in batches:
        if not batch.num_rows:
            continue
        days, ids = batch["day"].to_numpy(), batch["id"]
        same = pc.call_function("equal", [ids[1:], ids[:-1]]).to_numpy(zero_copy_only=False)
        again = np.zeros(batch.num_rows, bool)
        again[1:] = same & (days[1:] == days[:-1])
        again[0] = before == (days[0], ids[0].as_py())
        before = (days[-1], ids[-1].as_py())
        yield pa.Table.from_batches([batch]).filter(pa.array(~again))


def _by_day(newest: Iterable[pa.Table], days: list[date], places: Places) -> Iterator[Picked]:
    waiting = iter(days)
    builder = _Builder(next(waiting), 0, places)
    for rows in newest:
        found = rows["day"].to_numpy()
        for start, end in _runs(found):
            day = _EPOCH.date() + timedelta(days=int(found[start]))
            while builder.day < day:
                yield builder.picked()
                builder = _Builder(next(waiting), builder.next, places)
            if builder.day == day:
                builder.add(rows.slice(start, end - start))
    yield builder.picked()
    for day in waiting:
        yield Picked(day, builder.next)


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Where equal numbers begin and end."""
    borders = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    return list(pairwise(borders)) if len(numbers) else []


class _Builder:
    """Takes the rows of a day; `next` is the place after its last one."""

    def __init__(self, day: date, first: int, places: Places) -> None:
        self.day = day
        self.next = first
        self._first = first
        self._places = places
        self._digest = hashlib.sha256()
        self._tombstones: list[Tombstone] = []
        self._buried: list[int] = []

    def add(self, rows: pa.Table) -> None:
        numbers, marks = rows["seq"].to_numpy(), rows["mark"].combine_chunks()
        places = np.arange(self.next, self.next + len(numbers))
        self.next += len(numbers)
        if rows["deleted_at"].null_count < rows.num_rows:
            fetched = rows["fetched_at"].fill_null(np.iinfo(np.int64).min).to_numpy()
            gone = rows["deleted_at"].fill_null(np.iinfo(np.int64).min).to_numpy()
            dead = (numbers < 0) | (rows["deleted_at"].is_valid().to_numpy() & (fetched <= gone))
            marks = self._bury(rows, gone, np.flatnonzero(dead), marks)
            self._buried += places[dead].tolist()
            numbers, places = numbers[~dead], places[~dead]
        self._places.put(numbers, places)
        lines = pc.call_function("binary_join_element_wise", [marks, pa.scalar("\n"), pa.scalar("")])
        _, starts, data = lines.buffers()
        self._digest.update(memoryview(data)[: np.frombuffer(starts, np.int32)[len(lines)]])

    def _bury(self, rows: pa.Table, gone: np.ndarray, places: np.ndarray, marks: pa.Array) -> pa.Array:
        found = marks.to_pylist()
        for place in places.tolist():
            tombstone = Tombstone.of(rows["id"][place].as_py(), int(gone[place]))
            self._tombstones.append(tombstone)
            found[place] = tombstone.mark
        return pa.array(found, pa.string())

    def picked(self) -> Picked:
        rows = self.next - self._first
        digest = self._digest.hexdigest()
        return Picked(self.day, self._first, rows, digest, self._tombstones, self._buried)
