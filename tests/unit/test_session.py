"""GET requests against servers that fail in every way, over real sockets on loopback."""

import contextlib
import gzip
import http.server
import json
import logging
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import httpx
import pytest
import structlog
import zstandard

from bridge_pipeline import redaction
from bridge_pipeline.connector_kit import pages, transport
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.oauth import OAuth, OAuthCredentials
from bridge_pipeline.connector_kit.session import (
    AddressRefused,
    AheadSession,
    Question,
    Session,
    SourceContext,
    SourceError,
    journalled,
    journalled_together,
    retry_after,
)
from bridge_pipeline.connector_kit.tokens import OwnTokens
from bridge_pipeline.settings import Settings
from tests.threads import ended_while_locked

TOKEN = "12-abcDEF_ghi.jkl-mno+pqr/stu"
GOOD = b'{"page":1,"more":false,"data":[{"id":1}]}'
RECORDS = [{"id": 1}]


# --- Servers ------------------------------------------------------------------------------------

Reply = bytes | Callable[[socket.socket], None]


def reply(body=b"", status=200, headers=(), length=True):
    """The bytes of an answer; without `length` its end is the end of the connection."""
    lines = [f"HTTP/1.1 {status} Whatever", "Connection: close", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass
class Server:
    """Gives the replies of a script, one per connection, the last one for ever."""

    replies: list[Reply]
    requests: list[bytes] = field(default_factory=list)

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        # Closing alone does not wake the thread that accepts.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (part := connection.recv(65_536)):
                return
            head += part
        self.requests.append(head)
        answer = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)

    @property
    def paths(self):
        return [request.split(b" ")[1].decode() for request in self.requests]


def drop(connection):
    """Closes the connection without a byte."""


def reset(connection):
    """Breaks the connection off."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


class Clock:
    """What deadlines go by: time that passes when a server says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def tick(self):
        self.now += 10.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    return clock


def dripping(head, pieces, tick=lambda: None):
    """Sends `head` and then a byte now and then, for as long as somebody listens."""

    def send(connection):
        connection.sendall(head)
        # Waits for the other side to close instead of sleeping.
        connection.settimeout(0.02)
        for piece in pieces:
            tick()
            connection.sendall(piece)
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    return send


class Held:
    """A quota that keeps what it was told, and never waits."""

    def __init__(self):
        self.holds, self.open, self.entered, self.most = [], 0, 0, 0

    @contextlib.contextmanager
    def request(self, path, params):
        self.open += 1
        self.entered += 1
        self.most = max(self.most, self.open)
        try:
            yield
        finally:
            self.open -= 1

    def hold(self, seconds):
        self.holds.append(seconds)


@pytest.fixture(autouse=True)
def known(_forgotten):
    redaction.remember(TOKEN, sent=True)


@pytest.fixture
def quota():
    return Held()


@pytest.fixture
def open_session(quota):
    opened = []

    def opening(url, allow_private=True, **changes):
        values = {
            "backoff_initial": 0.001,
            "backoff_max": 0.002,
            "read_timeout": 60.0,
            "connect_timeout": 60.0,
        }
        settings = Settings(**values | changes)
        context = SourceContext("acme-helpdesk", settings, quota)
        opened.append(Session(context, url, {"token": TOKEN}, allow_private))
        return opened[-1]

    yield opening
    for session in opened:
        session.close()


def decode(body):
    return pages.parse_list(body, ("data",)).records


def get(session):
    return session.get("/api/v1/tickets.json", {"page": "1", "select": "*,status.name"}, decode)


# --- What is asked ------------------------------------------------------------------------------


def test_a_good_answer_comes_with_what_was_asked_and_when(open_session, quota):
    with Server([reply(GOOD)]) as server:
        before = datetime.now(UTC)
        answer = get(open_session(server.url + "/"))
        assert answer.content == RECORDS
        assert answer.body == GOOD
        assert before <= answer.fetched_at <= datetime.now(UTC)
        (path,) = server.paths
        assert path == (
            "/api/v1/tickets.json?token=12-abcDEF_ghi.jkl-mno%2Bpqr%2Fstu&page=1&select=*,status.name"
        )
        assert answer.url == server.url + path
    assert (quota.entered, quota.open, quota.holds) == (1, 0, [])


def test_the_request_says_what_it_accepts_and_sends_no_credential_but_the_token(open_session):
    with Server([reply(GOOD, headers=["Set-Cookie: a=b"])]) as server:
        get(open_session(server.url))
        head = server.requests[0].lower()
    assert b"accept: application/json" in head
    assert b"accept-encoding: gzip\r\n" in head
    assert b"authorization" not in head


