"""The ledger: which batches, verdicts, loads and audit files exist. Only what it lists exists.

Functions take an open connection; the caller's transaction decides what becomes visible
together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.database import tables as t
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.model.window import midnight

READABLE = ("passed", "accepted")


class NotBlocked(ValueError):
    """Only a blocked batch can be accepted."""


class UnknownBatch(LookupError):
    """The ledger lists no such batch."""


@dataclass(frozen=True)
class Batch:
    """One row of `bridge.batches`: what one extraction landed. Column names are the table's."""

    id: int
    tenant: str
    connection: str
    entity: str
    kind: str
    window_start: datetime
    window_end: datetime
    extraction: int
    fetched: int
    outside: int
    duplicate: int
    quarantined: int
    landed: int
    requests: int
    pages: int
    sweeps: int
    proof: dict[str, Any]
    files: list[dict[str, Any]]
    excluded: list[str]
    fetched_from: datetime
    fetched_to: datetime
    run_id: str | None
    rejected: int = 0
    verdict: str = "pending"
    accepted_by: str | None = None
    accept_reason: str | None = None

    @property
    def window(self) -> Window:
        """The window of the batch."""
        return Window(self.window_start, self.window_end)

    @property
    def readable(self) -> bool:
        """Whether anything downstream may read the batch."""
        return self.verdict in READABLE


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check of a batch; `examples` hold no personal value in clear."""

    name: str
    severity: str
    description: str
    owner: str
    passed: bool
    evaluated: int
    unexpected: int
    examples: list[dict[str, Any]]


def next_batch_id(connection: sa.Connection) -> int:
    """A new batch's id; ids of extractions that failed stay unused."""
    return connection.execute(t.batch_ids.next_value().select()).scalar_one()


def add_batch(connection: sa.Connection, batch: Batch) -> None:
    """Lists a batch; with the commit it exists."""
    connection.execute(t.batches.insert().values(**vars(batch)))


def batch(connection: sa.Connection, batch_id: int) -> Batch:
    """The batch with that id.

    Raises:
        UnknownBatch: there is none.
    """
    row = connection.execute(_batches().where(t.batches.c.id == batch_id)).one_or_none()
    if row is None:
        raise UnknownBatch(f"the ledger lists no batch {batch_id}")
    return Batch(**row._mapping)


def list_batches(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Batch]:
    """The batches that a condition on `tables.batches` holds for, in the order of extraction."""
    rows = connection.execute(_batches().where(condition).order_by(t.batches.c.id))
    return [Batch(**row._mapping) for row in rows]


def newest_batch(
    connection: sa.Connection,
    name: str,
    entity: str,
    window: Window,
    run_id: str | None = None,
    settled: bool = False,
) -> Batch | None:
    """The batch that speaks for a window: the run's own, else the newest.

    With `settled` one that has a verdict goes before one that has not: another run's batch that is
    not checked yet is that run's business.
    """
    b = t.batches
    own = [sa.func.coalesce(b.c.run_id == run_id, False).desc()] if run_id else []
    order = [*own, *([(b.c.verdict != "pending").desc()] if settled else []), b.c.id.desc()]
    row = connection.execute(
        _of(name, entity).where(b.c.kind != "lookup", *_covers(window)).order_by(*order).limit(1)
    ).one_or_none()
    return Batch(**row._mapping) if row else None


def batches_to_load(connection: sa.Connection, name: str, entity: str, window: Window) -> list[Batch]:
    """Readable batches that touch the window and are not loaded, in the order of extraction."""
    rows = connection.execute(
        _of(name, entity)
        .where(
            t.batches.c.verdict.in_(READABLE),
            t.batches.c.window_start < window.end,
            t.batches.c.window_end > window.start,
            t.batches.c.id.not_in(sa.select(t.loads.c.batch_id)),
        )
        .order_by(t.batches.c.id)
    )
    return [Batch(**row._mapping) for row in rows]


