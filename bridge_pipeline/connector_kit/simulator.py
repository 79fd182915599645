"""What every simulated API is served by: loopback HTTP, faults, request log, truth file.

Holds nothing of any vendor. A connector's `simulator.py` is a `Dialect`: it answers
requests and knows the truth. Here its answers are sent, spoilt as a fault profile says,
and logged.

The same options and the same sequence of requests give the same answers, byte for byte;
only a `Retry-After` that is a date, and an enforced request limit, follow the real clock.
"""

import hashlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

import orjson

ENVELOPES = ("paged", "named", "data", "array")
FILTERS = ("faithful", "ignored", "hiding", "local_time")
# Beyond this many records the truth is written at start and exit only: each writing takes seconds.
_TRUTH_KEPT_FRESH = 200_000
_TRUTH_EVERY_SECONDS = 1.0
_DRIP_PIECES, _DRIP_SECONDS = 8, 0.15
_LONGEST_BODY = 1_000_000
_TOKEN = re.compile(r"((?:^|[?&])token=)[^&#]*")
_FOREIGN_HOST = "https://elsewhere.example"
_HTML = b"<!DOCTYPE html><html><head><title>One moment</title></head><body><h1>%b</h1></body></html>"


@dataclass(frozen=True)
class FaultProfile:
    """How an API misbehaves. Rates are shares of all requests; `*_every` count answered requests, 0 = never.

    Attributes:
        throttle: 429 with `Retry-After`.
        server_error: 500, 502 or 503.
        drop: the connection is closed before any byte.
        cut: half a body, with the full or with a matching `Content-Length`.
        html: a page of HTML with status 200.
        empty: status 200 without a body.
        drip: the whole body, in pieces over seconds.
        redirect: 302 to another host.
        dated_retry: every second `Retry-After` is an HTTP date.
        repeats: share of pages that begin with the last row of the page before.
        update_every: a record changes after so many answers.
        create_every: a record appears after so many answers.
        delete_every: a record is deleted for good after so many answers.
        malformed: whether some records are broken.
    """

    throttle: float = 0.0
    server_error: float = 0.0
    drop: float = 0.0
    cut: float = 0.0
    html: float = 0.0
    empty: float = 0.0
    drip: float = 0.0
    redirect: float = 0.0
    dated_retry: bool = False
    repeats: float = 0.0
    update_every: int = 0
    create_every: int = 0
    delete_every: int = 0
    malformed: bool = False


PROFILES = {
    "calm": FaultProfile(),
    "typical": FaultProfile(
        throttle=0.01,
        server_error=0.015,
        drop=0.01,
        cut=0.01,
        html=0.003,
        update_every=16,
        create_every=400,
        malformed=True,
    ),
    "hostile": FaultProfile(
        throttle=0.035,
        server_error=0.05,
        drop=0.035,
        cut=0.035,
        html=0.01,
        empty=0.01,
        drip=0.005,
        # An honest client gives up at a redirect, so more of them would only end every run.
        redirect=0.001,
        dated_retry=True,
        repeats=0.1,
        update_every=6,
        create_every=150,
        delete_every=120,
        malformed=True,
    ),
}
_FAULTS = ("throttle", "server_error", "drop", "cut", "html", "empty", "drip", "redirect")


