"""Replay: records from quarantine are parsed, checked, loaded and audited again, without their source.

For when a mapping, a suite or a threshold was mended. What a replay takes becomes a batch of
kind `replay` that goes the way of every other; its records keep the time when they were read,
so that a newer version in the tables stays (rule 7). What is refused again stays in quarantine
and says why.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from bridge_pipeline import connectors, naming
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Page, Stream
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.steps.audit import AuditFile, audit_days
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.collect import Collector
from bridge_pipeline.steps.extract import keep_rejected, landing_of, remove_unlisted
from bridge_pipeline.steps.land import land, read_landed
from bridge_pipeline.steps.load import LoadResult, load
from bridge_pipeline.steps.quarantine import Selection

log = structlog.get_logger(__name__)
# Records may be large: few are held at a time.
_AT_ONCE = 20


class RemovedConnection(ValueError):
    """The connection was removed; nothing is loaded for it."""


@dataclass(frozen=True)
class Replayed:
    """What became of one replay.

    `load` is None where a check blocks the batch. `refused` counts the records that stay in
    quarantine, by reason. `days` are those of the records, `files` the audit files of such days.
    """

    batch: Batch
    load: LoadResult | None
    refused: dict[str, int]
    days: tuple[date, ...]
    files: tuple[AuditFile, ...]

    @property
    def accepted(self) -> int:
        """Records that are in quarantine no more."""
        return self.batch.landed - self.batch.rejected if self.load else 0

    def document(self) -> dict[str, Any]:
        """The replay as plain values, for JSON.

        `partitions` are those whose audit file has a new version, as Dagster calls them.
        """
        batch, load = self.batch, self.load
        counts = {term: getattr(load, term) if load else 0 for term in ("loaded", "unchanged", "superseded")}
        return {
            "batch": batch.id,
            "connection": batch.connection,
            "entity": batch.entity,
            "verdict": batch.verdict,
            "fetched": batch.fetched,
            "outside": batch.outside,
            "duplicate": batch.duplicate,
            "quarantined": batch.quarantined + batch.rejected,
            **counts,
            "still_rejected": self.refused,
            "days": [day.isoformat() for day in self.days],
            "partitions": [naming.partition_key(batch.connection, f.day) for f in self.files if f.added],
            "audit_files": [str(file.path) for file in self.files if file.added],
            "days_without_audit": sorted({d.isoformat() for d in self.days} - self._audited()),
        }

    def _audited(self) -> set[str]:
        return {file.day.isoformat() for file in self.files}


def replay(workspace: Workspace, selection: Selection) -> list[Replayed]:
    """Replays the selected records that are in quarantine, parents before what refers to them.

    First it finishes what a killed replay began. A replay that another process does at the same
    time is waited for; no record is taken twice.

    Raises:
        UnknownConnection: there is no such connection.
        RemovedConnection: the connection was removed.
    """
    if selection.connection is not None:
        record = registry.get(workspace.database.engine, selection.connection)
        if record.removed_at is not None:
            raise RemovedConnection(f"the connection {record.name} was removed; apply it again to replay")
    done = [finish(workspace, batch) for batch in _unfinished(workspace, selection)]
    for name, entity in _places(workspace, selection):
        done += _replay_all(workspace, name, entity, selection)
    return done


def finish(workspace: Workspace, batch: Batch) -> Replayed:
    """Checks, loads and audits a replay; what was done before is not done again."""
    batch = check(workspace, batch.id).batch
    refused = _refused(workspace, batch)
    if not batch.readable:
        return Replayed(batch, None, refused, (), ())
    loaded = load(workspace, batch)
    days = sorted(_days(workspace, batch))
    files = audit_days(workspace, batch.connection, batch.entity, days)
    with transaction(workspace.database.engine, "replay.audit") as connection:
        ledger.record_audit(connection, batch.id, len(days), sum(file.added for file in files))
    return Replayed(batch, loaded, refused, tuple(days), tuple(files))


def _unfinished(workspace: Workspace, selection: Selection) -> list[Batch]:
    """Replays that were landed and not brought to their end; a blocked one waits for a reviewer."""
    b = t.batches
    wanted = [b.c.kind == "replay", b.c.verdict != "blocked", b.c.id.not_in(sa.select(t.audits.c.batch_id))]
    if selection.connection is not None:
        wanted.append(b.c.connection == selection.connection)
    if selection.entity is not None:
        wanted.append(b.c.entity == selection.entity)
    with workspace.database.engine.connect() as connection:
        return ledger.list_batches(connection, sa.and_(*wanted))


def _places(workspace: Workspace, selection: Selection) -> list[tuple[str, str]]:
    """The connections and entities of the selected records; parents come first."""
    q, c = t.quarantine, t.connections
    query = (
        sa.select(q.c.connection, q.c.entity)
        .join(c, c.c.name == q.c.connection)
        .where(c.c.removed_at.is_(None), *_waiting(selection))
        .distinct()
    )
    with workspace.database.engine.connect() as connection:
        found = [(name, entity) for name, entity in connection.execute(query)]
    order = list(ENTITIES)
    return sorted(found, key=lambda place: (place[0], order.index(place[1])))


def _waiting(selection: Selection, untried: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
    q = t.quarantine
    never = (q.c.replay_batch.is_(None),) if untried else ()
    return (*selection.conditions(), q.c.replayed_at.is_(None), *never)


def _replay_all(workspace: Workspace, name: str, entity: str, selection: Selection) -> Iterator[Replayed]:
    """One replay, and others as long as there are records that say what one of the same batch said."""
    batch = _take(workspace, name, entity, _waiting(selection))
    while batch is not None:
        done = finish(workspace, batch)
        yield done
        more = batch.duplicate and done.load
        batch = _take(workspace, name, entity, _waiting(selection, untried=True)) if more else None


def _take(
    workspace: Workspace, name: str, entity: str, wanted: tuple[sa.ColumnElement[bool], ...]
) -> Batch | None:
    """Lands the records as a batch, under the lock of extractions; None where there are none."""
    record = registry.get(workspace.database.engine, name)
    stream = connectors.get(record.connector).stream(entity)
    with transaction(workspace.database.engine, "replay.take") as connection:
        advisory_lock(connection, f"extract:{name}:{entity}", long=True)
        batch_id = ledger.next_batch_id(connection)
        taken = _claim(connection, batch_id, name, entity, wanted)
        reach("replay.claimed")
        return _Landing(workspace, connection, record, stream, batch_id).run(taken) if taken else None


def _claim(
    connection: sa.Connection,
    batch_id: int,
    name: str,
    entity: str,
    wanted: tuple[sa.ColumnElement[bool], ...],
) -> int:
    """Numbers the records of a batch, in the order in which they were read; says how many there are."""
    q = t.quarantine
    number = sa.func.row_number().over(order_by=(q.c.fetched_at, q.c.sha256)) - 1
    found = (
        sa.select(q.c.sha256, number.label("number"))
        .where(q.c.connection == name, q.c.entity == entity, *wanted)
        .subquery()
    )
    statement = (
        q.update()
        .where(q.c.connection == name, q.c.entity == entity, q.c.sha256 == found.c.sha256)
        .values(replay_batch=batch_id, replay_number=found.c.number)
    )
    return connection.execute(statement).rowcount


class _Landing:
    """The landing of one replay, under its lock."""

    def __init__(
        self,
        workspace: Workspace,
        connection: sa.Connection,
        record: ConnectionRecord,
        stream: Stream,
        batch_id: int,
    ) -> None:
        self._workspace = workspace
        self._connection = connection
        self._record = record
        self._stream = stream
        self._batch_id = batch_id
        self._landed: list[int] = []
        self._changed: list[datetime] = []

    def run(self, taken: int) -> Batch:
        home, record, entity = self._workspace.home, self._record, self._stream.entity.name
        folder = home.landing_of(record.tenant, record.name, entity) / str(self._batch_id)
        remove_unlisted(self._connection, folder.parent)
        work = home.work / f"replay-{record.name}-{entity}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        census = DiskCensus(work / "census.sqlite")
        try:
            collector = Collector(self._stream, None, census, None, self._workspace.settings.rows_per_chunk)
            files = land(entity, lambda: self._seen(collector.tables(self._pages())), folder, work / "dlt")
            batch = self._batch(taken, collector, files)
            reach("replay.landed")
            ledger.add_batch(self._connection, batch)
            reach("replay.listed")
            keep_rejected(self._connection, batch, census.rejected())
            self._release_duplicates()
        finally:
            census.close()
            shutil.rmtree(work, ignore_errors=True)
        log.info("quarantined records landed again", batch=batch.id, taken=taken, landed=batch.landed)
        return batch

    def _pages(self) -> Iterator[Page]:
        """Each record as a page of its own; what is excluded by now is cut out."""
        q = t.quarantine
        excluded = pages.patterns_of(self._stream.entity.name, self._record.exclude)
        query = (
            sa.select(q.c.replay_number, q.c.fetched_at, q.c.raw)
            .where(q.c.replay_batch == self._batch_id)
            .order_by(q.c.replay_number)
            .execution_options(yield_per=_AT_ONCE)
        )
        for number, fetched_at, raw in self._connection.execute(query):
            exact = pages.without_members(raw, excluded) if excluded else bytes(raw)
            yield Page(number, PageContent([pages.parse_record(exact)], exact=[exact]), fetched_at)

    def _seen(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self._landed += table["page"].to_pylist()
            changed = [moment for moment in table["updated_at"].to_pylist() if moment is not None]
            self._changed += [min(changed), max(changed)] if changed else []
            yield table

    def _batch(self, taken: int, collector: Collector, files: list[dict]) -> Batch:
        counts, record = collector.counts, self._record
        read_from, read_to = counts.fetched_from or datetime.now(UTC), counts.fetched_to or datetime.now(UTC)
        changed = self._changed or [read_from, read_to]
        window = Window.of_days(min(changed).date(), max(changed).date())
        return Batch(
            id=self._batch_id,
            tenant=record.tenant,
            connection=record.name,
            entity=self._stream.entity.name,
            kind="replay",
            window_start=window.start,
            window_end=window.end,
            extraction=0,
            fetched=taken,
            outside=counts.outside,
            duplicate=counts.duplicate,
            quarantined=counts.quarantined,
            landed=sum(file["rows"] for file in files),
            requests=0,
            pages=counts.pages,
            sweeps=0,
            proof={"method": "replay from quarantine"},
            files=files,
            excluded=list(record.exclude),
            fetched_from=read_from,
            fetched_to=read_to,
            run_id=None,
        )

    def _release_duplicates(self) -> None:
        """What says the same as another record of the batch shares its fate only if that is known."""
        q = t.quarantine
        landed = sa.any_(sa.literal(self._landed, sa.ARRAY(sa.BigInteger)))
        self._connection.execute(
            q.update()
            .where(q.c.replay_batch == self._batch_id, q.c.last_batch != self._batch_id)
            .where(~(q.c.replay_number == landed))
            .values(replay_batch=None, replay_number=None)
        )


def _refused(workspace: Workspace, batch: Batch) -> dict[str, int]:
    q = t.quarantine
    query = (
        sa.select(q.c.reason, sa.func.count())
        .where(q.c.replay_batch == batch.id, q.c.last_batch == batch.id)
        .group_by(q.c.reason)
        .order_by(q.c.reason)
    )
    with workspace.database.engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _days(workspace: Workspace, batch: Batch) -> set[date]:
    """The days of the records that are not rejected."""
    r = t.rejections
    with workspace.database.engine.connect() as connection:
        out = list(connection.execute(sa.select(r.c.seq).where(r.c.batch_id == batch.id)).scalars())
    found: set[date] = set()
    columns = ("seq", "updated_at")
    for rows in read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns):
        kept = rows.filter(~pc.field("seq").isin(out))
        found.update(moment.date() for moment in kept["updated_at"].to_pylist() if moment is not None)
    return found
