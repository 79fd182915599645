"""Audit: CSV files that anyone can verify, one per connection, entity and day.

Versions are only ever added, and each is an entry of the tenant's signed chain. A file exists
once the ledger lists it; what a killed run left beside is removed by the next. A record that is
deleted at the source stays in its day as a tombstone: id, time, and nothing else. The exact
values stay in landing: cells that a spreadsheet would run are disarmed (`cells`). Which rows a
file holds is in `picks`; the files of all days of a batch are written in one pass over them.
"""

import csv
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import sqlalchemy as sa
import structlog

from bridge_pipeline import naming, progress
from bridge_pipeline.ahead import ahead
from bridge_pipeline.connector_kit.journal import make_folder, sync_folder
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.copying import stage
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES, Entity, Window
from bridge_pipeline.model.entity import TIMESTAMP
from bridge_pipeline.model.window import midnight
from bridge_pipeline.steps import cells, ordering
from bridge_pipeline.steps import chain as audit_chain
from bridge_pipeline.steps.land import is_intact
from bridge_pipeline.steps.load import refuse_unreadable
from bridge_pipeline.steps.picks import Part, Picked, Tombstone, parts_of, pick
from bridge_pipeline.steps.places import Places

log = structlog.get_logger(__name__)

GUARD_NOTE = (
    "Cells that begin with = + - @ (also full-width or after blanks), tab, line break or ' have one ' "
    "put before them. Times are UTC. Null is an empty cell without quotes."
)
TOMBSTONE_NOTE = (
    "A row with deleted_at is a tombstone: the record is gone from the source, as found at that time. "
    "Its content_hash is the SHA-256 of `deleted`, that time and the id, with a blank between."
)
# Of a manifest: where the ids that left stand, one a line.
_LEFT = b'  "left": []'
_FILE = re.compile(r"v\d{4,}\.(csv|json)")
# An id without the quote that may disarm it.
_OWN_ID = "own_id"
# Files that are made durable side by side: the disk takes them together.
_SYNCS = 8


class AuditFileDamaged(RuntimeError):
    """A listed audit file is missing, or is not the one that the ledger lists."""


@dataclass(frozen=True)
class AuditFile:
    """The current audit file of a day; `added` if this run wrote it."""

    day: date
    version: int
    path: Path
    rows: int
    added: bool
    sha256: str
    manifest_sha256: str


