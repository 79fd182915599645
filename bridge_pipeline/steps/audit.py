"""Audit: CSV files that anyone can verify, one per connection, entity and day.

Versions are only ever added. A file exists once the ledger lists it; what a killed run
left beside is removed by the next. The exact values stay in landing: cells that a
spreadsheet would run are disarmed.
"""

import csv
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import orjson
import psycopg
import sqlalchemy as sa
import structlog

from bridge_pipeline import naming, progress
from bridge_pipeline.connector_kit.journal import write_durably, written_durably
from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES, Entity, Kind, Window
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.load import copy_landed, refuse_unreadable

log = structlog.get_logger(__name__)

# A cell runs if it begins with one of = + - @ or their full-width forms, or with a tab or line
# break; blanks and quotes before those do not help. One quote is put before, also before a cell
# that begins with a quote itself, so that taking one quote off gives the value back.
GUARD = "^[\\s']*[=+\\-@＝＋－＠]|^[\\t\\r\\n']"
GUARD_NOTE = (
    "Cells that begin with = + - @ (also full-width or after blanks), tab, line break or ' have one ' "
    "put before them. Times are UTC. Null is an empty cell without quotes."
)
_FILE = re.compile(r"v\d{4,}\.(csv|json)")
# A SHA-256 in hexadecimal and its line break.
_HASH_LINE = 65


@dataclass(frozen=True)
class AuditFile:
    """The current audit file of a day; `added` if this run wrote it."""

    day: date
    version: int
    path: Path
    rows: int
    added: bool


def audit_window(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> list[AuditFile]:
    """Brings the audit files of the window's days up to the newest readable batches.

    A day whose rows are those of its current file gets no new version.

    Raises:
        BatchBlocked: the newest batch of the window may not be read.
    """
    files: list[AuditFile] = []
    with workspace.database.engine.begin() as connection:
        advisory_lock(connection, f"audit:{name}:{entity}", long=True)
        refuse_unreadable(ledger.newest_batch(connection, name, entity, window, run_id, settled=True))
        found = [(day, ledger.batch_of_day(connection, name, entity, day)) for day in window.days()]
        for batch, days in groupby(found, key=lambda pair: pair[1]):
            if batch is not None:
                files += _audit_batch(workspace, connection, batch, [day for day, _ in days])
    progress.report("audit", entity, len(files), "files", finished=True)
    return files


def _audit_batch(
    workspace: Workspace, connection: sa.Connection, batch: Batch, days: list[date]
) -> list[AuditFile]:
    files = []
    _fill(workspace, connection, batch)
    for day in days:
        files.append(_Day(workspace, connection, batch, day).write())
        progress.report("audit", batch.entity, len(files), "files")
    connection.execute(sa.text("drop table landed, picked"))
    ledger.record_audit(connection, batch.id, len(days), sum(file.added for file in files))
    return files


def _fill(workspace: Workspace, connection: sa.Connection, batch: Batch) -> None:
    """Puts the batch into `landed`, and the newest version of each id of each day into `picked`."""
    entity = ENTITIES[batch.entity]
    columns = ("seq", *_columns(entity), "fetched_at")
    # JSON stays the text that was landed; jsonb would order and space it its own way.
    types = {column.name: column.kind.postgres for column in entity.columns if column.kind is not Kind.JSON}
    types |= {"seq": "bigint", "fetched_at": Kind.TIMESTAMP.postgres}
    rows = read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns)
    copy_landed(connection, "landed", {name: types.get(name, "text") for name in columns}, rows)
    for statement in _PICK:
        connection.execute(sa.text(statement), {"batch": batch.id})


# Records without a change time belong to no day.
_PICK = (
    """
    create temporary table picked on commit drop as
    select distinct on (day, id) (updated_at at time zone 'UTC')::date as day, id, seq
    from landed
    where updated_at is not null
        and seq not in (select seq from bridge.rejections where batch_id = :batch)
    order by day, id, updated_at desc, fetched_at desc, seq desc
    """,
    'create index on picked (day, length(id), id collate "C")',
    "create index on landed (seq)",
    "analyze picked, landed",
)


def _columns(entity: Entity) -> tuple[str, ...]:
    return (*entity.content_names, "content_hash")