def resolving(*answers):
    """A name server with these answers for every name."""

    def resolve(host, port, *_, **__):
        # An address stands for itself.
        found = [host] if host in answers else answers
        kinds = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in found]
        return [(kind, socket.SOCK_STREAM, 6, "", (address, port)) for kind, address in kinds]

    return resolve


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["::1", "127.0.0.1"], ["127.0.0.1", "::1"]])
def test_a_name_is_reached_at_whichever_of_its_addresses_answers(answers, open_session, monkeypatch):
    """`localhost` is often ::1 first, where a server on 127.0.0.1 does not listen."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving(*answers))
    with Server([reply(GOOD)]) as server:
        assert get(open_session(f"http://desk.example.com:{server.port}", attempts=1)).content == RECORDS


# --- What is retried, and how often -------------------------------------------------------------

BROKEN = {
    "dropped": drop,
    "reset": reset,
    "cut, with its length": reply(GOOD)[:-5],
    "cut, without its length": reply(GOOD[:-5], length=False),
    "cut in its head": reply(GOOD)[:30],
    "cut chunks": reply(b"5\r\n" + GOOD[:5] + b"\r\n", headers=["Transfer-Encoding: chunked"], length=False),
    "not HTTP": b"SSH-2.0-OpenSSH\r\n",
    "html": reply(b"<!DOCTYPE html><title>Login</title>", headers=["Content-Type: text/html"]),
    "empty": reply(b""),
    "blank": reply(b" \n"),
    "204": reply(b"", 204, length=False),
    "another envelope": reply(b'{"error":"maintenance"}'),
    "null": reply(b"null"),
    "an object": reply(b'{"data":{}}'),
    "gzip, damaged": reply(gzip.compress(GOOD)[:15] + b"xxxx", headers=["Content-Encoding: gzip"]),
    "gzip, cut": reply(gzip.compress(GOOD)[:-9], headers=["Content-Encoding: gzip"]),
    "gzip, its check sum cut": reply(gzip.compress(GOOD)[:-2], headers=["Content-Encoding: gzip"]),
    "not gzip": reply(GOOD, headers=["Content-Encoding: gzip"]),
    "another coding": reply(zstandard.compress(GOOD), headers=["Content-Encoding: zstd"]),
    "two codings": reply(gzip.compress(gzip.compress(GOOD)), headers=["Content-Encoding: gzip, gzip"]),
    "408": reply(b"", 408),
    "425": reply(b"", 425),
    "429 without a time": reply(b"", 429),
    "500": reply(b"boom", 500),
    "502": reply(b"<html>", 502),
    "503": reply(b"", 503),
    "504": reply(GOOD, 504),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_answer_is_asked_for_again_as_often_as_configured(name, open_session, quota):
    with Server([BROKEN[name]]) as server:
        with pytest.raises(SourceError) as caught:
            get(open_session(server.url, attempts=4))
        assert len(server.requests) == 4
    message = str(caught.value)
    assert "acme-helpdesk: GET http://127.0.0.1" in message
    assert "token=[redacted]&page=1" in message
    assert "failed at attempt 4 of 4" in message
    assert (quota.entered, quota.open) == (4, 0)


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_good_answer_at_the_last_attempt_is_taken(name, open_session):
    with Server([BROKEN[name], BROKEN[name], reply(GOOD)]) as server:
        assert get(open_session(server.url)).content == RECORDS
        assert len(server.requests) == 3


def test_pauses_grow_from_attempt_to_attempt_up_to_a_limit(open_session, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("bridge_pipeline.connector_kit.session.time", SimpleNamespace(sleep=pauses.append))
    with Server([reply(status=500)]) as server, pytest.raises(SourceError):
        get(open_session(server.url, attempts=6, backoff_initial=1, backoff_max=5))
    assert [
        longest / 2 <= pause <= longest for pause, longest in zip(pauses, (1, 2, 4, 5, 5), strict=True)
    ] == [True] * 5


def test_what_is_left_until_a_deadline_is_all_that_a_read_may_take():
    deadline = transport.Deadline()
    assert deadline.left(60.0) == 60.0
    deadline.begin(5.0)
    assert deadline.left(1.0) == 1.0
    assert 0 < deadline.left(60.0) <= 5.0
    assert 0 < deadline.left(None) <= 5.0


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 406, 409, 410, 411, 422, 451])
def test_a_refusal_fails_at_once_with_its_status(status, open_session):
    with Server([reply(b'{"error":"no"}', status)]) as server:
        with pytest.raises(
            SourceError, match=f"attempt 1 of 3: HTTP {status}.*error.*:.*no.*sha256"
        ) as caught:
            get(open_session(server.url))
        assert len(server.requests) == 1
    assert caught.value.status == status


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize(
    "answer",
    [
        lambda status, _: reply(b'{"error":"no"}', status)[:-4],
        lambda status, _: reply(b"no gzip", status, ["Content-Encoding: gzip"]),
        lambda status, _: reply(b"", status, ["Content-Encoding: br"]),
        lambda status, clock: dripping(reply(b"x", status, length=False), [b"x"] * 1000, clock.tick),
    ],
    ids=["cut", "bad gzip", "another coding", "without end"],
)
def test_a_refusal_counts_whatever_becomes_of_its_body(answer, status, open_session, clock):
    with Server([answer(status, clock)]) as server:
        with pytest.raises(SourceError, match=f"HTTP {status}") as caught:
            get(open_session(server.url, read_timeout=30.0))
        assert len(server.requests) == 1
    assert caught.value.status == status


def test_of_an_error_page_only_the_beginning_is_shown(open_session):
    with Server([reply(b"<html> no\n" + b"z" * 2_000_000, 403)]) as server:
        with pytest.raises(SourceError, match="Whatever: '<html> no zzz") as caught:
            get(open_session(server.url))
        assert len(str(caught.value)) < 700


def test_the_attempt_of_a_refusal_is_counted_right(open_session):
    with Server([reply(b"", 500), reply(b"", 403)]) as server:
        with pytest.raises(SourceError, match=r"failed at attempt 2 of 3: HTTP 403.*permissions"):
            get(open_session(server.url))
        assert len(server.requests) == 2


def test_nobody_listens(open_session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceError, match=r"attempt 3 of 3: ConnectError") as caught:
        get(open_session(f"http://127.0.0.1:{port}"))
    assert caught.value.status is None


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 64 + ".example", "x..y"])
def test_a_name_that_cannot_be_resolved(name, open_session):
    with pytest.raises(SourceError):
        get(open_session(f"http://{name}/", attempts=1))


# --- Retry-After --------------------------------------------------------------------------------


def moment(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        (" 7 ", 7, 7),
        ("2.5", 2.5, 2.5),
        ("0", 1, 1),
        ("-5", 1, 1),
        ("date in 120", 30, 120),
        ("date in -3600", 1, 1),
    ],
)
def test_retry_after_is_obeyed_for_all_requests_of_the_credential(
    value, least, most, status, open_session, quota
):
    if value.startswith("date in"):
        value = moment(int(value.split()[-1]))
    limited = reply(b"", status, [f"Retry-After: {value}"])
    # More often than there are attempts: the source named the time itself.
    with Server([limited] * 6 + [reply(GOOD)]) as server:
        assert get(open_session(server.url)).content == RECORDS
        assert len(server.requests) == 7
    assert len(quota.holds) == 6
    assert all(least <= seconds <= most for seconds in quota.holds)


@pytest.mark.parametrize("value", ["soon", "", "nan", "Wed, 99 Foo 2025 00:00:00 GMT", "7 seconds", "\xa0"])
def test_a_retry_after_that_names_no_time_counts_as_none(value, open_session, quota):
    with Server([reply(b"", 429, [f"Retry-After: {value}"])]) as server:
        with pytest.raises(SourceError, match="attempt 3 of 3"):
            get(open_session(server.url))
        assert len(server.requests) == 3
    assert quota.holds == []


@pytest.mark.parametrize("value", ["901", "1e300", "inf", "99999999999999999999", "date in 100000"])
def test_a_retry_after_beyond_the_budget_fails_at_once(value, open_session, quota):
    if value.startswith("date in"):
        value = moment(int(value.split()[-1]))
    with Server([reply(b"", 429, [f"Retry-After: {value}"])]) as server:
        with pytest.raises(SourceError, match="wait longer than allowed") as caught:
            get(open_session(server.url, retry_after_budget=900))
        assert len(server.requests) == 1
    assert caught.value.status == 429
    # Others are held back too, but no server's mistake holds a credential back for years.
    (held,) = quota.holds
    assert 901 <= held <= 86_400


FAR = timedelta(seconds=120)


def test_a_retry_after_that_names_no_moment_is_none():
    said = httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 99999999999 07:28:00 GMT"})
    assert retry_after(said) is None


@pytest.mark.parametrize(
    "lines",
    [
        ["{:%A, %d-%b-%y %H:%M:%S GMT}"],
        ["{:%a %b %e %H:%M:%S %Y}"],
        ["{:%a, %d %b %Y %H:%M:%S -0000}"],
        ["{:%a, %d %b %Y %H:%M:%S UTC}"],
        ["120, 120"],
        ["3", "120"],
        ["120", "3"],
        ["120,soon"],
        ["1, {:%a, %d %b %Y %H:%M:%S GMT}"],
        ["{:%a, %d %b %Y %H:%M:%S GMT}, {:%a, %d %b %Y %H:%M:%S GMT}"],
        ["{:%A, %d-%b-%y %H:%M:%S GMT},1"],
        ["{:%a %b %e %H:%M:%S %Y}, 2"],
    ],
)
def test_every_form_of_retry_after_is_understood_and_the_longest_counts(lines, open_session, quota):
    headers = [f"Retry-After: {line.format(*[datetime.now(UTC) + FAR] * 2)}" for line in lines]
    with Server([reply(b"", 429, headers), reply(GOOD)]) as server:
        assert get(open_session(server.url)).content == RECORDS
    (held,) = quota.holds
    assert 60 <= held <= 120


def test_the_budget_is_for_all_waits_of_a_request_together(open_session, quota):
    with Server([reply(b"", 429, ["Retry-After: 4"])]) as server:
        with pytest.raises(SourceError, match="wait longer than allowed"):
            get(open_session(server.url, retry_after_budget=10))
        assert len(server.requests) == 3
    assert quota.holds == [4, 4, 4]


# --- Time and size ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (b"HTTP/1.1 200 OK\r\n", [b"X-%d: y\r\n" % n for n in range(1000)]),
        (b"", [b"H"] + [b"T"] * 1000),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", [b" "] * 1000),
        (b"", [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", [b"1\r\n \r\n"] * 1000),
    ],
    ids=["headers", "status line", "body", "informational answers", "chunks"],
)
def test_an_answer_that_drips_is_given_up_at_the_deadline(head, pieces, open_session, clock):
    with Server([dripping(head, pieces, clock.tick)]) as server:
        session = open_session(server.url, attempts=2, read_timeout=30.0)
        with pytest.raises(SourceError, match="attempt 2 of 2: ReadTimeout"):
            get(session)
        assert len(server.requests) == 2


def test_a_token_that_drips_is_given_up_at_the_deadline(clock):
    context = SourceContext("acme", Settings(attempts=1, read_timeout=30.0), Held(), tokens=OwnTokens())
    oauth = OAuth("/token", {"client_secret": "canary-client"}, {"grant_type": "client_credentials"})
    with Server([dripping(b"", [b"H"] + [b"T"] * 1000, clock.tick)]) as server:
        credentials = OAuthCredentials(context, server.url, True, oauth)
        with pytest.raises(SourceError, match="ReadTimeout"):
            credentials.headers()


def test_an_answer_that_does_not_come_is_given_up_at_the_deadline(open_session):
    silent = dripping(b"", [b""] * 1000)
    with Server([silent]) as server, pytest.raises(SourceError, match="attempt 2 of 2: ReadTimeout"):
        get(open_session(server.url, attempts=2, read_timeout=0.1))


def test_a_slow_answer_within_the_deadline_is_taken(open_session):
    head = reply(b"", length=False) + GOOD[:10]
    with Server([dripping(head, [bytes([byte]) for byte in GOOD[10:20]] + [GOOD[20:]])]) as server:
        assert get(open_session(server.url)).content == RECORDS


def test_every_request_has_the_whole_time_to_itself(open_session, clock):
    slow = dripping(reply(b"", length=False) + GOOD[:10], [b" ", b" ", GOOD[10:]], clock.tick)
    with Server([slow]) as server:
        session = open_session(server.url, read_timeout=40.0, attempts=1)
        for _ in range(5):
            assert get(session).content == RECORDS


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (GOOD, []),
        (gzip.compress(GOOD), ["Content-Encoding: gzip"]),
        (gzip.compress(GOOD), ["Content-Encoding: X-GZIP"]),
        (gzip.compress(GOOD[:20]) + gzip.compress(GOOD[20:]), ["Content-Encoding: gzip"]),
        (gzip.compress(GOOD) + bytes(512), ["Content-Encoding: gzip"]),
        (zlib.compress(GOOD), ["Content-Encoding: deflate"]),
        (GOOD, ["Content-Encoding: identity"]),
        (b"\xef\xbb\xbf" + GOOD, ["Content-Type: text/plain; charset=latin-1"]),
    ],
    # Compressed bodies hold the time, and the names of tests must not.
    ids=["plain", "gzip", "x-gzip", "two members", "padded", "zlib", "identity", "byte order mark"],
)
def test_a_body_is_decompressed_to_the_byte(body, headers, open_session):
    with Server([reply(body, headers=headers)]) as server:
        answer = get(open_session(server.url))
        assert answer.body.removeprefix(b"\xef\xbb\xbf") == GOOD


def test_a_large_compressed_body_is_whole(open_session):
    body = json.dumps(
        {"data": [{"id": number, "s": f"{number * 7919}"} for number in range(60_000)]}
    ).encode()
    packed = gzip.compress(body)
    chunks = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    headers = ["Content-Encoding: gzip", "Transfer-Encoding: chunked"]
    with Server([reply(sent, headers=headers, length=False)]) as server:
        assert get(open_session(server.url)).body == body


def bomb(connection):
    """Spaces without end, a thousandfold compressed; stops when nobody listens any more."""
    connection.sendall(reply(b"", headers=["Content-Encoding: gzip"], length=False))
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(3_000):
        connection.sendall(packer.compress(b" " * 1_000_000))


def flood(connection):
    connection.sendall(reply(b"", length=False))
    for _ in range(3_000):
        connection.sendall(b" " * 1_000_000)


@pytest.mark.parametrize("endless", [bomb, flood])
def test_an_answer_beyond_the_limit_is_given_up_without_being_held(endless, open_session):
    with Server([endless]) as server, pytest.raises(SourceError, match="larger than 3000000 bytes"):
        get(open_session(server.url, attempts=1, max_body_bytes=3_000_000))


def test_few_compressed_bytes_never_become_many_at_once():
    from bridge_pipeline.connector_kit.session import _inflated

    packed = gzip.compress(bytes(50_000_000))
    pieces = [len(piece) for piece in _inflated([packed])]
    assert sum(pieces) == 50_000_000
    assert max(pieces) <= 1_000_000


# --- Addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status, open_session):
    with Server([reply(GOOD)]) as other:
        target = f"Location: {other.url}/api/v1/tickets.json?token={TOKEN}"
        with Server([reply(b"", status, [target])]) as server:
            with pytest.raises(SourceError, match="never followed") as caught:
                get(open_session(server.url))
            assert len(server.requests) == 1
        assert other.requests == []
    assert "abcDEF" not in str(caught.value)
    assert other.url in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://desk.example.com",
        "HTTP://93.184.216.34",
        "ftp://desk.example.com",
        "desk.example.com",
        "//desk.example.com",
        "https://",
        "",
        "https:///api",
        "https://desk.example.com/?token=x",
        "https://desk.example.com#x",
        "https://[::1",
        "https://desk.example.com:99999",
        "https://desk.example.com:port",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_not_https_is_refused_before_anything_is_sent(url, open_session):
    with pytest.raises(AddressRefused, match="acme-helpdesk: base_url"):
        open_session(url, allow_private=False)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fe80::1]",
        "[fd00::1]",
    ],
)
def test_private_addresses_are_refused_unless_allowed(host, open_session, quota):
    with pytest.raises(AddressRefused, match="not a public address; set allow_private: true"):
        get(open_session(f"https://{host}:1", allow_private=False))
    assert quota.entered == 1


@pytest.mark.parametrize("answers", [["10.0.0.5"], ["93.184.216.34", "10.0.0.5"], ["93.184.216.34", "::1"]])
def test_a_name_is_refused_if_any_of_its_addresses_is_private(answers, open_session, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving(*answers))
    with pytest.raises(AddressRefused, match=r"rebound\.example\.com resolves to"):
        get(open_session("https://rebound.example.com", allow_private=False))


def test_the_address_that_was_checked_is_the_one_connected_to(open_session, monkeypatch):
    """A name server that answers otherwise the second time gains nothing."""
    asked = []
    with Server([reply(GOOD)]) as server:

        def resolve(host, port, *_, **__):
            asked.append(host)
            address = "127.0.0.1" if host == "127.0.0.1" or len(asked) == 1 else "127.9.9.9"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert get(open_session(f"http://desk.example.com:{server.port}")).content == RECORDS
        assert b"host: desk.example.com" in server.requests[0].lower()
    assert asked.count("desk.example.com") == 1


def test_the_environment_sends_nothing_elsewhere(open_session, monkeypatch, tmp_path):
    with Server([reply(GOOD)]) as proxy, Server([reply(GOOD)]) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password hunter2")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        get(open_session(server.url))
        assert proxy.requests == []
        assert b"authorization" not in server.requests[0].lower()


def test_a_server_without_a_trusted_certificate_is_refused(open_session):
    def shake_hands(connection):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                shake_hands(listener.accept()[0])

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(SourceError, match="ConnectError"):
            get(open_session(f"https://127.0.0.1:{listener.getsockname()[1]}", attempts=1))


# --- The token ----------------------------------------------------------------------------------

ECHO = TOKEN.encode()
QUOTED = b"12-abcDEF_ghi.jkl-mno%2Bpqr%2Fstu"


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"bad token " + ECHO, 401),
        reply(b"x" * 280 + ECHO, 500),
        reply(b'{"request":"/tickets.json?token=' + QUOTED + b'"}', 404),
        reply(b"", 302, [f"Location: https://elsewhere.example/?token={TOKEN}"]),
        reply(b"<html>" + b"y" * 70 + ECHO),
        reply(json.dumps({f"{'k' * 80}{TOKEN}": 1}).encode()),
        reply(b"", 429, [f"Retry-After: {TOKEN}"]),
        f"HTTP/1.1 500 {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode(),
        reply(GOOD, headers=[f"Content-Encoding: {TOKEN}"]),
        f"{TOKEN} HTTP\r\n\r\n".encode(),
        drop,
    ],
)
def test_the_token_stands_in_no_error_log_line_or_repr(answer, open_session, caplog):
    caplog.set_level(logging.DEBUG)
    # Whatever ran before may have silenced it; here it is to speak, and to say nothing secret.
    caplog.set_level(logging.DEBUG, logger="httpx")
    with Server([answer]) as server, structlog.testing.capture_logs() as lines:
        session = open_session(server.url)
        with pytest.raises(SourceError) as caught:
            get(session)
        assert server.paths[0].count("token=") == 1
    chain, error = [], caught.value
    while error is not None:
        chain += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    written = "\n".join([*chain, repr(lines), caplog.text, repr(session), repr(session.context)])
    assert lines
    assert "HTTP Request" in caplog.text or answer is drop or b"HTTP" not in answer[:5]
    for part in (TOKEN, QUOTED.decode(), "abcDEF", "pqr"):
        assert part not in written


def test_the_token_stands_in_no_repr_of_an_answer(open_session):
    with Server([reply(b'{"data":[{"id":1,"echo":"' + ECHO + b'"}]}')]) as server:
        assert "abcDEF" not in repr(get(open_session(server.url)))


# --- The journal --------------------------------------------------------------------------------


def fetch(session, journal, key="s1-p1", prepare=lambda body: body):
    return journalled(session, journal, key, "/api/v1/tickets.json", {}, decode, prepare, len)


def test_an_answer_is_asked_for_once_and_then_read_from_the_journal(open_session, tmp_path):
    with Server([reply(GOOD)]) as server:
        session = open_session(server.url)
        number, content, fetched_at, live = fetch(session, Journal(tmp_path))
        assert (number, content, live) == (0, RECORDS, True)
        assert fetch(session, Journal(tmp_path)) == (0, RECORDS, fetched_at, False)
        assert len(server.requests) == 1


def test_a_secret_that_the_source_echoes_reaches_neither_the_journal_nor_the_records(open_session, tmp_path):
    body = b'{"data":[{"id":1,"echo":"' + ECHO + b'"}]}'
    with Server([reply(body)]) as server:
        journal = Journal(tmp_path)
        _, content, _, _ = fetch(open_session(server.url), journal)
        assert content == [{"id": 1, "echo": "[redacted]"}]
        assert ECHO not in journal.body(0)


def test_excluded_fields_are_cut_before_the_journal(open_session, tmp_path):
    body = b'{"data":[{"id":1,"wifi_password":"hunter2"}]}'
    with Server([reply(body)]) as server:
        journal = Journal(tmp_path)
        prepare = lambda body: pages.without_members(body, ["*_password"])  # noqa: E731
        _, content, _, _ = fetch(open_session(server.url), journal, prepare=prepare)
        assert content == RECORDS
        assert journal.body(0) == b'{"data":[{"id":1}]}'


def test_an_exclusion_that_takes_the_list_itself_is_an_error_that_says_so(open_session, tmp_path):
    with Server([reply(GOOD)]) as server:
        session = open_session(server.url)
        for _ in range(2):
            with pytest.raises(SourceError, match=r"acme-helpdesk: the answer s1-p1 .* correct"):
                fetch(session, Journal(tmp_path), prepare=lambda _: b'{"more":false}')


def test_a_failed_request_leaves_nothing_in_the_journal(open_session, tmp_path):
    with Server([reply(b"<html>")]) as server, pytest.raises(SourceError):
        fetch(open_session(server.url), Journal(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- Credentials in headers ---------------------------------------------------------------------


class Crowd(http.server.BaseHTTPRequestHandler):
    """Answers nobody before as many are waiting as shall be at once; the last part of the path is the id."""

    def do_GET(self):
        server = self.server
        with server.lock:
            server.waiting += 1
            server.most = max(server.most, server.waiting)
            server.asked.append(self.path.split("?")[0])
        server.together.wait(60)
        with server.lock:
            server.waiting -= 1
        number = self.path.split("?")[0].rsplit("/", 1)[1]
        self.send_response(404 if number == "13" else 200)
        body = b'{"data":[{"id":%b}]}' % number.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Says nothing."""


