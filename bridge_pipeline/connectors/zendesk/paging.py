"""How Zendesk's answers lead from page to page: two exports and two styles of lists (vendor-apis C.2, C.3).

Each style says what is asked for first, and what an answer leads to. What an envelope must hold and
does not makes it unreadable, so that it is asked for again like a server error. Addresses in answers
(`next_page`, `after_url`, `links`) are never followed: only what they say is taken.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.pages import PageContent, UnreadableBody

Params = dict[str, str]
# Offset pages end there, and with them what a list can show (vendor-apis C.2).
OFFSET_PAGES = 100
# Seconds. A source whose clock runs ahead by more than this does not tell the time.
_AHEAD = 86_400


class Capped(RuntimeError):
    """The list is longer than offset pages can show."""


@dataclass(frozen=True)
class Style:
    """One way of paging.

    `size` names the parameter for the records per page, of which at most `most` may be asked for.
    `following` gives the parameters of the page after an answer, None at the end, from the content and
    the parameters that it was asked with. `export` says that the records come in the order of their
    changes from `start_time` on; `marked` that the change mark of the entity is what they are ordered by.
    """

    method: str
    size: str
    most: int
    following: Callable[[PageContent, Mapping[str, str]], Params | None]
    export: bool = True
    marked: bool = False


def _after_cursor(content: PageContent, sent: Mapping[str, str]) -> Params | None:
    """A cursor holds second and id, so equal seconds do no harm; the last page has one too."""
    if _ended(content):
        return None
    cursor = content.envelope.get("after_cursor")
    if not isinstance(cursor, str) or not cursor:
        raise UnreadableBody("the export has not ended and gives no after_cursor")
    if cursor == sent.get("cursor"):
        raise UnreadableBody("the export gives the cursor again that it was asked with")
    return {"cursor": cursor}


def _end_time(content: PageContent, sent: Mapping[str, str]) -> Params | None:
    """The next page begins with the second that this one ends in: its records come twice."""
    if _ended(content):
        return None
    end = content.envelope.get("end_time")
    if type(end) is not int:
        raise UnreadableBody("the export has not ended and gives no end_time")
    if end > time.time() + _AHEAD:
        raise UnreadableBody(
            f"the export's end_time is {str(end)[:60]}, which is no second that has come yet"
        )
    if end <= int(sent["start_time"]):
        raise UnreadableBody(
            f"the export does not get past the second {end}: more records changed in it than a page holds"
        )
    return {"start_time": str(end)}


def _ended(content: PageContent) -> bool:
    ended = content.envelope.get("end_of_stream")
    if not isinstance(ended, bool):
        raise UnreadableBody("the answer is no export: it has no end_of_stream")
    return ended


@dataclass
class Tally:
    """What the offset pages of a list have shown, for the source's own `count` to be compared with.

    `page` is the last page that was entered.
    """

    page: Page | None = None
    _shown: dict[int, int] = field(default_factory=dict)

    def enter(self, number: int, page: Page) -> None:
        """Enters the page with that number, from 1, which begins anew; a page that is read again counts
        as it is now."""
        if number == 1:
            self._shown.clear()
        self._shown[number] = len(page.content.records)
        self.page = page

    @property
    def shown(self) -> int:
        """How many records the pages have shown."""
        return sum(self._shown.values())

    @property
    def count(self) -> int:
        """How many there are by the last page; 0 where it does not say."""
        return (self.page and self.page.content.total) or 0


def is_numbered(content: PageContent) -> bool:
    """Whether the answer is an offset page of a list, where a cursor page may have been asked for."""
    return not isinstance(content.envelope.get("meta"), dict)


def is_whole(content: PageContent) -> bool:
    """Whether an offset page is all there is, so that nothing can have moved between it and another."""
    return content.envelope.get("next_page") is None and content.total == len(content.records)


def _next_page(content: PageContent, sent: Mapping[str, str]) -> Params | None:
    """Cursor pages end with `has_more`, whatever `links.next` says; offset pages with `next_page`."""
    meta = content.envelope.get("meta")
    if isinstance(meta, dict):
        return _by_cursor(meta, sent)
    if "next_page" not in content.envelope or "page[after]" in sent:
        raise UnreadableBody("the answer is no such list: it has neither meta nor next_page, or the other")
    following = content.envelope["next_page"]
    if following is None:
        return None
    if not isinstance(following, str) or not following:
        raise UnreadableBody(f"the list's next_page is no address but {str(following)[:60]!r}")
    page = int(sent.get("page", "1"))
    if page >= OFFSET_PAGES:
        raise Capped(f"it has more than {OFFSET_PAGES} pages, and offset pages end there")
    return {"page": str(page + 1)}


def _by_cursor(meta: Mapping[str, Any], sent: Mapping[str, str]) -> Params | None:
    more, cursor = meta.get("has_more"), meta.get("after_cursor")
    if not isinstance(more, bool):
        raise UnreadableBody("the list's meta has no has_more")
    if not more:
        return None
    if not isinstance(cursor, str) or not cursor or cursor == sent.get("page[after]"):
        raise UnreadableBody("the list has more and gives no new after_cursor")
    return {"page[after]": cursor}


STYLES = {
    "accounts": Style("time export", "per_page", 1_000, _end_time),
    "users": Style("cursor export", "per_page", 1_000, _after_cursor),
    "groups": Style("list", "page[size]", 100, _next_page, export=False),
    "tickets": Style("cursor export", "per_page", 1_000, _after_cursor, marked=True),
    "comments": Style("time export", "per_page", 1_000, _end_time, marked=True),
}
