"""The outbox: reviewers, what they are to be told, and what became of it. Nothing is sent here.

A message is written in the transaction of the fact that causes it, so that there is never one
without the other. Functions take an open connection, as in `ledger`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.database import tables as t
from bridge_pipeline.database.sealing import Box

Event = Literal["blocked", "resolved", "failed", "daily", "weekly", "test"]
# What a reviewer can ask to be told of. Who is told of a block is told of its end.
CHOICES: tuple[Event, ...] = ("blocked", "failed", "daily", "weekly")
MAIL = "mail"
_SHOWN = ("status", "attempts", "created_at", "attempted_at", "next_attempt_at", "settled_at", "error")
_m, _d, _r = t.messages, t.deliveries, t.reviewers
# Of an alarm the batch, without which of its blocks it is.
_alarmed = sa.func.split_part(_m.c.about, ",", 1)


@dataclass(frozen=True)
class Reviewer:
    """Someone who is told.

    `id` names the address without telling it, `shown` may be seen by others, and `variables` are the
    environment variables that the address came from.
    """

    id: str
    channel: str
    shown: str
    events: tuple[str, ...]
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """What is to be told. Nobody is told twice of the same `event` and `about`.

    `connection` and `day` name the report that goes with it; `follows` the message that it ends.
    """

    tenant: str
    event: Event
    about: str
    title: str
    body: str
    connection: str | None = None
    day: date | None = None
    follows: int | None = None


@dataclass(frozen=True)
class Alarm:
    """A message of a blocked batch, and who was told."""

    batch: int
    message_id: int
    about: str
    recipients: list[str]


@dataclass(frozen=True)
class Due:
    """A delivery that a sender has claimed, with all it needs but the address in clear."""

    message_id: int
    reviewer: str
    channel: str
    shown: str
    address: Box
    # This one included.
    attempts: int
    created_at: datetime
    message: Message
    # What the message ends was about that.
    follows_about: str | None


# --- Reviewers ----------------------------------------------------------------------------------


def reviewers_of(connection: sa.Connection, tenant: str) -> list[Reviewer]:
    """The reviewers of a tenant as the file declared them last."""
    query = sa.select(_r).where(_r.c.tenant == tenant, _r.c.removed_at.is_(None)).order_by(_r.c.shown)
    return [
        Reviewer(row.id, row.channel, row.shown, tuple(row.events), tuple(row.secret_variables))
        for row in connection.execute(query)
    ]


def addresses_of(connection: sa.Connection, tenant: str) -> dict[str, Box]:
    """The sealed addresses of a tenant's reviewers, by their ids."""
    query = sa.select(_r.c.id, _r.c.address).where(_r.c.tenant == tenant, _r.c.removed_at.is_(None))
    return {row.id: row.address for row in connection.execute(query)}


def wanting(
    connection: sa.Connection, tenant: str, event: Event, listed_by: datetime | None = None
) -> list[str]:
    """The reviewers of a tenant that want to be told of an event, if they were listed by a moment."""
    query = sa.select(_r.c.id).where(
        _r.c.tenant == tenant, _r.c.removed_at.is_(None), _r.c.events.contains([event])
    )
    if listed_by is not None:
        query = query.where(_r.c.created_at <= listed_by)
    return list(connection.scalars(query))


def tenants_told(connection: sa.Connection) -> list[str]:
    """The tenants that have reviewers."""
    query = sa.select(_r.c.tenant).where(_r.c.removed_at.is_(None)).distinct().order_by(_r.c.tenant)
    return list(connection.scalars(query))


def has_channel(connection: sa.Connection, channel: str) -> bool:
    """Whether any reviewer is told by that channel."""
    query = sa.select(sa.literal(1)).where(_r.c.channel == channel, _r.c.removed_at.is_(None))
    return connection.execute(query.limit(1)).first() is not None


def forget_tenant(connection: sa.Connection, tenant: str) -> None:
    """Deletes a tenant's reviewers, and what they were told."""
    for table in (_d, _m, _r):
        connection.execute(table.delete().where(table.c.tenant == tenant))


def put_reviewers(connection: sa.Connection, tenant: str, reviewers: Mapping[Reviewer, Box]) -> None:
    """Makes these, with their sealed addresses, the reviewers of a tenant.

    Others are removed: their address is forgotten, and what could not be told them is withdrawn.
    """
    for reviewer, box in reviewers.items():
        values = {
            "address": dict(box),
            "channel": reviewer.channel,
            "shown": reviewer.shown,
            "events": list(reviewer.events),
            "secret_variables": list(reviewer.variables),
            "removed_at": None,
        }
        upsert = insert(_r).values(tenant=tenant, id=reviewer.id, **values)
        connection.execute(upsert.on_conflict_do_update(index_elements=["tenant", "id"], set_=values))
    gone = (_r.c.tenant == tenant, _r.c.id.not_in([each.id for each in reviewers]), _r.c.removed_at.is_(None))
    connection.execute(_r.update().where(*gone).values(removed_at=sa.func.now(), address=None))
    removed = sa.select(_r.c.id).where(_r.c.tenant == tenant, _r.c.removed_at.is_not(None))
    withdrawal = _d.update().where(
        _d.c.tenant == tenant, _d.c.reviewer.in_(removed), _d.c.status.in_(["pending", "failed"])
    )
    connection.execute(withdrawal.values(status="withdrawn", settled_at=sa.func.now()))