def audit_window(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> list[AuditFile]:
    """Brings the audit files of the window's days up to the newest readable batches.

    A day whose rows are those of its current file gets no new version.

    Raises:
        BatchBlocked: the newest batch of the window may not be read.
        LandingDamaged, AuditFileDamaged: a file that is needed is missing, or not the one that the ledger
            lists; nothing is written.
        SigningError: the key that must sign is not in the home; nothing is written.
        ChainFileAltered: the files are written and committed, but the chain's file is not what
            it was.
    """
    with workspace.database.engine.connect() as connection:
        refuse_unreadable(ledger.unreadable_batch(connection, name, entity, window, run_id))
    return audit_days(workspace, name, entity, window.days())


def audit_days(workspace: Workspace, name: str, entity: str, days: Iterable[date]) -> list[AuditFile]:
    """Brings the audit files of days up to the readable batches; a day that no batch covers has none."""
    files: list[AuditFile] = []
    with transaction(workspace.database.engine, "audit") as connection:
        lock_audit(connection, name, [entity])
        reach("audit.locked")
        found = ledger.batches_of_days(connection, name, entity, list(days))
        for batch, pairs in groupby(found, key=lambda pair: pair[1]):
            if batch is not None:
                written = _write_days(workspace, connection, batch, [day for day, _ in pairs])
                ledger.record_audit(connection, batch.id, len(written), sum(file.added for file in written))
                files += written
        reach("audit.days_listed")
        tenant = registry.tenant_of(connection, name)
        _chain(workspace, connection, tenant, files)
    audit_chain.export_chain(workspace, tenant)
    progress.report("audit", entity, len(files), "files", finished=True)
    return files


def audit_records(
    workspace: Workspace, connection: sa.Connection, name: str, entity: str, ids: Sequence[str]
) -> list[AuditFile]:
    """Brings the days of single records up to what `desk` says of them, in the caller's transaction.

    Deleted records become tombstones; restored ones, and ones fetched for a certificate, rows. They
    may be so by this very transaction: both become visible together or not at all. Each version is
    made of the batch of the day's current one. A day without an audit file stays without. The caller
    calls `export_chain` after the commit, and `lock_audit` first if it does this for several entities.

    Raises:
        SigningError: the key that must sign is not in the home.
    """
    lock_audit(connection, name, [entity])
    files: list[AuditFile] = []
    for batch_id, days in groupby(_days_of(connection, name, entity, ids), key=lambda row: row.batch_id):
        batch = ledger.batch(connection, batch_id)
        files += _write_days(workspace, connection, batch, [row.day for row in days])
    _chain(workspace, connection, registry.tenant_of(connection, name), files)
    return files


def audit_loaded(
    workspace: Workspace, connection: sa.Connection, name: str, entity: str, batches: Sequence[int]
) -> list[AuditFile]:
    """Brings the days of the rows that some batches loaded up to `desk`; see `audit_records`."""
    table = t.desk_table(ENTITIES[entity])
    query = sa.select(table.c.id).where(table.c.connection == name, table.c.batch_id.in_(batches))
    ids = list(connection.scalars(query.where(~table.c.placeholder)))
    return audit_records(workspace, connection, name, entity, ids) if ids else []


def lock_audit(connection: sa.Connection, name: str, entities: Iterable[str]) -> None:
    """Waits until no other transaction writes audit files of these entities, and keeps others out."""
    for entity in sorted(entities):
        advisory_lock(connection, f"audit:{name}:{entity}", long=True)


def _days_of(connection: sa.Connection, name: str, entity: str, ids: Sequence[str]) -> Sequence[sa.Row]:
    """The days of these records that have an audit file, with the batch of the current version."""
    statement = f"""
    select distinct on (a.day) a.day, a.batch_id
    from bridge.audit_files a
    join desk.{ENTITIES[entity].name} d
        on d.connection = a.connection and (d.updated_at at time zone 'UTC')::date = a.day
    where a.connection = :name and a.entity = :entity and d.id = any(:ids)
    order by a.day, a.version desc
    """
    query = sa.text(f"select * from ({statement}) as current order by batch_id, day")
    return connection.execute(query, {"name": name, "entity": entity, "ids": list(ids)}).all()


def _chain(workspace: Workspace, connection: sa.Connection, tenant: str, files: Iterable[AuditFile]) -> None:
    """Signs the versions that were added: an entry each, all at once."""
    root = workspace.home.audit_tenant(tenant)
    drafts = []
    for file in files:
        if file.added:
            csv_path = str(file.path.relative_to(root))
            manifest_path = str(file.path.with_suffix(".json").relative_to(root))
            hashes = {csv_path: file.sha256, manifest_path: file.manifest_sha256}
            drafts.append(audit_chain.Draft(audit_chain.AUDIT, files=hashes))
    audit_chain.append(workspace, connection, tenant, drafts)


def _write_days(
    workspace: Workspace, connection: sa.Connection, batch: Batch, days: list[date]
) -> list[AuditFile]:
    """Adds a version of each day whose rows differ from its current file; returns the current files."""
    scratch = workspace.home.auditing_of(batch.connection, batch.entity)
    # What a killed run left there is nobody's: whoever writes these files has their lock.
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        return _Writing(workspace, connection, batch, days, scratch).write()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _columns(entity: Entity) -> tuple[str, ...]:
    return (*entity.content_names, "content_hash", "deleted_at")


@dataclass
class _Version:
    """A version to be added, and what is known of it so far; `left` are ids that the day has no more."""

    picked: Picked
    current: sa.Row | None
    target: Path
    sha256: str = ""
    manifest_sha256: str = ""
    left: list[str] = field(default_factory=list)

    @property
    def version(self) -> int:
        return self.current.version + 1 if self.current is not None else 1

    @property
    def told(self) -> dict[str, Any]:
        """What ledger and manifest say alike."""
        picked = self.picked
        return {
            "version": self.version,
            "rows": picked.rows,
            "rows_sha256": picked.sha256,
            "sha256": self.sha256,
        }


class _Writing:
    """The files of one batch's days: compared with the current ones, written, made durable, listed."""

    def __init__(
        self, workspace: Workspace, connection: sa.Connection, batch: Batch, days: list[date], scratch: Path
    ) -> None:
        self._root = workspace.home.audit
        self._folders = {
            day: workspace.home.audit_of(batch.tenant, batch.connection, batch.entity, day) for day in days
        }
        self._connection = connection
        self._batch = batch
        self._entity = ENTITIES[batch.entity]
        self._days = sorted(days)
        self._scratch = scratch
        self._parts = parts_of(workspace, connection, batch, min(days), max(days))
        self._listed = ledger.audit_versions(connection, batch.connection, batch.entity, days)
        self._replays = ledger.replays_since(connection, batch)

    def write(self) -> list[AuditFile]:
        self._remove_unlisted()
        with Places(self._scratch / "places", sum(part.rows for part in self._parts)) as places:
            return self._write(places)

    def _write(self, places: Places) -> list[AuditFile]:
        files: dict[date, AuditFile] = {}
        added: list[_Version] = []
        wanted = (self._connection, self._batch, self._parts, self._days, self._scratch, places)
        for picked in pick(*wanted):
            current = self._current(picked.day)
            if current is not None and (
                current.rows_sha256 == picked.sha256 or current.fetched_to > self._batch.fetched_to
            ):
                files[picked.day] = self._file(current)
            else:
                if not added:
                    make_folder(self._folders[picked.day].parent)
                added.append(self._version(picked, current))
        reach("audit.filled")
        if added:
            try:
                with ThreadPoolExecutor(_SYNCS) as pool:
                    durable = self._export(added, places, pool)
                    self._write_manifests(added)
                    self._place(added, durable, pool)
            except BaseException:
                for path in _places(added):
                    _draft(path).unlink(missing_ok=True)
                raise
            files |= self._list(added)
        return [files[day] for day in self._days]

    def _current(self, day: date) -> sa.Row | None:
        return max(self._listed[day], key=lambda row: row.version, default=None)

    def _file(self, row: sa.Row) -> AuditFile:
        path = self._root / row.path
        return AuditFile(row.day, row.version, path, row.rows, False, row.sha256, row.manifest_sha256)

    def _version(self, picked: Picked, current: sa.Row | None) -> _Version:
        folder = self._folders[picked.day]
        folder.mkdir(exist_ok=True)
        number = current.version + 1 if current is not None else 1
        return _Version(picked, current, folder / f"{naming.audit_name(number)}.csv")

    def _remove_unlisted(self) -> None:
        for day, folder in self._folders.items():
            if not folder.is_dir():
                continue
            listed = {naming.audit_name(row.version) for row in self._listed[day]}
            for path in folder.iterdir():
                if path.suffix == ".tmp" or (_FILE.fullmatch(path.name) and path.stem not in listed):
                    path.unlink()
                    reach("audit.unlisted_removed")

    # --- The CSV files

    def _export(self, added: list[_Version], places: Places, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Writes all files in one pass over the landed rows, in order of day and row.

        Each is made durable while those after it are written; returns what ends when it is.
        """
        ranks = range(sum(version.picked.rows for version in added))
        ordered = ordering.in_order(self._ranked(added, places), ranks, self._scratch, ordering.BUDGET)
        # Many days at a time: each call of Arrow costs as much as dozens of rows.
        with closing(ahead(map(self._written, ordered))) as made:
            rows, durable = _Rows(made), []
            for number, version in enumerate(added, start=1):
                self._write_file(version, rows)
                durable.append(pool.submit(_sync, _draft(version.target)))
                reach("audit.exported")
                progress.report("audit", self._batch.entity, number, "files")
        return durable

    def _write_file(self, version: _Version, rows: "_Rows") -> None:
        """Writes the file of a version from the next rows."""
        kept: list[pa.ChunkedArray] | None = None if version.current is None else []
        parts = rows.take(version.picked.rows)
        version.sha256 = _write_hashed(_draft(version.target), self._lines(parts, kept))
        if version.current is not None and kept is not None:
            version.left = _left(self._previous(version.current), kept)

    def _previous(self, row: sa.Row) -> Path:
        """The file of a listed version, which says what was there before.

        Raises:
            AuditFileDamaged: it is missing, or not the one that the ledger lists.
        """
        path = self._root / row.path
        if not is_intact(path, row.sha256):
            raise AuditFileDamaged(
                f"{path} is missing or not the file that the ledger lists; the next version must name what "
                "left it: put it back from a backup; bridge audit verify says what else is wrong"
            )
        return path

    def _lines(
        self, parts: Iterable[pa.Table], kept: list[pa.ChunkedArray] | None
    ) -> Iterator[bytes | pa.Buffer]:
        """The lines of a file; adds the ids of its rows that are no tombstones to `kept`."""
        columns = _columns(self._entity)
        yield cells.header(columns)
        for rows in parts:
            if kept is not None:
                kept.append(rows[_OWN_ID].filter(rows["deleted_at"].is_null()))
            yield cells.lines(rows.select(columns))

    def _written(self, rows: pa.Table) -> pa.Table:
        """The cells of rows, and the ids as they are."""
        return cells.written(rows.select(_columns(self._entity))).append_column(_OWN_ID, rows["id"])

    def _ranked(self, added: list[_Version], known: Places) -> Iterator[pa.Table]:
        """The rows of all versions, each with its place among those of all days."""
        days = _Days(added)
        graves = [grave for version in added for grave in version.picked.tombstones]
        if graves:
            buried = [place for version in added for place in version.picked.buried]
            yield self._tombstones(graves, days.ranks(np.array(buried))[0])
        for part in self._parts:
            yield from self._landed(part, days, known)

    def _landed(self, part: Part, days: "_Days", known: Places) -> Iterator[pa.Table]:
        """The rows of a part that stand in the files of days."""
        # Few batches have all their rows in the files; contents of those that have none are not read.
        if not known.any(part.first, part.rows):
            return
        for rows in part.read(("seq", *_columns(self._entity)[:-1])):
            ranks, wanted = days.ranks(known.of(rows["seq"].to_numpy()))
            table = self._table(rows, pa.nulls(rows.num_rows, TIMESTAMP), ranks)
            yield table if wanted.all() else table.filter(pa.array(wanted))

    def _tombstones(self, graves: Sequence[Tombstone], places: np.ndarray) -> pa.Table:
        schema, names = self._entity.landing_schema, _columns(self._entity)[:-1]
        known = {
            "id": pa.array([grave.id for grave in graves], pa.string()),
            "content_hash": pa.array([grave.mark for grave in graves], pa.string()),
        }
        columns = {
            name: known[name] if name in known else pa.nulls(len(graves), schema.field(name).type)
            for name in names
        }
        deleted = pa.array([grave.deleted_at for grave in graves], TIMESTAMP)
        return self._table(pa.table(columns), deleted, places)

    def _table(self, rows: pa.Table, deleted: pa.Array, places: np.ndarray) -> pa.Table:
        """Rows with their places; a table of its own, so that all have one schema."""
        columns = {name: rows[name] for name in _columns(self._entity)[:-1]}
        return pa.table(columns | {"deleted_at": deleted, ordering.RANK: pa.array(places, pa.int64())})

    # --- The manifests

    def _write_manifests(self, added: list[_Version]) -> None:
        left = groupby(self._reasons(added), key=lambda row: row[0])
        waiting = next(left, None)
        for version in added:
            rows: Iterable[tuple[Any, ...]] = ()
            if waiting is not None and waiting[0] == version.picked.day:
                rows = waiting[1]
            version.manifest_sha256 = self._write_manifest(version, rows)
            reach("audit.manifest_written")
            if rows:
                waiting = next(left, None)

    def _write_manifest(self, version: _Version, left: Iterable[tuple[Any, ...]]) -> str:
        """Writes the manifest with the ids that left, one a line; returns its SHA-256."""
        manifest = self._manifest(version)
        data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
        # Deeper keys are indented further, and a text holds no line break: it stands there once.
        before, after = data.split(b"\n" + _LEFT)
        before += b"\n" + _LEFT.removesuffix(b"]")
        day = version.picked.day
        lines = (b"    " + orjson.dumps({"id": id} | _reason(to, gone, day)) for _, id, to, gone in left)
        path = _draft(version.target.with_suffix(".json"))
        first = next(lines, None)
        if first is None:
            return _write_hashed(path, [before, b"]", after])
        others = (b",\n" + line for line in lines)
        return _write_hashed(path, chain([before, b"\n", first], others, [b"\n  ]", after]))

    def _manifest(self, version: _Version) -> dict[str, Any]:
        batch, current, day = self._batch, version.current, version.picked.day
        return version.told | {
            "format": 1,
            "tenant": batch.tenant,
            "connection": batch.connection,
            "entity": batch.entity,
            "day": day,
            "columns": list(_columns(self._entity)),
            "tombstones": len(version.picked.tombstones),
            "previous": None if current is None else {"version": current.version, "sha256": current.sha256},
            # Filled in while it is written: there may be as many as there were rows.
            "left": [],
            "excluded": batch.excluded,
            "note": f"{GUARD_NOTE} {TOMBSTONE_NOTE}",
            # What differs between two runs over the same data stands here alone.
            "run": {
                "batch": batch.id,
                "replays": [replay.id for replay in self._replays if replay.window.contains(_noon(day))],
                "run_id": batch.run_id,
                "source_requests": batch.requests,
                "fetched_from": batch.fetched_from,
                "fetched_to": batch.fetched_to,
                "written_at": datetime.now(UTC),
            },
        }

    def _reasons(self, added: list[_Version]) -> Iterator[tuple[Any, ...]]:
        """Day, id, day of its last change and whether it is deleted, of all that left (rule 21)."""
        lost = [version for version in added if version.left]
        if not lost:
            return
        tables = (
            pa.table({"day": [version.picked.day.isoformat()] * len(version.left), "id": version.left})
            for version in lost
        )
        stage(self._connection, "lost", {"day": "text", "id": "text"}, tables)
        statement = f"""
        copy (select v.day::date, v.id, (d.updated_at at time zone 'UTC')::date, d.deleted_at is not null
            from lost v left join desk.{self._entity.name} d
                on d.connection = '{self._batch.connection}' and d.id = v.id
            order by v.day::date, length(v.id), v.id collate "C") to stdout
        """
        with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            copy.set_types(["date", "text", "date", "bool"])
            yield from copy.rows()
        self._connection.execute(sa.text("drop table lost"))

    @property
    def _driver(self) -> psycopg.Connection:
        return self._connection.connection.driver_connection  # type: ignore[return-value]

    # --- What makes them exist

    def _place(self, added: list[_Version], durable: list[Future[None]], pool: ThreadPoolExecutor) -> None:
        """Puts the files in their places once all of them are durable."""
        folders = list(dict.fromkeys(version.target.parent for version in added))
        list(pool.map(_sync, [_draft(version.target.with_suffix(".json")) for version in added]))
        for each in durable:
            each.result()
        for path in _places(added):
            reach("audit.renaming")
            _draft(path).replace(path)
        # Also the folders that hold those of the days, which may be new.
        list(pool.map(sync_folder, [*folders, *dict.fromkeys(folder.parent for folder in folders)]))

    def _list(self, added: list[_Version]) -> dict[date, AuditFile]:
        batch = self._batch
        same = {
            "connection": batch.connection,
            "entity": batch.entity,
            "tenant": batch.tenant,
            "batch_id": batch.id,
            "fetched_to": batch.fetched_to,
        }
        rows = [
            version.told
            | {"day": version.picked.day, "manifest_sha256": version.manifest_sha256}
            | {"path": str(version.target.relative_to(self._root))}
            for version in added
        ]
        self._connection.execute(t.audit_files.insert(), [row | same for row in rows])
        reach("audit.files_listed")
        return {
            version.picked.day: AuditFile(
                version.picked.day,
                version.version,
                version.target,
                version.picked.rows,
                True,
                version.sha256,
                version.manifest_sha256,
            )
            for version in added
        }


class _Days:
    """Where the rows of days that get a version stand among all days, and among those alone."""

    def __init__(self, added: list[_Version]) -> None:
        self._firsts = np.array([version.picked.first for version in added])
        rows = np.array([version.picked.rows for version in added])
        self._nexts = self._firsts + rows
        # A day whose file is as it should be has places, too.
        self._left_out = self._firsts - (np.cumsum(rows) - rows)

    def ranks(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ranks of rows with these places, and whether they are in one of the days."""
        day = np.searchsorted(self._firsts, places, side="right") - 1
        return places - self._left_out[day], (day >= 0) & (places < self._nexts[day])


class _Rows:
    """A stream of rows, of which some are taken at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._rest = pa.table({})

    def take(self, count: int) -> Iterator[pa.Table]:
        """The next so many rows."""
        while count:
            table = self._rest if self._rest.num_rows else next(self._tables, None)
            if table is None:
                raise RuntimeError(f"{count} rows of a day are not among those that landed; audit it again")
            part, self._rest = table.slice(0, count), table.slice(count)
            count -= part.num_rows
            yield part


def _left(previous: Path, kept: list[pa.ChunkedArray]) -> list[str]:
    """The live ids of a previous version that are not among those of its day now."""
    now = pa.chunked_array([chunk for ids in kept for chunk in ids.chunks], pa.string())
    before = live_ids(previous)
    stayed = pc.call_function("is_in", [before], pc.SetLookupOptions(now))
    return before.filter(pc.call_function("invert", [stayed])).to_pylist()


def live_ids(path: Path) -> pa.ChunkedArray:
    """The ids of an audit file's rows that are no tombstones, in order."""
    for block in _BLOCKS:
        # Arrow reads no row that is longer than its blocks.
        with suppress(pa.ArrowInvalid):
            rows = _read(path, block)
            break
    else:
        # Python does, ten times as slowly.
        rows = _read_slowly(path)
    live = rows["id"].filter(pc.call_function("equal", [rows["deleted_at"], pa.scalar("")]))
    guard = pc.ReplaceSubstringOptions(pattern="^'", replacement="")
    return pc.call_function("replace_substring_regex", [live], guard)


_IDS = {"id": pa.string(), "deleted_at": pa.string()}
# Bytes that are read at a time; seven times as much is held meanwhile.
_BLOCKS = (1 << 20, 16 << 20)
_READING = (
    pyarrow.csv.ParseOptions(newlines_in_values=True),
    pyarrow.csv.ConvertOptions(include_columns=list(_IDS), column_types=_IDS),
)


def _read(path: Path, block: int) -> pa.Table:
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=block)
    with pyarrow.csv.open_csv(path, options, *_READING) as reader:
        return pa.Table.from_batches(list(reader), reader.schema)


def _read_slowly(path: Path) -> pa.Table:
    # A description may well be longer than the 128 KiB that the reader allows by itself.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        found = [(row["id"], row["deleted_at"]) for row in csv.DictReader(file)]
    return pa.table([list(column) for column in zip(*found, strict=True)], schema=pa.schema(_IDS))


def _places(added: list[_Version]) -> list[Path]:
    """Where the files of versions are to be."""
    return [path for version in added for path in (version.target, version.target.with_suffix(".json"))]


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _write_hashed(path: Path, parts: Iterable[bytes | pa.Buffer]) -> str:
    """Writes a file, which is not durable yet; returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    reach("audit.syncing")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _noon(day: date) -> datetime:
    return midnight(day) + timedelta(hours=12)


def _reason(changed: date | None, deleted: bool, day: date) -> dict[str, Any]:
    if changed is not None and changed != day:
        return {"why": "moved", "to": changed}
    if deleted:
        return {"why": "deleted"}
    return {"why": "changed after the days that are extracted so far, or gone"}
