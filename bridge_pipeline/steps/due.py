"""Which days are due: settled, and not complete in the ledger (rule 20)."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from bridge_pipeline import connectors
from bridge_pipeline.database import ledger
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES

Span = tuple[date, date]


def due_spans(workspace: Workspace, record: ConnectionRecord, now: datetime) -> list[Span]:
    """The contiguous spans of days, both ends included, that should be extracted now; oldest first.

    Together not more days than `schedule_days_per_tick`. The first day is the connection's own,
    else the first that was ever extracted, else the day it was connected.
    """
    settings = workspace.settings
    with workspace.database.engine.connect() as connection:
        done = ledger.complete_days(connection, record.name, entities_of(record), settings.settle_lag)
        first_read = ledger.first_day_read(connection, record.name)
    first = record.first_day or first_read or (record.created_at or now).astimezone(UTC).date()
    # Earlier days are no partitions.
    first = max(first, settings.first_day)
    last = (now.astimezone(UTC) - settings.settle_lag).date() - timedelta(days=1)
    days = (first + timedelta(days=n) for n in range((last - first).days + 1))
    missing = [day for day in days if day not in done]
    return list(spans(missing[: settings.schedule_days_per_tick]))


def spans(days: Iterable[date]) -> Iterable[Span]:
    """Groups sorted days into contiguous spans."""
    start = previous = None
    for day in days:
        if previous is not None and day - previous == timedelta(days=1):
            previous = day
            continue
        if start is not None and previous is not None:
            yield start, previous
        start = previous = day
    if start is not None and previous is not None:
        yield start, previous


def entities_of(record: ConnectionRecord) -> tuple[str, ...]:
    """The entities of a connection that its connector has, parents before children."""
    connector = connectors.get(record.connector)
    return tuple(name for name in ENTITIES if name in record.entities and connector.has(name))


def checked_request(
    workspace: Workspace,
    record: ConnectionRecord,
    first: date,
    last: date,
    entities: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """The entities of a request for days, both included; by default all that the connection has.

    Raises:
        ValueError: the connection was removed, or the days or entities cannot be asked for.
    """
    name, offered = record.name, entities_of(record)
    if record.removed_at is not None:
        raise ValueError(f"the connection {name} was removed; apply it again to extract from it")
    if unknown := [entity for entity in entities or () if entity not in offered]:
        raise ValueError(f"{name} has no {', '.join(unknown)}; it has: {', '.join(offered) or 'nothing'}")
    _check_days(workspace, first, last)
    return entities or offered


def _check_days(workspace: Workspace, first: date, last: date) -> None:
    if last < first:
        raise ValueError(f"the last day {last} lies before the first day {first}")
    earliest = workspace.settings.first_day
    if first < earliest:
        raise ValueError(f"{first} lies before the first day {earliest}; see BRIDGE_FIRST_DAY")
    today = datetime.now(UTC).date()
    if last >= today:
        raise ValueError(f"{last} is not over yet (days are UTC, today is {today}); ask for days before it")