# --- Writing ------------------------------------------------------------------------------------


def tell(connection: sa.Connection, message: Message, recipients: Collection[str]) -> int | None:
    """Puts a message for these reviewers in the outbox; what is there already stays as it is.

    Returns:
        The message's id; None if there is nobody to tell, and nothing was written.
    """
    if not recipients:
        return None
    connection.execute(insert(_m).values(**vars(message)).on_conflict_do_nothing())
    same = (_m.c.tenant == message.tenant, _m.c.event == message.event, _m.c.about == message.about)
    number = connection.scalars(sa.select(_m.c.id).where(*same)).one()
    rows = [{"message_id": number, "reviewer": each, "tenant": message.tenant} for each in recipients]
    connection.execute(insert(_d).on_conflict_do_nothing(), rows)
    return number


def was_written(connection: sa.Connection, tenant: str, event: Event, about: str) -> bool:
    """Whether the outbox holds such a message, told or not."""
    same = (_m.c.tenant == tenant, _m.c.event == event, _m.c.about == about)
    return connection.execute(sa.select(sa.literal(1)).where(*same)).first() is not None


def open_alarms(connection: sa.Connection, tenant: str, batches: Collection[int]) -> list[Alarm]:
    """The alarms of these batches whose end was not told."""
    numbers = {_batch_words(number): number for number in batches}
    query = (
        sa.select(_m.c.about, _m.c.id, sa.func.array_agg(_d.c.reviewer))
        .join(_d, _d.c.message_id == _m.c.id)
        .join(_r, sa.and_(_r.c.tenant == _d.c.tenant, _r.c.id == _d.c.reviewer, _r.c.removed_at.is_(None)))
        .where(_m.c.tenant == tenant, _m.c.event == "blocked", _alarmed.in_(numbers), ~_has_ended())
        .group_by(_m.c.about, _m.c.id)
        .order_by(_m.c.id)
    )
    return [
        Alarm(numbers[about.partition(",")[0]], message_id, about, list(recipients))
        for about, message_id, recipients in connection.execute(query)
    ]


def about_block(connection: sa.Connection, tenant: str, batch: int) -> str:
    """What an alarm of a batch is about: the same until its end was told, then another block."""
    query = sa.select(sa.func.count()).where(
        _m.c.tenant == tenant, _m.c.event == "blocked", _alarmed == _batch_words(batch), _has_ended()
    )
    ended = connection.execute(query).scalar_one()
    return f"{_batch_words(batch)}, block {ended + 1}" if ended else _batch_words(batch)


def _batch_words(number: int) -> str:
    return f"batch {number}"


def _has_ended() -> sa.ColumnElement[bool]:
    ends = _m.alias("ends")
    return sa.exists().where(ends.c.follows == _m.c.id)


# --- Sending ------------------------------------------------------------------------------------

# Alarms that ended before anybody was told. An attempt whose end nobody saw (no error) may have told
# it, and one that is being made at this moment holds its row: those alarms are told, and their ends.
_MOOT = sa.text("""
    update bridge.deliveries set status = 'withdrawn', settled_at = now()
    where (message_id, reviewer) in (
        select alarm.message_id, alarm.reviewer
        from bridge.deliveries as alarm
        inner join bridge.messages as ending on ending.follows = alarm.message_id
        where alarm.status = 'pending' and (alarm.attempts = 0 or alarm.error is not null)
        for update of alarm skip locked
    )
""")
_UNHEARD = sa.text("""
    update bridge.deliveries as told set status = 'withdrawn', settled_at = now()
    from bridge.messages as ending, bridge.deliveries as alarm
    where told.status = 'pending' and ending.id = told.message_id
        and alarm.message_id = ending.follows and alarm.reviewer = told.reviewer
        and alarm.status in ('failed', 'withdrawn')
""")


def settle(connection: sa.Connection) -> None:
    """Withdraws alarms that ended before they were told, and ends of alarms that nobody was told of."""
    connection.execute(_MOOT)
    connection.execute(_UNHEARD)


def claim(
    connection: sa.Connection,
    now: datetime,
    retry_at: Callable[[int], datetime],
    held: Collection[str] = (),
) -> Due | None:
    """Takes the delivery that is due longest, and notes the attempt before it is made.

    So an attempt that kills its process is not made again at once. Commit before sending.

    Args:
        retry_at: gives, for the number of attempts so far, when the next may be made.
        held: channels and reviewers that are not to be tried now.
    """
    due = (_d.c.status == "pending", _d.c.next_attempt_at <= now, _alarm_was_sent())
    free = (_r.c.channel.not_in(list(held)), _d.c.reviewer.not_in(list(held)))
    query = _joined().where(*due, *free).order_by(_d.c.next_attempt_at, _d.c.message_id).limit(1)
    row = connection.execute(query.with_for_update(of=_d, skip_locked=True)).one_or_none()
    if row is None:
        return None
    found = _due(row)
    values = {"attempts": found.attempts, "attempted_at": now, "next_attempt_at": retry_at(found.attempts)}
    connection.execute(_d.update().where(*_is(found)).values(values | {"error": None}))
    return found