@contextlib.contextmanager
def crowd(together):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Crowd)
    server.daemon_threads = True
    server.lock, server.together = threading.Lock(), threading.Barrier(together)
    server.waiting = server.most = 0
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def questions(*numbers):
    return [Question(f"one-{number}", f"/api/v1/tickets/{number}", {}, decode) for number in numbers]


def together(sessions, journal, asked):
    return journalled_together(sessions, journal, asked, lambda body: body, len)


def test_questions_are_asked_at_once_and_answered_in_their_order(open_session, tmp_path):
    with crowd(together=3) as (server, url):
        sessions = [open_session(url) for _ in range(3)]
        found = list(together(sessions, Journal(tmp_path), questions(*range(1, 10))))
        assert [content for _, content, _, _ in found] == [[{"id": number}] for number in range(1, 10)]
        assert [number for number, _, _, _ in found] == list(range(9))
        assert server.most == 3


def test_what_is_journalled_is_not_asked_again_and_an_error_stands_in_its_place(open_session, tmp_path):
    with crowd(together=1) as (server, url):
        sessions = [open_session(url) for _ in range(2)]
        list(together(sessions, Journal(tmp_path), questions(1, 2)))
        journal = Journal(tmp_path)
        found = list(together(sessions, journal, questions(2, 13, 3)))
        assert [each.status if isinstance(each, SourceError) else each[1][0]["id"] for each in found] == [
            2,
            404,
            3,
        ]
        assert sorted(server.asked) == [f"/api/v1/tickets/{number}" for number in (1, 13, 2, 3)]
        assert (journal.records, journal.written) == (2, 1)
        assert "one-13" not in journal