@dataclass(frozen=True)
class SimulatorOptions:
    """What a simulator serves and how.

    Attributes:
        port: on 127.0.0.1; 0 picks a free one.
        seed: of the data, the changes and the faults.
        tickets: how many the desk holds at start.
        first_day: first day (UTC) on which records changed.
        last_day: last such day, included.
        event_log: a recorded log to replay instead of generating records.
        clock: the moment the log is replayed to (frozen); for generated records the moment at
            which changes begin, by default the midnight after `last_day`. Naive means UTC.
        faults: a name in `PROFILES`.
        truth: file that is kept equal to what the desk holds.
        request_log: file that gets one JSON line per request.
        token: the only credential accepted; None accepts every well-formed one.
        page_size: rows per page. The real vendor lets no client choose it (vendor-apis A.2), hence
            an option of the simulator and not a parameter of requests.
        accounts: how many, by default a hundredth of `tickets`.
        users: how many, by default a tenth of `tickets`.
        envelope: `paged`, `named` (`{"tickets": […]}`), `data` or `array`.
        filter: `faithful`; `ignored` sends all; `hiding` leaves out about 3 % of the matching rows;
            `local_time` compares wall-clock times, so that offsets shift rows by hours.
        requests_per_minute: limit enforced over a sliding minute.

    Raises:
        ValueError: an option names nothing known, or options contradict each other.
    """

    port: int = 0
    seed: int = 0
    tickets: int = 20_000
    first_day: date = date(2025, 1, 1)
    last_day: date = date(2025, 3, 1)
    event_log: Path | None = None
    clock: datetime | None = None
    faults: str = "typical"
    truth: Path | None = None
    request_log: Path | None = None
    token: str | None = None
    page_size: int = 100
    accounts: int | None = None
    users: int | None = None
    envelope: str = "paged"
    filter: str = "faithful"
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("faults", tuple(PROFILES)), ("envelope", ENVELOPES), ("filter", FILTERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for name in ("tickets", "accounts", "users"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("page_size", "requests_per_minute"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.last_day < self.first_day:
            raise ValueError(f"last_day {self.last_day} is before first_day {self.first_day}")
        if self.event_log and self.clock is None:
            raise ValueError("event_log needs a clock: the moment to which the log is replayed")

    @property
    def profile(self) -> FaultProfile:
        """The profile that `faults` names."""
        return PROFILES[self.faults]


@dataclass(frozen=True)
class Request:
    """A request as a dialect sees it; `target` is path and query as sent, the credential included.

    Names of `headers` are in lower case.
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def of(
        cls, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> "Request":
        """Takes `target` apart; of a repeated parameter the last one counts."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(method, target, parts.path, query, headers or {}, body)


@dataclass(frozen=True)
class Answer:
    """What is sent back, `Content-Length` and `Connection` aside."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Dialect(Protocol):
    """One vendor's API over one set of records. Calls never overlap."""

    @property
    def records(self) -> int:
        """How many records there are, of all entities."""
        ...

    @property
    def changes(self) -> int:
        """How often a record has changed since the start."""
        ...

    def answer(self, request: Request) -> Answer:
        """Answers a request that nothing befell."""
        ...

    def truth(self) -> Iterable[bytes]:
        """What the API holds, as the pieces of one JSON document."""
        ...


class Fault(NamedTuple):
    """One thing that goes wrong with one request; `variant` chooses among its forms."""

    kind: str
    variant: int


class Faults:
    """Decides what goes wrong, by the request itself and how often it came, never by the time.

    After two failures of the same request in a row the third goes through, so that a client
    with three attempts succeeds.
    """

    def __init__(self, profile: FaultProfile, seed: int) -> None:
        self._rates = [(kind, getattr(profile, kind)) for kind in _FAULTS]
        self._seed = seed
        self._history: dict[str, tuple[int, int]] = {}

    def next(self, target: str) -> Fault | None:
        """The fault of this request for `target` (path and query without the credential)."""
        if not any(rate for _, rate in self._rates):
            return None
        times, failed = self._history.get(target, (0, 0))
        fault = self._draw(f"{self._seed}|{target}|{times}") if failed < 2 else None
        fails = fault is not None and fault.kind != "drip"
        self._history[target] = (times + 1, failed + 1 if fails else 0)
        return fault

    def _draw(self, key: str) -> Fault | None:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        share = int.from_bytes(digest[:6], "big") / 2**48
        for kind, rate in self._rates:
            if share < rate:
                return Fault(kind, int.from_bytes(digest[6:], "big"))
            share -= rate
        return None


class _RateLimit:
    """A sliding minute; refused requests do not count."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._times: deque[float] = deque()

    def wait(self) -> int:
        """Enters one request; returns 0, or after how many seconds it may come again."""
        if self._per_minute is None:
            return 0
        now = time.monotonic()
        while self._times and self._times[0] <= now - 60:
            self._times.popleft()
        if len(self._times) >= self._per_minute:
            return int(self._times[0] + 60 - now) + 1
        self._times.append(now)
        return 0


class _RequestLog:
    """One JSON line per request, in the order of arrival; credentials are masked."""

    def __init__(self, path: Path | None, kept: list[dict[str, Any]] | None) -> None:
        self._kept = kept
        self._file = path.open("ab") if path else None

    def add(self, arrived: datetime, target: str, status: int | None, fault: str | None) -> None:
        """Writes a line; `status` is None where the connection was dropped without an answer."""
        line = {"time": f"{arrived:%Y-%m-%dT%H:%M:%S.%fZ}", "path": target, "status": status}
        if fault:
            line["fault"] = fault
        if self._kept is not None:
            self._kept.append(line)
        if self._file:
            self._file.write(orjson.dumps(line) + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


class _TruthFile:
    """Keeps a file equal to the dialect's truth; whoever reads it finds a whole document."""

    def __init__(self, path: Path | None, dialect: Dialect, lock: threading.Lock) -> None:
        self._path, self._dialect, self._lock = path, dialect, lock
        self._written: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Writes it, and from now on again soon after changes."""
        self._write()
        if self._path and self._dialect.records <= _TRUTH_KEPT_FRESH:
            self._thread = threading.Thread(target=self._keep_fresh, name="truth", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Writes what is not yet written."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._write()

    def _keep_fresh(self) -> None:
        while not self._stop.wait(_TRUTH_EVERY_SECONDS):
            self._write()

    def _write(self) -> None:
        if self._path is None or self._dialect.changes == self._written:
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        with self._lock, partial.open("wb") as file:
            self._written = self._dialect.changes
            file.writelines(self._dialect.truth())
        partial.replace(self._path)


class _Outcome(NamedTuple):
    """What happens to a request: an answer (None: the connection is dropped) and the fault in it."""

    answer: Answer | None
    fault: Fault | None


class _Service:
    """Everything between a received request and the bytes of its answer."""

    def __init__(
        self,
        dialect: Dialect,
        options: SimulatorOptions,
        kept: list[dict[str, Any]] | None,
        refusals: "Refusals",
    ) -> None:
        self.dialect = dialect
        self._refusals = refusals
        self.lock = threading.Lock()
        self.stopping = False
        self._faults = Faults(options.profile, options.seed)
        self._dated_retry = options.profile.dated_retry
        self._limit = _RateLimit(options.requests_per_minute)
        self._log = _RequestLog(options.request_log, kept)
        self._truth = _TruthFile(options.truth, dialect, self.lock)

    def start(self) -> None:
        self._truth.start()

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> _Outcome:
        """Decides about one request and logs it."""
        shown = _TOKEN.sub(r"\1[redacted]", target)
        with self.lock:
            arrived = datetime.now(UTC)
            if wait := self._limit.wait():
                outcome = _Outcome(self._refusals.throttled(str(wait)), None)
            else:
                request = Request.of(method, target, headers, body)
                outcome = self._decide(request, self._faults.next(shown))
            answer, fault = outcome
            self._log.add(arrived, shown, answer and answer.status, fault and fault.kind)
        return outcome

    def close(self) -> None:
        self.stopping = True
        self._truth.close()
        with self.lock:
            self._log.close()

    def _decide(self, request: Request, fault: Fault | None) -> _Outcome:
        if fault is None or fault.kind in ("cut", "drip"):
            return _Outcome(self.dialect.answer(request), fault)
        return _Outcome(None if fault.kind == "drop" else self._instead(request, fault), fault)

    def _instead(self, request: Request, fault: Fault) -> Answer:
        """What is answered where the dialect is not asked at all."""
        match fault.kind:
            case "throttle":
                return self._refusals.throttled(self._retry_after(fault.variant))
            case "server_error":
                return self._refusals.server_error(request, fault.variant)
            case "html":
                return Answer(200, _HTML % b"Maintenance", "text/html")
            case "redirect":
                return Answer(302, b"", headers=(("Location", _FOREIGN_HOST + request.target),))
            case _:
                return Answer(200, b"")

    def _retry_after(self, variant: int) -> str:
        if self._dated_retry and variant % 2:
            return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return "1"


def _throttled(retry_after: str) -> Answer:
    body = orjson.dumps({"error": "Too many requests"})
    return Answer(429, body, headers=(("Retry-After", retry_after),))


def _server_error(request: Request, variant: int) -> Answer:
    status = (500, 502, 503)[variant % 3]
    if status == 500:
        # Its text repeats the URL, and with it the credential (vendor-apis F, CC-5).
        return Answer(500, orjson.dumps({"error": f"Internal error while answering {request.target}"}))
    return Answer(status, _HTML % HTTPStatus(status).phrase.encode(), "text/html")


@dataclass(frozen=True)
class Refusals:
    """How a vendor words what befalls a request: 429, and 5xx in one of several forms."""

    throttled: Callable[[str], Answer] = _throttled
    server_error: Callable[[Request, int], Answer] = _server_error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, service: _Service) -> None:
        self.service = service
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients come and go; everything else is a defect and must be seen.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        service = cast(_Server, self.server).service
        if service.stopping:
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        outcome = service.handle(self.command, self.path, headers, self._body())
        if outcome.answer is None:
            self._hang_up()
        else:
            self._send(outcome.answer, outcome.fault)

    def do_POST(self) -> None:
        # What is left unread of a body would be taken for the next request.
        self.close_connection = True
        self.do_GET()

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        return self.rfile.read(min(int(length), _LONGEST_BODY)) if length.isdigit() else b""

    do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the request log does, without credentials."""

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        length = len(body)
        if fault and fault.kind == "cut":
            body = body[: length // 2]
            if fault.variant % 2:
                length = len(body)
            else:
                self.close_connection = True
        self.wfile.write(self._head(answer, length) + (body if not fault or fault.kind != "drip" else b""))
        if fault and fault.kind == "drip":
            self._drip(body)
        if len(body) < length:
            self._hang_up()

    def _head(self, answer: Answer, length: int) -> bytes:
        """Status line and headers; no `Date`, which would differ from run to run."""
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in answer.headers),
            *(("Connection: close",) if self.close_connection else ()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _drip(self, body: bytes) -> None:
        step = len(body) // _DRIP_PIECES + 1
        for start in range(0, len(body), step):
            time.sleep(_DRIP_SECONDS)
            self.wfile.write(body[start : start + step])

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class RunningSimulator:
    """A simulator that is being served.

    Attributes:
        url: where, without a slash at the end.
        requests: the lines of the request log so far.
        stop: ends it; a second call does nothing.
    """

    url: str
    requests: list[dict[str, Any]]
    stop: Callable[[], None]
    _service: _Service = field(repr=False)

    def truth(self) -> dict[str, Any]:
        """What the desk holds now; the document that `SimulatorOptions.truth` names."""
        with self._service.lock:
            return orjson.loads(b"".join(self._service.dialect.truth()))


@contextmanager
def serving(
    dialect: Dialect,
    options: SimulatorOptions,
    keep_requests: bool = True,
    refusals: Refusals = Refusals(),
) -> Iterator[RunningSimulator]:
    """Serves `dialect` on 127.0.0.1 in a thread of its own until the block ends.

    Args:
        keep_requests: whether to keep the request log's lines in memory too.
        refusals: the vendor's words for 429 and 5xx.

    Raises:
        OSError: the port is taken, or a file cannot be written.
    """
    requests: list[dict[str, Any]] = []
    service = _Service(dialect, options, requests if keep_requests else None, refusals)
    server = _Server(options.port, service)
    service.start()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="simulator", daemon=True)
    thread.start()

    def stop() -> None:
        if service.stopping:
            return
        server.shutdown()
        server.server_close()
        service.close()

    try:
        yield RunningSimulator(f"http://127.0.0.1:{server.server_port}", requests, stop, service)
    finally:
        stop()


def serve(dialect: Dialect, options: SimulatorOptions, refusals: Refusals = Refusals()) -> None:
    """Serves `dialect` until SIGTERM or SIGINT; says on stdout when it is ready. Main thread only.

    Raises:
        OSError: the port is taken, or a file cannot be written.
    """
    ended = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: ended.set()) for number in signals]
    try:
        with serving(dialect, options, keep_requests=False, refusals=refusals) as simulator:
            sys.stdout.write(f"listening on {simulator.url}\n")
            sys.stdout.flush()
            ended.wait()
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
