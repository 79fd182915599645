"""Reading a listing by page numbers until it is provably whole.

Page numbers over a set that changes while it is read lose rows, and a filter can hide
rows as well as let too many through. So a listing is read in full sweeps until one brings
no unseen record, the confirming sweep is read without the filter wherever the listing is
short enough, and the tail is read again at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from bridge_pipeline.connector_kit.connector import Census, Page

log = structlog.get_logger("bridge.source")

# A page of which every record has been seen in this sweep may come from a shifting set; several in
# a row mean that the source repeats itself: it does not know `page`, or serves the last page again.
_REPEATS = 3
# How far to read on where the envelope contradicts its records before the records are believed.
_CONTRADICTIONS = 3
_ENDLESS = 10
# Records of the window that an unproven filter is compared with at least, if there are so many.
_COMPARED = 100
# A hundred million records at a hundred a page.
_MOST_PAGES = 1_000_000


class NeverWhole(RuntimeError):
    """The listing kept bringing unseen records, or pages without an end."""


@dataclass(frozen=True)
class Request:
    """One page of a listing; `key` is its name in the journal.

    `following` is the one that is sure to be asked for where the page has records and says that more follow.
    """

    key: str
    page: int
    filtered: bool
    following: "Request | None" = None


@dataclass(frozen=True)
class Limits:
    """`sweeps`: full readings at most; `confirm_pages`: how much is read without the filter; `pages`: what
    has more of them has no end."""

    sweeps: int
    confirm_pages: int
    pages: int = _MOST_PAGES


Fetch = Callable[[Request], tuple[Page, bool]]


@dataclass
class Listing:
    """One reading of a listing; `proof` says afterwards how it was found whole.

    Args:
        fetch: gets one page, and says whether it was asked of the source now.
        census: what has been seen of all pages that were yielded.
        filtered: whether to begin with the source's filter.
        filter_proven: whether an earlier reading found that the filter hides nothing.
    """

    fetch: Fetch
    census: Census
    limits: Limits
    filtered: bool
    filter_proven: bool = False
    proof: dict[str, Any] = field(default_factory=dict)
    _live: bool = True
    _ended: bool = True
    _last: int = 0

    def pages(self) -> Iterator[Page]:
        """Yields every page of every sweep.

        Raises:
            NeverWhole: still unseen records after the last sweep, or no end of pages.
        """
        filtered, sampled, again = self.filtered, False, False
        sweep = live_sweeps = 0
        while live_sweeps < self.limits.sweeps:
            sweep += 1
            yield from self._sweep(f"s{sweep}", filtered)
            live_sweeps += self._live
            confirmed = sweep > 1 and self._live and self.census.unseen == 0
            if filtered and not sampled:
                sampled = True
                yield from self._sample(f"c{sweep}")
                if self._ended or not self._filter_trusted():
                    # What was just read without the filter becomes the listing to confirm.
                    filtered = False
                    confirmed = self._ended and self._live and self.census.unseen == 0
                else:
                    continue
            if confirmed and self.census.missed and not again:
                # A sweep that missed what another saw was disturbed itself and proves little.
                again = True
                continue
            if confirmed:
                yield from self._tail(f"t{sweep}", filtered)
                if self.census.unseen == 0:
                    self._conclude(sweep, filtered)
                    return
        raise NeverWhole(
            f"the listing was read {sweep} times, and the last reading still differed from those before "
            f"({self.census.unseen} unseen records); the source changes faster than it can be read"
        )

    def _sweep(
        self,
        name: str,
        filtered: bool,
        enough: Callable[[int], bool] = lambda pages: False,
        certainly: int = _MOST_PAGES,
    ) -> Iterator[Page]:
        """Yields pages until the listing ends, or so many have been read that it is `enough`, which is not
        before there are `certainly` so many."""
        self.census.begin_sweep()
        self._live, self._ended, self._last = True, False, 1
        empty = number = 0
        shown: list[int] = []
        while not enough(number):
            number += 1
            if number > self.limits.pages:
                raise NeverWhole(f"the listing has no end: {self.limits.pages} pages and still more")
            following = Request(f"{name}-p{number + 1}", number + 1, filtered)
            certain = number < min(certainly, self.limits.pages)
            page, live = self.fetch(
                Request(f"{name}-p{number}", number, filtered, following if certain else None)
            )
            self._live &= live
            yield page
            if page.content.records:
                empty = 0
                shown.append(number)
            else:
                empty += 1
            if self._over(page, number, empty):
                self._ended = True
                break
        self._last = next(iter(shown[-1 - self.census.repeats :]), 1)

    def _over(self, page: Page, number: int, empty: int) -> bool:
        """Whether the listing ends here. Envelopes are not believed against the records."""
        content = page.content
        says_more = content.says_more(number)
        if empty:
            return not says_more or empty >= _CONTRADICTIONS
        if says_more:
            # The next page is asked for whatever the census says of this one.
            repeated = self.census.repeats_entered if number % _ENDLESS == 1 else 0
            if repeated >= _ENDLESS:
                raise NeverWhole(f"up to page {number}, {repeated} in a row bring only what was seen before")
            return False
        return self.census.repeats >= _REPEATS

    def _sample(self, name: str) -> Iterator[Page]:
        """Reads on without the filter: all of a short listing; of a long one until as much of the
        window has been compared as shows a filter that hides, unless it was proven before."""
        before, pages = self.census.in_window, 0

        def enough(number: int) -> bool:
            nonlocal pages
            pages = number
            if number < self.limits.confirm_pages:
                return False
            return self.filter_proven or self.census.swept_in_window >= _COMPARED

        yield from self._sweep(name, False, enough, self.limits.confirm_pages)
        self.proof["filter"] = {
            "pages_compared": pages,
            "records_compared": self.census.swept_in_window,
            "hidden": self.census.in_window - before,
            "proven_before": self.filter_proven,
        }

    def _filter_trusted(self) -> bool:
        compared = self.proof["filter"]
        if compared["hidden"]:
            log.warning("the source's filter hides records; reading without it", **compared)
            return False
        # A filter that was never compared with anything proves nothing.
        return bool(compared["records_compared"] or self.filter_proven)

    def _tail(self, name: str, filtered: bool) -> Iterator[Page]:
        self.census.begin_sweep()
        for number in (self._last, self._last + 1):
            page, _ = self.fetch(Request(f"{name}-p{number}", number, filtered))
            yield page

    def _conclude(self, sweeps: int, filtered: bool) -> None:
        # A filter that the source refused was left out of every request since.
        filtered = filtered and not self.proof.get("filter_refused")
        self.proof |= {"method": "filtered listing" if filtered else "whole listing", "sweeps": sweeps}