def who_asks(before):
    """The threads that ask and were not there before."""
    begun = set(threading.enumerate()) - before
    return [thread for thread in begun if thread.name.startswith("ask")]


def test_who_stops_reading_answers_leaves_nothing_running(open_session, tmp_path):
    with crowd(together=1) as (server, url):
        sessions, before = [open_session(url) for _ in range(2)], set(threading.enumerate())
        answers = together(sessions, Journal(tmp_path), questions(*range(1, 100)))
        next(answers)
        answers.close()
        assert len(server.asked) <= 4
        # An answer that an earlier test did not wait for may still be on its way.
        for thread in who_asks(before):
            # It has nothing more to do.
            thread.join(60)
        assert not who_asks(before)
        assert len(server.asked) <= 4


def test_answers_that_nobody_closed_may_be_collected_while_a_thread_begins(open_session, tmp_path):
    """What collects them may be a thread that begins or ends, and holds the lock of all that do."""
    with crowd(together=1) as (_, url):
        answers = together([open_session(url) for _ in range(2)], Journal(tmp_path), questions(*range(1, 9)))
        next(answers)
        ended_while_locked(answers)


# --- What is asked ahead -------------------------------------------------------------------------


def asked_ahead(session, page):
    session.ask("/api/v1/tickets.json", {"page": page}, decode)


