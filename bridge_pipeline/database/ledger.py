"""The ledger: which batches, verdicts, loads and audit files exist. Only what it lists exists.

Functions take an open connection; the caller's transaction decides what becomes visible
together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.database import tables as t
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.model.inventory import Inventory
from bridge_pipeline.model.window import midnight

READABLE = ("passed", "accepted")
# Kinds of batches that hold single records and so say nothing of what else a window holds.
SINGLE = ("lookup", "replay")


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
    first_read_of: date | None = None
    quota: dict[str, dict[str, float]] = field(default_factory=dict)

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
    """The outcome of one check of a batch; `examples` hold no personal value in clear.

    `stage`: `batch` (taken of what landed), `load` (in the load's transaction) or `tables` (after it).
    `source`: who set the `threshold`: `suite`, `connector` or `tenant`; what a tenant's file replaced
    is in `replaced`. What is not `judged` counts as passed, and `note` says why it was not.
    """

    name: str
    severity: str
    description: str
    owner: str
    passed: bool
    evaluated: int
    unexpected: int
    examples: list[dict[str, Any]]
    stage: str = "batch"
    source: str = "suite"
    threshold: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)
    judged: bool = True
    note: str = ""


@dataclass(frozen=True)
class SetAside:
    """Records of an entity that are in quarantine for one reason; `last_batch` refused one of them last."""

    entity: str
    reason: str
    records: int
    last_batch: int


_INVENTORY = [each.name for each in fields(Inventory)]


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


def list_batches(
    connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int | None = None
) -> list[Batch]:
    """The batches that a condition on `tables.batches` holds for, in the order of extraction.

    Args:
        limit: no more than the first so many of them.
    """
    rows = connection.execute(_batches().where(condition).order_by(t.batches.c.id).limit(limit))
    return [Batch(**row._mapping) for row in rows]


def newest_batch(
    connection: sa.Connection,
    name: str,
    entity: str,
    window: Window,
    run_id: str | None = None,
) -> Batch | None:
    """The batch that speaks for a window: the run's own, else the newest."""
    b = t.batches
    own = [sa.func.coalesce(b.c.run_id == run_id, False).desc()] if run_id else []
    order = [*own, b.c.id.desc()]
    row = connection.execute(
        _of(name, entity).where(b.c.kind.not_in(SINGLE), *_covers(window)).order_by(*order).limit(1)
    ).one_or_none()
    return Batch(**row._mapping) if row else None


def replaced(by: Sequence[str] = READABLE) -> sa.ColumnElement[bool]:
    """Of `tables.batches`: whether a later read brought all that the batch should have brought.

    A later listing of the same days does, or one of everything. Records that were looked up may be of
    any day, so for them only the latter; and single records replace nothing themselves.

    Args:
        by: the verdicts that the later read may have.
    """
    b, later = t.batches, t.batches.alias("later")
    same_days = sa.and_(
        b.c.kind != "lookup",
        later.c.window_start <= b.c.window_start,
        later.c.window_end >= b.c.window_end,
    )
    return sa.exists().where(
        later.c.connection == b.c.connection,
        later.c.entity == b.c.entity,
        later.c.kind.not_in(SINGLE),
        later.c.id > b.c.id,
        later.c.verdict.in_(by),
        sa.or_(same_days, sa.and_(b.c.kind.in_(SINGLE), later.c.kind == "whole")),
    )


def unreadable_batch(
    connection: sa.Connection, name: str, entity: str, window: Window, run_id: str | None = None
) -> Batch | None:
    """The batch that keeps the window from being read, or None.

    Each day is spoken for by the run's own batch, else by the newest one that has a verdict (another
    run's that is not checked yet is that run's business), else by the newest: a blocked day of a range
    blocks the range, unless a better read of that day came later.
    """
    b = t.batches
    own = [sa.func.coalesce(b.c.run_id == run_id, False).desc()] if run_id else []
    query = (
        sa.select(b.c.id, b.c.window_start, b.c.window_end, b.c.verdict.in_(READABLE).label("readable"))
        .where(
            b.c.connection == name,
            b.c.entity == entity,
            b.c.kind.not_in(SINGLE),
            b.c.window_start < window.end,
            b.c.window_end > window.start,
        )
        .order_by(*own, (b.c.verdict != "pending").desc(), b.c.id.desc())
    )
    open_days = set(window.days())
    for row in connection.execute(query):
        shared = Window(max(row.window_start, window.start), min(row.window_end, window.end))
        covered = open_days.intersection(shared.days())
        if covered and not row.readable:
            return batch(connection, row.id)
        open_days -= covered
        if not open_days:
            break
    return None


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


def loaded_since(connection: sa.Connection, name: str, entity: str, since: datetime) -> list[Batch]:
    """The loaded batches that have pages fetched after a moment, in the order of extraction."""
    rows = connection.execute(
        _of(name, entity)
        .join(t.loads, t.loads.c.batch_id == t.batches.c.id)
        .where(t.batches.c.fetched_to > since)
        .order_by(t.batches.c.id)
    )
    return [Batch(**row._mapping) for row in rows]


def batches_of_days(
    connection: sa.Connection, name: str, entity: str, days: Sequence[date]
) -> list[tuple[date, Batch | None]]:
    """For each day the readable batch fetched last that covers it: what its audit file is made of."""
    if not days:
        return []
    b = t.batches
    query = (
        sa.select(b.c.id, b.c.window_start, b.c.window_end)
        .where(
            b.c.connection == name,
            b.c.entity == entity,
            b.c.verdict.in_(READABLE),
            b.c.kind.not_in(SINGLE),
            b.c.window_start < midnight(max(days)) + timedelta(days=1),
            b.c.window_end > midnight(min(days)),
        )
        .order_by(b.c.fetched_to.desc(), b.c.id.desc())
    )
    chosen: dict[date, int] = {}
    for row in connection.execute(query):
        window = Window(row.window_start, row.window_end)
        for day in days:
            if window.start <= midnight(day) and midnight(day) + timedelta(days=1) <= window.end:
                chosen.setdefault(day, row.id)
        if len(chosen) == len(days):
            break
    found = {each.id: each for each in list_batches(connection, b.c.id.in_(set(chosen.values())))}
    return [(day, found.get(chosen.get(day, 0))) for day in days]


def replays_since(connection: sa.Connection, base: Batch) -> list[Batch]:
    """The loaded replays of records that were read after a batch began to be; they belong to its days."""
    rows = connection.execute(
        _of(base.connection, base.entity)
        .join(t.loads, t.loads.c.batch_id == t.batches.c.id)
        .where(t.batches.c.kind == "replay", t.batches.c.fetched_to >= base.fetched_from)
        .order_by(t.batches.c.id)
    )
    return [Batch(**row._mapping) for row in rows]


def last_extraction(
    connection: sa.Connection, name: str, entity: str, window: Window, lookup: bool = False
) -> int:
    """The number of the last finished extraction of exactly this window, 0 for none."""
    number = sa.func.coalesce(sa.func.max(t.batches.c.extraction), 0)
    kind = t.batches.c.kind == "lookup" if lookup else t.batches.c.kind.not_in(SINGLE)
    return connection.execute(sa.select(number).where(kind, *_exactly(name, entity, window))).scalar_one()


def last_batch(connection: sa.Connection, name: str, entity: str, window: Window) -> Batch | None:
    """What the last finished extraction of exactly this window landed, whatever its verdict."""
    query = _batches().where(t.batches.c.kind.not_in(SINGLE), *_exactly(name, entity, window))
    row = connection.execute(query.order_by(t.batches.c.id.desc()).limit(1)).one_or_none()
    return Batch(**row._mapping) if row else None


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
    """Stores the results of the stage `batch` and the verdict they give.

    A batch that a reviewer accepted stays accepted.
    """
    found = list(results)
    record_stage(connection, batch_id, "batch", found)
    blocked = any(not result.passed and result.severity == "block" for result in found)
    verdict = sa.case(
        (t.batches.c.verdict == "accepted", "accepted"), else_="blocked" if blocked else "passed"
    )
    connection.execute(
        t.batches.update()
        .where(t.batches.c.id == batch_id)
        .values(verdict=verdict, verdict_at=sa.func.now(), rejected=rejected)
    )


def record_stage(
    connection: sa.Connection, batch_id: int, stage: str, results: Iterable[CheckResult]
) -> None:
    """Stores the results of one stage in place of those it had; the verdict stays."""
    # Another that stores them at the same time has its turn afterwards.
    connection.execute(
        sa.select(t.batches.c.id).where(t.batches.c.id == batch_id).with_for_update(key_share=True)
    )
    of_stage = sa.and_(t.checks.c.batch_id == batch_id, t.checks.c.stage == stage)
    connection.execute(t.checks.delete().where(of_stage))
    rows = [vars(result) | {"batch_id": batch_id, "stage": stage} for result in results]
    if rows:
        connection.execute(t.checks.insert(), rows)


def block(connection: sa.Connection, batch_id: int) -> None:
    """Takes a batch out of what may be read, also one that was accepted: it cannot be loaded."""
    connection.execute(
        t.batches.update()
        .where(t.batches.c.id == batch_id)
        .values(verdict="blocked", verdict_at=sa.func.now(), accepted_by=None, accept_reason=None)
    )


def pending_before(connection: sa.Connection, name: str, entity: str, batch_id: int) -> list[int]:
    """Batches that were listed earlier and never checked, in the order of extraction."""
    b = t.batches
    query = sa.select(b.c.id).where(
        b.c.connection == name, b.c.entity == entity, b.c.verdict == "pending", b.c.id < batch_id
    )
    return list(connection.scalars(query.order_by(b.c.id)))


def record_day_counts(connection: sa.Connection, batch_id: int, counts: dict[date, int]) -> None:
    """Stores how many rows a batch holds of each day of its window."""
    connection.execute(t.day_counts.delete().where(t.day_counts.c.batch_id == batch_id))
    if counts:
        rows = [{"batch_id": batch_id, "day": day, "rows": number} for day, number in counts.items()]
        connection.execute(t.day_counts.insert(), rows)


def day_counts(
    connection: sa.Connection, batch: Batch, first: date, last: date
) -> list[tuple[date, int, datetime]]:
    """Day, rows and fetch time of what readable batches before this one counted, oldest batch first."""
    b, c = t.batches, t.day_counts
    query = (
        sa.select(c.c.day, c.c.rows, b.c.fetched_from)
        .join(b, b.c.id == c.c.batch_id)
        .where(
            b.c.connection == batch.connection,
            b.c.entity == batch.entity,
            b.c.kind.not_in(SINGLE),
            b.c.verdict.in_(READABLE),
            b.c.id < batch.id,
            c.c.day.between(first, last),
        )
        .order_by(b.c.id)
    )
    return [(row.day, row.rows, row.fetched_from) for row in connection.execute(query)]


def was_read_settled(connection: sa.Connection, name: str, entity: str, day: date, lag: timedelta) -> bool:
    """Whether a checked batch covers the day that was fetched after the day had settled."""
    b = t.batches
    query = (
        _of(name, entity)
        .where(
            b.c.kind.not_in(SINGLE),
            b.c.verdict != "pending",
            b.c.fetched_from >= settled_at(day, lag),
            *_covers(Window.of_days(day, day)),
        )
        .limit(1)
    )
    return connection.execute(query).first() is not None


def record_inventory(connection: sa.Connection, batch_id: int, inventory: Inventory) -> None:
    """Stores which fields the payload of a batch had."""
    connection.execute(t.inventories.insert().values(batch_id=batch_id, **vars(inventory)))


def inventory_of(connection: sa.Connection, batch_id: int) -> Inventory | None:
    """The fields of a batch's payload; None for a batch of a time without inventories."""
    columns = [t.inventories.c[key] for key in _INVENTORY]
    row = connection.execute(sa.select(*columns).where(t.inventories.c.batch_id == batch_id)).one_or_none()
    return Inventory(**row._mapping) if row else None


def inventories_before(connection: sa.Connection, batch: Batch, limit: int) -> list[tuple[Inventory, bool]]:
    """Inventories of readable batches before this one, newest first, and whether it had to be accepted."""
    i, b = t.inventories, t.batches
    query = (
        sa.select(*(i.c[key] for key in _INVENTORY), (b.c.verdict == "accepted").label("accepted"))
        .join(b, b.c.id == i.c.batch_id)
        .where(
            b.c.connection == batch.connection,
            b.c.entity == batch.entity,
            b.c.kind.not_in(SINGLE),
            b.c.verdict.in_(READABLE),
            b.c.id < batch.id,
            i.c.records > 0,
        )
        .order_by(b.c.id.desc())
        .limit(limit)
    )
    found = connection.execute(query).mappings()
    return [(Inventory(**{key: row[key] for key in _INVENTORY}), row["accepted"]) for row in found]


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


def still_quarantined(connection: sa.Connection, batch_ids: Sequence[int]) -> list[SetAside]:
    """The records in quarantine that any of the batches saw, each once, by the reason that holds them there.

    What a replay has loaded since is not among them.
    """
    q = t.quarantine
    count, last_batch = sa.func.count(), sa.func.max(q.c.last_batch)
    query = (
        sa.select(q.c.entity, q.c.reason, count, last_batch)
        .where(seen_by(batch_ids), q.c.replayed_at.is_(None))
        .group_by(q.c.entity, q.c.reason)
        .order_by(q.c.entity, q.c.reason)
    )
    return [SetAside(*row) for row in connection.execute(query)]


def replayed_since(connection: sa.Connection, batch_ids: Sequence[int]) -> int:
    """How many of the records that the batches set aside a replay has loaded since."""
    q = t.quarantine
    query = sa.select(sa.func.count()).where(seen_by(batch_ids), q.c.replayed_at.is_not(None))
    return connection.scalar(query) or 0


def refused_before(connection: sa.Connection, batch_id: int) -> int:
    """How many of the records that a batch set aside an earlier one had set aside with the same bytes."""
    q = t.quarantine
    query = sa.select(sa.func.count()).where(seen_by([batch_id]), q.c.first_batch < batch_id)
    return connection.scalar(query) or 0


def seen_by(batch_ids: Sequence[int]) -> sa.ColumnElement[bool]:
    """Whether a record of the quarantine was set aside by any of the batches."""
    q, s = t.quarantine, t.quarantine_sightings
    same = (s.c.connection == q.c.connection, s.c.entity == q.c.entity, s.c.sha256 == q.c.sha256)
    return sa.exists().where(*same, s.c.batch_id.in_(batch_ids))


def record_audit(connection: sa.Connection, batch_id: int, days: int, versions_added: int) -> None:
    """Says that the audit files of a batch's days are written."""
    values = {"days": days, "versions_added": versions_added, "audited_at": sa.func.now()}
    statement = insert(t.audits).values(batch_id=batch_id, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["batch_id"], set_=values))


