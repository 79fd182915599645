"""Where the next page of a list is (vendor-apis B.2): by numbers, and for tickets by change time.

Numbers over a set that changes lose rows, and are refused beyond some depth. Tickets can be asked for
from a change time on, in the order of their changes: each page begins where the one before it ended, so
that a ticket which changes meanwhile moves behind the reader and is met again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MOST_ROWS = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Times are whole seconds, and whether `updated_since` includes its own is not documented.
_OVERLAP = timedelta(seconds=1)
# How many empty pages are believed to be followed by others.
_EMPTY = 3


@dataclass
class Walk:
    """One walk through a list, page by page of `size` rows.

    `since` is None for lists that know no `updated_since`. `ordered` is whether the answers still
    are what was asked for: in the order of their changes, and none before `since`.
    """

    since: datetime | None = None
    ordered: bool = True
    size: int = MOST_ROWS
    number: int = 1
    ended: bool = False
    _empty: int = 0

    def __post_init__(self) -> None:
        self._start = self.since

    @property
    def params(self) -> dict[str, str]:
        """The query of the next page."""
        params = {"page": str(self.number), "per_page": str(self.size)}
        if self.since is not None:
            params["updated_since"] = written(self.since)
            if self.ordered:
                params |= {"order_by": "updated_at", "order_type": "asc"}
        return params

    def take(self, rows: int, marks: Sequence[datetime], linked: bool) -> None:
        """Takes the answer in: how many rows, the readable change times, and whether it links a next page.

        The last page has no `Link`; a full page without one may have lost it, and is followed.
        """
        self._empty = 0 if rows else self._empty + 1
        if (not linked and rows < self.size) or self._empty == _EMPTY:
            self.ended = True
        elif self.since is None or not self.ordered:
            self.number += 1
        elif list(marks) != sorted(marks) or (marks and marks[0] < self.since):
            self.give_up_order()
        elif marks and marks[-1] - _OVERLAP > self.since:
            self.since, self.number = marks[-1] - _OVERLAP, 1
        else:
            # More tickets changed in one second than a page holds.
            self.number += 1

    def give_up_order(self) -> None:
        """Begins anew, by numbers."""
        self.ordered, self.since, self.number = False, self._start, 1


def written(moment: datetime) -> str:
    """A time as the API takes it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def links_on(header: str) -> bool:
    """Whether a `Link` header names a next page; where it leads is never followed."""
    return 'rel="next"' in header.replace("'", '"').lower() or "rel=next" in header.lower()