def wanted(session, page):
    return session.get("/api/v1/tickets.json", {"page": page}, decode)


@pytest.fixture
def open_ahead(quota):
    opened = []

    def opening(url, **changes):
        values = {"backoff_initial": 0.001, "backoff_max": 0.002, "read_timeout": 60.0}
        context = SourceContext("acme-helpdesk", Settings(**values | changes), quota)
        opened.append(AheadSession(context, url, {"token": TOKEN}, True))
        return opened[-1]

    yield opening
    for session in opened:
        session.close()


def test_what_was_asked_ahead_is_not_asked_again(open_ahead, quota):
    with Server([reply(GOOD), reply(b"[]")]) as server:
        session = open_ahead(server.url)
        asked_ahead(session, "2")
        assert wanted(session, "2").content == RECORDS
        assert wanted(session, "2").content == []
        assert [path.rpartition("page=")[2] for path in server.paths] == ["2", "2"]
    assert (quota.entered, quota.open) == (2, 0)


def test_what_is_asked_in_between_waits_for_it(open_ahead, quota):
    """One request at a time, whatever becomes of the first."""
    entered, go = threading.Event(), threading.Event()

    def late(connection):
        entered.set()
        assert go.wait(60)
        connection.sendall(reply(GOOD))

    with Server([late, reply(b"[]")]) as server:
        session = open_ahead(server.url)
        asked_ahead(session, "2")
        assert entered.wait(60)
        threading.Timer(0.05, go.set).start()
        assert wanted(session, "7").content == []
        assert [path.rpartition("page=")[2] for path in server.paths] == ["2", "7"]
    assert quota.most == 1


