"""GET requests to one source: its own origin only, within quota, patient and precise.

Knows timeouts, retries and `Retry-After`; knows nothing of paging or of records.
"""

import hashlib
import logging
import random
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpx
import structlog

from bridge_pipeline.ahead import leave
from bridge_pipeline.connector_kit.diagnosis import Problem, problem_of, refusal
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import FailedAnswer, UnreadableBody, patterns_of, without_members
from bridge_pipeline.connector_kit.quota import HeldBack, Quota
from bridge_pipeline.connector_kit.tokens import OwnTokens, TokenStore
from bridge_pipeline.connector_kit.transport import Deadline, GuardedTransport, NotPublic
from bridge_pipeline.model import Entity
from bridge_pipeline.redaction import RedactingFilter, redact
from bridge_pipeline.settings import Settings

T = TypeVar("T")
log = structlog.get_logger("bridge.source")
# 408, 425, 429: the request may be sent again (RFC 9110, RFC 8470, RFC 6585).
_AGAIN = {408, 425, 429}
_SHOWN = 300
_ERROR_BYTES = 1_000_000
# Seconds. It holds back all requests of a credential, and must not do so for years by a server's mistake.
_LONGEST_HOLD = 86_400.0
# Proxies join the values of a repeated header by commas; dates hold one before the day of the month.
_BETWEEN_TIMES = re.compile(r",(?!\s*\d{1,2}[ -][A-Za-z])")
# A few bytes of gzip can stand for a thousand times as many.
_PIECE = 1_000_000
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
# They log URLs, and the token stands in the URL.
_HTTP_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11")
_REDACTING = RedactingFilter()


class SourceError(RuntimeError):
    """The source did not give what was asked for; the text names connection, URL and attempt.

    `status` is the HTTP status of the last answer, None where there was no answer; `problem` names
    what is wrong.
    """

    def __init__(self, message: str, status: int | None = None, problem: Problem | None = None) -> None:
        super().__init__(redact(message))
        self.status = status
        self.problem: Problem = problem or (refusal(status) if status else "other")


class AddressRefused(SourceError):
    """The source's address is private, loopback or plain http, and that is not allowed."""


class Contradictory(SourceError):
    """The answers, each one good, make no whole listing: an extraction must not go on from them."""


class TookTooLong(SourceError):
    """No answer came in time, at any attempt; a smaller question may be answered."""


class Credentials(Protocol):
    """What a request proves itself with, in headers; the helpdesk's token stands in the URL instead."""

    def headers(self) -> Mapping[str, str]:
        """The headers of the next request; their values are never shown.

        Raises:
            SourceError: there is no valid credential, and none can be had.
        """
        ...

    def renew(self) -> bool:
        """Gets another credential after a 401; False where there is none to get."""
        ...


class Landed(Protocol):
    """What earlier extractions of a connection brought."""

    def newest(self, entity: str, shown: Mapping[str, datetime | None]) -> Mapping[str, bytes]:
        """The payloads, as the source sent them, of the versions that the entity's table holds.

        Args:
            shown: by id, the change times that the source shows. Records that are not held with just
                these, or were read without other fields than now (`exclude`), are missing from the answer.
        """
        ...


class NothingLanded:
    """A connection of which nothing was read before."""

    def newest(self, entity: str, shown: Mapping[str, datetime | None]) -> Mapping[str, bytes]:
        """None of them."""
        return {}


