"""Load: from a landed batch to the tables of `desk`, in one transaction, set by set.

Newest wins: a row is replaced only by a newer version with other content. The order of
versions is the source's change mark, then the fetch time of the page (rule 7). What decides is
copied first, and the contents only of those rows that are to be written (docs/decisions/0004).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
import structlog

from bridge_pipeline import progress
from bridge_pipeline.database import ledger
from bridge_pipeline.database.copying import copy_into, stage
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
    their id in the batch, `unchanged` and `superseded` were compared with the table, `loaded` written:
    new ones and those that replaced another version.
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
        counts = _Load(connection, entity, listed, landing_of(workspace, batch)).apply()
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


class _Load:
    """The statements of one batch's load, in the caller's transaction."""

    def __init__(self, connection: sa.Connection, entity: Entity, batch: Batch, folder: Path) -> None:
        self._connection = connection
        self._entity = entity
        self._batch = batch
        self._folder = folder

    def apply(self) -> _Counts:
        """Writes what is newer than the tables, and what it refers to."""
        entity, run = self._entity, self._run
        run(_PLANNED)
        stage(self._connection, "incoming", _deciding(entity), self._landed(_deciding(entity)))
        copied = self._count("incoming")
        rejected = run(_DROP_REJECTED)
        older = run(_DROP_OLDER)
        run(_reappeared(entity))
        unchanged = run(_drop_unchanged(entity))
        superseded = run(_drop_superseded(entity))
        placeholders = self._add_parents()
        loaded = self._write(whole=not (rejected or older or unchanged or superseded))
        return _Counts(copied, rejected, older, unchanged, superseded, loaded, placeholders)

    def _add_parents(self) -> int:
        """Adds placeholders for what the rows to be written refer to and the tables do not have."""
        columns = self._entity.parents
        added = [_placeholders(c.references, f"select {c.name} from incoming") for c in columns]
        if self._entity.people:
            self._run(_PEOPLE)
            added.append(_placeholders("users", "select user_id from people"))
        return sum(self._run(statement) for statement in added)

    def _write(self, whole: bool) -> int:
        """Writes the rows that are left in `incoming`; returns how many Postgres took.

        Args:
            whole: whether all landed rows are left.
        """
        known = self._run(_known(self._entity))
        replacing = self._numbers("known") if known else np.zeros(0, bool)
        loaded = self._insert(None if whole and not known else _without(self._numbers("incoming"), replacing))
        if known:
            loaded += self._replace(replacing)
        if self._entity.people:
            self._run(_UNLINK)
            self._run(_DROP_LINKED)
            self._run(_LINK)
        return loaded

    def _insert(self, chosen: np.ndarray | None) -> int:
        rows = self._landed(types := _contents(self._entity), chosen)
        batch = self._batch
        same = {"tenant": batch.tenant, "connection": batch.connection, "batch_id": batch.id}
        return copy_into(self._connection, f"desk.{self._entity.name}", types, rows, same)

    def _replace(self, chosen: np.ndarray) -> int:
        types = _contents(self._entity)
        stage(self._connection, "replacing", types, self._landed(types, chosen))
        return self._run(_replace(self._entity))

    def _landed(self, types: dict[str, str], chosen: np.ndarray | None = None) -> Iterator[pa.Table]:
        """The landed rows with these columns; of them those whose number is `chosen`."""
        if chosen is not None and not chosen.any():
            return
        names, done = tuple(types), 0
        columns = names if "seq" in names else (*names, "seq")
        for rows in read_landed(self._folder, self._batch.files, self._entity.name, columns):
            kept = rows if chosen is None else rows.filter(_among(chosen, rows["seq"]))
            yield kept.select(names)
            done += kept.num_rows
            progress.report("load", self._entity.name, done, "rows")

    def _numbers(self, table: str) -> np.ndarray:
        """Whether each row, by its number, stands in a temporary table."""
        statement = _NUMBERS.format(table=table)
        numbers = [np.frombuffer(part, ">i8") for part in self._connection.scalars(sa.text(statement))]
        chosen = np.zeros(max((int(part.max()) for part in numbers), default=-1) + 1, bool)
        for part in numbers:
            chosen[part] = True
        return chosen

    def _run(self, statement: str) -> int:
        reach("load.statement")
        batch = self._batch
        names = {"tenant": batch.tenant, "connection": batch.connection, "batch": batch.id}
        return self._connection.execute(sa.text(statement), names).rowcount

    def _count(self, table: str) -> int:
        return self._connection.scalar(sa.text(f"select count(*) from {table}")) or 0


def _deciding(entity: Entity) -> dict[str, str]:
    """The columns that say what becomes of a row, with their types in Postgres."""
    names = ["seq", "id", "updated_at", "fetched_at", "content_hash", *(c.name for c in entity.parents)]
    return {name: _TYPES.get(name, "text") for name in [*names, *(["people"] if entity.people else [])]}


_TYPES = {"seq": "bigint", "updated_at": "timestamptz", "fetched_at": "timestamptz", "people": "jsonb"}


def _contents(entity: Entity) -> dict[str, str]:
    """The columns of the table that a landed row fills, with their types."""
    types = {column.name: column.kind.postgres for column in entity.columns}
    return types | {"custom_fields": "jsonb", "content_hash": "text", "fetched_at": "timestamptz"}


def _among(chosen: np.ndarray, numbers: pa.ChunkedArray) -> pa.Array:
    found = numbers.to_numpy()
    within = found < len(chosen)
    return pa.array(within & chosen[np.where(within, found, 0)])


def _without(chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What is chosen but for `others`, all of which are."""
    chosen[: len(others)] &= ~others
    return chosen


