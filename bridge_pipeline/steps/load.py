"""Load: from a landed batch to the tables of `desk`, in one transaction, set by set.

Newest wins: a row is replaced only by a newer version with other content. The order of
versions is the source's change mark, then the fetch time of the page (rule 7).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pyarrow as pa
import pyarrow.csv
import sqlalchemy as sa
import structlog

from bridge_pipeline import progress
from bridge_pipeline.database import ledger
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES, Entity, Window
from bridge_pipeline.model.expectation import LOADED
from bridge_pipeline.steps import facts
from bridge_pipeline.steps.announce import tell_verdict
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed

log = structlog.get_logger(__name__)


class BatchBlocked(RuntimeError):
    """A check blocks the newest batch of the window, and nobody has accepted it."""


class EquationBroken(RuntimeError):
    """Rows went missing or were doubled on their way into the table; nothing of the load stayed."""

    def __init__(self, batch: Batch, result: CheckResult) -> None:
        super().__init__(
            f"batch {batch.id} of {batch.connection} {batch.entity} {batch.window} was not loaded, because "
            f"its rows do not add up: {result.note}; extract it again"
        )
        self.result = result


@dataclass(frozen=True)
class LoadResult:
    """What became of the rows of one batch."""

    batch: Batch
    loaded: int
    unchanged: int
    superseded: int
    placeholders: int


@dataclass(frozen=True)
class _Counts:
    """What Postgres counted in the load's transaction, each number by a statement of its own.

    `copied` rows came from Parquet; `rejected` of them were taken out, `older` were not the newest of
    their id in the batch, `unchanged` and `superseded` were compared with the table, `loaded` written.
    """

    copied: int
    rejected: int
    older: int
    unchanged: int
    superseded: int
    loaded: int
    placeholders: int

    def result(self, batch: Batch) -> LoadResult:
        """The counts as the ledger keeps them: a row is superseded by the table's or by its own batch."""
        superseded = self.older + self.superseded
        return LoadResult(batch, self.loaded, self.unchanged, superseded, self.placeholders)