@dataclass(frozen=True)
class SourceContext:
    """What a connector's client works with: who asks, how patiently, and with which quota.

    `tokens` keeps access tokens; those of a run are shared with all processes. `landed` is what need not
    be asked for again.
    """

    connection: str
    settings: Settings
    quota: Quota
    exclude: tuple[str, ...] = ()
    tokens: TokenStore = field(default_factory=OwnTokens)
    landed: Landed = field(default_factory=NothingLanded)

    def without_excluded(self, entity: Entity, body: bytes) -> bytes:
        """`body` without what the connection excludes of an entity; nothing else may be stored."""
        patterns = patterns_of(entity.name, self.exclude)
        return without_members(body, patterns) if patterns else body


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A decoded answer; `url` is what was asked, credentials included, and never written as it is.

    Names of `headers` are looked up without regard to case.
    """

    url: str = field(repr=False)
    body: bytes = field(repr=False)
    content: T = field(repr=False)
    fetched_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Failure:
    reason: str
    status: int | None = None
    wait: float | None = None
    timed_out: bool = False
    problem: Problem | None = None


class Session:
    """GET requests to the origin of `base_url`.

    Args:
        params: part of every request's query.
        credentials: what stands in every request's headers.

    Raises:
        AddressRefused: `base_url` is not https to a public address, without `allow_private`.
    """

    def __init__(
        self,
        context: SourceContext,
        base_url: str,
        params: dict[str, str],
        allow_private: bool,
        credentials: Credentials | None = None,
    ) -> None:
        self.context = context
        self._credentials = credentials
        self._base = base_url.rstrip("/")
        self._params = params
        self._deadline = Deadline()
        self._closed = False
        self._http = open_http(context, self._base, allow_private, self._deadline)

    def get(self, path: str, params: dict[str, str], decode: Callable[[bytes], T]) -> Answer[T]:
        """Asks until a decodable answer comes or the attempts are used up.

        Args:
            decode: takes the body apart; raises `UnreadableBody` for one that is cut, empty,
                HTML or of an unknown envelope, which is retried like a server error.

        Raises:
            SourceError: refused (4xx, redirect) at once, or failed after the last attempt;
                `TookTooLong` where that one ran out of time.
        """
        settings = self.context.settings
        attempt, patience, renewed = 1, settings.retry_after_budget, False
        while True:
            self._refuse_if_closed(path, params)
            try:
                outcome = self._attempt(path, params, decode, attempt)
            except SourceError as error:
                # Tokens expire in the middle of an extraction; one that is refused anew is no good.
                if error.status != 401 or renewed or not (self._credentials and self._credentials.renew()):
                    raise
                renewed = True
                continue
            if isinstance(outcome, Answer):
                return outcome
            self._log_failure(path, params, outcome, attempt)
            if outcome.wait is not None:
                # The source named the time itself: it holds for all, and is no attempt.
                self.context.quota.hold(outcome.wait)
                patience -= outcome.wait
                if patience < 0:
                    raise self._error(path, params, attempt, outcome, "it asks to wait longer than allowed")
                continue
            if attempt >= settings.attempts:
                raise self._error(path, params, attempt, outcome, "giving up")
            delay = min(settings.backoff_max, settings.backoff_initial * 2 ** (attempt - 1))
            time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            attempt += 1

    def close(self) -> None:
        """Closes the connections to the source."""
        self._closed = True
        self._http.close()

    def _refuse_if_closed(self, path: str, params: dict[str, str]) -> None:
        if self._closed:
            raise SourceError(f"{self.context.connection}: GET {self._shown(path, params)} was given up")

    def _attempt(
        self, path: str, params: dict[str, str], decode: Callable[[bytes], T], attempt: int
    ) -> "Answer[T] | _Failure":
        url = self._url(path, params)
        try:
            # Getting a token may take requests of its own: longer than units are held for this one.
            headers = self._credentials.headers() if self._credentials else None
            with self.context.quota.request(path, params) as answered:
                # Whoever waited for quota may have waited for longer than anybody wants the answer.
                self._refuse_if_closed(path, params)
                self._deadline.begin(self.context.settings.read_timeout)
                with self._http.stream("GET", url, headers=headers) as response:
                    if answered:
                        answered(response.headers)
                    body = self._body(response) if response.is_success else beginning(response)
                    fetched_at = datetime.now(UTC)
        except HeldBack as error:
            held = _Failure(str(error), problem="throttled")
            raise self._error(path, params, attempt, held, "try again after that") from None
        except NotPublic as error:
            raise AddressRefused(
                f"{self.context.connection}: {error}; set allow_private: true in the connection's config if "
                "that is meant",
                problem="private_address",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, zlib.error, _Unacceptable) as error:
            timed_out = isinstance(error, httpx.ReadTimeout)
            reason = f"{type(error).__name__.lstrip('_')}: {error}"
            return _Failure(reason, timed_out=timed_out, problem=problem_of(error))
        if response.is_success:
            try:
                return Answer(url, body, decode(body), fetched_at, response.headers)
            except UnreadableBody as error:
                reason = f"unreadable answer: {error}"
                problem = "server" if isinstance(error, FailedAnswer) else "not_this_api"
                return _Failure(reason, response.status_code, problem=problem)
        failure = _Failure(_describe(response, body), response.status_code, retry_after(response))
        if response.status_code in _AGAIN or response.is_server_error:
            return failure
        self._log_failure(path, params, failure, attempt)
        raise self._error(path, params, attempt, failure, _advice(response))

    def _body(self, response: httpx.Response) -> bytes:
        most = self.context.settings.max_body_bytes
        parts, size = [], 0
        for part in _decoded(response):
            parts.append(part)
            size += len(part)
            if size > most:
                raise _Unacceptable(f"the answer is larger than {most} bytes")
        return b"".join(parts)

    def _shown(self, path: str, params: dict[str, str]) -> str:
        return redact(self._url(path, params))

    def _url(self, path: str, params: dict[str, str]) -> str:
        # Blanks as %20, which is how Client Central is asked (vendor-apis A.2); `+` is not.
        return f"{self._base}{path}?{urlencode({**self._params, **params}, quote_via=quote, safe='*,')}"

    def _log_failure(self, path: str, params: dict[str, str], failure: _Failure, attempt: int) -> None:
        log.warning(
            "request failed",
            url=self._shown(path, params),
            attempt=attempt,
            status=failure.status,
            reason=redact(failure.reason),
            retry_after=failure.wait,
        )

    def _error(
        self, path: str, params: dict[str, str], attempt: int, failure: _Failure, end: str
    ) -> SourceError:
        status = f"HTTP {failure.status}, " if failure.status else ""
        kind = TookTooLong if failure.timed_out else SourceError
        return kind(
            f"{self.context.connection}: GET {self._shown(path, params)} failed at attempt {attempt} "
            f"of {self.context.settings.attempts}: {status}{failure.reason}; {end}",
            failure.status,
            failure.problem,
        )


class _Unacceptable(RuntimeError):
    pass


@dataclass(frozen=True)
class _Asked:
    """A question that was asked before somebody wanted its answer."""

    path: str
    params: dict[str, str]
    answer: "Future[Answer[Any]]"


class AheadSession(Session):
    """A session that may ask one question before its answer is wanted, in a thread of its own.

    Everybody else waits until that is answered, so that there is one request at a time as in any session.
    """

    _asked: _Asked | None = None

    def ask(self, path: str, params: dict[str, str], decode: Callable[[bytes], T]) -> None:
        """Asks what `get` will be called with next; what comes of it is told there."""
        answer: Future[Answer[T]] = Future()
        self._asked = _Asked(path, params, answer)

        def run() -> None:
            try:
                answer.set_result(super(AheadSession, self).get(path, params, decode))
            except BaseException as error:
                answer.set_exception(error)

        # A daemon: it may wait for quota, and nobody waits for an answer that nobody wants any more.
        try:
            Thread(target=copy_context().run, args=(run,), name="ask", daemon=True).start()
        except RuntimeError:
            # No more threads are to be had: it is asked when its turn comes.
            self._asked = None

    def get(self, path: str, params: dict[str, str], decode: Callable[[bytes], T]) -> Answer[T]:
        """See `Session.get`."""
        self._refuse_if_closed(path, params)
        asked = self._asked
        if asked is not None:
            wait([asked.answer])
            self._asked = None
            if (asked.path, asked.params) == (path, params):
                return asked.answer.result()
        return super().get(path, params, decode)

    def close(self) -> None:
        """Closes the connections to the source, where one is read as soon as the answer has come.

        Nobody waits for that. Closed at once, its descriptor might be given to another connection of this
        process before the read looks at it again, which would then take what is not its own.
        """
        self._closed = True
        close = super().close
        if self._asked is None:
            close()
        else:
            self._asked.answer.add_done_callback(lambda _: close())


def open_http(context: SourceContext, base_url: str, allow_private: bool, deadline: Deadline) -> httpx.Client:
    """An HTTP client for the origin of `base_url`: guarded, without redirects, proxies or `.netrc`.

    Raises:
        AddressRefused: `base_url` is not https to a public address, without `allow_private`.
    """
    scheme = _scheme(base_url)
    if scheme is None:
        raise AddressRefused(
            f"{context.connection}: base_url {base_url!r} is not an http(s) address", problem="address"
        )
    if scheme == "http" and not allow_private:
        raise AddressRefused(
            f"{context.connection}: base_url {base_url!r} is plain http; use https, or set "
            "allow_private: true in the connection's config for a test server",
            problem="plain_http",
        )
    for name in _HTTP_LOGGERS:
        logging.getLogger(name).addFilter(_REDACTING)
    settings = context.settings
    return httpx.Client(
        transport=GuardedTransport(allow_private, deadline),
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
        # Other codings could not be read piece by piece.
        headers={"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "project-bridge"},
        follow_redirects=False,
        # Proxies and .netrc of the environment would go round the address check.
        trust_env=False,
    )


def _scheme(base: str) -> str | None:
    """`http` or `https`, or None for what is no address of a server."""
    try:
        parts = urlsplit(base)
        # Both refuse what the other lets pass.
        sound = httpx.URL(base).host and parts.port != 0 and not parts.query and not parts.fragment
    except (ValueError, httpx.InvalidURL):
        return None
    return parts.scheme if sound and parts.scheme in ("http", "https") else None


def _decoded(response: httpx.Response) -> Iterator[bytes]:
    """The body in pieces of bounded size."""
    coding = response.headers.get("content-encoding", "").strip()
    if coding.lower() in ("", "identity"):
        return response.iter_raw()
    if coding.lower() in ("gzip", "x-gzip", "deflate"):
        return _inflated(response.iter_raw())
    raise _Unacceptable(f"the answer is encoded as {redact(coding)[:_SHOWN]!r}, which was not asked for")


def _inflated(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Decompresses gzip (of one or more members) or zlib.

    Raises:
        zlib.error: it is damaged or cut.
    """
    inflater, empty = zlib.decompressobj(_GZIP_OR_ZLIB), True
    for part in parts:
        while part:
            empty = False
            if inflater.eof:
                inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            yield inflater.decompress(part, _PIECE)
            # Members may be followed by zeros.
            part = inflater.unused_data.lstrip(b"\0") if inflater.eof else inflater.unconsumed_tail
    if not inflater.eof and not empty:
        raise zlib.error("the compressed answer is cut")


