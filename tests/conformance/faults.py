"""What can befall an answer, and what a reader must make of it: the table of HTTP faults.

`FAULTS` are answers spoilt as `faultproxy` sends them, each with its verdict:

- `harmless`: the records arrive although every answer is so;
- `passing`: once, it is asked again and the records arrive; lasting, the reading fails;
- `fatal`: the reading fails at the first one, without asking again;
- `either`: the records arrive or the reading fails, whatever the vendor means by it;
- `endless`: lasting, the reading fails, and never passes for complete.
"""

import gzip
import itertools
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal

from tests.conformance.faultproxy import Answer, Exchange, Spoil, Spoilt

# The requests of a reading that are struck.
PLACES = ("first", "middle", "last")
Verdict = Literal["harmless", "passing", "fatal", "either", "endless"]
# Seconds in which an answer must be there, where a fault is about its time; and for which nothing comes,
# unless the reader hangs up.
DEADLINE, SILENCE = 0.4, 3.0
# So many pages are served to one who never sees an end.
_ENDLESS = 40
_JSON = (("Content-Type", "application/json"),)
_HTML = b"<!DOCTYPE html><html><head><title>One moment</title></head><body>Maintenance</body></html>"
_LINK = re.compile(rb"https?://[^\s\"\\<>]+")


@dataclass(frozen=True)
class Fault:
    """One way in which an answer goes wrong.

    `lasts` are the places of a reading from which on it may last: there a lasting one can be told from an
    honest API, such as one whose lists are empty or which has one page only. `held` is what the source's
    quota must then be held for (seconds, at least); `deadline` is how long an answer may take.
    """

    name: str
    verdict: Verdict
    spoil: Spoil
    lasts: tuple[str, ...] = PLACES
    held: float = 0.0
    deadline: float | None = None


# --- Answers in place of the true one -----------------------------------------------------------


def instead(status: int, body: bytes = b"", *headers: tuple[str, str]) -> Spoil:
    """Another answer."""
    return lambda _: Spoilt((Answer(status, body, headers or _JSON).whole(),))


def refusal(status: int, *headers: tuple[str, str]) -> Spoil:
    """An error whose text repeats what was asked, credential included."""

    def spoil(exchange: Exchange) -> Spoilt:
        body = b'{"error":"refused: GET %b"}' % exchange.target.encode()
        return Spoilt((Answer(status, body, (*_JSON, *headers)).whole(),))

    return spoil


