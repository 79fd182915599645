"""The quarantine as it is looked at: lists of records, and one with its exact bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from bridge_pipeline.database import registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.workspace import Workspace

_SHA256 = re.compile(r"[0-9a-f]{4,64}")


class UnknownQuarantined(LookupError):
    """No quarantined record, or more than one, has such a SHA-256."""


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record that could not be accepted: why, where in it (a JSON pointer), and since when.

    `page` and `position` say where in the journal of `first_batch` it stands.
    """

    sha256: str
    tenant: str
    connection: str
    entity: str
    reason: str
    pointer: str
    detail: str
    record_id: str | None
    times_seen: int
    first_seen: datetime
    last_seen: datetime
    first_batch: int
    last_batch: int
    page: int
    position: int
    size: int


_COLUMNS = (
    *(t.quarantine.c[name] for name in QuarantinedRecord.__dataclass_fields__ if name != "size"),
    sa.func.octet_length(t.quarantine.c.raw).label("size"),
)


def list_quarantined(
    workspace: Workspace, name: str | None = None, reason: str | None = None, limit: int | None = None
) -> list[QuarantinedRecord]:
    """Quarantined records, last seen first; of one connection or one reason where given.

    Raises:
        UnknownConnection: there is no such connection.
    """
    q = t.quarantine
    query = sa.select(*_COLUMNS).order_by(q.c.last_seen.desc(), q.c.connection, q.c.entity, q.c.sha256)
    if name is not None:
        registry.get(workspace.database.engine, name)
        query = query.where(q.c.connection == name)
    if reason is not None:
        query = query.where(q.c.reason == reason)
    with workspace.database.engine.connect() as connection:
        return [QuarantinedRecord(**row._mapping) for row in connection.execute(query.limit(limit))]


def find_quarantined(workspace: Workspace, prefix: str) -> list[tuple[QuarantinedRecord, bytes]]:
    """The record whose SHA-256 begins with `prefix`, with its exact bytes.

    The same bytes may be in quarantine for several connections and entities.

    Raises:
        UnknownQuarantined: there is none, or there are several with different bytes.
    """
    if not _SHA256.fullmatch(prefix):
        raise UnknownQuarantined(f"{prefix!r} is not the beginning of a SHA-256: give 4 to 64 of 0-9 and a-f")
    found = list(_beginning_with(workspace, prefix))
    digests = sorted({record.sha256 for record, _ in found})
    if not digests:
        raise UnknownQuarantined(f"no quarantined record has a SHA-256 that begins with {prefix}")
    if len(digests) > 1:
        raise UnknownQuarantined(f"several begin with {prefix}, give more of it: {', '.join(digests)}")
    return found


def _beginning_with(workspace: Workspace, prefix: str) -> Iterator[tuple[QuarantinedRecord, bytes]]:
    q = t.quarantine
    query = (
        sa.select(*_COLUMNS, q.c.raw)
        .where(q.c.sha256.startswith(prefix))
        .order_by(q.c.sha256, q.c.connection, q.c.entity)
        .limit(20)
    )
    with workspace.database.engine.connect() as connection:
        for row in connection.execute(query):
            values = dict(row._mapping)
            raw = values.pop("raw")
            yield QuarantinedRecord(**values), bytes(raw)