def beginning(response: httpx.Response) -> bytes:
    """What can be read of an error's body; its status counts whatever becomes of the body."""
    parts, size = [], 0
    with suppress(httpx.HTTPError, zlib.error, _Unacceptable):
        for part in _decoded(response):
            parts.append(part)
            size += len(part)
            if size > _ERROR_BYTES:
                break
    return b"".join(parts)


# See `journalled`.
Journalled = tuple[int, T, datetime, bool]


def journalled(
    session: Session,
    journal: Journal,
    key: str,
    path: str,
    params: dict[str, str],
    decode: Callable[[bytes], T],
    prepare: Callable[[bytes], bytes],
    count: Callable[[T], int],
    keep: Iterable[str] = (),
    meanwhile: Callable[[T], None] = lambda content: None,
) -> Journalled[T]:
    """The answer to a request from the journal, or from the source and then into the journal.

    Args:
        prepare: cuts what may not be stored out of a body.
        count: how many records an answer holds.
        keep: headers, in lower case, that `Journal.headers` gives back.
        meanwhile: is told what was answered now, before that is stored.

    Returns:
        The entry's number, the content, when it was fetched, and whether it was fetched now.

    Raises:
        SourceError: as `Session.get`.
    """
    if found := journal.find(key):
        entry, body = found
        return entry.number, _stored(session, key, body, decode), entry.fetched_at, False
    answer = session.get(path, params, decode)
    meanwhile(answer.content)
    return _write(session, journal, key, answer, decode, prepare, count, keep)