def later(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def throttled(*values: str) -> Spoil:
    return refusal(429, *(("Retry-After", value) for value in values))


def redirected(status: int, where: Callable[[Exchange], str | None]) -> Spoil:
    def spoil(exchange: Exchange) -> Spoilt:
        target = where(exchange)
        headers = () if target is None else (("Location", target),)
        return Spoilt((Answer(status, b"", headers).whole(),))

    return spoil


def before(exchange: Exchange) -> Spoilt:
    """The answer to the request before, once more."""
    return Spoilt(((exchange.before or exchange.answer).whole(),))


# --- The true answer, changed -------------------------------------------------------------------


def changed(change: Callable[[Answer], Answer]) -> Spoil:
    return lambda exchange: Spoilt((change(exchange.answer).whole(),))


def body(change: Callable[[bytes], bytes]) -> Spoil:
    """Another body with its right length."""
    return changed(lambda answer: replace(answer, body=change(answer.body)))


def beside(members: bytes) -> Spoil:
    """The true answer with more members, which say that it failed (vendor-apis B.7, C.10, D.8)."""
    return body(lambda b: b.lstrip().replace(b"{", b"{" + members + b",", 1))


def typed(kind: str, change: Callable[[bytes], bytes] = bytes) -> Spoil:
    return changed(
        lambda answer: replace(
            answer.without("content-type").carrying(("Content-Type", kind)), body=change(answer.body)
        )
    )


def coded(coding: str, encode: Callable[[bytes], bytes]) -> Spoil:
    return changed(
        lambda answer: replace(answer, body=encode(answer.body)).carrying(("Content-Encoding", coding))
    )


def raw(
    write: Callable[[Answer], tuple[bytes, ...]], end: Literal["keep", "close", "reset"], pause=0.0
) -> Spoil:
    """The bytes on the wire themselves."""
    return lambda exchange: Spoilt(write(exchange.answer), end, pause)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunked(answer: Answer) -> bytes:
    return answer.head(-1, (("Transfer-Encoding", "chunked"),))


def _pieces(answer: Answer) -> tuple[bytes, ...]:
    data = answer.whole()
    step = len(data) // 6 + 1
    return tuple(data[start : start + step] for start in range(0, len(data), step))


def paced(seconds: float, pieces: int = 20) -> Spoil:
    """The true answer at an even rate, which brings it within so many seconds."""

    def spoil(exchange: Exchange) -> Spoilt:
        data = exchange.answer.whole()
        step = -(-len(data) // pieces)
        parts = tuple(data[start : start + step] for start in range(0, len(data), step))
        return Spoilt(parts, pause=seconds / pieces)

    return spoil


def _byte_by_byte(answer: Answer) -> tuple[bytes, ...]:
    """Single bytes for as long as nobody waits for one for long, and the rest at the end."""
    data, single = answer.whole(), 100
    return (*(data[number : number + 1] for number in range(single)), data[single:])


def _with_new_ids(exchange: Exchange) -> Spoilt:
    """The page before, which was not the last one, with records that nobody has seen."""
    if exchange.number >= _ENDLESS:
        return Spoilt((Answer(500, b"", _JSON).whole(),))
    answer = exchange.before or exchange.answer
    return Spoilt((replace(answer, body=_ID.sub(_renewed, answer.body)).whole(),))


def _renewed(found: re.Match[bytes]) -> bytes:
    """Another number, or 32 other hexadecimal digits, and another place to go on from."""
    text = b"%d" % next(_NEW)
    return found[1] + (text.rjust(32, b"f") if len(found[2]) == 32 else text)


# What a record is named by, and a page of a list that is read by cursor.
_ID = re.compile(rb'("(?:id|sys_id|after_cursor)"\s*:\s*"?|[?&]cursor=)([^",&}]+)')
_NEW = itertools.count(10**9)


def _foreign_links(exchange: Exchange) -> Spoilt:
    """All addresses of the API in the answer lead to another origin, and one more header does."""
    elsewhere = exchange.elsewhere.encode()
    own = exchange.origin.encode()

    def led(found: re.Match[bytes]) -> bytes:
        return elsewhere + found[0][len(own) :] if found[0].startswith(own) else found[0]

    answer = replace(exchange.answer, body=_LINK.sub(led, exchange.answer.body))
    headers = tuple((name, _LINK.sub(led, value.encode()).decode()) for name, value in answer.headers)
    return Spoilt((replace(answer, headers=headers).whole(),))


def _foreign_header(exchange: Exchange) -> Spoilt:
    link = f'<{exchange.elsewhere}{exchange.target}>; rel="next"'
    return Spoilt((exchange.answer.without("link").carrying(("Link", link)).whole(),))


def _bomb(_: bytes) -> bytes:
    return gzip.compress(b'{"data":[' + b" " * 2_000_000, 9)


# --- The table ----------------------------------------------------------------------------------

_STATUSES: dict[Verdict, tuple[int, ...]] = {
    "fatal": (401, 402, 403, 404, 407, 410, 451),
    "either": (400, 405, 406, 409, 413, 414, 422, 431),
    "passing": (408, 425, 500, 502, 503, 504, 507, 520, 522, 524, 529, 599),
}
# Each with the seconds for which it must be obeyed; none where it says nothing.
_RETRY_AFTER: dict[str, tuple[Verdict, Callable[[], tuple[str, ...]], float]] = {
    "missing": ("passing", lambda: (), 0),
    "empty": ("passing", lambda: ("",), 0),
    "seconds": ("passing", lambda: ("1",), 1),
    "fraction": ("passing", lambda: ("1.5",), 1.5),
    "zero": ("passing", lambda: ("0",), 1),
    "negative": ("passing", lambda: ("-30",), 1),
    "huge": ("fatal", lambda: ("99999999999999999999",), 86_400),
    "infinite": ("fatal", lambda: ("inf",), 86_400),
    "not a number": ("passing", lambda: ("nan",), 0),
    "date": ("passing", lambda: (later(2),), 1),
    "date long past": ("passing", lambda: (later(-86_400),), 1),
    "date far away": ("fatal", lambda: (later(86_400_000),), 86_400),
    "garbage": ("passing", lambda: ("soon, promised",), 0),
    "twice": ("passing", lambda: ("1", "2"), 0),
}
_WITHOUT_LIST = (
    b"null",
    b"true",
    b"0",
    b'"text"',
    b"{}",
    b'{"data":null}',
    b'{"data":{}}',
    b'{"error":"overloaded"}',
    b'{"message":"ok","success":true}',
)
_REDIRECTS: dict[str, tuple[int, Callable[[Exchange], str | None]]] = {
    "to the same origin": (302, lambda x: f"{x.origin}{x.target}"),
    "by path": (307, lambda x: x.target),
    "to another origin": (301, lambda x: f"{x.elsewhere}{x.target}"),
    "for ever to another origin": (308, lambda x: f"{x.elsewhere}{x.target}"),
    "to a private address": (302, lambda x: "http://169.254.169.254/latest/meta-data/"),
    "to a file": (303, lambda x: "file:///etc/passwd"),
    "to nowhere": (302, lambda x: None),
}
_BODIES = (
    Fault("empty body", "passing", body(lambda b: b"")),
    Fault("blank body", "passing", body(lambda b: b" \n")),
    Fault("body of NUL", "passing", body(lambda b: b"\0" * len(b))),
    Fault("cut after the first byte", "passing", body(lambda b: b[:1])),
    Fault("cut in half", "passing", body(half)),
    Fault("cut before the last byte", "passing", body(lambda b: b.rstrip()[:-1])),
    Fault("followed by another document", "passing", body(lambda b: b + b)),
    Fault("an empty list", "either", body(lambda b: b"[]"), lasts=()),
    Fault("HTML with 200", "passing", instead(200, _HTML, ("Content-Type", "text/html"))),
    Fault("HTML called JSON", "passing", instead(200, _HTML)),
    Fault("HTML before JSON", "passing", body(lambda b: b"<br />Warning: mail()\n" + b)),
    Fault("with a byte order mark", "harmless", body(lambda b: b"\xef\xbb\xbf" + b)),
    Fault("followed by blanks", "harmless", body(lambda b: b + b"\r\n \n")),
    Fault(
        "in UTF-16",
        "passing",
        typed("application/json; charset=utf-16", lambda b: b.decode().encode("utf-16")),
    ),
    Fault("called UTF-16", "harmless", typed("application/json; charset=utf-16")),
    Fault("called Latin-1", "harmless", typed("application/json; charset=iso-8859-1")),
    Fault("called text", "harmless", typed("text/plain")),
    Fault("larger than allowed", "passing", body(lambda b: b + b" " * 1_000_001)),
)
_CODINGS = (
    Fault("gzip", "harmless", coded("gzip", gzip.compress)),
    Fault(
        "gzip of two members",
        "harmless",
        coded("gzip", lambda b: gzip.compress(half(b)) + gzip.compress(b[len(b) // 2 :])),
    ),
    Fault("deflate", "harmless", coded("deflate", zlib.compress)),
    Fault("gzip that is none", "passing", coded("gzip", bytes)),
    Fault("gzip cut", "passing", coded("gzip", lambda b: gzip.compress(b)[:-9])),
    Fault("gzip damaged", "passing", coded("gzip", lambda b: gzip.compress(b)[:-8] + b"\0" * 8)),
    Fault("gzip bomb", "passing", coded("gzip", _bomb)),
    Fault("a coding not asked for", "passing", coded("br", bytes)),
)
_WIRES = (
    Fault("closed before the answer", "passing", raw(lambda a: (), "close")),
    Fault("reset before the answer", "passing", raw(lambda a: (), "reset")),
    Fault("closed in the status line", "passing", raw(lambda a: (b"HTTP/1.",), "close")),
    Fault("closed in the headers", "passing", raw(lambda a: (half(a.head()),), "close")),
    Fault("reset after the headers", "passing", raw(lambda a: (a.head(),), "reset")),
    Fault("closed in the body", "passing", raw(lambda a: (a.head() + half(a.body),), "close")),
    Fault("reset in the body", "passing", raw(lambda a: (a.head() + half(a.body),), "reset")),
    Fault("length too long", "passing", raw(lambda a: (a.head(len(a.body) + 7) + a.body,), "close")),
    Fault("length too short", "passing", raw(lambda a: (a.head(len(a.body) - 7) + a.body,), "close")),
    Fault(
        "two lengths", "passing", raw(lambda a: (a.head(None, (("Content-Length", "1"),)) + a.body,), "close")
    ),
    Fault(
        "length of a minus",
        "passing",
        raw(lambda a: (a.head(-1, (("Content-Length", "-5"),)) + a.body,), "close"),
    ),
    Fault(
        "without length",
        "harmless",
        raw(lambda a: (a.head(-1, (("Connection", "close"),)) + a.body,), "close"),
    ),
    Fault(
        "cut without length",
        "passing",
        raw(lambda a: (a.head(-1, (("Connection", "close"),)) + half(a.body),), "close"),
    ),
    Fault("chunked", "harmless", raw(lambda a: (_chunked(a) + chunk(a.body) + b"0\r\n\r\n",), "keep")),
    Fault("chunked and cut", "passing", raw(lambda a: (_chunked(a) + chunk(half(a.body)),), "close")),
    Fault("chunks that are none", "passing", raw(lambda a: (_chunked(a) + b"zz\r\n" + a.body,), "close")),
    Fault("not HTTP", "passing", raw(lambda a: (b"220 mail.example ESMTP\r\n",), "close")),
    Fault("dripping", "harmless", raw(_pieces, "keep", 0.001)),
    Fault(
        "100 Continue before it",
        "harmless",
        raw(lambda a: (b"HTTP/1.1 100 Continue\r\n\r\n" + a.whole(),), "keep"),
    ),
    Fault(
        "early hints before it",
        "harmless",
        raw(lambda a: (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + a.whole(),), "keep"),
    ),
    Fault(
        "bomb of headers",
        "passing",
        changed(lambda a: a.carrying(*((f"X-{n}", "x" * 1_000) for n in range(300)))),
    ),
    Fault(
        "headers twice",
        "harmless",
        changed(lambda a: a.carrying(("Content-Length", str(len(a.body))), *a.headers[:1])),
    ),
)
_TIMES = tuple(
    replace(fault, deadline=DEADLINE)
    for fault in (
        Fault("silent", "passing", raw(lambda a: (b"", a.whole()), "keep", SILENCE)),
        Fault("silent after the headers", "passing", raw(lambda a: (a.head(), a.body), "keep", SILENCE)),
        Fault(
            "silent in the body",
            "passing",
            raw(lambda a: (a.head() + half(a.body), a.body[len(a.body) // 2 :]), "keep", SILENCE),
        ),
        Fault("dripping past the deadline", "passing", raw(_byte_by_byte, "keep", SILENCE / 100)),
        Fault("slower than the deadline allows", "passing", paced(SILENCE)),
        Fault("slow within the deadline", "harmless", paced(DEADLINE / 4)),
    )
)
_MEANINGS = (
    Fault("an error beside the records", "passing", beside(b'"error":"backend timeout, incomplete"')),
    Fault(
        "an error object beside the records",
        "passing",
        beside(b'"error":{"message":"Semaphore limit reached","detail":null},"status":"failure"'),
    ),
    Fault("errors beside the records", "passing", beside(b'"errors":[{"code":"timeout"}]')),
    Fault("a failure beside the records", "passing", beside(b'"status":"failure"')),
    Fault("no error beside the records", "harmless", beside(b'"error":null,"errors":[],"status":"success"')),
    Fault("204 No Content", "passing", instead(204)),
    Fault("205 Reset Content", "passing", instead(205)),
    Fault("206 with half of it", "passing", changed(lambda a: Answer(206, half(a.body), a.headers))),
    Fault("202 Accepted", "passing", instead(202, b'{"status":"queued"}')),
    Fault("304 Not Modified", "fatal", instead(304)),
    Fault("300 Multiple Choices", "fatal", instead(300)),
    Fault("the page before again", "either", before, lasts=()),
    Fault("the same page for ever", "either", before, lasts=("middle", "last")),
    Fault("new records for ever", "endless", _with_new_ids, lasts=("first", "middle")),
    Fault("links elsewhere", "either", _foreign_links),
    Fault("a Link header elsewhere", "either", _foreign_header),
)
FAULTS: tuple[Fault, ...] = (
    *(
        Fault(f"HTTP {code}", verdict, refusal(code))
        for verdict, codes in _STATUSES.items()
        for code in codes
    ),
    *(
        Fault(f"429, Retry-After {form}", verdict, lambda x, said=said: throttled(*said())(x), held=held)
        for form, (verdict, said, held) in _RETRY_AFTER.items()
    ),
    *(Fault(f"200 {text.decode()}", "passing", body(lambda _, text=text: text)) for text in _WITHOUT_LIST),
    *(Fault(f"redirect {where}", "fatal", redirected(*how)) for where, how in _REDIRECTS.items()),
    *_BODIES,
    *_CODINGS,
    *_WIRES,
    *_TIMES,
    *_MEANINGS,
)

# One of each kind, in every run of the tests; the others run with the long campaigns.
EVERY_RUN = frozenset(
    {
        *("HTTP 401", "HTTP 403", "HTTP 404", "HTTP 410", "HTTP 400", "HTTP 422", "HTTP 408", "HTTP 500"),
        *("HTTP 502", "HTTP 503", "HTTP 504", "HTTP 599", "204 No Content", "304 Not Modified"),
        *(
            f"429, Retry-After {form}"
            for form in ("missing", "seconds", "negative", "huge", "date", "garbage")
        ),
        *(f"200 {text}" for text in ("null", "true", "{}", '{"error":"overloaded"}')),
        *("an empty list", "empty body", "cut in half", "cut before the last byte", "HTML with 200"),
        *("with a byte order mark", "in UTF-16", "called Latin-1", "gzip", "gzip that is none", "gzip cut"),
        *("gzip bomb", "reset before the answer", "reset after the headers", "closed in the body"),
        *("length too long", "length too short", "chunked and cut", "dripping", "100 Continue before it"),
        *("dripping past the deadline", "slow within the deadline", "new records for ever"),
        *("headers twice", "bomb of headers", "redirect to the same origin", "redirect to another origin"),
        *("redirect to a private address", "links elsewhere", "the page before again"),
        *("the same page for ever", "an error beside the records", "no error beside the records"),
    }
)
