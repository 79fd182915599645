"""Reads Zendesk Support: incremental exports, and a list for groups (vendor-apis C.1 to C.3).

An export is ordered by change and read by what stands in its answers, so records that change while it
is read move to its end and nothing is lost between pages.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import structlog

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Page, Reading, Stream
from bridge_pipeline.connector_kit.fields import Refused, from_microseconds
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.listing import Limits, Listing, NeverWhole, Request
from bridge_pipeline.connector_kit.oauth import OAuthCredentials
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.session import (
    Contradictory,
    Session,
    SourceContext,
    SourceError,
    journalled,
)
from bridge_pipeline.connectors.zendesk.config import ZendeskConfig, credentials_of
from bridge_pipeline.connectors.zendesk.paging import (
    OFFSET_PAGES,
    STYLES,
    Capped,
    Params,
    Style,
    Tally,
    is_numbered,
    is_whole,
)
from bridge_pipeline.connectors.zendesk.streams import comment_page

# Where one record of an entity is found; there is no address of a single comment.
_SINGLE = {
    "accounts": "/api/v2/organizations",
    "users": "/api/v2/users",
    "groups": "/api/v2/groups",
    "tickets": "/api/v2/tickets",
}
# A start within the last minute is refused, and was within the last five (vendor-apis C.3, 1).
_YOUNGEST_START = timedelta(minutes=5, seconds=1)
# A source whose clock runs behind ours by less calls a start too recent that is none to us.
_CLOCKS_DIFFER = timedelta(hours=1)
# Exports leave this out.
_WITHHELD = timedelta(seconds=60)
_GATEWAY = (500, 502, 503, 504)
# A page is asked for at a sixteenth of its size at least.
_HALVINGS = 4
_NOT_OFFERED = 405
# How a cursor may be refused; a credential is by 401 and 403.
_REFUSALS = (400, 404, 410, 422)
log = structlog.get_logger("bridge.source")


class _CursorLapsed(Exception):
    """A cursor that an interrupted extraction got is refused."""


class ZendeskClient:
    """Reads one connection; see `connector_kit.connector.Client`."""

    def __init__(self, config: ZendeskConfig, context: SourceContext) -> None:
        self._context = context
        self._credentials = credentials_of(config, context)
        self._session = Session(context, config.base_url, {}, config.allow_private, self._credentials)
        # By entity, how often the page has been halved for the rest of this client's life.
        self._halved: dict[str, int] = {}

    def read(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields the pages of an export or list from beginning to end; again, if some of it was resumed,
        be it to the end or to a cursor that is not good any more.

        An empty window is confirmed by the first page of the whole export; if that shows a record of the
        window, the start was not honoured, and all is read.
        """
        style = STYLES[reading.stream.entity.name]
        start = self._start(reading) if style.export else None
        for sweep in count(1):
            reading.census.begin_sweep()
            fresh, content = True, None
            with suppress(_CursorLapsed):
                for page, live in self._sweep(reading, f"s{sweep}", start, proof):
                    fresh, content = fresh and live, page.content
                    yield page
            proof |= {"method": style.method, "sweeps": sweep}
            if content and not style.export and is_numbered(content):
                if not (fresh and is_whole(content)):
                    yield from self._by_numbers(reading, style, proof)
                return
            if not fresh:
                continue
            if not start or reading.census.in_window:
                return
            yield from self._unfiltered(reading, f"c{sweep}", proof)
            if not reading.census.in_window:
                return
            start = 0

    def read_one(self, stream: Stream, record_id: str, journal: Journal) -> Page | None:
        """The record `/api/v2/<entity>/<id>.json`, or None for 404; there are no single comments."""
        path = _SINGLE.get(stream.entity.name)
        if path is None:
            entity = stream.entity.name
            raise SourceError(f"{self._context.connection}: Zendesk gives no single {entity}", _NOT_OFFERED)
        try:
            number, (record, raw), fetched_at, _ = journalled(
                self._session,
                journal,
                f"one-{record_id}",
                f"{path}/{record_id}.json",
                _included(stream),
                lambda body: stream.single_record(body, record_id),
                lambda body: self._context.without_excluded(stream.entity, body),
                lambda _: 1,
            )
        except SourceError as error:
            if error.status in (404, 410):
                return None
            raise
        return Page(number, PageContent([record], exact=[raw]), fetched_at)

    def check(self, stream: Stream) -> int:
        """Asks for the smallest page."""
        style = STYLES[stream.entity.name]
        start = {"start_time": "0"} if style.export else {}
        params = {style.size: "1", **_included(stream), **start}
        answer = self._session.get(stream.path, params, lambda body: _list_page(stream, body))
        return len(answer.content.records)

    def close(self) -> None:
        """Closes the connections to the source."""
        self._session.close()
        if isinstance(self._credentials, OAuthCredentials):
            self._credentials.close()

    def _start(self, reading: Reading) -> int:
        """The second from which an export is read; 0 for all of it."""
        if reading.window is None:
            return 0
        padded = reading.window.start - self._context.settings.window_padding
        return max(0, int(min(padded, datetime.now(UTC) - _YOUNGEST_START).timestamp()))

    def _sweep(
        self, reading: Reading, name: str, start: int | None, proof: dict[str, Any]
    ) -> Iterator[tuple[Page, bool]]:
        """Yields every page, and whether it was asked of the source now.

        Raises:
            Contradictory: the pages lead in a circle.
            _CursorLapsed: the source refuses the cursor that a page of the journal ends with.
        """
        style = STYLES[reading.stream.entity.name]
        params: Params | None = {} if start is None else {"start_time": str(start)}
        live, led = True, set[bytes]()
        for number in count(1):
            assert params is not None
            try:
                page, live = self._page(reading, f"{name}-p{number}", style, params)
            except SourceError as error:
                if not live and "start_time" not in params and error.status in _REFUSALS:
                    log.warning("a cursor from the journal is refused; reading anew", error=str(error))
                    raise _CursorLapsed from error
                begun = self._believed_too_recent(params, error)
                # Also said of the server's own next page: nothing has changed since.
                proof["ended"] = "start too recent"
                if reading.window and reading.window.end > begun:
                    proof["unsettled_from"] = begun.isoformat()
                return
            yield page, live
            following = self._following(reading, style, page, params)
            if following is None or "page" in following:
                proof["ended"] = "end of stream" if style.export else "no more pages"
                self._say_what_is_unsettled(reading, page, proof)
                return
            if style.marked and self._beyond(reading, page, following):
                proof["ended"] = "beyond the window"
                return
            # Cursors may be long, and an account has thousands of pages.
            digest = hashlib.sha256(repr(following).encode()).digest()
            if digest in led:
                raise Contradictory(
                    f"{self._context.connection}: {reading.stream.entity.name}: page {number} leads to where "
                    "a page before it led: there is no end of pages"
                )
            led.add(digest)
            params = following

    def _believed_too_recent(self, params: Params, error: SourceError) -> datetime:
        """The start that was asked for, where it can be that nothing is shown from there on yet.

        Raises:
            SourceError: `error`, or that it contradicts the clock.
        """
        if not _too_recent(error) or "start_time" not in params:
            raise error
        start = datetime.fromtimestamp(int(params["start_time"]), UTC)
        if datetime.now(UTC) - start > _YOUNGEST_START + _CLOCKS_DIFFER:
            raise SourceError(
                f"{error}; but {start:%Y-%m-%dT%H:%M:%SZ} is long ago: the clock of the source or of this "
                "machine is wrong, or the answer is",
                error.status,
            )
        return start

    def _unfiltered(self, reading: Reading, name: str, proof: dict[str, Any]) -> Iterator[Page]:
        """The first page of the whole export."""
        for page, _ in self._sweep(reading, name, 0, {}):
            yield page
            proof["confirmed_empty"] = {"records": len(page.content.records)}
            return

    def _by_numbers(self, reading: Reading, style: Style, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields the offset pages of a list, in sweeps until it is whole (rule 4).

        Pages of another size begin elsewhere, so that where the gateway gives one up, the sweeps begin anew.
        """
        settings, entity = self._context.settings, reading.stream.entity.name
        limits = Limits(settings.max_sweeps, settings.confirm_pages)
        while True:
            size, tally = self._size(entity, style), Tally()
            fetch = partial(self._numbered_page, reading, style, size, tally)
            try:
                yield from Listing(fetch, reading.census, limits, filtered=False, proof=proof).pages()
            except NeverWhole as error:
                raise Contradictory(f"{self._context.connection}: {entity}: {error}") from None
            except SourceError as error:
                if not self._halve(entity, error):
                    raise
                continue
            if tally.shown < tally.count:
                raise Contradictory(
                    f"{self._context.connection}: {entity}: the source counts {tally.count} and its pages "
                    f"show {tally.shown}; it hides some from the credential, or miscounts"
                )
            return

    def _numbered_page(
        self, reading: Reading, style: Style, size: int, tally: Tally, request: Request
    ) -> tuple[Page, bool]:
        """One offset page; behind the last that may be asked for there is none."""
        if request.page > OFFSET_PAGES and tally.page:
            return replace(tally.page, content=PageContent([])), True
        params = {"page": str(request.page), "per_page": str(size)}
        page, live = self._asked(reading, f"n{size}-{request.key}", style, params)
        tally.enter(request.page, page)
        more = self._following(reading, style, page, params) is not None
        return replace(page, content=replace(page.content, more=more)), live

    def _page(self, reading: Reading, key: str, style: Style, params: Params) -> tuple[Page, bool]:
        """One page, at half the size for as long as the gateway gives up on it (vendor-apis C.1)."""
        entity = reading.stream.entity.name
        while True:
            try:
                return self._asked(
                    reading, key, style, {**params, style.size: str(self._size(entity, style))}
                )
            except SourceError as error:
                if not self._halve(entity, error):
                    raise

    def _asked(self, reading: Reading, key: str, style: Style, params: Params) -> tuple[Page, bool]:
        stream = reading.stream
        number, content, fetched_at, live = journalled(
            self._session,
            reading.journal,
            key,
            stream.path,
            {**params, **_included(stream)},
            lambda body: _checked_page(stream, style, body, params),
            lambda body: self._context.without_excluded(stream.entity, body),
            lambda content: len(content.records),
        )
        return Page(number, content, fetched_at), live

    def _following(self, reading: Reading, style: Style, page: Page, params: Params) -> Params | None:
        """What the page after an answer is asked for with; None at the end."""
        try:
            return style.following(page.content, params)
        except Capped as error:
            raise SourceError(f"{self._context.connection}: {reading.stream.entity.name}: {error}") from None

    def _size(self, entity: str, style: Style) -> int:
        return style.most >> self._halved.get(entity, 0)

    def _halve(self, entity: str, error: SourceError) -> bool:
        """Asks for pages of half the size from now on, if the gateway gave one up that can be smaller."""
        halved = self._halved.get(entity, 0)
        if error.status not in _GATEWAY or halved == _HALVINGS:
            return False
        self._halved[entity] = halved + 1
        return True

    def _beyond(self, reading: Reading, page: Page, following: Params) -> bool:
        """Whether all that follows changed after the window, by the order of the export."""
        if reading.window is None:
            return False
        end = reading.window.end + self._context.settings.window_padding
        if "start_time" in following:
            return datetime.fromtimestamp(int(following["start_time"]), UTC) >= end
        marks = [mark for record in page.content.records if (mark := _mark(reading.stream, record))]
        return bool(marks) and min(marks) >= end

    def _say_what_is_unsettled(self, reading: Reading, page: Page, proof: dict[str, Any]) -> None:
        """An export does not show its last minute, so a window that reaches into it may grow yet."""
        seen = page.fetched_at - _WITHHELD
        if STYLES[reading.stream.entity.name].export and reading.window and reading.window.end > seen:
            proof["unsettled_from"] = seen.isoformat()


def open_client(config: ZendeskConfig, context: SourceContext) -> ZendeskClient:
    """A client for one connection; nothing is sent yet.

    Raises:
        AddressRefused: the address is not allowed.
    """
    return ZendeskClient(config, context)


def _included(stream: Stream) -> Params:
    return {"include": stream.select} if stream.select else {}


def _list_page(stream: Stream, body: bytes) -> PageContent:
    return comment_page(body) if stream.split else pages.parse_list(body, stream.names)


def _checked_page(stream: Stream, style: Style, body: bytes, params: Params) -> PageContent:
    """A page that says where it leads.

    Raises:
        UnreadableBody: it does not, or is no such answer.
    """
    content = _list_page(stream, body)
    # A page is good even if none can follow it.
    with suppress(Capped):
        style.following(content, params)
    return content


def _mark(stream: Stream, record: Any) -> datetime | None:
    """The change mark of a record, where it has one that can be read."""
    read = stream.fields[stream.entity.column_names.index("updated_at")].read
    try:
        mark = read(record) if isinstance(record, dict) else None
    except Refused:
        return None
    return None if mark is None else from_microseconds(mark)


def _too_recent(error: SourceError) -> bool:
    return error.status == 422 and "too recent" in str(error).lower()