@dataclass(frozen=True)
class Question(Generic[T]):
    """One of several requests that wait for no other's answer; see `journalled` for `key` and `decode`."""

    key: str
    path: str
    params: dict[str, str]
    decode: Callable[[bytes], T]


def journalled_together(
    sessions: Sequence[Session],
    journal: Journal,
    questions: Iterable[Question[T]],
    prepare: Callable[[bytes], bytes],
    count: Callable[[T], int],
    keep: tuple[str, ...] = (),
) -> Generator[Journalled[T] | SourceError, None, None]:
    """As `journalled` for many, with one request at a time in each of the sessions; to be closed.

    The journal is read and written by the caller's thread alone, in the order of the questions; a killed
    extraction loses at most the answers that were under way.

    Yields:
        For each question in order what `journalled` returns, or the error that it raises.
    """
    ask = _by_any(sessions)

    def begun(question: Question[T]) -> Callable[[], Journalled[T]]:
        key, decode = question.key, question.decode
        if found := journal.find(key):
            entry, body = found
            return lambda: (entry.number, _stored(sessions[0], key, body, decode), entry.fetched_at, False)
        asked = partial(ask, question)
        # One alone is asked when its turn comes: after a refusal none is asked any more.
        if len(sessions) > 1:
            under_way.append(pool.submit(ask, question))
            asked = under_way[-1].result
        return lambda: _write(sessions[0], journal, key, asked(), decode, prepare, count, keep)

    pool = ThreadPoolExecutor(len(sessions), thread_name_prefix="ask")
    waiting: deque[Callable[[], Journalled[T]]] = deque()
    # As many as wait at most, so that no answer stays that was given.
    under_way: deque[Future[Answer[T]]] = deque(maxlen=2 * len(sessions))
    try:
        for question in questions:
            waiting.append(begun(question))
            if len(waiting) >= 2 * len(sessions):
                yield _outcome(waiting.popleft())
        while waiting:
            yield _outcome(waiting.popleft())
    finally:
        leave(pool, under_way)


