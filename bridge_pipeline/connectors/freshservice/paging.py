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
# A source that serves so many pages in a row that it has served before serves them for ever.
_ENDLESS = 10
# A hundred million rows at a hundred a page.
_MOST_PAGES = 1_000_000


class Repeats:
    """Notices a list without an end, which serves the same pages for ever in whatever turns.

    Of each page it keeps one number. A page is known by the ids on it: rows may change meanwhile.

    Args:
        most: how many pages a list has at most.
    """

    def __init__(self, most: int = _MOST_PAGES) -> None:
        self._most = most
        self._pages = 0
        self._seen: set[int] = set()
        self._repeated = 0

    def see(self, rows: Sequence[Any]) -> None:
        """Looks at the rows of the next page.

        Raises:
            NeverWhole: too many pages in a row were there before, or there are too many pages.
        """
        page = hash(frozenset(_identity(row) for row in rows))
        self._repeated = self._repeated + 1 if rows and page in self._seen else 0
        self._seen.add(page)
        self._pages += 1
        if self._repeated == _ENDLESS:
            raise NeverWhole(
                f"{_ENDLESS} pages in a row bring the same records as pages before them, and still there is "
                "a next one"
            )
        if self._pages > self._most:
            raise NeverWhole(f"it has no end: {self._most} pages and still more")

    def go_on(self) -> None:
        """Forgets the pages so far: those that follow are of another question, and may repeat them."""
        self._seen.clear()
        self._repeated = 0


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
            NeverWhole: it has no end.
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
            self._repeats.go_on()
        else:
            # More tickets changed in one second than a page holds.
            self.number += 1

    def give_up_order(self) -> None:
        """Begins anew, by numbers."""
        self.ordered, self.since, self.number = False, self._start, 1
        self._repeats.go_on()


def _identity(row: Any) -> str:
    """The id of a row as it stands there; of one without an id all of it."""
    found = row.get("id") if isinstance(row, dict) else None
    return repr(row if found is None else found)


def written(moment: datetime) -> str:
    """A time as the API takes it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def links_on(header: str) -> bool:
    """Whether a `Link` header names a next page; where it leads is never followed."""
    return 'rel="next"' in header.replace("'", '"').lower() or "rel=next" in header.lower()
