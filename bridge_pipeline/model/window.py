"""Windows: half-open spans `[start, end)` of the source's change time, in UTC."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from bridge_pipeline import naming

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, order=True)
class Window:
    """A half-open span `[start, end)` of change times, both timezone-aware UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError(f"a window needs timezone-aware times, got {self.start} and {self.end}")
        if self.end <= self.start:
            raise ValueError(f"a window must end after it starts, got {self.start} to {self.end}")

    @classmethod
    def of_days(cls, first: date, last: date) -> "Window":
        """The window of whole UTC days, both included.

        Raises:
            ValueError: `last` lies before `first`.
        """
        if last < first:
            raise ValueError(f"the last day {last} lies before the first day {first}")
        return cls(midnight(first), midnight(last) + ONE_DAY)

    def contains(self, moment: datetime) -> bool:
        """Whether `moment` lies in `[start, end)`."""
        return self.start <= moment < self.end

    def padded(self, by: timedelta) -> "Window":
        """The window widened by `by` on both sides."""
        return Window(self.start - by, self.end + by)

    def days(self) -> Iterator[date]:
        """Every UTC day that the window touches, in order."""
        day = self.start.date()
        while midnight(day) < self.end:
            yield day
            day += ONE_DAY

    @property
    def last_day(self) -> date:
        """The last UTC day that the window touches."""
        return last_day_before(self.end)

    @property
    def label(self) -> str:
        """The window as a folder name."""
        return naming.span_label(self.start, self.end)

    def __str__(self) -> str:
        return f"[{_short(self.start)}, {_short(self.end)})"


def midnight(day: date) -> datetime:
    """The first moment of `day` in UTC."""
    return datetime.combine(day, time.min, UTC)


def last_day_before(end: datetime) -> date:
    """The last day that begins before the UTC moment `end`."""
    return (end - timedelta(microseconds=1)).date()


def _short(moment: datetime) -> str:
    return moment.date().isoformat() if moment.time() == time.min else moment.isoformat()