def _by_any(sessions: Sequence[Session]) -> Callable[[Question[T]], Answer[T]]:
    """Asks a question by a session that nobody uses; waits for one."""
    idle: SimpleQueue[Session] = SimpleQueue()
    for session in sessions:
        idle.put(session)

    def ask(question: Question[T]) -> Answer[T]:
        session = idle.get()
        try:
            return session.get(question.path, question.params, question.decode)
        finally:
            idle.put(session)

    return ask


def _outcome(ended: Callable[[], Journalled[T]]) -> Journalled[T] | SourceError:
    try:
        return ended()
    except SourceError as error:
        return error


def _write(
    session: Session,
    journal: Journal,
    key: str,
    answer: Answer[T],
    decode: Callable[[bytes], T],
    prepare: Callable[[bytes], bytes],
    count: Callable[[T], int],
    keep: Iterable[str],
) -> Journalled[T]:
    prepared = prepare(answer.body)
    headers = {name: answer.headers[name] for name in keep if name in answer.headers}
    entry, body = journal.write(
        key, answer.url, prepared, answer.body, count(answer.content), answer.fetched_at, headers
    )
    content = answer.content if body is answer.body else _stored(session, key, body, decode)
    return entry.number, content, answer.fetched_at, True


def _stored(session: Session, key: str, body: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(body)
    except UnreadableBody as error:
        raise SourceError(
            f"{session.context.connection}: the answer {key} cannot be read any more without its excluded "
            f"fields and secrets: {error}; correct the connection's `exclude`, or use a longer credential"
        ) from None


def retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110: seconds or a date), at least one; of several the most."""
    lines = response.headers.get_list("retry-after")
    values = [value for line in lines for value in _BETWEEN_TIMES.split(line)]
    said = [seconds for value in values if (seconds := _seconds_until(value.strip())) is not None]
    return min(max(1.0, *said), _LONGEST_HOLD) if said else None


def _seconds_until(said: str) -> float | None:
    """Seconds that are named, or until a date in any of the three forms that HTTP knows (RFC 9110, 5.6.7)."""
    try:
        seconds = float(said)
    except ValueError:
        try:
            moment = parsedate_to_datetime(said)
        except (ValueError, TypeError, OverflowError):
            return None
        # One that names no zone, as `asctime` writes it, is in UTC.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - datetime.now(UTC)).total_seconds()
    # NaN is no waiting time.
    return None if seconds != seconds else seconds


def _describe(response: httpx.Response, body: bytes) -> str:
    text = " ".join(redact(body.decode("utf-8", "replace")).split())
    digest = hashlib.sha256(body).hexdigest()[:16]
    return f"{response.reason_phrase or 'error'}: {text[:_SHOWN]!r} (body sha256 {digest})"


def _advice(response: httpx.Response) -> str:
    if response.is_redirect:
        target = redact(response.headers.get("location", ""))
        return f"it redirects to {target!r}, which is never followed; correct base_url"
    return {
        401: "the credential was not accepted; check the token",
        403: "the credential may not read this; check its permissions",
        404: "there is nothing at this address; check base_url",
    }.get(response.status_code, "this is not retried")