def audit_versions(
    connection: sa.Connection, name: str, entity: str, days: Sequence[date]
) -> dict[date, list[sa.Row]]:
    """All versions of the audit files of some days, by day; the highest is the current one."""
    a = t.audit_files
    query = sa.select(a).where(a.c.connection == name, a.c.entity == entity, a.c.day.in_(days))
    found: dict[date, list[sa.Row]] = {day: [] for day in days}
    for row in connection.execute(query.order_by(a.c.day, a.c.version)):
        found[row.day].append(row)
    return found


def current_audit_file(connection: sa.Connection, name: str, entity: str, day: date) -> sa.Row | None:
    """The highest version of a day's audit file."""
    return max(
        audit_versions(connection, name, entity, [day])[day], key=lambda row: row.version, default=None
    )


def complete_days(connection: sa.Connection, name: str, entities: Sequence[str], lag: timedelta) -> set[date]:
    """The days that are extracted after they settled, readable, loaded and audited, for all entities."""
    b = t.batches
    query = (
        sa.select(b.c.entity, b.c.window_start, b.c.window_end, b.c.fetched_from)
        .join(t.loads, t.loads.c.batch_id == b.c.id)
        .join(t.audits, t.audits.c.batch_id == b.c.id)
        .where(b.c.connection == name, b.c.kind.not_in(SINGLE), b.c.verdict.in_(READABLE))
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


def complete_until(connection: sa.Connection, name: str, entity: str, lag: timedelta) -> datetime | None:
    """The end of the newest day that was extracted after it settled, readable and loaded; None for none."""
    b = t.batches
    # Of a window read before its last day settled, the days that had settled count.
    settled = sa.func.date_trunc("day", b.c.fetched_from - lag, "UTC")
    query = (
        sa.select(sa.func.max(sa.func.least(b.c.window_end, settled)))
        .join(t.loads, t.loads.c.batch_id == b.c.id)
        .where(
            b.c.connection == name,
            b.c.entity == entity,
            b.c.kind.not_in(SINGLE),
            b.c.verdict.in_(READABLE),
            settled > b.c.window_start,
        )
    )
    return connection.scalar(query)


def newest_change(connection: sa.Connection, name: str, entity: str) -> datetime | None:
    """The end of the newest day of which a listing brought changes; lookups by id say nothing of the rest."""
    b, c = t.batches, t.day_counts
    query = (
        sa.select(sa.func.max(c.c.day))
        .join(b, b.c.id == c.c.batch_id)
        .where(b.c.connection == name, b.c.entity == entity, b.c.verdict.in_(READABLE), c.c.rows > 0)
    )
    day = connection.scalar(query)
    return midnight(day) + timedelta(days=1) if day else None


def newest_settled(moment: datetime, lag: timedelta) -> date:
    """The last day that has settled at `moment`."""
    return (moment.astimezone(UTC) - lag).date() - timedelta(days=1)


def first_day_read(connection: sa.Connection, name: str) -> date | None:
    """The first day that was ever extracted for a connection."""
    query = sa.select(sa.func.min(t.batches.c.window_start)).where(
        t.batches.c.connection == name, t.batches.c.kind.not_in(SINGLE)
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


def _exactly(name: str, entity: str, window: Window) -> tuple[sa.ColumnElement[bool], ...]:
    b = t.batches
    of = (b.c.connection == name, b.c.entity == entity)
    return (*of, b.c.window_start == window.start, b.c.window_end == window.end)


def _covers(window: Window) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.batches.c.window_start <= window.start, t.batches.c.window_end >= window.end)
