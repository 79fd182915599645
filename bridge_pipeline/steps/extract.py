"""Extraction: from a connection's API to a landed batch that the ledger lists.

One transaction holds the lock of the connection and entity for the whole extraction and
lists the batch at its end: two extractions cannot overlap, and one whose lock was lost
cannot become visible.
"""

import gc
import hashlib
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline import connectors, progress
from bridge_pipeline.connector_kit.connector import Client, Connector, Page, Reading, Stream
from bridge_pipeline.connector_kit.journal import Journal, abandon, begin_extraction, open_extraction
from bridge_pipeline.connector_kit.reckoning import Outcome, look_up
from bridge_pipeline.connector_kit.session import Contradictory, SourceContext, SourceError
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.quota import SharedQuota
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.tokens import SharedTokens
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.imports import collections_paused
from bridge_pipeline.memory import give_back
from bridge_pipeline.model import Window
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps import gone
from bridge_pipeline.steps.census import DiskCensus, RejectedRecord
from bridge_pipeline.steps.collect import Collector
from bridge_pipeline.steps.held import LandedRecords
from bridge_pipeline.steps.land import land
from bridge_pipeline.steps.landed_before import LandedBefore, opened
from bridge_pipeline.steps.metering import shared_quota
from bridge_pipeline.steps.parser_process import ParserProcess
from bridge_pipeline.steps.program import fingerprint

log = structlog.get_logger(__name__)
_QUARANTINE_CHUNK = 200
_WHY = ("reason", "pointer", "detail", "record_id")
# The generations of what was made since the last collection; all others take fifty times as long.
_YOUNG = 1
# To give memory back costs as much as a part of a page.
_PAGES_TO_GIVE_BACK = 32
# After so many refusals in a row the source gives no single records.
_LOOKUP_FAILURES = 5


@dataclass(frozen=True)
class Source:
    """An open connection: who it is, its connector, and a client to read it.

    `config` is the connection's config with all defaults and without its credentials, as JSON.
    """

    record: ConnectionRecord
    connector: Connector
    client: Client
    config: str
    quota: SharedQuota


@contextmanager
def open_source(workspace: Workspace, name: str, settings: Settings | None = None) -> Iterator[Source]:
    """Opens a connection's client with its unsealed credentials and its shared quota.

    `settings` say how patiently it asks, where not as the workspace does.

    Raises:
        UnknownConnection: there is no such connection.
        SourceError: it was removed, or its address is not allowed.
    """
    engine = workspace.database.engine
    record = registry.get(engine, name)
    if record.removed_at is not None:
        raise SourceError(f"the connection {name} was removed; apply it again to read from it")
    secrets = registry.secrets(engine, workspace.sealer, name)
    with open_draft(workspace, record, secrets, settings or workspace.settings) as source:
        source.quota.register()
        yield source


@contextmanager
def open_draft(
    workspace: Workspace, record: ConnectionRecord, secrets: Mapping[str, str], settings: Settings
) -> Iterator[Source]:
    """Opens a connection's client with credentials in clear; the connection need not be registered.

    Raises:
        SourceError: its address is not allowed.
    """
    connector = connectors.get(record.connector)
    config = connector.config.model_validate({**record.config, **secrets})
    quota = shared_quota(workspace, record, connector, config, secrets, settings)
    tokens = SharedTokens(workspace.database.engine, workspace.sealer)
    landed = LandedRecords(workspace, record)
    context = SourceContext(record.name, settings, quota, record.exclude, tokens, landed)
    client = connector.open(config, context)
    try:
        yield Source(record, connector, client, config.model_dump_json(exclude=set(secrets)), quota)
    finally:
        client.close()
        quota.close()


