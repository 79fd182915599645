"""How many records a day usually has: the connection's own counts, taken at the same lag (rule 16).

A day read late has fewer records than the same day read at once, because records move on when they
change. So a count is compared only with counts of the same weekday that were taken as long after it.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from statistics import median
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.model.window import midnight

_WEEK = timedelta(weeks=1)
# How far back weekdays are compared, and how many of the latest count.
_WEEKS = 12
_LATEST = 8
# Lags count as the same within half a day, or within a fifth of the longer one.
_NEAR = timedelta(hours=12)
_SHARE = 0.2

# For each day the counts that were taken of it, each with its lag.
History = dict[date, list[tuple[timedelta, int]]]


@dataclass(frozen=True)
class JudgedDay:
    """A day with enough history: its rows, and the median of its weekday."""

    day: date
    rows: int
    usual: float


def history(connection: sa.Connection, batch: Batch) -> History:
    """The counts before a batch of the days that its own are compared with."""
    days = list(batch.window.days())
    found: History = defaultdict(list)
    for day, rows, fetched in ledger.day_counts(connection, batch, days[0] - _WEEKS * _WEEK, days[-1]):
        found[day].append((_lag(day, fetched), rows))
    return found


def judged(
    batch: Batch, days: dict[date, int], before: History, thresholds: dict[str, Any], settle: timedelta
) -> list[JudgedDay]:
    """The settled days of a batch that have enough history and are usually busy.

    Args:
        thresholds: `weekdays` same weekdays are enough; `busy` records make a day busy.
        settle: how long after its end a day settles.
    """
    found = []
    for day, rows in days.items():
        lag = _lag(day, batch.fetched_from)
        counts = [_count_at(day - week * _WEEK, lag, batch, days, before) for week in range(1, _WEEKS + 1)]
        known = [count for count in counts if count is not None][:_LATEST]
        if lag >= settle and len(known) >= thresholds["weekdays"] and median(known) >= thresholds["busy"]:
            found.append(JudgedDay(day, rows, median(known)))
    return found


def too_little(thresholds: dict[str, Any]) -> str:
    """Why days were not judged."""
    return (
        f"fewer than {thresholds['weekdays']} same weekdays of the last {_WEEKS} weeks were read as long "
        f"after their end, or they had fewer than {thresholds['busy']} records"
    )


def _count_at(day: date, lag: timedelta, batch: Batch, days: dict[date, int], before: History) -> int | None:
    """The count of a day that was taken at a lag nearest to `lag`; None if none was near enough."""
    counts = list(before.get(day, ()))
    if day in days:
        counts.append((_lag(day, batch.fetched_from), days[day]))
    near = [(abs(taken - lag), rows) for taken, rows in counts if _same(taken, lag)]
    return min(near)[1] if near else None


def _same(one: timedelta, other: timedelta) -> bool:
    return abs(one - other) <= max(_NEAR, _SHARE * max(one, other))


def _lag(day: date, fetched: datetime) -> timedelta:
    """How long after the day's end it was read."""
    return fetched - midnight(day) - timedelta(days=1)
