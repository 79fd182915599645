"""The ledger of certificates and of the deletions they observed.

Functions take an open connection; the caller's transaction decides what becomes visible together.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import array

from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import READABLE, SINGLE
from bridge_pipeline.model.window import last_day_before


@dataclass(frozen=True)
class Certificate:
    """One row of `bridge.certificates`; `document` is what its JSON file says."""

    connection: str
    number: int
    tenant: str
    window_start: datetime | None
    window_end: datetime | None
    verdict: str
    listings: dict[str, int]
    document: dict[str, Any]
    path: str
    sha256: str
    page_sha256: str
    accepted_by: str | None = None
    accept_reason: str | None = None
    run_id: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything is explained, and nothing holds it back."""
        return self.verdict == "complete"


@dataclass(frozen=True)
class Coverage:
    """The change times `[start, end)` of which every record must be accounted for by now.

    `last_day` is the last day that was extracted.
    """

    start: datetime
    end: datetime
    last_day: date


def newest_certificate(connection: sa.Connection, name: str) -> Certificate | None:
    """The newest certificate of a connection."""
    c = t.certificates
    columns = [c.c[field] for field in Certificate.__dataclass_fields__]
    query = sa.select(*columns).where(c.c.connection == name).order_by(c.c.number.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return Certificate(**row._mapping) if row else None


def add_certificate(connection: sa.Connection, certificate: Certificate) -> None:
    """Lists a certificate; with the commit it exists."""
    connection.execute(t.certificates.insert().values(**vars(certificate)))


def fetched_since(connection: sa.Connection, name: str, entity: str) -> list[int]:
    """The loaded batches that were fetched for certificates of an entity since the last one was written.

    Also those of certificates that were interrupted: no audit file has their records yet.
    """
    b, c = t.batches, t.certificates
    of_entity = c.c.listings.has_any(array([f"{entity}/ids", f"{entity}/whole"]))
    last = sa.select(sa.func.max(c.c.created_at)).where(c.c.connection == name, of_entity)
    query = (
        sa.select(b.c.id)
        .join(t.loads, t.loads.c.batch_id == b.c.id)
        .where(
            b.c.connection == name,
            b.c.entity == entity,
            b.c.proof["for"].as_string() == "certificate",
            sa.func.coalesce(b.c.created_at > last.scalar_subquery(), True),
        )
    )
    return list(connection.scalars(query.order_by(b.c.id)))


def last_listing(connection: sa.Connection, name: str, entity: str) -> int:
    """The number of the last listing of an entity that a certificate rests on, 0 for none."""
    number = t.certificates.c.listings[entity].as_integer()
    query = sa.select(sa.func.coalesce(sa.func.max(number), 0)).where(t.certificates.c.connection == name)
    return connection.execute(query).scalar_one()


def coverage(connection: sa.Connection, name: str, entity: str, lag: timedelta) -> Coverage | None:
    """From when to when the source's changes must have arrived, by what was extracted and loaded.

    A record that changed between two extracted windows counts as covered: the gap is to be noticed.
    """
    b = t.batches
    settled = b.c.fetched_from - lag
    start = sa.case(
        (b.c.kind == "whole", sa.cast("-infinity", sa.TIMESTAMP(timezone=True))), else_=b.c.window_start
    )
    end = sa.case((b.c.kind == "whole", settled), else_=sa.func.least(b.c.window_end, settled))
    query = (
        sa.select(sa.cast(sa.func.min(start), sa.Text), sa.func.max(end), sa.func.max(b.c.window_end))
        .join(t.loads, t.loads.c.batch_id == b.c.id)
        .where(
            b.c.connection == name, b.c.entity == entity, b.c.kind.not_in(SINGLE), b.c.verdict.in_(READABLE)
        )
    )
    first, last, window_end = connection.execute(query).one()
    if last is None:
        return None
    # Python knows no time before year 1.
    begin = (
        datetime.min.replace(tzinfo=last.tzinfo) if first == "-infinity" else datetime.fromisoformat(first)
    )
    return Coverage(begin, last, last_day_before(window_end))


def totals(
    connection: sa.Connection, name: str, entity: str, start: datetime | None, end: datetime | None
) -> dict[str, int]:
    """The equation's terms, summed over the batches that touch a span; over all without one."""
    b, loads = t.batches, t.loads
    terms = [b.c[term] for term in ("fetched", "outside", "duplicate", "quarantined", "rejected")]
    terms += [loads.c[term] for term in ("loaded", "unchanged", "superseded")]
    waiting = sa.case((loads.c.batch_id.is_(None), b.c.landed - b.c.rejected), else_=0).label("waiting")
    sums = [
        sa.func.coalesce(sa.cast(sa.func.sum(term), sa.BigInteger), 0).label(term.name)
        for term in [*terms, waiting]
    ]
    query = (
        sa.select(sa.func.count().label("batches"), *sums)
        .select_from(b.outerjoin(loads, loads.c.batch_id == b.c.id))
        .where(b.c.connection == name, b.c.entity == entity)
    )
    if start is not None and end is not None:
        query = query.where(b.c.window_start < end, b.c.window_end > start)
    return {str(key): int(value) for key, value in connection.execute(query).one()._mapping.items()}
