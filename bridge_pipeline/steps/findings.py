"""What the ledger says about one day of a connection, entity by entity, as the report needs it.

Numbers and masked values only; the words around them are in `report` and its templates.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.certificates import Certificate, newest_certificate
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked, masked_detail, masked_key, masked_text
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.steps.links import record_url
from bridge_pipeline.steps.reasons import Reason, reason_of
from bridge_pipeline.steps.trend import Trend, trend
from bridge_pipeline.steps.workbook import Link

_LOAD_TERMS = ("loaded", "unchanged", "superseded")
_EXAMPLES = 10
_SAMPLES = 5
_SEVERITIES = {"block": 0, "quarantine": 1, "warn": 2}


@dataclass(frozen=True)
class Example:
    """One failing record of a check, masked; without `id` it speaks of the batch as a whole."""

    id: str | None
    url: str | None
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Failure:
    """A check that found something."""

    name: str
    sentence: str
    severity: str
    owner: str
    evaluated: int
    unexpected: int
    examples: tuple[Example, ...]
    by_tenant: bool = False


@dataclass(frozen=True)
class Sample:
    """One quarantined record, masked."""

    sha256: str
    id: str | None
    url: str | None
    pointer: str
    detail: str


@dataclass(frozen=True)
class Rejection:
    """The records that are in quarantine for one reason."""

    code: str
    reason: Reason
    count: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Equation:
    """Where the records of one batch went, in the order of the equation; terms that are 0 included."""

    batch: Batch
    terms: dict[str, int]
    waiting: int

    @property
    def holds(self) -> bool:
        """Whether everything fetched is accounted for."""
        return self.batch.fetched == self.waiting + sum(self.terms.values())


@dataclass(frozen=True)
class Part:
    """One entity of the report; without `batch` nothing was extracted that covers the day.

    `replayed` counts the records that were set aside and have been loaded since.
    """

    entity: str
    batch: Batch | None
    trend: Trend
    table_rows: int
    placeholders: int
    audit: tuple[str, int, str] | None = None
    checks: tuple[CheckResult, ...] = ()
    unjudged: tuple[CheckResult, ...] = ()
    failures: tuple[Failure, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    replayed: int = 0
    equations: tuple[Equation, ...] = ()

    @property
    def set_aside(self) -> int:
        """How many records are in quarantine."""
        return sum(rejection.count for rejection in self.rejections)

    @property
    def records(self) -> int:
        """How many records of the window the source sent, good or not."""
        return self.batch.landed + self.batch.quarantined if self.batch else 0


@dataclass(frozen=True)
class Findings:
    """One day of a connection. `accepted` and `blocked` are batches that a reviewer decided on or must.

    `certificate` is the newest one.
    """

    record: ConnectionRecord
    day: date
    parts: tuple[Part, ...]
    accepted: tuple[Batch, ...]
    blocked_elsewhere: tuple[Batch, ...]
    certificate: Certificate | None
    clear: bool
    links: dict[str, Link] = field(repr=False)

    @property
    def shortfall(self) -> Certificate | None:
        """The certificate, where it is not complete and speaks of this day."""
        found, window = self.certificate, Window.of_days(self.day, self.day)
        if found is None or found.complete:
            return None
        start, end = found.window_start, found.window_end
        touches = start is None or end is None or (start < window.end and end > window.start)
        return found if touches else None


def findings_of(
    workspace: Workspace, connection: sa.Connection, record: ConnectionRecord, entities: list[str], day: date
) -> Findings:
    """Reads what there is to say about a day; of each entity the newest batch speaks."""
    clear = registry.shows_personal_data(workspace.database.engine, record.tenant)
    links: dict[str, Link] = {each: partial(record_url, record, each) for each in entities}
    reader = _Reader(connection, record, day, clear, links)
    window = Window.of_days(day, day)
    batches = {each: ledger.newest_batch(connection, record.name, each, window) for each in entities}
    return Findings(
        record=record,
        day=day,
        parts=tuple(reader.part(entity, batch) for entity, batch in batches.items()),
        accepted=tuple(_accepted(connection, record.name, window)),
        blocked_elsewhere=tuple(_blocked(connection, record.name, window)),
        certificate=newest_certificate(connection, record.name),
        clear=clear,
        links=links,
    )


def last_day(batch: Batch) -> date:
    """The last day that a batch's window touches."""
    return (batch.window_end - timedelta(microseconds=1)).date()


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of one day."""

    connection: sa.Connection
    record: ConnectionRecord
    day: date
    clear: bool
    links: dict[str, Link]

    def part(self, entity: str, batch: Batch | None) -> Part:
        table = t.desk_table(ENTITIES[entity])
        placeholders = sa.select(sa.func.count()).where(
            table.c.connection == self.record.name, table.c.placeholder
        )
        common: dict[str, Any] = {
            "entity": entity,
            "batch": batch,
            "trend": trend(self.connection, self.record.name, entity, self.day),
            "table_rows": ledger.rows_in_table(self.connection, self.record.name, entity),
            "placeholders": self.connection.scalar(placeholders) or 0,
        }
        if batch is None:
            return Part(**common)
        batches = [batch, *self._lookups(batch)]
        found = [check for each in batches for check in self._checks(each.id)]
        checks = [check for check in found if check.judged]
        return Part(
            **common,
            audit=self._audit(entity),
            checks=tuple(checks),
            unjudged=tuple(check for check in found if not check.judged),
            failures=tuple(self._failures(entity, checks)),
            rejections=tuple(self._rejections(entity, batches, checks)),
            replayed=ledger.replayed_since(self.connection, [each.id for each in batches]),
            equations=tuple(self._equation(each) for each in batches),
        )

    def _checks(self, batch_id: int) -> list[CheckResult]:
        return [
            replace(check, description=masked_text(check.description, clear=True))
            for check in ledger.checks_of(self.connection, batch_id)
        ]

    def _lookups(self, batch: Batch) -> list[Batch]:
        """The batches of single records that the same run brought."""
        if batch.run_id is None:
            return []
        b = t.batches
        mine = (b.c.run_id == batch.run_id, b.c.connection == batch.connection, b.c.entity == batch.entity)
        return ledger.list_batches(self.connection, sa.and_(*mine, b.c.kind == "lookup"))

    def _audit(self, entity: str) -> tuple[str, int, str] | None:
        row = ledger.current_audit_file(self.connection, self.record.name, entity, self.day)
        return (row.path, row.rows, row.sha256) if row is not None else None

    def _failures(self, entity: str, checks: list[CheckResult]) -> list[Failure]:
        failed = [
            Failure(
                check.name,
                check.description,
                check.severity,
                check.owner,
                check.evaluated,
                check.unexpected,
                tuple(self._example(entity, values) for values in check.examples[:_EXAMPLES]),
                check.source == "tenant",
            )
            for check in checks
            if not check.passed
        ]
        return sorted(failed, key=lambda each: (_SEVERITIES[each.severity], -each.unexpected, each.name))

    def _example(self, entity: str, values: dict[str, Any]) -> Example:
        record_id = values.get("id")
        known = record_id is not None
        return Example(
            masked_key(record_id, self.clear) if known else None,
            self.links[entity](str(record_id)) if known else None,
            tuple(
                (masked_text(key), masked(ENTITIES[entity], key, value, self.clear))
                for key, value in values.items()
                if key != "id"
            ),
        )

    def _rejections(
        self, entity: str, batches: list[Batch], checks: list[CheckResult]
    ) -> Iterable[Rejection]:
        ids = [batch.id for batch in batches]
        for aside in ledger.still_quarantined(self.connection, ids):
            # A replay may have refused them by an expectation that the batch itself did not know.
            known = [*self._checks(aside.last_batch), *checks]
            sentences = {check.name: check.description for check in known}
            reason = reason_of(aside.reason, sentences, {check.name: check.owner for check in known})
            samples = tuple(self._samples(entity, ids, aside.reason))
            yield Rejection(aside.reason, reason, aside.records, samples)

    def _samples(self, entity: str, batches: list[int], code: str) -> Iterable[Sample]:
        q = t.quarantine
        query = (
            sa.select(q.c.sha256, q.c.record_id, q.c.pointer, q.c.detail)
            .where(ledger.seen_by(batches), q.c.reason == code, q.c.replayed_at.is_(None))
            .order_by(q.c.sha256)
            .limit(_SAMPLES)
        )
        for row in self.connection.execute(query):
            known = row.record_id is not None
            yield Sample(
                row.sha256,
                masked_key(row.record_id, self.clear) if known else None,
                self.links[entity](row.record_id) if known else None,
                masked_text(row.pointer, self.clear) or "the whole record",
                masked_detail(code, row.detail, self.clear),
            )

    def _equation(self, batch: Batch) -> Equation:
        query = sa.select(*(t.loads.c[term] for term in _LOAD_TERMS)).where(t.loads.c.batch_id == batch.id)
        load = self.connection.execute(query).one_or_none()
        went = dict(load._mapping) if load is not None else dict.fromkeys(_LOAD_TERMS, 0)
        terms = {
            "outside": batch.outside,
            **went,
            "quarantined": batch.quarantined + batch.rejected,
            "duplicate": batch.duplicate,
        }
        return Equation(batch, terms, 0 if load is not None else batch.landed - batch.rejected)


def _accepted(connection: sa.Connection, name: str, window: Window) -> list[Batch]:
    """Batches that touch the day and go on by a reviewer's word."""
    b = t.batches
    touches = (b.c.window_start < window.end, b.c.window_end > window.start)
    return ledger.list_batches(
        connection, sa.and_(b.c.connection == name, b.c.verdict == "accepted", *touches)
    )


def _blocked(connection: sa.Connection, name: str, window: Window) -> list[Batch]:
    """Blocked batches of earlier windows that no later reading of the same days has replaced."""
    b = t.batches
    waits = (b.c.verdict == "blocked", b.c.kind != "lookup", b.c.window_end <= window.start)
    return ledger.list_batches(connection, sa.and_(b.c.connection == name, *waits, ~ledger.replaced()))