def batch_of_day(connection: sa.Connection, name: str, entity: str, day: date) -> Batch | None:
    """The readable batch fetched last that covers the day: what its audit file is made of."""
    row = connection.execute(
        _of(name, entity)
        .where(
            t.batches.c.verdict.in_(READABLE),
            t.batches.c.kind != "lookup",
            *_covers(Window.of_days(day, day)),
        )
        .order_by(t.batches.c.fetched_to.desc(), t.batches.c.id.desc())
        .limit(1)
    ).one_or_none()
    return Batch(**row._mapping) if row else None


def last_extraction(
    connection: sa.Connection, name: str, entity: str, window: Window, lookup: bool = False
) -> int:
    """The number of the last finished extraction of exactly this window, 0 for none."""
    query = sa.select(sa.func.coalesce(sa.func.max(t.batches.c.extraction), 0)).where(
        t.batches.c.connection == name,
        t.batches.c.entity == entity,
        (t.batches.c.kind == "lookup") == lookup,
        t.batches.c.window_start == window.start,
        t.batches.c.window_end == window.end,
    )
    return connection.execute(query).scalar_one()


def was_read_whole(connection: sa.Connection, name: str, entity: str) -> bool:
    """Whether a readable batch holds all records of the entity as of its time."""
    query = sa.select(sa.literal(1)).where(
        t.batches.c.connection == name,
        t.batches.c.entity == entity,
        t.batches.c.kind == "whole",
        t.batches.c.verdict.in_(READABLE),
    )
    return connection.execute(query.limit(1)).first() is not None


def filter_proven(connection: sa.Connection, name: str, entity: str) -> bool:
    """Whether the last comparison found the source's filter to hide nothing."""
    proof = t.batches.c.proof["filter"]
    query = (
        sa.select(proof["hidden"].as_integer())
        .where(
            t.batches.c.connection == name,
            t.batches.c.entity == entity,
            proof["records_compared"].as_integer() > 0,
        )
        .order_by(t.batches.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none() == 0


def record_checks(
    connection: sa.Connection, batch_id: int, results: Iterable[CheckResult], rejected: int
) -> None:
    """Stores the results and the verdict they give.

    A batch that a reviewer accepted stays accepted.
    """
    rows = [vars(result) | {"batch_id": batch_id} for result in results]
    connection.execute(t.checks.delete().where(t.checks.c.batch_id == batch_id))
    if rows:
        connection.execute(t.checks.insert(), rows)
    blocked = any(not row["passed"] and row["severity"] == "block" for row in rows)
    verdict = sa.case(
        (t.batches.c.verdict == "accepted", "accepted"), else_="blocked" if blocked else "passed"
    )
    connection.execute(
        t.batches.update()
        .where(t.batches.c.id == batch_id)
        .values(verdict=verdict, verdict_at=sa.func.now(), rejected=rejected)
    )


def checks_of(connection: sa.Connection, batch_id: int) -> list[CheckResult]:
    """The results of a batch's checks, by name."""
    columns = [t.checks.c[field.name] for field in fields(CheckResult)]
    query = sa.select(*columns).where(t.checks.c.batch_id == batch_id).order_by(t.checks.c.name)
    return [CheckResult(**row._mapping) for row in connection.execute(query)]


def accept(connection: sa.Connection, batch_id: int, by: str, reason: str) -> Batch:
    """Lets a blocked batch through on a reviewer's word.

    Raises:
        UnknownBatch: there is no such batch.
        NotBlocked: it is not blocked.
    """
    found = batch(connection, batch_id)
    if found.verdict != "blocked":
        raise NotBlocked(f"batch {batch_id} is {found.verdict}; only a blocked batch can be accepted")
    connection.execute(
        t.batches.update()
        .where(t.batches.c.id == batch_id)
        .values(verdict="accepted", verdict_at=sa.func.now(), accepted_by=by, accept_reason=reason)
    )
    return batch(connection, batch_id)


def record_load(connection: sa.Connection, batch_id: int, run_id: str | None, counts: dict[str, int]) -> None:
    """Says that a batch is in the tables, and what became of its rows."""
    values = counts | {"run_id": run_id, "loaded_at": sa.func.now()}
    statement = insert(t.loads).values(batch_id=batch_id, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["batch_id"], set_=values))


def load_counts(connection: sa.Connection, batch_id: int) -> dict[str, int] | None:
    """What became of the rows of a batch, by term; None if it is not loaded."""
    terms = [t.loads.c[name] for name in ("loaded", "unchanged", "superseded", "placeholders")]
    row = connection.execute(sa.select(*terms).where(t.loads.c.batch_id == batch_id)).one_or_none()
    return dict(row._mapping) if row else None


def record_audit(connection: sa.Connection, batch_id: int, days: int, versions_added: int) -> None:
    """Says that the audit files of a batch's days are written."""
    values = {"days": days, "versions_added": versions_added, "audited_at": sa.func.now()}
    statement = insert(t.audits).values(batch_id=batch_id, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["batch_id"], set_=values))