def test_what_became_of_it_is_told_to_whom_it_concerns(open_ahead):
    with Server([reply(status=403), reply(GOOD)]) as server:
        session = open_ahead(server.url)
        asked_ahead(session, "2")
        with pytest.raises(SourceError, match="HTTP 403"):
            wanted(session, "2")
        assert wanted(session, "3").content == RECORDS


def test_it_is_asked_in_the_context_of_whoever_asks(open_ahead):
    structlog.contextvars.bind_contextvars(run="r-17")
    try:
        with (
            Server([reply(status=500), reply(GOOD)]) as server,
            structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs,
        ):
            session = open_ahead(server.url)
            asked_ahead(session, "2")
            wanted(session, "2")
    finally:
        structlog.contextvars.clear_contextvars()
    assert [entry["run"] for entry in logs] == ["r-17"]


def test_a_closed_session_asks_no_more_and_lets_go_when_the_answer_has_come(open_ahead, quota):
    entered, go = threading.Event(), threading.Event()

    def late(connection):
        entered.set()
        assert go.wait(60)
        connection.sendall(reply(status=500))

    with Server([late, reply(GOOD)]) as server:
        session = open_ahead(server.url, read_timeout=60.0)
        before = set(threading.enumerate())
        asked_ahead(session, "2")
        (asking,) = [each for each in threading.enumerate() if each.name == "ask" and each not in before]
        assert entered.wait(60)
        session.close()
        with pytest.raises(SourceError, match="given up"):
            wanted(session, "2")
        # Another connection may get the number of one that is closed while it is read.
        assert not session._http.is_closed
        go.set()
        asking.join(60)
        assert session._http.is_closed
        assert len(server.requests) == 1
    assert quota.open == 0


