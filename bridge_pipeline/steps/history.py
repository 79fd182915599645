"""One record as this installation knows it: its row, its payload, and its versions with their batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import sqlalchemy as sa

from bridge_pipeline.connector_kit.fields import from_microseconds
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import is_intact


class UnknownRecord(LookupError):
    """No table, batch or quarantine holds a record of that id."""


class UnknownEntity(ValueError):
    """There is no entity of that name."""


@dataclass(frozen=True)
class Version:
    """One landed version of a record; `rejected_by` names the expectation that took it out."""

    batch: int
    window: str
    verdict: str
    run_id: str | None
    updated_at: datetime | None
    fetched_at: datetime
    content_hash: str
    rejected_by: str | None
    raw: str


@dataclass(frozen=True)
class RecordHistory:
    """A record: the table's row (None before its first load), its payload, all landed versions.

    `damaged` are landing files of the entity that are missing or not those that the ledger lists, and were
    not read.
    """

    connection: str
    entity: str
    id: str
    row: dict[str, Any] | None
    payload: str | None
    versions: tuple[Version, ...]
    quarantined: tuple[dict[str, Any], ...]
    damaged: tuple[str, ...]


def find_record(workspace: Workspace, name: str, entity: str, record_id: str) -> RecordHistory:
    """Looks a record up by the source's id; versions come oldest first.

    Raises:
        UnknownConnection: there is no such connection.
        UnknownEntity: there is no such entity.
        UnknownRecord: nothing is known of such a record.
    """
    registry.get(workspace.database.engine, name)
    if entity not in ENTITIES:
        raise UnknownEntity(f"there is no entity {entity!r}; there are: {', '.join(ENTITIES)}")
    with workspace.database.engine.connect() as connection:
        row = _row(connection, name, entity, record_id)
        intact, damaged = _files(workspace, connection, name, entity)
        versions = tuple(_versions(connection, intact, record_id))
        quarantined = tuple(_quarantined(connection, name, entity, record_id))
    if row is None and not versions and not quarantined:
        but = f"; {len(damaged)} landing files are damaged, {damaged[0]} among them" if damaged else ""
        raise UnknownRecord(
            f"{name} has no {entity} with the id {record_id!r}, in no batch and no table{but}"
        )
    payload = _payload(row, versions)
    return RecordHistory(name, entity, record_id, row, payload, versions, quarantined, damaged)


def _row(connection: sa.Connection, name: str, entity: str, record_id: str) -> dict[str, Any] | None:
    table = t.desk_table(ENTITIES[entity])
    query = sa.select(table).where(table.c.connection == name, table.c.id == record_id)
    row = connection.execute(query).one_or_none()
    return dict(row._mapping) if row else None


def _payload(row: dict[str, Any] | None, versions: tuple[Version, ...]) -> str | None:
    """What the source sent for the row as it stands, or for the newest version where there is none."""
    if not versions:
        return None
    shown = [v for v in versions if row and v.content_hash == row["content_hash"]]
    return (shown or versions)[-1].raw


def _files(
    workspace: Workspace, connection: sa.Connection, name: str, entity: str
) -> tuple[dict[str, Batch], tuple[str, ...]]:
    """The landing files of an entity with their batches, and those that are damaged."""
    condition = sa.and_(t.batches.c.connection == name, t.batches.c.entity == entity)
    intact, damaged = dict[str, Batch](), list[str]()
    for batch in ledger.list_batches(connection, condition):
        for file in batch.files:
            path = landing_of(workspace, batch) / file["path"]
            if is_intact(path, file["sha256"]):
                intact[str(path)] = batch
            else:
                damaged.append(str(path))
    return intact, tuple(damaged)


def _versions(connection: sa.Connection, paths: dict[str, Batch], record_id: str) -> Iterator[Version]:
    if not paths:
        return
    query = """select filename, epoch_us(updated_at), epoch_us(fetched_at), content_hash, seq, raw
        from read_parquet(?, filename = true) where id = ?
        order by updated_at nulls first, fetched_at, seq"""
    with duckdb.connect(config={"memory_limit": "256MB", "threads": 2}) as db:
        found = db.execute(query, [list(paths), record_id]).fetchall()
    for path, updated, fetched, content_hash, seq, raw in found:
        batch = paths[path]
        yield Version(
            batch=batch.id,
            window=str(batch.window),
            verdict=batch.verdict,
            run_id=batch.run_id,
            updated_at=from_microseconds(updated) if updated is not None else None,
            fetched_at=from_microseconds(fetched),
            content_hash=content_hash,
            rejected_by=_rejected_by(connection, batch.id, seq),
            raw=raw,
        )


def _rejected_by(connection: sa.Connection, batch: int, seq: int) -> str | None:
    r = t.rejections
    return connection.scalar(sa.select(r.c.reason).where(r.c.batch_id == batch, r.c.seq == seq))


def _quarantined(
    connection: sa.Connection, name: str, entity: str, record_id: str
) -> Iterator[dict[str, Any]]:
    q = t.quarantine
    query = (
        sa.select(q.c.sha256, q.c.reason, q.c.pointer, q.c.times_seen, q.c.last_seen)
        .where(q.c.connection == name, q.c.entity == entity, q.c.record_id == record_id)
        .order_by(q.c.last_seen)
    )
    return (dict(row._mapping) for row in connection.execute(query))
