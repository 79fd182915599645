"""The quarantine as it is looked at: lists of records, and one with its exact bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime

import sqlalchemy as sa

from bridge_pipeline.database import registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window

_SHA256 = re.compile(r"[0-9a-f]{4,64}")


class NotASha256(ValueError):
    """Not the beginning of a SHA-256."""


class UnknownQuarantined(LookupError):
    """No quarantined record, or more than one, has such a SHA-256."""


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record that could not be accepted: why, where in it (a JSON pointer), and since when.

    `page` and `position` say where in the journal of `first_batch` it stands. `replayed_at` says
    when the batch `replay_batch` brought it into the tables; it is null while the record is
    rejected.
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
    fetched_at: datetime
    replay_batch: int | None
    replayed_at: datetime | None
    size: int


@dataclass(frozen=True)
class Selection:
    """Which quarantined records are meant; what is not given is not asked for.

    `day` (UTC) is one of the days that a batch was to hold when it rejected the record. `digests`
    are SHA-256s or their beginnings, `ids` those of the records as far as they have a plain one.
    `replayed` tells those that a replay loaded from those that are still rejected.
    """

    connection: str | None = None
    entity: str | None = None
    reason: str | None = None
    day: date | None = None
    digests: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    replayed: bool | None = None

    def __post_init__(self) -> None:
        for digest in self.digests:
            if not _SHA256.fullmatch(digest):
                raise NotASha256(f"{digest!r} is not the beginning of a SHA-256: give 4 to 64 of 0-9 and a-f")

    def conditions(self) -> tuple[sa.ColumnElement[bool], ...]:
        """What holds for the selected rows of `bridge.quarantine`."""
        q = t.quarantine
        named = {"connection": self.connection, "entity": self.entity, "reason": self.reason}
        found = [q.c[column] == value for column, value in named.items() if value is not None]
        if self.day is not None:
            found.append(_rejected_in(Window.of_days(self.day, self.day)))
        if self.digests:
            found.append(sa.or_(*(q.c.sha256.startswith(digest) for digest in self.digests)))
        if self.ids:
            found.append(q.c.record_id.in_(self.ids))
        if self.replayed is not None:
            found.append(q.c.replayed_at.is_not(None) if self.replayed else q.c.replayed_at.is_(None))
        return tuple(found)


def _rejected_in(window: Window) -> sa.ColumnElement[bool]:
    q, b = t.quarantine, t.batches
    touching = sa.select(b.c.id).where(b.c.window_start < window.end, b.c.window_end > window.start)
    return sa.or_(q.c.first_batch.in_(touching), q.c.last_batch.in_(touching))


_COLUMNS = (
    *(t.quarantine.c[name] for name in QuarantinedRecord.__dataclass_fields__ if name != "size"),
    sa.func.octet_length(t.quarantine.c.raw).label("size"),
)


def list_quarantined(
    workspace: Workspace, selection: Selection, limit: int | None = None
) -> list[QuarantinedRecord]:
    """The selected records, last seen first.

    Raises:
        UnknownConnection: there is no such connection.
    """
    q = t.quarantine
    if selection.connection is not None:
        registry.get(workspace.database.engine, selection.connection)
    order = (q.c.last_seen.desc(), q.c.connection, q.c.entity, q.c.sha256)
    query = sa.select(*_COLUMNS).where(*selection.conditions()).order_by(*order)
    with workspace.database.engine.connect() as connection:
        return [QuarantinedRecord(**row._mapping) for row in connection.execute(query.limit(limit))]


def find_quarantined(workspace: Workspace, prefix: str) -> list[tuple[QuarantinedRecord, bytes]]:
    """The record whose SHA-256 begins with `prefix`, with its exact bytes.

    The same bytes may be in quarantine for several connections and entities.

    Raises:
        NotASha256: `prefix` is not the beginning of one.
        UnknownQuarantined: there is none, or there are several with different bytes.
    """
    found = list(_beginning_with(workspace, Selection(digests=(prefix,))))
    digests = sorted({record.sha256 for record, _ in found})
    if not digests:
        raise UnknownQuarantined(f"no quarantined record has a SHA-256 that begins with {prefix}")
    if len(digests) > 1:
        raise UnknownQuarantined(f"several begin with {prefix}, give more of it: {', '.join(digests)}")
    return found


def _beginning_with(workspace: Workspace, selection: Selection) -> Iterator[tuple[QuarantinedRecord, bytes]]:
    q = t.quarantine
    query = (
        sa.select(*_COLUMNS, q.c.raw)
        .where(*selection.conditions())
        .order_by(q.c.sha256, q.c.connection, q.c.entity)
        .limit(20)
    )
    with workspace.database.engine.connect() as connection:
        for row in connection.execute(query):
            values = dict(row._mapping)
            raw = values.pop("raw")
            yield QuarantinedRecord(**values), bytes(raw)