# Compiling a plan costs more than each of these statements takes.
_PLANNED = "set local jit = off"

_DROP_REJECTED = """
delete from incoming using bridge.rejections r where r.batch_id = :batch and r.seq = incoming.seq
"""

# Few batches hold an id twice: only those are sorted.
_DROP_OLDER = """
delete from incoming using (
    select seq, row_number() over (
        partition by id order by updated_at desc nulls last, fetched_at desc, seq desc
    ) as place
    from incoming where id in (select id from incoming group by id having count(*) > 1)
) as versions
where versions.place > 1 and versions.seq = incoming.seq
"""

# Numbers of rows, many in one message: each message costs as much as hundreds of numbers.
_NUMBERS = "select string_agg(int8send(seq), ''::bytea) from {table} group by seq / 100000"

# All that was not refused again.
_REPLAYED = """
update bridge.quarantine set replayed_at = now() where replay_batch = :batch and last_batch <> :batch
"""

_PEOPLE = """
create temporary table people on commit drop as
select n.id as ticket_id, p.user_id, p.part
from incoming n cross join lateral jsonb_to_recordset(n.people) as p (user_id text, part text)
"""

_SAME_LINK = (
    "l.connection = :connection and l.ticket_id = p.ticket_id and l.user_id = p.user_id and l.part = p.part"
)

_UNLINK = f"""
delete from desk.ticket_users l using incoming n
where l.connection = :connection and l.ticket_id = n.id
    and not exists (select from people p where {_SAME_LINK})
"""

_DROP_LINKED = f"delete from people p using desk.ticket_users l where {_SAME_LINK}"

_LINK = """
insert into desk.ticket_users (tenant, connection, ticket_id, user_id, part)
select :tenant, :connection, ticket_id, user_id, part from people
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
    update desk.{entity.name} d set deleted_at = null, loaded_at = now() from incoming n
    where d.connection = :connection and d.id = n.id and n.fetched_at > d.deleted_at
        and d.content_hash <> n.content_hash
    """


def _drop_unchanged(entity: Entity) -> str:
    """Takes out what the table holds already; a deleted row that was seen again is not unchanged."""
    return f"""
    delete from incoming n using desk.{entity.name} d
    where d.connection = :connection and d.id = n.id and d.content_hash = n.content_hash
        and (d.deleted_at is null or n.fetched_at <= d.deleted_at)
    """


def _drop_superseded(entity: Entity) -> str:
    """Takes out what is older than the table's version; what is left is to be written."""
    return f"""
    delete from incoming n using desk.{entity.name} d
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


def _known(entity: Entity) -> str:
    """The rows that replace one of the table; the others are new."""
    return f"""
    create temporary table known on commit drop as
    select n.seq, n.id from incoming n join desk.{entity.name} d on d.connection = :connection and d.id = n.id
    """


def _replace(entity: Entity) -> str:
    changes = ", ".join(f"{name} = n.{name}" for name in _contents(entity) if name != "id")
    return f"""
    update desk.{entity.name} d
    set {changes}, batch_id = :batch, placeholder = false, loaded_at = now(),
        deleted_at = case when n.fetched_at <= d.deleted_at then d.deleted_at end
    from replacing n where d.connection = :connection and d.id = n.id
    """