def test_a_session_that_was_closed_while_it_waited_for_quota_sends_nothing(open_ahead, quota, monkeypatch):
    waiting, go = threading.Event(), threading.Event()
    permitted = quota.request

    def request(path, params):
        waiting.set()
        assert go.wait(60)
        return permitted(path, params)

    monkeypatch.setattr(quota, "request", request)
    with Server([reply(GOOD)]) as server:
        session = open_ahead(server.url)
        asked_ahead(session, "2")
        assert waiting.wait(60)
        asked = session._asked
        session.close()
        go.set()
        assert isinstance(asked.answer.exception(60), SourceError)
        assert server.requests == []
    assert quota.open == 0


class Tokens:
    """Credentials whose tokens the source takes one after the other."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)

    def headers(self):
        return {"Authorization": f"Bearer {self.tokens[0]}"}

    def renew(self):
        self.tokens.pop(0)
        return bool(self.tokens)


@pytest.fixture
def accepting():
    """A server that takes the token `good` alone, and the tokens it was shown."""
    shown = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            shown.append(self.headers["Authorization"])
            self.send_response(200 if shown[-1] == "Bearer good" else 401)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", shown
        server.shutdown()


def asking(address, *tokens):
    session = Session(SourceContext("acme", Settings(), Held()), address, {}, True, Tokens(*tokens))
    try:
        return session.get("/a", {}, lambda body: body).content
    finally:
        session.close()


def test_a_token_that_expired_is_renewed_and_the_request_sent_again(accepting):
    address, shown = accepting
    assert asking(address, "stale", "good") == b"[]"
    assert shown == ["Bearer stale", "Bearer good"]


@pytest.mark.parametrize("tokens", [("stale",), ("stale", "worse", "good")])
def test_a_source_that_takes_neither_the_token_nor_a_new_one_ends_the_reading(accepting, tokens):
    address, shown = accepting
    with pytest.raises(SourceError, match="the credential was not accepted"):
        asking(address, *tokens)
    assert shown == [f"Bearer {token}" for token in tokens[:2]]