def extract(
    workspace: Workspace,
    name: str,
    entity: str,
    window: Window,
    run_id: str | None = None,
    scheduled: bool = False,
) -> Batch:
    """Extracts the records of a window and lists them as a batch.

    The first extraction of a reference entity reads all its records (rule 8). What the schedule asked
    for (`scheduled`) may be the first read of the newest settled day (rule 16).

    Raises:
        SourceError: the source could not be read whole; nothing becomes visible.
    """
    with _extracting(workspace, name, entity) as (source, connection):
        stream = source.connector.stream(entity)
        whole = stream.entity.reference and not ledger.was_read_whole(connection, name, entity)
        kind = "whole" if whole else "window"
        extraction = _Extraction(workspace, source, stream, window, kind, run_id, scheduled=scheduled)
        return extraction.run(connection)


def extract_all(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> Batch:
    """Extracts all records of an entity, whatever their change time, as a batch of that window.

    Raises:
        SourceError: the source could not be read whole; nothing becomes visible.
    """
    with _extracting(workspace, name, entity) as (source, connection):
        stream = source.connector.stream(entity)
        proof = {"for": "certificate"}
        return _Extraction(workspace, source, stream, window, "whole", run_id, proof=proof).run(connection)


def extract_ids(
    workspace: Workspace,
    name: str,
    entity: str,
    ids: list[str],
    window: Window,
    run_id: str | None = None,
    outcomes: dict[str, Outcome] | None = None,
    marks: Mapping[str, int] | None = None,
) -> Batch | None:
    """Extracts single records by id; None where the source gives none of them.

    Args:
        outcomes: gets what the source said of each id. Without it nobody asks why records did not
            come, and refusals in a row are an error.
        marks: by id, the change marks that a listing has shown, in µs since 1970.

    Raises:
        SourceError: the source could not be asked.
    """
    with _extracting(workspace, name, entity) as (source, connection):
        stream = source.connector.stream(entity)
        extraction = _Extraction(
            workspace, source, stream, window, "lookup", run_id, tuple(ids), outcomes=outcomes, marks=marks
        )
        batch = extraction.run(connection)
        return batch if batch.fetched else None


@contextmanager
def _extracting(workspace: Workspace, name: str, entity: str) -> Iterator[tuple[Source, sa.Connection]]:
    """An open connection, and the transaction that holds the lock of its entity and lists the batch."""
    with (
        open_source(workspace, name) as source,
        transaction(workspace.database.engine, "extract") as connection,
    ):
        advisory_lock(connection, f"extract:{name}:{entity}", long=True)
        reach("extract.locked")
        yield source, connection


@contextmanager
def _collected_by_hand() -> Iterator[None]:
    """Leaves it to the caller to collect garbage, and to do so among what is made from now on alone.

    Records are trees: to look for cycles among those of each page costs as much as to parse them.
    """
    gc.freeze()
    try:
        with collections_paused():
            yield
    finally:
        gc.unfreeze()


class _Extraction:
    """One extraction under its lock."""

    def __init__(
        self,
        workspace: Workspace,
        source: Source,
        stream: Stream,
        window: Window,
        kind: str,
        run_id: str | None,
        ids: tuple[str, ...] = (),
        scheduled: bool = False,
        outcomes: dict[str, Outcome] | None = None,
        proof: dict[str, Any] | None = None,
        marks: Mapping[str, int] | None = None,
    ) -> None:
        self._workspace = workspace
        self._source = source
        self._stream = stream
        self._window = window
        self._kind = kind
        self._run_id = run_id
        self._ids = ids
        self._scheduled = scheduled
        self._outcomes = outcomes
        self._proof = proof or {}
        self._marks = marks or {}

    def run(self, connection: sa.Connection) -> Batch:
        record, entity = self._source.record, self._stream.entity.name
        home = self._workspace.home
        number, journal = self._open_journal(connection)
        batch_id = ledger.next_batch_id(connection)
        folder = home.landing_of(record.tenant, record.name, entity) / str(batch_id)
        remove_unlisted(connection, folder.parent)
        reach("extract.numbered")
        # One folder per connection and entity: the lock is ours, so what lies there is a killed one's.
        work = home.extraction_of(record.name, entity)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        census = DiskCensus(work / "census.sqlite")
        try:
            with (
                closing(ParserProcess(record.connector, entity)) as helper,
                self._landed_before(connection) as before,
                _collected_by_hand(),
            ):
                collector = self._collector(census, journal, helper, before)
                pages = self._reported(self._pages(connection, census, journal), collector)
                with closing(pages):
                    files = land(entity, lambda: collector.tables(pages), folder, work / "dlt")
            batch = self._batch(batch_id, number, collector, journal, files)
            batch = replace(batch, first_read_of=self._first_read(connection, batch))
            if batch.fetched or self._kind != "lookup":
                ledger.add_batch(connection, batch)
                reach("extract.batch_listed")
                ledger.record_inventory(connection, batch.id, collector.inventory.found)
                keep_rejected(connection, batch, census.rejected())
                reach("extract.rejected_kept")
                gone.keep(connection, batch, census.gone())
            else:
                shutil.rmtree(folder, ignore_errors=True)
        except Contradictory:
            # What contradicts itself would do so again, read from the journal.
            abandon(journal.folder)
            raise
        finally:
            census.close()
            shutil.rmtree(work, ignore_errors=True)
        progress.report("extract", entity, batch.landed, "records", finished=True)
        log.info("batch landed", batch=batch_id, fetched=batch.fetched, landed=batch.landed)
        return batch

    def _open_journal(self, connection: sa.Connection) -> tuple[int, Journal]:
        record, entity = self._source.record, self._stream.entity.name
        folder = journal_folder(
            self._workspace.home, record.tenant, record.name, entity, self._window, self._kind
        )
        last, signature = self._last_number(connection), self._signature()
        if self._outcomes is not None:
            # A certificate asks what is there now: what an interrupted one was told counts for nothing.
            return begin_extraction(folder, last, signature)
        return open_extraction(folder, last, signature, self._workspace.settings.journal_max_age)

    def _collector(
        self, census: DiskCensus, journal: Journal, helper: ParserProcess, before: LandedBefore | None
    ) -> Collector:
        window = self._window if self._kind == "window" else None
        chunk = self._workspace.settings.rows_per_chunk
        return Collector(self._stream, window, census, journal, chunk, helper, before)

    def _landed_before(self, connection: sa.Connection) -> AbstractContextManager[LandedBefore | None]:
        """What the last extraction of this window landed, where this program parsed it."""
        record, entity = self._source.record, self._stream.entity.name
        last = ledger.last_batch(connection, record.name, entity, self._window)
        program = self._program
        if last is None or self._kind == "lookup" or program is None:
            return nullcontext()
        fields = ledger.inventory_of(connection, last.id)
        if fields is None or any(file.get("program") != program for file in last.files):
            return nullcontext()
        return opened(self._stream, landing_of(self._workspace, last), last.files, fields.absent)

    @property
    def _program(self) -> str | None:
        """What parses the records, or has parsed them, where that is known by now."""
        return fingerprint(self._source.connector.name)

    def _pages(self, connection: sa.Connection, census: DiskCensus, journal: Journal) -> Iterator[Page]:
        client = self._source.client
        if self._kind == "lookup":
            self._proof["method"] = "lookup by id"
            self._proof["asked"] = len(self._ids)
            self._proof["for"] = "parents" if self._outcomes is None else "certificate"
            yield from self._single_pages(journal)
            return
        proven = ledger.filter_proven(connection, self._source.record.name, self._stream.entity.name)
        window = self._window if self._kind == "window" else None
        yield from client.read(Reading(self._stream, window, census, journal, proven), self._proof)

    def _single_pages(self, journal: Journal) -> Iterator[Page]:
        """The records by id, as far as the source gives them; one bad answer costs only its record."""
        failed = 0
        for record_id in self._ids:
            try:
                mark = self._marks.get(record_id)
                outcome, page = look_up(self._source.client, self._stream, record_id, journal, mark)
                if outcome.state == "forbidden" and self._outcomes is None:
                    raise SourceError(f"{record_id}: {outcome.evidence}", 403)
            except SourceError as error:
                failed += 1
                refused = failed == _LOOKUP_FAILURES and self._outcomes is None
                if error.status in (None, 401, 429) or refused:
                    raise
                log.warning("a single record cannot be read", record_id=record_id, error=str(error))
                outcome, page = Outcome("failed", str(error), datetime.now(UTC), error.status), None
            else:
                failed = 0
            if self._outcomes is not None:
                self._outcomes[record_id] = outcome
            if page is not None:
                yield page
            if failed == _LOOKUP_FAILURES:
                return

    def _reported(self, pages: Iterator[Page], collector: Collector) -> Generator[Page, None, None]:
        for page in pages:
            yield page
            reach("extract.validated")
            progress.report("extract", self._stream.entity.name, collector.counts.fetched, "records")
            # An answer and its connection refer to each other, and would stay with all of their bytes.
            gc.collect(_YOUNG)
            if collector.counts.pages % _PAGES_TO_GIVE_BACK == 0:
                give_back()

    def _batch(
        self, batch_id: int, number: int, collector: Collector, journal: Journal, files: list[dict[str, Any]]
    ) -> Batch:
        counts, record = collector.counts, self._source.record
        for name in ("elsewhere", "undated"):
            if found := getattr(counts, name):
                self._proof[f"quarantined_{name}"] = found
        if counts.gone:
            self._proof["listed_as_deleted"] = counts.gone
        now, program = datetime.now(UTC), self._program
        return Batch(
            id=batch_id,
            tenant=record.tenant,
            connection=record.name,
            entity=self._stream.entity.name,
            kind=self._kind,
            window_start=self._window.start,
            window_end=self._window.end,
            extraction=number,
            fetched=journal.records,
            outside=counts.outside,
            duplicate=counts.duplicate,
            quarantined=counts.quarantined,
            landed=sum(file["rows"] for file in files),
            requests=journal.written,
            pages=counts.pages,
            sweeps=int(self._proof.get("sweeps", 0)),
            proof=self._proof,
            files=[file | {"program": program} for file in files],
            excluded=list(record.exclude),
            fetched_from=counts.fetched_from or now,
            fetched_to=counts.fetched_to or now,
            run_id=self._run_id,
            quota={name: vars(spent) for name, spent in self._source.quota.spent.items()},
        )

    def _first_read(self, connection: sa.Connection, batch: Batch) -> date | None:
        """The newest settled day, if the schedule reads it here for the first time (rule 16)."""
        lag = self._workspace.settings.settle_lag
        newest = ledger.newest_settled(batch.fetched_from, lag)
        if not self._scheduled or newest not in batch.window.days():
            return None
        known = ledger.was_read_settled(connection, batch.connection, batch.entity, newest, lag)
        return None if known else newest

    def _last_number(self, connection: sa.Connection) -> int:
        name, entity = self._source.record.name, self._stream.entity.name
        return ledger.last_extraction(connection, name, entity, self._window, self._kind == "lookup")

    def _signature(self) -> str:
        """What makes an unfinished extraction this one: where it read, how, what, and without which fields.

        The pages of one listing must be those of one way to ask. Which values of a config say how to ask is
        the connector's own matter, so all count. A credential does not: a new one may go on.
        """
        record = self._source.record
        parts = (
            self._source.config,
            self._workspace.settings.window_padding,
            self._stream.path,
            self._stream.select,
            self._kind,
            self._ids,
            record.exclude,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def remove_unlisted(connection: sa.Connection, folder: Path) -> None:
    """Removes the landing that killed processes left; the lock says that none is under way."""
    if not folder.is_dir():
        return
    found = {int(path.name): path for path in folder.iterdir() if path.name.isdigit()}
    listed = connection.execute(sa.select(t.batches.c.id).where(t.batches.c.id.in_(found))).scalars()
    for batch_id in set(found) - set(listed):
        shutil.rmtree(found[batch_id], ignore_errors=True)
        reach("extract.unlisted_removed")


def journal_folder(home: Home, tenant: str, connection: str, entity: str, window: Window, kind: str) -> Path:
    """Where the extractions of a window are journalled; lookups have a folder of their own."""
    label = f"{window.label}--lookup" if kind == "lookup" else window.label
    return home.journal_of(tenant, connection, entity, label)


def journal_of(workspace: Workspace, batch: Batch) -> Journal:
    """The journal that a batch was made from."""
    folder = journal_folder(
        workspace.home, batch.tenant, batch.connection, batch.entity, batch.window, batch.kind
    )
    return Journal(folder / f"{batch.extraction:04d}")


def landing_of(workspace: Workspace, batch: Batch) -> Path:
    """The folder of a batch's Parquet files."""
    return workspace.home.landing_of(batch.tenant, batch.connection, batch.entity) / str(batch.id)


def keep_rejected(connection: sa.Connection, batch: Batch, records: Iterator[RejectedRecord]) -> None:
    """Keeps rejected records; one seen before is counted, not kept twice (rule 13)."""
    chunk: list[dict[str, Any]] = []
    for record in records:
        chunk.append(vars(record))
        if len(chunk) == _QUARANTINE_CHUNK:
            add_to_quarantine(connection, batch, chunk)
            chunk = []
    if chunk:
        add_to_quarantine(connection, batch, chunk)


def add_to_quarantine(connection: sa.Connection, batch: Batch, records: list[dict[str, Any]]) -> None:
    """Adds rejected records (the fields of `RejectedRecord`) or raises their `times_seen`; keeps which
    batch saw them.

    The reason is that of the last refusal. What a replay brought into the tables and is refused
    again is back in quarantine.
    """
    if batch.kind == "replay":
        _refuse_again(connection, batch, records)
        return
    shared = {
        "tenant": batch.tenant,
        "connection": batch.connection,
        "entity": batch.entity,
        "first_batch": batch.id,
        "last_batch": batch.id,
    }
    statement = insert(t.quarantine).values([record | shared for record in records])
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["connection", "entity", "sha256"],
            set_={
                "times_seen": t.quarantine.c.times_seen + 1,
                "last_batch": statement.excluded.last_batch,
                "last_seen": sa.func.now(),
                "fetched_at": sa.func.greatest(t.quarantine.c.fetched_at, statement.excluded.fetched_at),
                "replay_batch": None,
                "replay_number": None,
                "replayed_at": None,
            }
            | {name: statement.excluded[name] for name in _WHY},
        )
    )
    reach("quarantine.added")
    sightings = [
        {
            "batch_id": batch.id,
            "connection": batch.connection,
            "entity": batch.entity,
            "sha256": record["sha256"],
            "reason": record["reason"],
        }
        for record in records
    ]
    connection.execute(insert(t.quarantine_sightings).values(sightings).on_conflict_do_nothing())


def _refuse_again(connection: sa.Connection, batch: Batch, records: list[dict[str, Any]]) -> None:
    """Says why records stay in quarantine: the source did not send them again, so that they are not
    counted as seen."""
    q = t.quarantine
    statement = (
        q.update()
        .where(q.c.replay_batch == batch.id, q.c.replay_number == sa.bindparam("number"))
        .values(last_batch=batch.id, **{name: sa.bindparam(f"new_{name}") for name in _WHY})
    )
    values = [{"number": r["page"]} | {f"new_{name}": r[name] for name in _WHY} for r in records]
    connection.execute(statement, values)
