"""Audit: CSV files that anyone can verify, one per connection, entity and day.

Versions are only ever added, and each is an entry of the tenant's signed chain. A file exists
once the ledger lists it; what a killed run left beside is removed by the next. A record that is
deleted at the source stays in its day as a tombstone: id, time, and nothing else. The exact
values stay in landing: cells that a spreadsheet would run are disarmed.
"""

import csv
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain, groupby
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from bridge_pipeline import naming, progress
from bridge_pipeline.connector_kit.journal import written_durably
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.copying import stage
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES, Entity, Kind, Window
from bridge_pipeline.model.entity import TIMESTAMP
from bridge_pipeline.model.window import midnight
from bridge_pipeline.steps import chain as audit_chain
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.load import refuse_unreadable

log = structlog.get_logger(__name__)

# A cell runs if it begins with one of = + - @ or their full-width forms, or with a tab or line
# break; blanks and quotes before those do not help. One quote is put before, also before a cell
# that begins with a quote itself, so that taking one quote off gives the value back.
GUARD = "^[\\s']*[=+\\-@＝＋－＠]|^[\\t\\r\\n']"
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
# Content hashes that the server sends at a time.
_HASHES = 1_000


def _iso(column: str) -> str:
    return f"""to_char({column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


# Characters with which no guarded cell begins, and nearly every other one does.
_HARMLESS = ", ".join(str(ord(letter)) for letter in f"{ascii_letters}{digits}<[{{")


def _disarmed(column: str) -> str:
    pattern = GUARD.replace("'", "''")
    harmless = f"ascii({column}) in ({_HARMLESS}) or {column} !~ '{pattern}'"
    return f"case when {harmless} then {column} else '''' || {column} end"


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
        found = [(day, ledger.batch_of_day(connection, name, entity, day)) for day in days]
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
    files = []
    _fill(workspace, connection, batch, days)
    reach("audit.filled")
    for day in days:
        files.append(_Day(workspace, connection, batch, day).write())
        reach("audit.file_listed")
        progress.report("audit", batch.entity, len(files), "files")
    connection.execute(sa.text("drop table landed, picked"))
    return files


def _fill(workspace: Workspace, connection: sa.Connection, batch: Batch, days: list[date]) -> None:
    """Puts the batch into `landed`, and the rows of each day's file into `picked`.

    Those are the newest version of each id, and the tombstones.
    """
    entity = ENTITIES[batch.entity]
    columns = ("seq", *entity.content_names, "content_hash", "fetched_at")
    # JSON stays the text that was landed; jsonb would order and space it its own way.
    types = {column.name: column.kind.postgres for column in entity.columns if column.kind is not Kind.JSON}
    types |= {"seq": "bigint", "fetched_at": Kind.TIMESTAMP.postgres}
    own = read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns)
    rows = chain(own, _replayed(workspace, connection, batch, columns))
    shape = {name: types.get(name, "text") for name in columns}
    stage(connection, "landed", shape, rows)
    values = {"batch": batch.id, "connection": batch.connection, "first": min(days), "last": max(days)}
    _add_certified(workspace, connection, batch, shape, values)
    for statement in _PICK:
        connection.execute(sa.text(statement.format(entity=entity.name)), values)


def _replayed(
    workspace: Workspace, connection: sa.Connection, base: Batch, columns: tuple[str, ...]
) -> Iterator[pa.Table]:
    """The rows of replays that were read when the batch was or later, numbered after its own."""
    r = t.rejections
    refused = [
        (replay, list(connection.scalars(sa.select(r.c.seq).where(r.c.batch_id == replay.id))))
        for replay in ledger.replays_since(connection, base)
    ]
    return _accepted_rows(workspace, base, columns, refused)


def _accepted_rows(
    workspace: Workspace, base: Batch, columns: tuple[str, ...], refused: list[tuple[Batch, list[int]]]
) -> Iterator[pa.Table]:
    first = base.landed
    for replay, out in refused:
        kept = ~pc.field("seq").isin(out) & (
            pc.field("fetched_at") >= pa.scalar(base.fetched_from, TIMESTAMP)
        )
        for rows in read_landed(landing_of(workspace, replay), replay.files, replay.entity, columns):
            found = rows.filter(kept)
            yield found.set_column(0, "seq", pa.array([seq + first for seq in found["seq"].to_pylist()]))
        first += replay.landed


def _add_certified(
    workspace: Workspace,
    connection: sa.Connection,
    batch: Batch,
    shape: dict[str, str],
    values: dict[str, Any],
) -> None:
    """Adds to `landed` what only a certificate brought: no reading of the days shows it (rule 3)."""
    found = list(connection.scalars(sa.text(_CERTIFIED.format(entity=batch.entity)), values))
    for number, batch_id in enumerate(found, start=1):
        certified = ledger.batch(connection, batch_id)
        rows = read_landed(landing_of(workspace, certified), certified.files, batch.entity, tuple(shape))
        stage(connection, "certified", shape, rows)
        offset = {"offset": number << _SEQ_BITS, "certified": batch_id}
        for statement in _ADD_CERTIFIED:
            connection.execute(sa.text(statement.format(entity=batch.entity)), values | offset)


# No batch has as many rows.
_SEQ_BITS = 40
_CERTIFIED = """
    select distinct d.batch_id from desk.{entity} d join bridge.batches b on b.id = d.batch_id
    where d.connection = :connection and b.proof ->> 'for' = 'certificate' and b.id <> :batch
        and d.updated_at >= cast(:first as date)::timestamp at time zone 'UTC'
        and d.updated_at < (cast(:last as date) + 1)::timestamp at time zone 'UTC'
    order by d.batch_id
