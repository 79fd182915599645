"""A proxy on loopback that spoils chosen answers of an HTTP API, byte by byte if need be.

Knows nothing of vendors or of the library: it stands between any client and any server, forwards every
request, and sends the answers that a fault is armed for as that fault says. What faults there are, and
what a reader must make of them, is `faults`.
"""

import http.client
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Literal, cast
from urllib.parse import urlsplit

End = Literal["keep", "close", "reset"]
# Of these the proxy's own server and client take care.
_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}


@dataclass(frozen=True)
class Answer:
    """An answer of the API, or one in its place; `Content-Length` is not among the headers."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def header(self, name: str) -> str:
        """The first value of a header, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def without(self, *names: str) -> "Answer":
        """The same answer without those headers."""
        lower = {name.lower() for name in names}
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in lower))

    def carrying(self, *headers: tuple[str, str]) -> "Answer":
        """The same answer with these headers beside its own."""
        return replace(self, headers=(*self.headers, *headers))

    def head(self, length: int | None = None, extra: tuple[tuple[str, str], ...] = ()) -> bytes:
        """Status line and headers; with the length of the body, or the one given (-1: none)."""
        length = len(self.body) if length is None else length
        sized = () if length < 0 else (("Content-Length", str(length)),)
        lines = [f"HTTP/1.1 {self.status} Phrase", *(f"{k}: {v}" for k, v in (*sized, *self.headers, *extra))]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def whole(self) -> bytes:
        """All of its bytes."""
        return self.head() + self.body


@dataclass(frozen=True)
class Exchange:
    """One request that is to be spoilt: the true answer, the one before it, and where else one could go.

    `elsewhere` is the address of another origin, which counts whoever comes; `number` says how many
    answers were spoilt before this one.
    """

    target: str
    answer: Answer
    before: Answer | None
    origin: str
    elsewhere: str
    number: int = 0


@dataclass(frozen=True)
class Spoilt:
    """What goes over the wire: pieces, with a pause between them (seconds), and how it ends."""

    pieces: tuple[bytes, ...]
    end: End = "keep"
    pause: float = 0.0


Spoil = Callable[[Exchange], Spoilt]


@dataclass
class _Plan:
    spoil: Spoil | None = None
    at: int = 0
    lasting: bool = False
    seen: int = 0
    spoilt: int = 0

    def take(self) -> Spoil | None:
        """Counts a request; what befalls it."""
        number, self.seen = self.seen, self.seen + 1
        hit = number == self.at or (self.lasting and number > self.at)
        if self.spoil is None or not hit:
            return None
        self.spoilt += 1
        return self.spoil


@dataclass
class FaultProxy:
    """A running proxy.

    Attributes:
        url: where it listens.
        targets: path and query of all requests since `arm`.
        asked, all_spoilt: how many requests came, and how many answers were spoilt, ever.
        strangers: how many connections the other origin got, ever.
    """

    url: str
    elsewhere: str
    upstream: str
    targets: list[str] = field(default_factory=list)
    asked: int = 0
    all_spoilt: int = 0
    strangers: int = 0
    rewrite: Callable[[Answer], Answer] | None = None
    _plan: _Plan = field(default_factory=_Plan)
    _before: Answer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, spoil: Spoil | None = None, at: int = 0, lasting: bool = False) -> None:
        """From now on: the request number `at` (from 0) is spoilt, or that and all after it."""
        with self._lock:
            self._plan, self.targets, self._before = _Plan(spoil, at, lasting), [], None

    @property
    def spoilt(self) -> int:
        """How many answers were spoilt since `arm`."""
        return self._plan.spoilt

    def answered(self, target: str, answer: Answer) -> Spoilt:
        """What is sent for a true answer."""
        with self._lock:
            self.targets.append(target)
            self.asked += 1
            answer = self.rewrite(answer) if self.rewrite else answer
            number, spoil, before = self._plan.spoilt, self._plan.take(), self._before
            self._before = answer if before is None or spoil is None else before
            self.all_spoilt += spoil is not None
        if spoil is None:
            return Spoilt((answer.whole(),))
        return spoil(Exchange(target, answer, before, self.url, self.elsewhere, number))


@contextmanager
def proxying(upstream: str) -> Iterator[FaultProxy]:
    """A proxy before `upstream`, and another origin beside it, until the block ends."""
    with _listening(_Stranger) as stranger, _listening(_Handler) as server:
        proxy = FaultProxy(_url(server), _url(stranger), upstream)
        server.proxy = stranger.proxy = proxy
        yield proxy


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on spoilt answers; what they make of them is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        address = urlsplit(self._proxy.upstream)
        self._upstream = http.client.HTTPConnection(str(address.hostname), address.port)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    @property
    def _proxy(self) -> FaultProxy:
        return cast(_Server, self.server).proxy

    def do_GET(self) -> None:
        spoilt = self._proxy.answered(self.path, self._forwarded())
        for number, piece in enumerate(spoilt.pieces):
            if number and self._given_up(spoilt.pause):
                return
            self.connection.sendall(piece)
        if spoilt.end != "keep":
            self._hang_up(spoilt.end)

    def _given_up(self, pause: float) -> bool:
        """Whether the client has hung up within so many seconds; it sends nothing before it has an answer."""
        return pause > 0 and bool(select.select([self.connection], [], [], pause)[0])

    def do_POST(self) -> None:
        """Tokens are not spoilt."""
        self.connection.sendall(self._forwarded().whole())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _forwarded(self) -> Answer:
        length = int(self.headers.get("Content-Length", "0"))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        body = self.rfile.read(length) if length else None
        self._upstream.request(self.command, self.path, body, headers)
        response = self._upstream.getresponse()
        kept = tuple((name, value) for name, value in response.getheaders() if name.lower() not in _HOP)
        return Answer(response.status, response.read(), kept)

    def _hang_up(self, end: End) -> None:
        self.close_connection = True
        if end == "reset":
            # Closing with no time to linger sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class _Stranger(BaseHTTPRequestHandler):
    """The other origin: whoever comes has followed what must not be followed."""

    def handle(self) -> None:
        cast(_Server, self.server).proxy.strangers += 1


@contextmanager
def _listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"
