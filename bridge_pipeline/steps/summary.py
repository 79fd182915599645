"""What runs did, in numbers: rows per entity and stage, quarantine, checks, and where the files lie.

Reads the ledger and the tables only; printing is the caller's business.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES

Outcome = Literal["passed", "not judged", "warned", "quarantined", "blocked"]
_FAILED: dict[str, Outcome] = {"warn": "warned", "quarantine": "quarantined", "block": "blocked"}
_LOAD_TERMS = ("loaded", "unchanged", "superseded")


class NothingExtracted(LookupError):
    """There is nothing to sum up: no batch of that run or connection."""


@dataclass(frozen=True)
class EntitySummary:
    """The counts of one entity. `waiting` rows are landed and not loaded, because of a check or yet."""

    entity: str
    batches: int
    fetched: int
    outside: int
    duplicate: int
    quarantined: int
    rejected: int
    landed: int
    loaded: int
    unchanged: int
    superseded: int
    waiting: int
    equation_holds: bool
    audit_files: int
    audit_rows: int
    table_rows: int
    placeholders: int


@dataclass(frozen=True)
class CheckSummary:
    """One check over all batches that are summed up."""

    entity: str
    name: str
    outcome: Outcome
    description: str
    evaluated: int
    unexpected: int

    @property
    def failed(self) -> bool:
        """Whether it found something."""
        return self.outcome in _FAILED.values()


@dataclass(frozen=True)
class QuarantineSummary:
    """Records of one entity that are in quarantine for one reason."""

    entity: str
    reason: str
    records: int


@dataclass(frozen=True)
class BlockedBatch:
    """A batch that waits for a reviewer."""

    batch: int
    entity: str
    window: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What the batches of a run, or the newest of a connection, came to. Days are both included."""

    connection: str
    tenant: str
    run_id: str | None
    first_day: date
    last_day: date
    entities: tuple[EntitySummary, ...]
    quarantine: tuple[QuarantineSummary, ...]
    checks: tuple[CheckSummary, ...]
    blocked: tuple[BlockedBatch, ...]
    audit: Path
    report: Path | None

    def outcomes(self) -> dict[str, int]:
        """How many checks came to each outcome."""
        counts = Counter(check.outcome for check in self.checks)
        return {outcome: counts[outcome] for outcome in get_args(Outcome)}

    def document(self) -> dict[str, Any]:
        """The summary as plain values, for JSON; of the checks only those that found something."""
        found = [asdict(check) for check in self.checks if check.failed]
        return asdict(self) | {"checks": self.outcomes() | {"found": found}}


def summarise_run(workspace: Workspace, run_id: str) -> Summary:
    """Sums up the batches that a run extracted or loaded.

    Raises:
        NothingExtracted: there are none.
    """
    loaded = sa.select(t.loads.c.batch_id).where(t.loads.c.run_id == run_id)
    condition = sa.or_(t.batches.c.run_id == run_id, t.batches.c.id.in_(loaded))
    with workspace.database.engine.connect() as connection:
        batches = ledger.list_batches(connection, condition)
        if not batches:
            raise NothingExtracted(f"the run {run_id} has not extracted anything")
        return _summary(workspace, connection, batches, run_id)


def summarise_connection(workspace: Workspace, name: str) -> Summary:
    """Sums up the newest batch of every window that was extracted for a connection.

    Raises:
        UnknownConnection: there is no such connection.
        NothingExtracted: nothing was extracted for it yet.
    """
    registry.get(workspace.database.engine, name)
    with workspace.database.engine.connect() as connection:
        batches = ledger.list_batches(connection, t.batches.c.connection == name)
        if not batches:
            raise NothingExtracted(f"nothing was extracted yet for {name}: see `bridge run --help`")
        newest = {(b.entity, b.kind, b.window, _which(b)): b for b in batches}
        return _summary(workspace, connection, list(newest.values()), None)


def _which(batch: Batch) -> object:
    """What tells batches of single records in one window apart."""
    return {"lookup": batch.run_id, "replay": batch.id}.get(batch.kind)


def _summary(
    workspace: Workspace, connection: sa.Connection, batches: list[Batch], run_id: str | None
) -> Summary:
    name, tenant = batches[0].connection, batches[0].tenant
    days = [day for b in batches if b.kind not in ledger.SINGLE for day in (b.window_start, b.window_end)]
    span = days or [day for b in batches for day in (b.window_start, b.window_end)]
    first, last = min(span).date(), (max(span) - timedelta(microseconds=1)).date()
    checks = _checks(connection, batches)
    report = workspace.home.report_of(tenant, name, last)
    return Summary(
        connection=name,
        tenant=tenant,
        run_id=run_id,
        first_day=first,
        last_day=last,
        entities=tuple(_entities(connection, batches, first, last)),
        quarantine=tuple(_quarantine(connection, name, batches if run_id else [])),
        checks=tuple(_merged(batches, checks)),
        blocked=tuple(_blocked(batches, checks)),
        audit=workspace.home.audit / tenant / name,
        report=report if report.is_file() else None,
    )