def _cell(entity: Entity, name: str) -> str:
    """A column as it is written: times in ISO 8601, texts disarmed."""
    kind = next((column.kind for column in entity.columns if column.name == name), Kind.TEXT)
    if kind is Kind.TIMESTAMP:
        return f"""to_char(l.{name} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    if kind is Kind.BOOLEAN:
        return f"l.{name}::text"
    pattern = GUARD.replace("'", "''")
    return f"case when l.{name} ~ '{pattern}' then '''' || l.{name} else l.{name} end"


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
            return AuditFile(self._day, current.version, self._root / current.path, current.rows, False)
        self._folder.mkdir(parents=True, exist_ok=True)
        version = current.version + 1 if current is not None else 1
        target = self._folder / f"{naming.audit_name(version)}.csv"
        sha256 = self._export(target)
        manifest = self._manifest(version, rows, sha256, rows_sha256)
        data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
        write_durably(target.with_suffix(".json"), data)
        self._list(target, version, rows, sha256, rows_sha256, hashlib.sha256(data).hexdigest())
        return AuditFile(self._day, version, target, rows, True)

    def _digest(self) -> tuple[int, str]:
        """Number of rows, and SHA-256 of their content hashes, one a line, in the file's order."""
        digest, size = hashlib.sha256(), 0
        for part in self._rows("l.content_hash"):
            digest.update(part)
            size += len(part)
        return size // _HASH_LINE, digest.hexdigest()

    def _rows(self, columns: str, options: str = "") -> Iterator[bytes]:
        """The day's rows as the server writes them, in the file's order: by length of id, then id."""
        statement = f"""
        copy (select {columns} from picked p join landed l on l.seq = p.seq where p.day = '{self._day}'
            order by length(p.id), p.id collate "C") to stdout {options}
        """
        driver: psycopg.Connection = self._connection.connection.driver_connection  # type: ignore[assignment]
        with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for part in copy:
                yield bytes(part)

    def _export(self, target: Path) -> str:
        """Writes the file; returns its SHA-256."""
        columns = _columns(ENTITIES[self._batch.entity])
        cells = ", ".join(_cell(ENTITIES[self._batch.entity], name) for name in columns)
        header = ",".join(f'"{name}"' for name in columns) + "\n"
        digest = hashlib.sha256()
        with written_durably(target) as file:
            for part in chain([header.encode()], self._rows(cells, "(format csv, force_quote *)")):
                digest.update(part)
                file.write(part)
        return digest.hexdigest()

    def _manifest(self, version: int, rows: int, sha256: str, rows_sha256: str) -> dict[str, Any]:
        batch, current = self._batch, self._current
        return {
            "format": 1,
            "tenant": batch.tenant,
            "connection": batch.connection,
            "entity": batch.entity,
            "day": self._day,
            "version": version,
            "columns": list(_columns(ENTITIES[batch.entity])),
            "rows": rows,
            "sha256": sha256,
            "rows_sha256": rows_sha256,
            "previous": None if current is None else {"version": current.version, "sha256": current.sha256},
            "left": self._left(),
            "excluded": batch.excluded,
            "note": GUARD_NOTE,
            # What differs between two runs over the same data stands here alone.
            "run": {
                "batch": batch.id,
                "run_id": batch.run_id,
                "source_requests": batch.requests,
                "fetched_from": batch.fetched_from,
                "fetched_to": batch.fetched_to,
                "written_at": datetime.now(UTC),
            },
        }

    def _left(self) -> list[dict[str, Any]]:
        """The ids of the previous version that are no longer of this day, and why (rule 21)."""
        if self._current is None:
            return []
        staying = {line for part in self._rows("p.id") for line in part.decode().splitlines()}
        # A description may well be longer than the 128 KiB that the reader allows by itself.
        csv.field_size_limit(sys.maxsize)
        with (self._root / self._current.path).open(encoding="utf-8", newline="") as file:
            gone = [row["id"] for row in csv.DictReader(file) if row["id"] not in staying]
        table = t.desk_table(ENTITIES[self._batch.entity])
        query = sa.select(table.c.id, table.c.updated_at, table.c.deleted_at).where(
            table.c.connection == self._batch.connection,
            table.c.id == sa.any_(sa.literal(gone, sa.ARRAY(sa.Text))),
        )
        known = {row.id: row for row in self._connection.execute(query)}
        return [{"id": record_id} | _reason(known.get(record_id), self._day) for record_id in gone]

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

    def _list(
        self, target: Path, version: int, rows: int, sha256: str, rows_sha256: str, manifest_sha256: str
    ) -> None:
        batch = self._batch
        self._connection.execute(
            t.audit_files.insert().values(
                connection=batch.connection,
                entity=batch.entity,
                day=self._day,
                version=version,
                tenant=batch.tenant,
                path=str(target.relative_to(self._root)),
                rows=rows,
                sha256=sha256,
                rows_sha256=rows_sha256,
                manifest_sha256=manifest_sha256,
                batch_id=batch.id,
                fetched_to=batch.fetched_to,
            )
        )


def _reason(row: sa.Row | None, day: date) -> dict[str, Any]:
    if row is not None and row.deleted_at is not None:
        return {"why": "deleted"}
    if row is not None and row.updated_at is not None and row.updated_at.date() != day:
        return {"why": "moved", "to": row.updated_at.date()}
    return {"why": "changed after the days that are extracted so far, or gone"}