"""
_ADD_CERTIFIED = (
    """
    delete from certified c where not exists (
        select from desk.{entity} d where d.connection = :connection and d.id = c.id
            and d.batch_id = :certified and d.content_hash = c.content_hash
    )
    """,
    "update certified set seq = seq + :offset",
    "insert into landed select * from certified",
    "drop table certified",
)


# Records without a change time belong to no day. A record is deleted for a batch that has it if its
# page was fetched before the deletion was observed.
_PICK = (
    """
    create temporary table picked on commit drop as
    select distinct on (day, id) (updated_at at time zone 'UTC')::date as day, id, seq,
        fetched_at, null::timestamptz as deleted_at, content_hash as mark
    from landed
    where updated_at is not null
        and seq not in (select seq from bridge.rejections where batch_id = :batch)
    order by day, id, updated_at desc, fetched_at desc, seq desc
    """,
    """
    create temporary table deleted on commit drop as
    select (updated_at at time zone 'UTC')::date as day, id, deleted_at
    from desk.{entity}
    where connection = :connection and deleted_at is not null
        and updated_at >= cast(:first as date)::timestamp at time zone 'UTC'
        and updated_at < (cast(:last as date) + 1)::timestamp at time zone 'UTC'
    """,
    """
    delete from deleted d using picked p
    where p.day = d.day and p.id = d.id and p.fetched_at > d.deleted_at
    """,
    "delete from picked p using deleted d where p.day = d.day and p.id = d.id",
    f"""
    insert into picked (day, id, deleted_at, mark)
    select day, id, deleted_at,
        encode(sha256(convert_to('deleted ' || {_iso("deleted_at")} || ' ' || id, 'UTF8')), 'hex')
    from deleted
    """,
    "drop table deleted",
    'create index on picked (day, length(id), id collate "C")',
    "create index on landed (seq)",
    "analyze picked (day, id, seq), landed (seq)",
)


def _columns(entity: Entity) -> tuple[str, ...]:
    return (*entity.content_names, "content_hash", "deleted_at")


def _cell(entity: Entity, name: str) -> str:
    """A column as it is written: times in ISO 8601, texts disarmed. All but three are null in a tombstone."""
    own = {"id": _disarmed("p.id"), "content_hash": "p.mark", "deleted_at": _iso("p.deleted_at")}
    if name in own:
        return own[name]
    kind = next((column.kind for column in entity.columns if column.name == name), Kind.TEXT)
    if kind is Kind.TIMESTAMP:
        return _iso(f"l.{name}")
    return f"l.{name}::text" if kind is Kind.BOOLEAN else _disarmed(f"l.{name}")


class _Day:
    """One day of one batch: compares with the current file and adds a version if it differs."""

    def __init__(self, workspace: Workspace, connection: sa.Connection, batch: Batch, day: date) -> None:
        self._root = workspace.home.audit
        self._folder = workspace.home.audit_of(batch.tenant, batch.connection, batch.entity, day)
        self._connection = connection
        self._batch = batch
        self._day = day
        self._current = ledger.current_audit_file(connection, batch.connection, batch.entity, day)

    def write(self) -> AuditFile:
        current = self._current
        self._remove_unlisted()
        rows, rows_sha256 = self._digest()
        if current is not None and (
            current.rows_sha256 == rows_sha256 or current.fetched_to > self._batch.fetched_to
        ):
            return self._file(current, added=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        version = current.version + 1 if current is not None else 1
        target = self._folder / f"{naming.audit_name(version)}.csv"
        told = {"version": version, "rows": rows, "rows_sha256": rows_sha256, "sha256": self._export(target)}
        reach("audit.exported")
        manifest_sha256 = self._write_manifest(target.with_suffix(".json"), self._manifest(told))
        reach("audit.manifest_written")
        path = str(target.relative_to(self._root))
        return self._file(self._list(told | {"path": path, "manifest_sha256": manifest_sha256}), added=True)

    def _file(self, row: sa.Row, added: bool) -> AuditFile:
        path = self._root / row.path
        return AuditFile(self._day, row.version, path, row.rows, added, row.sha256, row.manifest_sha256)

    def _digest(self) -> tuple[int, str]:
        """Number of rows, and SHA-256 of their content hashes, one a line, in the file's order."""
        digest, rows = hashlib.sha256(), 0
        # Many hashes in one message: each message costs as much as dozens of hashes.
        statement = f"""
        copy (
            select count(*), string_agg(mark, ' ' order by number) from (
                select mark, row_number() over (order by length(id), id collate "C") - 1 as number
                from picked where day = '{self._day}'
            ) as numbered group by number / {_HASHES} order by number / {_HASHES}
        ) to stdout
        """
        with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for part in copy:
                count, marks = bytes(part).split(b"\t")
                rows += int(count)
                digest.update(marks.replace(b" ", b"\n"))
        return rows, digest.hexdigest()

    def _rows(self, columns: str) -> Iterator[bytes]:
        """The day's rows as the server writes them, in the file's order: by length of id, then id."""
        statement = f"""
        copy (select {columns} from picked p left join landed l on l.seq = p.seq where p.day = '{self._day}'
            order by length(p.id), p.id collate "C") to stdout (format csv, force_quote *)
        """
        with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for part in copy:
                yield bytes(part)

    @property
    def _driver(self) -> psycopg.Connection:
        return self._connection.connection.driver_connection  # type: ignore[return-value]

    def _export(self, target: Path) -> str:
        """Writes the file; returns its SHA-256."""
        columns = _columns(ENTITIES[self._batch.entity])
        cells = ", ".join(_cell(ENTITIES[self._batch.entity], name) for name in columns)
        header = ",".join(f'"{name}"' for name in columns) + "\n"
        return _write_hashed(target, chain([header.encode()], self._rows(cells)))

    def _manifest(self, told: dict[str, Any]) -> dict[str, Any]:
        batch, current = self._batch, self._current
        return told | {
            "format": 1,
            "tenant": batch.tenant,
            "connection": batch.connection,
            "entity": batch.entity,
            "day": self._day,
            "columns": list(_columns(ENTITIES[batch.entity])),
            "tombstones": self._tombstones(),
            "previous": None if current is None else {"version": current.version, "sha256": current.sha256},
            # Filled in while it is written: there may be as many as there were rows.
            "left": [],
            "excluded": batch.excluded,
            "note": f"{GUARD_NOTE} {TOMBSTONE_NOTE}",
            # What differs between two runs over the same data stands here alone.
            "run": {
                "batch": batch.id,
                "replays": [replay.id for replay in self._replays()],
                "run_id": batch.run_id,
                "source_requests": batch.requests,
                "fetched_from": batch.fetched_from,
                "fetched_to": batch.fetched_to,
                "written_at": datetime.now(UTC),
            },
        }

    def _replays(self) -> list[Batch]:
        """The replays that may have added rows to the day."""
        noon = midnight(self._day) + timedelta(hours=12)
        found = ledger.replays_since(self._connection, self._batch)
        return [replay for replay in found if replay.window.contains(noon)]

    def _tombstones(self) -> int:
        query = sa.text("select count(*) from picked where day = :day and deleted_at is not null")
        return self._connection.scalar(query, {"day": self._day}) or 0

    def _write_manifest(self, path: Path, manifest: dict[str, Any]) -> str:
        """Writes the manifest with the ids that left, one a line; returns its SHA-256."""
        data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
        # Deeper keys are indented further, and a text holds no line break: it stands there once.
        before, after = data.split(b"\n" + _LEFT)
        before += b"\n" + _LEFT.removesuffix(b"]")
        lines = (b"    " + orjson.dumps(each) for each in self._left())
        first = next(lines, None)
        if first is None:
            return _write_hashed(path, [before, b"]", after])
        others = (b",\n" + line for line in lines)
        return _write_hashed(path, chain([before, b"\n", first], others, [b"\n  ]", after]))

    def _left(self) -> Iterator[dict[str, Any]]:
        """The ids of the previous version that are no longer of this day, and why (rule 21)."""
        if self._current is None:
            return
        self._connection.execute(sa.text("create temporary table previous (id text) on commit drop"))
        with self._driver.cursor() as cursor, cursor.copy("copy previous from stdin") as copy:
            for record_id in live_ids(self._root / self._current.path):
                copy.write_row((record_id,))
        statement = f"""
        copy (select v.id, (d.updated_at at time zone 'UTC')::date, d.deleted_at is not null from previous v
            left join picked p on p.day = '{self._day}' and p.id = v.id and p.deleted_at is null
            left join desk.{ENTITIES[self._batch.entity].name} d
                on d.connection = '{self._batch.connection}' and d.id = v.id
            where p.id is null order by length(v.id), v.id collate "C") to stdout
        """
        with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            copy.set_types(["text", "date", "bool"])
            for record_id, changed, deleted in copy.rows():
                yield {"id": record_id} | _reason(changed, deleted, self._day)
        self._connection.execute(sa.text("drop table previous"))

    def _remove_unlisted(self) -> None:
        if not self._folder.is_dir():
            return
        a = t.audit_files
        query = sa.select(a.c.version).where(
            a.c.connection == self._batch.connection,
            a.c.entity == self._batch.entity,
            a.c.day == self._day,
        )
        listed = {naming.audit_name(version) for version in self._connection.execute(query).scalars()}
        for path in self._folder.iterdir():
            if path.suffix == ".tmp" or (_FILE.fullmatch(path.name) and path.stem not in listed):
                path.unlink()

    def _list(self, told: dict[str, Any]) -> sa.Row:
        batch = self._batch
        values = told | {
            "connection": batch.connection,
            "entity": batch.entity,
            "day": self._day,
            "tenant": batch.tenant,
            "batch_id": batch.id,
            "fetched_to": batch.fetched_to,
        }
        return self._connection.execute(t.audit_files.insert().values(values).returning(t.audit_files)).one()


def live_ids(path: Path) -> Iterator[str]:
    """The ids of an audit file's rows that are no tombstones, in order."""
    # A description may well be longer than the 128 KiB that the reader allows by itself.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row.get("deleted_at"):
                yield row["id"].removeprefix("'")


def _write_hashed(path: Path, parts: Iterable[bytes]) -> str:
    """Writes a file, durable and whole or not at all; returns its SHA-256."""
    digest = hashlib.sha256()
    with written_durably(path) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _reason(changed: date | None, deleted: bool, day: date) -> dict[str, Any]:
    if changed is not None and changed != day:
        return {"why": "moved", "to": changed}
    if deleted:
        return {"why": "deleted"}
    return {"why": "changed after the days that are extracted so far, or gone"}
