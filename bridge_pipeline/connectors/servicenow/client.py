"""Reads ServiceNow: `/api/now/table/<table>` (vendor-apis D), one request at a time.

How a table is found whole is `keyset`; what its columns mean is `streams`; who wrote a comment `authors`.
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.config import Address, AllowPrivate
from bridge_pipeline.connector_kit.connector import Page, Reading, Stream
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.oauth import OAuth, OAuthCredentials
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.quota import Bucket, Metering, Observed
from bridge_pipeline.connector_kit.session import (
    Contradictory,
    Credentials,
    Session,
    SourceContext,
    SourceError,
    TookTooLong,
    journalled,
)
from bridge_pipeline.connectors.servicenow import deletions
from bridge_pipeline.connectors.servicenow.authors import LOGIN, Authors
from bridge_pipeline.connectors.servicenow.keyset import (
    FEWEST_LOOKED_AT,
    ID,
    Ask,
    Keyset,
    NeverWhole,
    NotObeyed,
    Part,
    Span,
)
from bridge_pipeline.connectors.servicenow.streams import STREAMS, is_key
from bridge_pipeline.model import COMMENTS, USERS, Window
from bridge_pipeline.redaction import remember

log = structlog.get_logger("bridge.source")
_TOTAL = "x-total-count"
_CANCELLED = b"Transaction cancelled"
_MOST_ROWS = 10_000
# Keys are small: as many more of them are asked for at a time.
_KEYS_PER_ROW = 10
_FEWEST_ROWS = 10
_RATE_RULE = "rate rule"
_HOUR = 3_600.0
_REFUSED = '{"error":{'
_USERS = next(stream for stream in STREAMS if stream.entity is USERS)


class ServiceNowConfig(BaseModel):
    """What a connection to ServiceNow needs: an instance, and one way to sign in."""

    model_config = ConfigDict(extra="forbid")

    base_url: Address = Field(description="Address of the instance, such as https://acme.service-now.com")
    user: str | None = Field(
        None, description="Name of the integration user, for Basic or the password grant."
    )
    password: SecretStr | None = Field(None, description="That user's password.")
    api_token: SecretStr | None = Field(None, description="A bearer token that does not change.")
    api_key: SecretStr | None = Field(None, description="An API key, sent as `x-sn-apikey`.")
    client_id: str | None = Field(None, description="OAuth: the client id of the application registry.")
    client_secret: SecretStr | None = Field(None, description="OAuth: the client's secret.")
    refresh_token: SecretStr | None = Field(
        None, description="OAuth: a refresh token, instead of a password."
    )
    requests_per_hour: int | None = Field(
        None, gt=0, description="What a rate limit rule of the instance allows this user, if there is one."
    )
    page_size: int = Field(
        1_000, ge=1, le=_MOST_ROWS, description="Rows asked for at a time; fewer where the instance is slow."
    )
    allow_private: AllowPrivate = False

    @model_validator(mode="after")
    def _one_way_in(self) -> "ServiceNowConfig":
        ways = [self.api_token is not None, self.api_key is not None, self.client_id is not None]
        by_password = self.user is not None and self.password is not None
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together")
        if sum(ways) > 1 or (by_password and (self.api_token or self.api_key)):
            raise ValueError("give one of: user and password, api_token, api_key, client_id")
        if not by_password and not any(ways):
            raise ValueError("needs user and password, api_token, api_key, or client_id for OAuth")
        if self.client_id is None and (self.client_secret or self.refresh_token):
            raise ValueError("client_secret and refresh_token need client_id")
        if self.client_id is not None and self.client_secret is None:
            raise ValueError("client_id needs client_secret")
        return self


class _Cancelled(RuntimeError):
    """The instance gave up in the middle of an answer; fewer rows may be quick enough."""


class _Fixed:
    """A credential that does not change: see `connector_kit.session.Credentials`."""

    def __init__(self, name: str, value: str) -> None:
        self._headers = {name: value}

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def renew(self) -> bool:
        return False


class ServiceNowClient:
    """Reads one connection; see `connector_kit.connector.Client`."""

    def __init__(self, config: ServiceNowConfig, context: SourceContext) -> None:
        self._context = context
        self._credentials = _credentials(config, context)
        self._session = Session(context, config.base_url, {}, config.allow_private, self._credentials)
        self._authors = Authors()
        self._shows_users = True
        # Of whole rows, and of their keys alone; smaller once the instance was too slow.
        self._sizes = {False: config.page_size, True: min(config.page_size * _KEYS_PER_ROW, _MOST_ROWS)}

    def read(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields pages by `(sys_updated_on, sys_id)` until the keys bring no unseen row.

        Of a window also tombstones of what the instance wrote down as deleted in it.
        """
        yield from self._explained(reading.stream, self._keyset(reading, proof).pages())
        if reading.window is not None and reading.stream.entity is not COMMENTS:
            yield from self._deleted(reading, reading.window, proof)

    def list_ids(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """All ids with the times of their change, and nothing else of the rows."""
        shown, total = 0, None

        def listed() -> Iterator[Page]:
            nonlocal shown, total
            for part in self._keyset(reading, proof, counted=True).listed("ids"):
                total = part.total if total is None else total
                shown += len(part.page.content.records)
                yield part.page

        yield from self._explained(reading.stream, listed())
        proof |= {"method": "list of keys", "hidden_by_access_rules": max(0, (total or 0) - shown)}

    def read_one(self, stream: Stream, record_id: str, journal: Journal) -> Page | None:
        """The row with that id, or None.

        404 says the same of a row that is deleted and of one that access rules hide (D.8); the
        count, which is taken before those rules, tells them apart. What is no key is not asked for: no
        row has it, and references hold other names too (D.3).
        """
        if not is_key(record_id):
            return None
        try:
            number, (record, raw), fetched_at, _ = journalled(
                self._session,
                journal,
                f"one-{record_id}",
                f"{stream.path}/{quote(record_id, safe='')}",
                _raw(),
                lambda body: stream.single_record(body, record_id),
                lambda body: self._context.without_excluded(stream.entity, body),
                lambda _: 1,
            )
        except SourceError as error:
            if error.status != 404:
                raise
            if self._matching(stream, f"{ID}={record_id}"):
                raise SourceError(f"{error}: access rules hide this row", 403) from None
            return None
        content = self._signed(stream, journal, f"one-{record_id}", PageContent([record], exact=[raw]))
        return Page(number, content, fetched_at)

    def count(self, stream: Stream) -> int | None:
        """`X-Total-Count`, which counts the rows that access rules hide too (D.2)."""
        return self._matching(stream, stream.select)

    def check(self, stream: Stream) -> int:
        """Asks for the first row."""
        answer = self._session.get(
            stream.path, {**_raw(), "sysparm_limit": "1"}, lambda body: _rows(body, stream)
        )
        return len(answer.content.records)

    def close(self) -> None:
        """Closes the connections to the source."""
        self._session.close()
        if isinstance(self._credentials, OAuthCredentials):
            self._credentials.close()

    def _keyset(self, reading: Reading, proof: dict[str, Any], counted: bool = False) -> Keyset:
        stream, settings = reading.stream, self._context.settings
        window = reading.window.padded(settings.window_padding) if reading.window else None
        return Keyset(
            lambda ask: self._part(stream, reading.journal, ask, counted),
            _span(stream, window),
            settings.max_sweeps,
            proof,
        )

    def _explained(self, stream: Stream, found: Iterator[Page]) -> Iterator[Page]:
        try:
            yield from found
        except (NotObeyed, NeverWhole) as error:
            raise Contradictory(f"{self._context.connection}: {stream.entity.name}: {error}") from None

    def _part(self, stream: Stream, journal: Journal, ask: Ask, counted: bool) -> Part:
        """The answer to a request, with fewer rows if the instance cancels it.

        Of a resumed extraction the number of rows is the one with which each page was read.
        """
        sizes = [1] if ask.counting else list(_halves(self._sizes[ask.only_keys]))
        read = next((n for n, size in enumerate(sizes) if f"{ask.key}-{size}" in journal), 0)
        for size in sizes[read:]:
            try:
                part = self._fetch(stream, journal, ask, size, counted)
            except (_Cancelled, TookTooLong) as cancelled:
                # The instance gives up after as many seconds as we do, so either may be first (D.7).
                log.warning("asking for fewer rows", table=stream.path, rows=size, reason=str(cancelled))
                continue
            if not ask.counting:
                self._sizes[ask.only_keys] = size
            return part
        raise SourceError(
            f"{self._context.connection}: GET {stream.path}: the instance cancels even answers of "
            f"{sizes[-1]} rows, or takes too long for them"
        )

    def _fetch(self, stream: Stream, journal: Journal, ask: Ask, size: int, counted: bool) -> Part:
        params = {
            **_raw(),
            "sysparm_query": ask.query,
            "sysparm_limit": str(size),
            "sysparm_offset": str(ask.offset),
            # Links are never followed; next pages are asked for by keys.
            "sysparm_suppress_pagination_header": "true",
        }
        if ask.only_keys or ask.counting:
            params["sysparm_fields"] = f"{ID},{_changed(stream)}"
        counts = not ask.counting and (counted or not ask.only_keys)
        number, content, fetched_at, live = journalled(
            self._session,
            journal,
            f"{ask.key}-{size}",
            stream.path,
            params,
            lambda body: _rows(body, stream),
            lambda body: self._context.without_excluded(stream.entity, body),
            lambda content: len(content.records) if counts else 0,
            keep=(_TOTAL,),
        )
        if not (ask.only_keys or ask.counting):
            content = self._signed(stream, journal, f"{ask.key}-{size}", content)
        return Part(Page(number, content, fetched_at), self._total(stream, journal, number), size, live)

    def _deleted(self, reading: Reading, window: Window, proof: dict[str, Any]) -> Iterator[Page]:
        """Tombstones of a window, where the user may read of deletions, which most may not (D.4, 6)."""
        padded = window.padded(self._context.settings.window_padding)
        span = _written(padded.start), _written(padded.end)
        offset, total, most, hidden = 0, 1, 0, False
        while offset < total:
            try:
                page, total = self._tombstones(reading, span, offset)
            except SourceError as error:
                if not _withheld(error):
                    raise
                proof["deletions"] = "not readable"
                return
            yield page
            # A gateway may give fewer than were asked for, and access rules may hide some.
            most = max(most, page.content.total or 0)
            hidden |= not page.content.total and offset < total
            offset += max(most, FEWEST_LOOKED_AT) if most else _MOST_ROWS
        proof["deletions"] = deletions.PATH.rsplit("/", 1)[1] + ", some hidden" * hidden

    def _tombstones(self, reading: Reading, span: tuple[str, str], offset: int) -> tuple[Page, int]:
        stream, journal = reading.stream, reading.journal
        params = {
            **_raw(),
            "sysparm_query": deletions.asked(stream, *span),
            "sysparm_fields": deletions.COLUMNS,
            "sysparm_limit": str(_MOST_ROWS),
            "sysparm_offset": str(offset),
            "sysparm_suppress_pagination_header": "true",
        }
        number, content, fetched_at, _ = journalled(
            self._session,
            journal,
            f"deleted-{offset}",
            deletions.PATH,
            params,
            lambda body: deletions.tombstones(body, stream, *span),
            lambda body: body,
            lambda content: len(content.records),
            keep=(_TOTAL,),
        )
        return Page(number, content, fetched_at), self._total(stream, journal, number)

    def _signed(self, stream: Stream, journal: Journal, name: str, content: PageContent) -> PageContent:
        """Entries with their authors; what is no entry, and what the user may not know, as it is."""
        if stream.entity is not COMMENTS or not self._shows_users:
            return content
        try:
            return self._authors.named(content, name, lambda key, logins: self._users(journal, key, logins))
        except SourceError as error:
            if not _withheld(error):
                raise
            log.warning("comments stay without authors", reason=str(error))
            self._shows_users = False
            return content

    def _users(self, journal: Journal, key: str, logins: list[str]) -> Sequence[Any]:
        params = {
            **_raw(),
            "sysparm_query": f"{LOGIN}IN{','.join(logins)}^ORDERBY{ID}",
            "sysparm_fields": f"{ID},{LOGIN}",
            "sysparm_limit": str(_MOST_ROWS),
            "sysparm_suppress_pagination_header": "true",
        }
        _, content, _, _ = journalled(
            self._session,
            journal,
            key,
            _USERS.path,
            params,
            lambda body: pages.parse_list(body, _USERS.names),
            lambda body: self._context.without_excluded(USERS, body),
            lambda _: 0,
        )
        return content.records

    def _total(self, stream: Stream, journal: Journal, number: int) -> int:
        return self._counted(stream, journal.headers(number).get(_TOTAL, ""))

    def _matching(self, stream: Stream, term: str) -> int:
        """How many rows match, before access rules."""
        params = {**_raw(), "sysparm_query": term, "sysparm_limit": "1", "sysparm_fields": ID}
        answer = self._session.get(stream.path, params, lambda body: _rows(body, stream))
        return self._counted(stream, answer.headers.get(_TOTAL, ""))

    def _counted(self, stream: Stream, total: str) -> int:
        if not (total.isascii() and total.isdigit()):
            raise SourceError(
                f"{self._context.connection}: GET {stream.path}: the answer has no X-Total-Count, without "
                "which an empty page cannot be told from the last one; does a proxy take headers away?"
            )
        return int(total)


def open_client(config: ServiceNowConfig, context: SourceContext) -> ServiceNowClient:
    """A client for one connection; nothing is sent yet.

    Raises:
        AddressRefused: the address is not allowed.
    """
    return ServiceNowClient(config, context)


def _credentials(config: ServiceNowConfig, context: SourceContext) -> Credentials:
    if config.client_id is not None:
        return OAuthCredentials(context, config.base_url, config.allow_private, _oauth(config))
    if config.api_token is not None:
        remember(token := config.api_token.get_secret_value(), sent=True)
        return _Fixed("Authorization", f"Bearer {token}")
    if config.api_key is not None:
        remember(key := config.api_key.get_secret_value(), sent=True)
        return _Fixed("x-sn-apikey", key)
    password = _clear(config.password)
    pair = base64.b64encode(f"{config.user}:{password}".encode()).decode()
    remember(password, sent=True)
    remember(pair, sent=True)
    return _Fixed("Authorization", f"Basic {pair}")


def _oauth(config: ServiceNowConfig) -> OAuth:
    """Tokens by password, or by the client's own credentials where there is neither user nor token."""
    grant: dict[str, str] | None = None
    if config.user is not None:
        grant = {"grant_type": "password", "username": config.user, "password": _clear(config.password)}
    elif config.refresh_token is None:
        grant = {"grant_type": "client_credentials"}
    return OAuth(
        path="/oauth_token.do",
        client={"client_id": config.client_id or "", "client_secret": _clear(config.client_secret)},
        grant=grant,
        refresh_token=_clear(config.refresh_token) or None,
    )


def _clear(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


def _raw() -> dict[str, str]:
    """Values as they are stored: UTC to the second, choices and references as keys (D.2, D.3).

    Display mode would give times in the caller's zone, drop seconds of durations and translate
    choices; links name the wrong table at times.
    """
    return {"sysparm_display_value": "false", "sysparm_exclude_reference_link": "true"}


def _rows(body: bytes, stream: Stream) -> PageContent:
    """Takes a list answer apart.

    Raises:
        UnreadableBody: it is none.
        _Cancelled: it broke off because it took too long, also where what is there is JSON (D.7).
    """
    if _CANCELLED in body and _broke_off(body):
        raise _Cancelled("the instance cancelled the answer: maximum execution time exceeded")
    return pages.parse_list(body, stream.names)


def _broke_off(body: bytes) -> bool:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return True
    return not isinstance(document, dict) or "error" in document


def _withheld(error: SourceError) -> bool:
    """Whether access rules keep a table from the one who asks: the API says so in its own form (D.8).

    What refuses on the way to it, such as a proxy, says nothing of the table.
    """
    return error.status in (403, 404) and _REFUSED in str(error).replace(" ", "")


def _changed(stream: Stream) -> str:
    """The column with the time of a row's change, as its field names it."""
    return stream.fields[stream.entity.column_names.index("updated_at")].consumes[0]


def _span(stream: Stream, window: Window | None) -> Span:
    if window is None:
        return Span(stream.select, _changed(stream))
    return Span(stream.select, _changed(stream), _written(window.start), _written(window.end))


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _halves(size: int) -> Iterator[int]:
    while size > _FEWEST_ROWS:
        yield size
        size //= 2
    yield size


def _buckets(config: ServiceNowConfig) -> tuple[Bucket, ...]:
    """None is published: an instance defines a rule for a user, or has none (D.7)."""
    if config.requests_per_hour is None:
        return ()
    return (Bucket(_RATE_RULE, config.requests_per_hour, _HOUR),)


def _observed(headers: Mapping[str, str]) -> tuple[Observed, ...]:
    """A rule's limit and the end of its hour; what is left is never said, and refusals come late (D.7)."""
    limit, reset = headers.get("x-ratelimit-limit", ""), headers.get("x-ratelimit-reset", "")
    if not (limit.isascii() and limit.isdigit()):
        return ()
    ends = max(0.0, float(reset) - time.time()) if reset.isascii() and reset.isdigit() else None
    return (Observed(_RATE_RULE, units=int(limit), resets_in=ends, seconds=_HOUR),)


METERING = Metering(_buckets, lambda path, params: {_RATE_RULE: 1}, _observed)
