"""Reads Client Central: `/api/v1/<entity>.json?token=…` (vendor-apis A.1, A.2).

The token stands in every URL, so no URL leaves this module unredacted.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.config import Address, AllowPrivate
from bridge_pipeline.connector_kit.connector import Page, Reading, Stream
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.listing import Limits, Listing, NeverWhole, Request
from bridge_pipeline.connector_kit.outline import Reader
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.session import (
    AheadSession,
    Contradictory,
    SourceContext,
    SourceError,
    journalled,
)
from bridge_pipeline.model import Window
from bridge_pipeline.redaction import remember

# A filter that the source does not understand is answered with one of these.
_BAD_FILTER = {400, 422, 500, 501}


class HelpdeskConfig(BaseModel):
    """What a connection to Client Central needs."""

    model_config = ConfigDict(extra="forbid")

    base_url: Address = Field(description="Address of the desk, such as https://clientcentral.io")
    api_token: SecretStr = Field(description="An API token: digits, a dash, then letters and digits.")
    allow_private: AllowPrivate = False


class HelpdeskClient:
    """Reads one connection; see `connector_kit.connector.Client`."""

    def __init__(self, config: HelpdeskConfig, context: SourceContext) -> None:
        token = config.api_token.get_secret_value()
        remember(token, sent=True)
        self._context = context
        self._session = AheadSession(context, config.base_url, {"token": token}, config.allow_private)
        self._readers: dict[tuple[str, ...], Reader] = {}

    def read(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields pages until the listing is whole; begins with the filter if there is a window."""
        settings = self._context.settings
        listing = Listing(
            fetch=lambda request: self._page(reading, request, proof),
            census=reading.census,
            limits=Limits(settings.max_sweeps, settings.confirm_pages),
            filtered=reading.window is not None,
            filter_proven=reading.filter_proven,
            proof=proof,
        )
        try:
            yield from listing.pages()
        except NeverWhole as error:
            entity = reading.stream.entity.name
            raise Contradictory(f"{self._context.connection}: {entity}: {error}") from None

    def read_one(self, stream: Stream, record_id: str, journal: Journal) -> Page | None:
        """The record `/api/v1/<entity>/<id>.json`, or None for 404."""
        try:
            number, (record, raw), fetched_at, _ = journalled(
                self._session,
                journal,
                f"one-{record_id}",
                f"{stream.path}/{record_id}.json",
                {"select": stream.select},
                lambda body: stream.single_record(body, record_id),
                lambda body: self._context.without_excluded(stream.entity, body),
                lambda _: 1,
            )
        except SourceError as error:
            if error.status in (404, 410):
                return None
            raise
        return Page(number, PageContent([record], exact=[raw]), fetched_at)

    def list_ids(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """The whole listing with ids and change times alone (vendor-apis A.2, `select`)."""
        yield from self.read(replace(reading, stream=replace(reading.stream, select="id,updated_at")), proof)

    def count(self, stream: Stream) -> int | None:
        """What `count=true` adds to the envelope (vendor-apis A.2); None where it adds nothing."""
        answer = self._session.get(
            f"{stream.path}.json",
            {"page": "1", "select": "id", "count": "true"},
            lambda body: pages.parse_list(body, stream.names),
        )
        return answer.content.total

    def check(self, stream: Stream) -> int:
        """Asks for the first page."""
        answer = self._session.get(
            f"{stream.path}.json",
            {"page": "1", "select": stream.select},
            lambda body: pages.parse_list(body, stream.names),
        )
        return len(answer.content.records)

    def close(self) -> None:
        """Closes the connections to the source."""
        self._session.close()

    def _page(self, reading: Reading, request: Request, proof: dict[str, Any]) -> tuple[Page, bool]:
        params = self._params(reading, request, proof)

        def ask_next(content: PageContent) -> None:
            following, goes_on = request.following, content.records and content.says_more(request.page)
            if following and goes_on and following.key not in reading.journal:
                self._ask(reading, self._params(reading, following, proof))

        try:
            number, content, fetched_at, live = self._fetch(reading, request.key, params, ask_next)
        except SourceError as error:
            if "filter" not in params or error.status not in _BAD_FILTER:
                raise
            # Reported by users of the API: filters that the server refuses. All is read instead.
            proof["filter_refused"] = error.status
            params = self._params(reading, request, proof)
            number, content, fetched_at, live = self._fetch(reading, request.key, params, ask_next)
        return Page(number, content, fetched_at), live

    def _params(self, reading: Reading, request: Request, proof: dict[str, Any]) -> dict[str, str]:
        params = {"page": str(request.page), "select": reading.stream.select}
        if request.filtered and reading.window and not proof.get("filter_refused"):
            params["filter"] = _changed_in(reading.window.padded(self._context.settings.window_padding))
        return params

    def _fetch(
        self,
        reading: Reading,
        key: str,
        params: dict[str, str],
        meanwhile: Callable[[PageContent], None],
    ) -> tuple[int, PageContent, datetime, bool]:
        stream = reading.stream
        return journalled(
            self._session,
            reading.journal,
            key,
            f"{stream.path}.json",
            params,
            self._reader(stream).parse_list,
            lambda body: self._context.without_excluded(stream.entity, body),
            lambda content: len(content.records),
            meanwhile=meanwhile,
        )

    def _ask(self, reading: Reading, params: dict[str, str]) -> None:
        """Asks for a page of which it is known that it comes next."""
        stream = reading.stream
        self._session.ask(f"{stream.path}.json", params, self._reader(stream).parse_list)

    def _reader(self, stream: Stream) -> Reader:
        return self._readers.setdefault(stream.names, Reader(stream.names))


def open_client(config: HelpdeskConfig, context: SourceContext) -> HelpdeskClient:
    """A client for one connection; nothing is sent yet.

    Raises:
        AddressRefused: the address is not allowed.
    """
    return HelpdeskClient(config, context)


def _changed_in(window: Window) -> str:
    """The filter expression for a window, in the API's query language (vendor-apis A.2)."""
    return f"updated_at >= '{_instant(window.start)}' AND updated_at < '{_instant(window.end)}'"


def _instant(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
