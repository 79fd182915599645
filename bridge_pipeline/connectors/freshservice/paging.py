"""Where the next page of a list is (vendor-apis B.2): by numbers, and for tickets by change time.

Numbers over a set that changes lose rows, and are refused beyond some depth. Tickets can be asked for
from a change time on, in the order of their changes: each page begins where the one before it ended, so
that a ticket which changes meanwhile moves behind the reader and is met again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bridge_pipeline.connector_kit.listing import NeverWhole

MOST_ROWS = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Times are whole seconds, and whether `updated_since` includes its own is not documented.
_OVERLAP = timedelta(seconds=1)
# How many empty pages are believed to be followed by others.
_EMPTY = 3
# A source that serves the same rows so often in a row serves them for ever.
_SAME = 10


class Repeats:
    """Notices a list that serves one page for ever, whatever is asked of it."""

    def __init__(self) -> None:
        self._last: Sequence[Any] = ()
        self._times = 0

    def see(self, rows: Sequence[Any]) -> None:
        """Looks at the rows of the next page.

        Raises:
            NeverWhole: they have come too often in a row.
        """
        self._times = self._times + 1 if rows and rows == self._last else 0
        self._last = rows
        if self._times == _SAME:
            raise NeverWhole(
                f"{_SAME + 1} pages in a row bring the same records, and still there is a next one"
            )


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
    _repeats: Repeats = field(default_factory=Repeats)

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

    def take(self, rows: Sequence[Any], marks: Sequence[datetime], linked: bool) -> None:
        """Takes the answer in: its rows, the readable change times, and whether it links a next page.

        The last page has no `Link`; a full page without one may have lost it, and is followed.

        Raises:
            NeverWhole: the same rows come for ever.
        """
        self._repeats.see(rows)
        self._empty = 0 if rows else self._empty + 1
        if (not linked and len(rows) < self.size) or self._empty == _EMPTY:
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