def _entities(
    connection: sa.Connection, batches: list[Batch], first: date, last: date
) -> Iterable[EntitySummary]:
    loads = _loads(connection, batches)
    for entity in ENTITIES:
        mine = [batch for batch in batches if batch.entity == entity]
        if mine:
            yield _entity(connection, entity, mine, loads, first, last)


def _entity(
    connection: sa.Connection,
    entity: str,
    batches: list[Batch],
    loads: dict[int, sa.Row[Any]],
    first: date,
    last: date,
) -> EntitySummary:
    name = batches[0].connection
    terms = ("fetched", "outside", "duplicate", "quarantined", "rejected", "landed")
    counts = {term: sum(getattr(batch, term) for batch in batches) for term in terms}
    done = [loads[batch.id] for batch in batches if batch.id in loads]
    counts |= {term: sum(getattr(row, term) for row in done) for term in _LOAD_TERMS}
    waiting = sum(batch.landed - batch.rejected for batch in batches if batch.id not in loads)
    parts = ("outside", "duplicate", "quarantined", "rejected", *_LOAD_TERMS)
    files, rows = _audit(connection, name, entity, first, last)
    table = t.desk_table(ENTITIES[entity])
    of_connection = sa.select(sa.func.count()).where(table.c.connection == name)
    placeholders = connection.scalar(of_connection.where(table.c.placeholder)) or 0
    return EntitySummary(
        entity=entity,
        batches=len(batches),
        **counts,
        waiting=waiting,
        equation_holds=counts["fetched"] == waiting + sum(counts[part] for part in parts),
        audit_files=files,
        audit_rows=rows,
        table_rows=(connection.scalar(of_connection) or 0) - placeholders,
        placeholders=placeholders,
    )


def _loads(connection: sa.Connection, batches: list[Batch]) -> dict[int, sa.Row[Any]]:
    query = sa.select(t.loads).where(t.loads.c.batch_id.in_([batch.id for batch in batches]))
    return {row.batch_id: row for row in connection.execute(query)}


def _audit(connection: sa.Connection, name: str, entity: str, first: date, last: date) -> tuple[int, int]:
    """How many days have an audit file, and the rows of their current versions."""
    a = t.audit_files
    current = (
        sa.select(a.c.rows)
        .ext(distinct_on(a.c.day))
        .where(a.c.connection == name, a.c.entity == entity, a.c.day.between(first, last))
        .order_by(a.c.day, a.c.version.desc())
        .subquery()
    )
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(current.c.rows), 0))
    files, rows = connection.execute(query.select_from(current)).one()
    return int(files), int(rows)


def _quarantine(connection: sa.Connection, name: str, batches: list[Batch]) -> list[QuarantineSummary]:
    """The records in quarantine; those that the batches brought, or all where there are none."""
    if batches:
        found = ledger.still_quarantined(connection, [batch.id for batch in batches])
        return [QuarantineSummary(each.entity, each.reason, each.records) for each in found]
    q = t.quarantine
    query = (
        sa.select(q.c.entity, q.c.reason, sa.func.count())
        .where(q.c.connection == name, q.c.replayed_at.is_(None))
        .group_by(q.c.entity, q.c.reason)
        .order_by(q.c.entity, q.c.reason)
    )
    return [QuarantineSummary(*row) for row in connection.execute(query)]


def _checks(connection: sa.Connection, batches: list[Batch]) -> dict[int, list[CheckResult]]:
    return {batch.id: ledger.checks_of(connection, batch.id) for batch in batches}


def _merged(batches: list[Batch], checks: dict[int, list[CheckResult]]) -> Iterable[CheckSummary]:
    together: dict[tuple[str, str], list[CheckResult]] = defaultdict(list)
    for batch in batches:
        for result in checks[batch.id]:
            together[batch.entity, result.name].append(result)
    order = list(ENTITIES)
    for (entity, name), results in sorted(
        together.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
    ):
        yield CheckSummary(
            entity=entity,
            name=name,
            outcome=_outcome(results),
            description=results[0].description,
            evaluated=sum(result.evaluated for result in results),
            unexpected=sum(result.unexpected for result in results),
        )


def _outcome(results: list[CheckResult]) -> Outcome:
    """What one check came to over several batches; as in the report, what could not be judged is no pass."""
    judged = [result for result in results if result.judged]
    failed = next((result for result in judged if not result.passed), None)
    if failed is not None:
        return _FAILED[failed.severity]
    return "passed" if judged else "not judged"


def _blocked(batches: list[Batch], checks: dict[int, list[CheckResult]]) -> Iterable[BlockedBatch]:
    for batch in batches:
        if batch.verdict == "blocked":
            why = (each.name for each in checks[batch.id] if each.severity == "block" and not each.passed)
            yield BlockedBatch(batch.id, batch.entity, str(batch.window), tuple(why))