def current_audit_file(connection: sa.Connection, name: str, entity: str, day: date) -> sa.Row | None:
    """The highest version of a day's audit file."""
    a = t.audit_files
    query = (
        sa.select(a)
        .where(a.c.connection == name, a.c.entity == entity, a.c.day == day)
        .order_by(a.c.version.desc())
    )
    return connection.execute(query.limit(1)).one_or_none()


def complete_days(connection: sa.Connection, name: str, entities: Sequence[str], lag: timedelta) -> set[date]:
    """The days that are extracted after they settled, readable, loaded and audited, for all entities."""
    b = t.batches
    query = (
        sa.select(b.c.entity, b.c.window_start, b.c.window_end, b.c.fetched_from)
        .join(t.loads, t.loads.c.batch_id == b.c.id)
        .join(t.audits, t.audits.c.batch_id == b.c.id)
        .where(b.c.connection == name, b.c.kind != "lookup", b.c.verdict.in_(READABLE))
    )
    done: dict[str, set[date]] = {entity: set() for entity in entities}
    for entity, start, end, fetched_from in connection.execute(query):
        if entity in done:
            days = Window(start, end).days()
            done[entity].update(day for day in days if fetched_from >= settled_at(day, lag))
    return set.intersection(*done.values()) if done else set()


def settled_at(day: date, lag: timedelta) -> datetime:
    """When no record of the day can still be on its way."""
    return midnight(day) + timedelta(days=1) + lag


def first_day_read(connection: sa.Connection, name: str) -> date | None:
    """The first day that was ever extracted for a connection."""
    query = sa.select(sa.func.min(t.batches.c.window_start)).where(
        t.batches.c.connection == name, t.batches.c.kind != "lookup"
    )
    start = connection.execute(query).scalar_one()
    return start.date() if start else None


def last_run(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    """The run that listed a connection's newest batch: `run_id`, `at`, and the `verdicts` of its batches."""
    b = t.batches
    query = sa.select(b.c.run_id, b.c.created_at).where(b.c.connection == name).order_by(b.c.id.desc())
    newest = connection.execute(query.limit(1)).one_or_none()
    if newest is None:
        return None
    same = sa.and_(b.c.connection == name, b.c.run_id.is_not_distinct_from(newest.run_id))
    verdicts = connection.scalars(sa.select(b.c.verdict).where(same).distinct().order_by(b.c.verdict))
    return {"run_id": newest.run_id, "at": newest.created_at, "verdicts": list(verdicts)}


def rows_in_table(connection: sa.Connection, name: str, entity: str) -> int:
    """How many records of a connection a table holds, without placeholders and deleted ones."""
    table = t.desk_table(ENTITIES[entity])
    query = sa.select(sa.func.count()).where(
        table.c.connection == name, ~table.c.placeholder, table.c.deleted_at.is_(None)
    )
    return connection.execute(query).scalar_one()


def _batches() -> sa.Select:
    return sa.select(*(t.batches.c[field.name] for field in fields(Batch)))


def _of(name: str, entity: str) -> sa.Select:
    return _batches().where(t.batches.c.connection == name, t.batches.c.entity == entity)


def _covers(window: Window) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.batches.c.window_start <= window.start, t.batches.c.window_end >= window.end)