def load_window(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> list[LoadResult]:
    """Loads every readable batch that touches the window and is not loaded yet, oldest first.

    Raises:
        BatchBlocked: the newest batch of the window may not be read.
    """
    with workspace.database.engine.connect() as connection:
        refuse_unreadable(ledger.unreadable_batch(connection, name, entity, window, run_id))
        pending = ledger.batches_to_load(connection, name, entity, window)
    return [load(workspace, batch, run_id) for batch in pending]


def refuse_unreadable(batch: Batch | None) -> None:
    """Stops what lies downstream of a batch that may not be read (rule 15).

    Raises:
        BatchBlocked: the batch is blocked, or its checks have not run.
    """
    if batch is None or batch.readable:
        return
    remedy = (
        f'look at the report, then extract it again or run: bridge accept {batch.id} --by NAME --reason "…"'
        if batch.verdict == "blocked"
        else "materialise its checks"
    )
    raise BatchBlocked(
        f"batch {batch.id} of {batch.connection} {batch.entity} {batch.window} is {batch.verdict}; {remedy}"
    )


def load(workspace: Workspace, batch: Batch, run_id: str | None = None) -> LoadResult:
    """Brings the tables up to a batch and writes it into the ledger, wholly or not at all.

    A batch that another process loaded meanwhile is left alone.

    Raises:
        BatchBlocked: the ledger does not let the batch through.
        EquationBroken: its rows do not add up; the load is undone and the batch blocked.
    """
    try:
        result = _load(workspace, batch, run_id)
    except EquationBroken as broken:
        with transaction(workspace.database.engine, "load.undo") as connection:
            ledger.record_stage(connection, batch.id, "load", [broken.result])
            ledger.block(connection, batch.id)
            tell_verdict(connection, ledger.batch(connection, batch.id), [broken.result], workspace.settings)
        log.error("load undone: its rows do not add up", batch=batch.id)
        raise
    progress.report("load", batch.entity, result.loaded, "rows", finished=True)
    return result


def _load(workspace: Workspace, batch: Batch, run_id: str | None) -> LoadResult:
    entity = ENTITIES[batch.entity]
    with transaction(workspace.database.engine, "load") as connection:
        advisory_lock(connection, f"load:{batch.connection}", long=True)
        reach("load.locked")
        # As the ledger has it now: checks may have taken rows out since the caller looked.
        listed = ledger.batch(connection, batch.id)
        refuse_unreadable(listed)
        if done := ledger.load_counts(connection, batch.id):
            return LoadResult(batch, **done)
        rows = read_landed(landing_of(workspace, batch), batch.files, batch.entity, _landed_columns(entity))
        copy_landed(connection, "incoming", _incoming_types(entity), _reported(rows, entity.name))
        counts = _apply(connection, entity, batch)
        reach("load.counted")
        check = _equation(listed, counts)
        if not check.passed and not _accepted(listed, counts):
            raise EquationBroken(listed, check)
        result = counts.result(batch)
        terms = {key: value for key, value in vars(result).items() if key != "batch"}
        ledger.record_load(connection, batch.id, run_id, terms)
        reach("load.listed")
        ledger.record_stage(connection, batch.id, "load", [check])
        if batch.kind == "replay":
            connection.execute(sa.text(_REPLAYED), {"batch": batch.id})
    log.info("batch loaded", batch=batch.id, **terms)
    return result


def _equation(batch: Batch, counts: _Counts) -> CheckResult:
    """The equation of rule 2, from counts that the journal, Parquet and Postgres took by themselves."""
    became = counts.rejected + counts.older + counts.superseded + counts.unchanged + counts.loaded
    accounted = batch.outside + batch.duplicate + batch.quarantined + became
    wrong = max(
        abs(batch.fetched - accounted),
        abs(batch.landed - counts.copied),
        abs(batch.rejected - counts.rejected),
        abs(counts.copied - became),
    )
    note = (
        f"{batch.fetched} fetched (journal) = {batch.outside} outside + {batch.duplicate} duplicate + "
        f"{batch.quarantined} quarantined (parser) + {counts.rejected} quarantined (checks) + "
        f"{counts.loaded} loaded + {counts.unchanged} unchanged + {counts.older + counts.superseded} "
        f"superseded (Postgres), of {batch.landed} landed (Parquet) and {counts.copied} copied"
    )
    examples = [vars(counts) | {"fetched": batch.fetched, "accounted": accounted}] if wrong else []
    return facts.result(LOADED, not wrong, batch.fetched, wrong, examples, note=note)


def _accepted(batch: Batch, counts: _Counts) -> bool:
    """Whether a reviewer let it through although it does not add up; every row that landed must."""
    became = counts.rejected + counts.older + counts.superseded + counts.unchanged + counts.loaded
    whole = (batch.landed, batch.rejected, became) == (counts.copied, counts.rejected, counts.copied)
    return whole and batch.verdict == "accepted"


def _apply(connection: sa.Connection, entity: Entity, batch: Batch) -> _Counts:
    names = {"tenant": batch.tenant, "connection": batch.connection, "batch": batch.id}

    def run(statement: str) -> int:
        reach("load.statement")
        return connection.execute(sa.text(statement), names).rowcount

    def count(table: str) -> int:
        return connection.scalar(sa.text(f"select count(*) from {table}")) or 0

    copied = count("incoming")
    rejected = run(_DROP_REJECTED)
    run(_NEWEST)
    # What is joined; statistics of long texts and JSON would cost as much as writing the rows.
    run(f"analyze newest ({', '.join(['id', *(column.name for column in entity.parents)])})")
    older = count("incoming") - count("newest")
    run(_reappeared(entity))
    unchanged = run(_drop_unchanged(entity))
    superseded = run(_drop_superseded(entity))
    placeholders = sum(
        run(_placeholders(c.references, f"select {c.name} from newest")) for c in entity.parents
    )
    if entity.people:
        placeholders += run(_placeholders("users", f"select p.user_id from {_PEOPLE}"))
    loaded = run(_upsert(entity))
    if entity.people:
        run(_UNLINK)
        run(_LINK)
    return _Counts(copied, rejected, older, unchanged, superseded, loaded, placeholders)


def _landed_columns(entity: Entity) -> tuple[str, ...]:
    return ("seq", *entity.content_names, "content_hash", "fetched_at")


def _incoming_types(entity: Entity) -> dict[str, str]:
    types = {column.name: column.kind.postgres for column in entity.columns}
    types |= {"seq": "bigint", "people": "jsonb", "custom_fields": "jsonb", "fetched_at": "timestamptz"}
    return {name: types.get(name, "text") for name in _landed_columns(entity)}


def copy_landed(
    connection: sa.Connection, table: str, types: dict[str, str], rows: Iterator[pa.Table]
) -> None:
    """Creates a temporary table for this transaction and streams rows into it, as CSV that Arrow writes.

    Args:
        types: Postgres type of each column, in the order of the rows' columns.
    """
    columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
    connection.execute(sa.text(f"create temporary table {table} ({columns}) on commit drop"))
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    with driver.cursor() as cursor:
        for part in rows:
            reach("copy.part")
            sink = pa.BufferOutputStream()
            pyarrow.csv.write_csv(part, sink, pyarrow.csv.WriteOptions(include_header=False))
            data = sink.getvalue().to_pybytes()
            # Servers before 18 take a line `\\.` for the end of the data, even within quotes.
            if b"\n\\." in data or b"\r\\." in data:
                with cursor.copy(f"copy {table} from stdin".encode()) as copy:
                    for row in zip(*(column.to_pylist() for column in part.columns), strict=True):
                        copy.write_row(row)
            else:
                with cursor.copy(f"copy {table} from stdin (format csv)".encode()) as copy:
                    copy.write(data)


def _reported(rows: Iterator[pa.Table], entity: str) -> Iterator[pa.Table]:
    done = 0
    for part in rows:
        yield part
        done += part.num_rows
        progress.report("load", entity, done, "rows")


_NEWEST = """
create temporary table newest on commit drop as
select distinct on (id) * from incoming
order by id, updated_at desc nulls last, fetched_at desc, seq desc
"""

_DROP_REJECTED = """
delete from incoming using bridge.rejections r where r.batch_id = :batch and r.seq = incoming.seq
"""

# All that was not refused again.
_REPLAYED = """
update bridge.quarantine set replayed_at = now() where replay_batch = :batch and last_batch <> :batch
"""

_PEOPLE = "newest n cross join lateral jsonb_to_recordset(n.people) as p (user_id text, part text)"

_UNLINK = """
delete from desk.ticket_users l using newest n where l.connection = :connection and l.ticket_id = n.id
"""

_LINK = f"""
insert into desk.ticket_users (tenant, connection, ticket_id, user_id, part)
select :tenant, :connection, n.id, p.user_id, p.part from {_PEOPLE}
"""


def _newer(row: str) -> str:
    """Whether the incoming version `n` comes after that of `row`; a placeholder is before all."""
    return f"""({row}.placeholder
        or (coalesce(n.updated_at, '-infinity'), n.fetched_at)
        > (coalesce({row}.updated_at, '-infinity'), {row}.fetched_at))"""


def _reappeared(entity: Entity) -> str:
    """Takes back the deletion of what was seen after it, though in an older version than the table has.

    Seeing a record clears its deletion (rule 19); its content stays that of the newest version.
    """
    return f"""
    update desk.{entity.name} d set deleted_at = null, loaded_at = now() from newest n
    where d.connection = :connection and d.id = n.id and n.fetched_at > d.deleted_at
        and d.content_hash <> n.content_hash
    """


def _drop_unchanged(entity: Entity) -> str:
    """Takes out what the table holds already; a deleted row that was seen again is not unchanged."""
    return f"""
    delete from newest n using desk.{entity.name} d
    where d.connection = :connection and d.id = n.id and d.content_hash = n.content_hash
        and (d.deleted_at is null or n.fetched_at <= d.deleted_at)
    """


def _drop_superseded(entity: Entity) -> str:
    """Takes out what is older than the table's version; what is left is to be written."""
    return f"""
    delete from newest n using desk.{entity.name} d
    where d.connection = :connection and d.id = n.id and not {_newer("d")}
        and not (d.deleted_at is not null and d.content_hash = n.content_hash
            and n.fetched_at > d.deleted_at)
    """


def _placeholders(parent: str | None, ids: str) -> str:
    return f"""
    insert into desk.{parent} (tenant, connection, id, placeholder, batch_id)
    select distinct :tenant, :connection, parent.id, true, cast(:batch as bigint)
    from ({ids}) as parent (id) where parent.id is not null
    on conflict (connection, id) do nothing
    """


def _upsert(entity: Entity) -> str:
    content = [*entity.column_names, "custom_fields", "content_hash", "fetched_at"]
    columns = ", ".join(content)
    changes = ", ".join(f"{name} = excluded.{name}" for name in [*content[1:], "batch_id"])
    return f"""
    insert into desk.{entity.name} as d (tenant, connection, {columns}, batch_id)
    select :tenant, :connection, {columns}, cast(:batch as bigint) from newest order by id
    on conflict (connection, id) do update
    set {changes}, placeholder = false, loaded_at = now(),
        deleted_at = case when excluded.fetched_at <= d.deleted_at then d.deleted_at end
    """
