"""What the ledger says about one day of a connection, entity by entity, as the report needs it.

Numbers and masked values only; the words around them are in `report` and its templates.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from bridge_pipeline import connectors
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked, masked_detail, masked_key, masked_text
from bridge_pipeline.model import ENTITIES, Window
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
    """The records that were set aside for one reason."""

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
    """One entity of the report; without `batch` nothing was extracted that covers the day."""

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
    """One day of a connection. `accepted` and `blocked` are batches that a reviewer decided on or must."""

    record: ConnectionRecord
    day: date
    parts: tuple[Part, ...]
    accepted: tuple[Batch, ...]
    blocked_elsewhere: tuple[Batch, ...]
    clear: bool
    links: dict[str, Link] = field(repr=False)


def findings_of(
    workspace: Workspace, connection: sa.Connection, record: ConnectionRecord, entities: list[str], day: date
) -> Findings:
    """Reads what there is to say about a day; of each entity the newest batch speaks."""
    clear = registry.shows_personal_data(workspace.database.engine, record.tenant)
    reader = _Reader(connection, record, day, clear, {each: _link(record, each) for each in entities})
    window = Window.of_days(day, day)
    batches = {each: ledger.newest_batch(connection, record.name, each, window) for each in entities}
    return Findings(
        record=record,
        day=day,
        parts=tuple(reader.part(entity, batch) for entity, batch in batches.items()),
        accepted=tuple(_accepted(connection, record.name, window)),
        blocked_elsewhere=tuple(_blocked(connection, record.name, window)),
        clear=clear,
        links=reader.links,
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
        found = [
            replace(check, description=masked_text(check.description, clear=True))
            for each in batches
            for check in ledger.checks_of(self.connection, each.id)
        ]
        checks = [check for check in found if check.judged]
        return Part(
            **common,
            audit=self._audit(entity),
            checks=tuple(checks),
            unjudged=tuple(check for check in found if not check.judged),
            failures=tuple(self._failures(entity, checks)),
            rejections=tuple(self._rejections(entity, batches, checks)),
            equations=tuple(self._equation(each) for each in batches),
        )

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
        sentences = {check.name: check.description for check in checks}
        owners = {check.name: check.owner for check in checks}
        ids = [batch.id for batch in batches]
        for _, code, count in ledger.quarantined_by_reason(self.connection, ids):
            reason = reason_of(code, sentences, owners)
            yield Rejection(code, reason, count, tuple(self._samples(entity, ids, code)))

    def _samples(self, entity: str, batches: list[int], code: str) -> Iterable[Sample]:
        q, s = t.quarantine, t.quarantine_sightings
        same = (q.c.connection == s.c.connection, q.c.entity == s.c.entity, q.c.sha256 == s.c.sha256)
        query = (
            sa.select(q.c.sha256, q.c.record_id, q.c.pointer, q.c.detail)
            .join_from(q, s, sa.and_(*same))
            .where(s.c.batch_id.in_(batches), s.c.reason == code)
            .distinct()
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


def _link(record: ConnectionRecord, entity: str) -> Link:
    """Record id -> its page at the source, where the connector knows one and it is one to open."""
    base, url_of = str(record.config.get("base_url", "")), connectors.get(record.connector).record_url

    def link(record_id: str) -> str | None:
        # An id that had to be masked would be quoted in the address.
        if url_of is None or masked_key(record_id) != record_id:
            return None
        url = url_of(base, entity, record_id)
        return url if url and urlsplit(url).scheme in ("http", "https") else None

    return link


def _accepted(connection: sa.Connection, name: str, window: Window) -> list[Batch]:
    """Batches that touch the day and go on by a reviewer's word."""
    b = t.batches
    touches = (b.c.window_start < window.end, b.c.window_end > window.start)
    return ledger.list_batches(
        connection, sa.and_(b.c.connection == name, b.c.verdict == "accepted", *touches)
    )


def _blocked(connection: sa.Connection, name: str, window: Window) -> list[Batch]:
    """Blocked batches of earlier windows that no later reading of the same days has replaced."""
    b, later = t.batches, t.batches.alias()
    replaced = (
        sa.select(sa.literal(1))
        .where(
            later.c.connection == b.c.connection,
            later.c.entity == b.c.entity,
            later.c.kind.not_in(ledger.SINGLE),
            later.c.id > b.c.id,
            later.c.window_start <= b.c.window_start,
            later.c.window_end >= b.c.window_end,
            later.c.verdict.in_(ledger.READABLE),
        )
        .exists()
    )
    elsewhere = b.c.window_end <= window.start
    return ledger.list_batches(
        connection,
        sa.and_(b.c.connection == name, b.c.verdict == "blocked", b.c.kind != "lookup", elsewhere, ~replaced),
    )
