"""Load: from a landed batch to the tables of `desk`, in one transaction, set by set.

Newest wins: a row is replaced only by a newer version with other content. The order of
versions is the source's change mark, then the fetch time of the page (rule 7). What decides is
copied first, and the contents only of those rows that are to be written (docs/decisions/0004).
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from bridge_pipeline import progress
from bridge_pipeline.database import ledger
from bridge_pipeline.database.copying import copy_into, create_stage, stage
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.imports import collections_paused
from bridge_pipeline.model import ENTITIES, Entity, Window
from bridge_pipeline.model.expectation import LOADED
from bridge_pipeline.steps import facts
from bridge_pipeline.steps.announce import tell_verdict
from bridge_pipeline.steps.chosen import Choice, Landed, Referred, held_among, in_portions
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import LandingDamaged
from bridge_pipeline.steps.sightings import SIGHTED, seen_in

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
    """What became of the rows of one batch; `first` if the table held nothing of the connection before."""

    batch: Batch
    loaded: int
    unchanged: int
    superseded: int
    placeholders: int
    first: bool


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
    first: bool

    def result(self, batch: Batch) -> LoadResult:
        """The counts as the ledger keeps them: a row is superseded by the table's or by its own batch."""
        superseded = self.older + self.superseded
        return LoadResult(batch, self.loaded, self.unchanged, superseded, self.placeholders, self.first)


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
            return LoadResult(batch, first=False, **done)
        # The lock is ours: what lies there is a killed one's.
        scratch = workspace.home.loading_of(batch.connection, batch.entity)
        shutil.rmtree(scratch, ignore_errors=True)
        landed = Landed(listed, landing_of(workspace, batch), scratch)
        try:
            counts = _Load(connection, entity, landed, _seen_later(workspace, connection, listed)).apply()
        except LandingDamaged as damaged:
            raise EquationBroken(listed, _unread(listed, damaged)) from damaged
        reach("load.counted")
        check = _equation(listed, counts)
        if not check.passed and not _accepted(listed, counts):
            raise EquationBroken(listed, check)
        result = counts.result(batch)
        terms = {key: value for key, value in vars(result).items() if key not in ("batch", "first")}
        ledger.record_load(connection, batch.id, run_id, terms)
        reach("load.listed")
        ledger.record_stage(connection, batch.id, "load", [check])
        reach("load.checked")
        if batch.kind == "replay":
            connection.execute(sa.text(_REPLAYED), {"batch": batch.id})
            reach("load.replayed")
    log.info("batch loaded", batch=batch.id, **terms)
    return result


def _seen_later(workspace: Workspace, connection: sa.Connection, batch: Batch) -> Iterator[pa.Table] | None:
    """What loaded batches saw since this one was fetched, with the columns of `SIGHTED`; None for none."""
    later = ledger.loaded_since(connection, batch.connection, batch.entity, batch.fetched_from)
    return seen_in(workspace, later, batch.fetched_from) if later else None


def _unread(batch: Batch, damaged: LandingDamaged) -> CheckResult:
    """The equation of a load whose rows, or those that were seen later, cannot be read any more."""
    return facts.result(LOADED, False, batch.fetched, batch.landed, [], note=damaged.finding)


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


@dataclass(frozen=True)
class _Decided:
    """Which landed rows are written, and how many are not because of what the table has.

    `left` are written, of which `replacing` take the place of a row of the table.
    """

    left: Choice
    replacing: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    unchanged: int = 0
    superseded: int = 0

    @property
    def new(self) -> Choice:
        """The rows whose ids the table does not have."""
        if self.left is None:
            return None
        new = self.left.copy()
        new[: len(self.replacing)] &= ~self.replacing
        return new


@dataclass(frozen=True)
class _Written:
    """How many rows were written, and how many placeholders for what they refer to."""

    rows: int = 0
    placeholders: int = 0