def hold(connection: sa.Connection, due: Due) -> bool:
    """Locks a claimed delivery while it is sent; False if another has settled or taken it since."""
    still = (*_is(due), _d.c.status == "pending", _d.c.attempts == due.attempts)
    query = sa.select(sa.literal(1)).where(*still).with_for_update(of=_d, skip_locked=True)
    return connection.execute(query).first() is not None


def mark_sent(connection: sa.Connection, due: Due, now: datetime) -> None:
    """Enters a delivery into the sent-log."""
    connection.execute(_d.update().where(*_is(due)).values(status="sent", settled_at=now))


def mark_failed(connection: sa.Connection, due: Due, error: str, given_up: datetime | None) -> None:
    """Notes why an attempt failed; with `given_up` there will be no other."""
    ending = {"status": "failed", "settled_at": given_up} if given_up else {}
    connection.execute(_d.update().where(*_is(due)).values(error=error, **ending))


def list_deliveries(
    connection: sa.Connection, tenant: str | None = None, status: str | None = None, most: int = 200
) -> list[dict[str, Any]]:
    """The newest deliveries, newest first; of addresses only what others may see."""
    columns = (
        *(_m.c[name] for name in ("id", "tenant", "event", "about", "title")),
        *(_r.c[name] for name in ("channel", "shown")),
        *(_d.c[name] for name in _SHOWN),
    )
    reviewer = sa.and_(_r.c.tenant == _d.c.tenant, _r.c.id == _d.c.reviewer)
    joined = _d.join(_m, _m.c.id == _d.c.message_id).join(_r, reviewer)
    query = sa.select(*columns).select_from(joined).order_by(_m.c.id.desc(), _r.c.shown).limit(most)
    if tenant is not None:
        query = query.where(_m.c.tenant == tenant)
    if status is not None:
        query = query.where(_d.c.status == status)
    return [dict(row) for row in connection.execute(query).mappings()]


def revive(connection: sa.Connection, now: datetime) -> int:
    """Makes all deliveries that were given up, or wait for another attempt, due now. Returns how many."""
    unsent = _d.c.status.in_(["failed", "pending"])
    values = {"status": "pending", "settled_at": None, "next_attempt_at": now}
    there = sa.exists().where(_r.c.tenant == _d.c.tenant, _r.c.id == _d.c.reviewer, _r.c.removed_at.is_(None))
    return connection.execute(_d.update().where(unsent, there).values(values)).rowcount


def counts(connection: sa.Connection, tenant: str | None = None) -> dict[str, int]:
    """How many deliveries there are of each status."""
    query = sa.select(_d.c.status, sa.func.count()).group_by(_d.c.status)
    if tenant is not None:
        query = query.where(_d.c.tenant == tenant)
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {status: found.get(status, 0) for status in ("pending", "sent", "failed", "withdrawn")}


def waiting_since(connection: sa.Connection) -> datetime | None:
    """Since when the oldest delivery has waited that was tried and could not be sent."""
    query = sa.select(sa.func.min(_d.c.created_at)).where(_d.c.status == "pending", _d.c.attempts > 0)
    return connection.scalar(query)


def _alarm_was_sent() -> sa.ColumnElement[bool]:
    """An end is told after its alarm."""
    alarm = _d.alias("alarm")
    sent = sa.exists().where(
        alarm.c.message_id == _m.c.follows, alarm.c.reviewer == _d.c.reviewer, alarm.c.status == "sent"
    )
    return sa.or_(_m.c.follows.is_(None), sent)


def _joined() -> sa.Select:
    followed = _m.alias("followed")
    columns = (
        *(_d.c[name] for name in ("message_id", "reviewer", "attempts", "created_at")),
        *(_r.c[name] for name in ("channel", "shown", "address")),
        *(_m.c[each.name] for each in fields(Message)),
        followed.c.about.label("follows_about"),
    )
    reviewer = sa.and_(_r.c.tenant == _d.c.tenant, _r.c.id == _d.c.reviewer)
    joined = _d.join(_m, _m.c.id == _d.c.message_id).join(_r, reviewer)
    return sa.select(*columns).select_from(joined.outerjoin(followed, followed.c.id == _m.c.follows))


def _due(row: sa.Row) -> Due:
    values = row._mapping
    return Due(
        **{name: values[name] for name in ("message_id", "reviewer", "channel", "shown", "created_at")},
        address=values["address"] or {},
        attempts=values["attempts"] + 1,
        message=Message(**{each.name: values[each.name] for each in fields(Message)}),
        follows_about=values["follows_about"],
    )


def _is(due: Due) -> tuple[sa.ColumnElement[bool], ...]:
    return (_d.c.message_id == due.message_id, _d.c.reviewer == due.reviewer)