class _Load:
    """The statements of one batch's load, in the caller's transaction.

    Args:
        sighted: what was seen since the batch was fetched and is loaded already.
    """

    def __init__(
        self,
        connection: sa.Connection,
        entity: Entity,
        landed: Landed,
        sighted: Iterator[pa.Table] | None,
    ) -> None:
        self._connection = connection
        self._entity = entity
        self._landed = landed
        self._sighted = sighted

    def apply(self) -> _Counts:
        """Writes what is newer than the tables, and what it refers to."""
        self._run(_PLANNED)
        rejected = np.fromiter(self._execute(_REJECTED).scalars(), np.int64)
        copied, older = self._landed.count(), self._landed.older(rejected)
        rejected = rejected[rejected < copied]
        counted = _all_but(copied, rejected, older)
        known = self._execute(_KNOWN.format(self._entity.name)).scalar()
        decided = self._compare(copied, counted) if known else _Decided(counted)
        if self._entity.people:
            self._run(_UNLINK if known else _UNLINK_ALL)
        new, replaced = self._insert(decided.new), self._replace(decided.replacing)
        loaded, placeholders = new.rows + replaced.rows, new.placeholders + replaced.placeholders
        same, before = decided.unchanged, decided.superseded
        return _Counts(copied, len(rejected), len(older), same, before, loaded, placeholders, not known)

    def _compare(self, copied: int, counted: Choice) -> _Decided:
        """Compares rows with those of the table; `writing` lists those that are to be written."""
        self._run(_WRITING)
        numbers, same = self._held(counted)
        counted = _all_but(copied, *numbers, among=counted)
        compared = copied if counted is None else int(counted.sum())
        if not compared:
            return _Decided(counted, unchanged=same)
        stage(self._connection, "incoming", _DECIDING, self._landed.read(tuple(_DECIDING), counted))
        few = compared <= _FEW
        if self._sighted is not None:
            wanted = self._landed.among(self._sighted, counted) if few else self._sighted
            stage(self._connection, "sighted", SIGHTED, wanted)
            for statement in _SIGHTED:
                self._run(statement)
        for statement in (_HASHED, _reappeared(self._entity), _PLANNED_AGAIN):
            self._run(statement)
        found = self._execute(_compared(self._entity, few, self._sighted is not None)).one()
        replacing = self._numbers("writing where known") if found.known else np.zeros(0, bool)
        whole = not (found.known or found.unchanged or found.superseded)
        left = counted if whole else self._numbers("writing")
        return _Decided(left, replacing, same + found.unchanged, found.superseded)

    def _held(self, counted: Choice) -> tuple[list[np.ndarray], int]:
        """The numbers of rows that the table holds to the letter, and how many of its rows those are.

        Postgres says what it holds of the times of tens of thousands of rows, and of not more than twice
        as many: whatever is not among that is compared by it.
        """
        numbers, same = list[np.ndarray](), 0
        for portion in in_portions(self._landed.read(("seq", "updated_at", "content_hash"), counted)):
            rows = pa.concat_tables(portion)
            times = pc.call_function("min_max", [rows["updated_at"]]).as_py()
            hashes = self._execute(
                _HASHES.format(self._entity.name), most=2 * rows.num_rows, **times
            ).scalar()
            found, count = held_among(rows, hashes or "")
            numbers.append(found)
            same += count
        return numbers, same

    def _numbers(self, table: str) -> np.ndarray:
        """Whether each row, by its number, stands in a temporary table."""
        found = self._execute(_NUMBERS.format(table=table)).scalars()
        numbers = [np.frombuffer(part, ">i8") for part in found]
        chosen = np.zeros(max((int(part.max()) for part in numbers), default=-1) + 1, bool)
        for part in numbers:
            chosen[part] = True
        return chosen

    # --- What is written

    def _insert(self, chosen: Choice) -> _Written:
        batch = self._landed.batch
        same = {"tenant": batch.tenant, "connection": batch.connection, "batch_id": batch.id}
        return self._copy(f"desk.{self._entity.name}", chosen, same)

    def _replace(self, chosen: np.ndarray) -> _Written:
        if not chosen.any():
            return _Written()
        create_stage(self._connection, "replacing", _contents(self._entity))
        copied = self._copy("replacing", chosen)
        return _Written(self._run(_replace(self._entity)), copied.placeholders)

    def _copy(self, table: str, chosen: Choice, same: dict[str, str | int] | None = None) -> _Written:
        """Copies the chosen rows into a table, and links and missing parents of theirs into others.

        Tens of thousands at a time: while the server takes rows, what they refer to is gathered.
        """
        types, copied, added = _contents(self._entity), 0, 0
        rows = self._told(self._landed.read((*types, *self._referring), chosen))
        # What JSON is taken apart into are trees: searched for cycles they would take four times as long.
        with collections_paused():
            for portion in in_portions(rows):
                referred = Referred(self._entity)
                seen = (part.select(list(types)) for part in referred.gathered(portion))
                copied += copy_into(self._connection, table, types, seen, same)
                added += self._refer(referred)
        return _Written(copied, added)

    @property
    def _referring(self) -> tuple[str, ...]:
        return ("people",) if self._entity.people else ()

    def _refer(self, referred: Referred) -> int:
        """Adds placeholders for what the tables do not have, and links; returns how many placeholders."""
        batch = self._landed.batch
        added = sum(
            self._run(_PLACEHOLDERS.format(parent), ids=ids) for parent, ids in referred.ids().items() if ids
        )
        if referred.links:
            same = {"tenant": batch.tenant, "connection": batch.connection}
            copy_into(self._connection, "desk.ticket_users", _LINKS, referred.links, same)
        return added

    def _told(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The parts, while progress is reported."""
        done = 0
        for rows in parts:
            yield rows
            done += rows.num_rows
            progress.report("load", self._entity.name, done, "rows")

    def _run(self, statement: str, **values: object) -> int:
        return self._execute(statement, **values).rowcount

    def _execute(self, statement: str, **values: object) -> sa.CursorResult:
        reach("load.statement")
        return self._connection.execute(sa.text(statement), self._names | values)

    @property
    def _names(self) -> dict[str, object]:
        batch = self._landed.batch
        return {"tenant": batch.tenant, "connection": batch.connection, "batch": batch.id}


def _all_but(rows: int, *others: np.ndarray, among: Choice = None) -> Choice:
    """The choice of all of so many rows, or of those `among` them, but those with these numbers."""
    if not any(len(numbers) for numbers in others):
        return among
    chosen = np.ones(rows, bool) if among is None else among.copy()
    chosen[np.concatenate(others)] = False
    return chosen


# The columns that say what becomes of a row.
_DECIDING = {
    "seq": "bigint",
    "id": "text",
    "updated_at": "timestamptz",
    "fetched_at": "timestamptz",
    "content_hash": "text",
}
_LINKS = {"ticket_id": "text", "user_id": "text", "part": "text"}


def _contents(entity: Entity) -> dict[str, str]:
    """The columns of the table that a landed row fills, with their types."""
    types = {column.name: column.kind.postgres for column in entity.columns}
    return types | {"custom_fields": "jsonb", "content_hash": "text", "fetched_at": "timestamptz"}


# Compiling a plan costs more than each of these statements takes.
_PLANNED = "set local jit = off"

# How many rows are deleted may be news to the planner: a nested loop over what it takes for few is quadratic.
_HASHED = "set local enable_nestloop = off"
_PLANNED_AGAIN = "set local enable_nestloop to default"

# Whether the table holds anything of the connection; while this load has its lock, nobody adds to that.
_KNOWN = "select exists (select from desk.{} where connection = :connection)"

# Few rows are looked up one by one: to hash what the table holds means reading all of it.
_FEW = 20_000

_REJECTED = "select seq from bridge.rejections where batch_id = :batch"

# What tells that rows are unchanged: of those that live and changed within a time, in any order.
_HASHES = """
select string_agg(content_hash, '') from (
    select content_hash from desk.{} where connection = :connection and updated_at between :min and :max
        and deleted_at is null and not placeholder
    limit :most
) as held
"""

# What is left of `incoming`; `known` rows replace one of the table, the others are new.
_WRITING = "create temporary table writing (seq bigint, id text, known boolean) on commit drop"

# Numbers of rows, many in one message: each message costs as much as hundreds of numbers.
_NUMBERS = "select string_agg(int8send(seq), ''::bytea) from {table} group by seq / 100000"

# All that was not refused again.
_REPLAYED = """
update bridge.quarantine set replayed_at = now() where replay_batch = :batch and last_batch <> :batch
"""

# A ticket's links are replaced with each of its versions, also where there should be none.
_UNLINK = """
delete from desk.ticket_users l using writing n where l.connection = :connection and l.ticket_id = n.id
"""
_UNLINK_ALL = "delete from desk.ticket_users where connection = :connection"

_PLACEHOLDERS = """
insert into desk.{} (tenant, connection, id, placeholder, batch_id)
select :tenant, :connection, parent.id, true, cast(:batch as bigint)
from unnest(cast(:ids as text[])) as parent (id)
on conflict (connection, id) do nothing
"""


# When each version was seen last by batches that were fetched later than this one and loaded before it.
_SIGHTED = (
    """
    create temporary table seen_later on commit drop as
    select id, content_hash, max(fetched_at) as fetched_at from sighted group by id, content_hash
    """,
    "create index on seen_later (id)",
    "analyze seen_later",
)

_SEEN_LATER = (
    "(select s.fetched_at from seen_later s where s.id = {0}.id and s.content_hash = {0}.content_hash)"
)


def _newer(row: str, sighted: bool) -> str:
    """Whether the incoming version `n` comes after that of `row`; a placeholder is before all.

    Args:
        sighted: whether the version of `row` may have been seen later, and left as it was.
    """
    fetched_at = f"{row}.fetched_at"
    if sighted:
        fetched_at = f"greatest({fetched_at}, {_SEEN_LATER.format(row)})"
    return f"""({row}.placeholder
        or (coalesce(n.updated_at, '-infinity'), n.fetched_at)
        > (coalesce({row}.updated_at, '-infinity'), {fetched_at}))"""


def _reappeared(entity: Entity) -> str:
    """Takes back the deletion of what was seen after it, though in an older version than the table has.

    Seeing a record clears its deletion (rule 19); its content stays that of the newest version.
    """
    return f"""
    update desk.{entity.name} d set deleted_at = null, loaded_at = now() from incoming n
    where d.connection = :connection and d.id = n.id and d.deleted_at is not null
        and n.fetched_at > d.deleted_at and d.content_hash <> n.content_hash
    """


def _compared(entity: Entity, few: bool, sighted: bool) -> str:
    """Fills `writing`, and counts what is not written because of what the table has.

    Unchanged is what it holds already, but for a deleted row that was seen again; superseded what is older.
    How many rows the connection has may be news to the planner: few incoming ones leave it no choice.
    """
    held = f"select * from desk.{entity.name} where connection = :connection"
    row = f"lateral ({held} and id = n.id offset 0)" if few else f"({held})"
    seen_again = "(d.deleted_at is not null and n.fetched_at > d.deleted_at)"
    return f"""
    with compared as materialized (
        select n.seq, n.id, d.id is not null as known,
            coalesce(d.content_hash = n.content_hash and not {seen_again}, false) as unchanged,
            coalesce(
                not {_newer("d", sighted)} and not (d.content_hash = n.content_hash and {seen_again}), false
            ) as older
        from incoming n left join {row} d on d.id = n.id
    ), written as (
        insert into writing select seq, id, known from compared where not unchanged and not older
    )
    select count(*) filter (where unchanged) as unchanged,
        count(*) filter (where older and not unchanged) as superseded,
        count(*) filter (where known and not older and not unchanged) as known
    from compared
    """


def _replace(entity: Entity) -> str:
    """Puts the contents of `replacing` in the place of rows that the table has, each found by its key."""
    names = tuple(_contents(entity))
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    return f"""
    insert into desk.{entity.name} as d (tenant, connection, batch_id, {", ".join(names)})
    select :tenant, :connection, cast(:batch as bigint), {", ".join(names)} from replacing
    on conflict (connection, id) do update
    set {changes}, batch_id = excluded.batch_id, placeholder = false, loaded_at = now(),
        deleted_at = case when excluded.fetched_at <= d.deleted_at then d.deleted_at end
    """
