"""A helpdesk on loopback whose records, pages and misbehaviour a test sets by hand.

It answers as vendor-apis A says: `/api/v1/<entity>.json?token=…`, `page`, `select`, `filter`,
stubs without their fields unless selected, an empty list past the end, and single records by id.
What it may do to a client is listed in `Desk`; nothing happens by chance.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Record = dict[str, Any]
TOKEN = "4711-canary_Tok3n-that-must_not-be-found"

_TERM = re.compile(r"\s*(\w+)\s*(>=|<=|=|>|<)\s*'([^']*)'\s*")
_ENTITY = re.compile(r"/api/v1/(\w+?)(?:/(\w+))?\.json")


@dataclass(frozen=True)
class Request:
    """A request as the desk saw it; `filtered` if it came with a filter."""

    entity: str
    id: str | None
    page: int
    filtered: bool
    target: str


@dataclass(frozen=True)
class Answer:
    """What is sent back instead of a list or record."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Desk:
    """The desk; every field may be changed while it serves.

    Attributes:
        records: for each entity its records in listing order; `bytes` are sent as they are.
        page_size: records per page.
        filtering: `honoured`, `ignored`, or `hiding` (honoured, but `hidden` ids are left out).
        envelope: `central`, `named`, `data` or `bare`.
        by_id: whether single records can be asked for; if not, that is answered with 405.
        unlisted: ids that no listing shows; each can be asked for.
        forbidden: ids that no listing shows, and that may not be asked for (403).
        before: called with each request before it is answered; may change records, or answer itself.
        requests: all requests so far.
    """

    records: dict[str, list[Record | bytes]] = field(
        default_factory=lambda: {"accounts": [], "users": [], "tickets": []}
    )
    page_size: int = 10
    filtering: str = "honoured"
    hidden: set[int] = field(default_factory=set)
    envelope: str = "central"
    by_id: bool = True
    unlisted: set[int] = field(default_factory=set)
    forbidden: set[int] = field(default_factory=set)
    before: Callable[[Request], Answer | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def lists(self, entity: str) -> list[Request]:
        """The requests so far for pages of an entity."""
        return [request for request in self.requests if request.entity == entity and request.id is None]

    def lookups(self, entity: str) -> list[str]:
        """The ids so far asked for one by one."""
        return [request.id for request in self.requests if request.entity == entity and request.id]

    def find(self, entity: str, record_id: str | int) -> Record | None:
        """The record with that id."""
        found = (
            r for r in self.records[entity] if isinstance(r, dict) and str(r.get("id")) == str(record_id)
        )
        return next(found, None)

    def answer(self, target: str) -> Answer:
        """The answer to a request for `target`, path and query."""
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        match = _ENTITY.fullmatch(parts.path)
        if query.get("token") != TOKEN:
            return Answer(401, json.dumps({"error": f"Invalid token {query.get('token')}"}).encode())
        if not match or match[1] not in self.records:
            return Answer(404, b'{"error": "Not found"}')
        request = Request(match[1], match[2], int(query.get("page", 1)), "filter" in query, target)
        self.requests.append(request)
        instead = self.before(request)
        select = query.get("select", "")
        return instead or (self._one(request, select) if request.id else self._list(request, query, select))

    def _one(self, request: Request, select: str) -> Answer:
        if not self.by_id:
            return Answer(405, b'{"error": "Method not allowed"}')
        record = self.find(request.entity, request.id or "")
        if record is not None and record["id"] in self.forbidden:
            return Answer(403, b'{"error": "Forbidden"}')
        if record is None:
            return Answer(404, b'{"error": "Not found"}')
        return Answer(200, b'{"data":' + _encoded(record, select) + b"}")

    def _list(self, request: Request, query: dict[str, str], select: str) -> Answer:
        unseen = self.unlisted | self.forbidden
        found = [r for r in self.records[request.entity] if isinstance(r, bytes) or r.get("id") not in unseen]
        if request.filtered and self.filtering != "ignored":
            terms = _terms(query["filter"])
            hidden = self.hidden if self.filtering == "hiding" else set()
            found = [
                r for r in found if isinstance(r, bytes) or (r.get("id") not in hidden and _matches(r, terms))
            ]
        start = (request.page - 1) * self.page_size
        encoded = [_encoded(record, select) for record in found[start : start + self.page_size]]
        return Answer(200, self._enveloped(request, b"[" + b",".join(encoded) + b"]", len(found)))

    def _enveloped(self, request: Request, records: bytes, total: int) -> bytes:
        if self.envelope == "bare":
            return records
        if self.envelope == "central":
            pages = -(-total // self.page_size)
            more = json.dumps(request.page < pages)
            return (
                f'{{"page":{request.page},"more":{more},"total_pages":{pages},"data":'.encode()
                + records
                + b"}"
            )
        name = request.entity if self.envelope == "named" else "data"
        return f'{{"{name}":'.encode() + records + b"}"


def _encoded(record: Record | bytes, select: str) -> bytes:
    if isinstance(record, bytes):
        return record
    return json.dumps(_selected(record, select.split(","))).encode()


def _selected(record: Record, select: list[str]) -> Record:
    """Related objects as stubs, with those of their fields that are selected by a dotted path."""

    def stub(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [stub(name, item) for item in value]
        # Choices of custom fields have a number as `_type` and come whole (vendor-apis A.3).
        if not isinstance(value, dict) or not isinstance(value.get("_type"), str) or f"{name}.*" in select:
            return value
        return {k: v for k, v in value.items() if k in ("id", "_type") or f"{name}.{k}" in select}

    return {name: stub(name, value) for name, value in record.items()}


def _terms(expression: str) -> list[tuple[str, str, str]]:
    matches = [_TERM.fullmatch(term) for term in expression.split("AND")]
    return [(match[1], match[2], match[3]) for match in matches if match]


def _matches(record: Record, terms: list[tuple[str, str, str]]) -> bool:
    return all(_compare(record.get(name), operator, value) for name, operator, value in terms)


def _compare(left: Any, operator: str, right: str) -> bool:
    try:
        a, b = datetime.fromisoformat(left), datetime.fromisoformat(right)
    except (TypeError, ValueError):
        return False
    return {">=": a >= b, "<=": a <= b, "=": a == b, ">": a > b, "<": a < b}[operator]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        desk: Desk = self.server.desk  # type: ignore[attr-defined]
        with desk.lock:
            answer = desk.answer(self.path)
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients are killed here; what else goes wrong is seen as a 500 or not at all.
        pass


@contextmanager
def serving(desk: Desk | None = None) -> Iterator[Desk]:
    """A desk on a free port of 127.0.0.1 until the block ends."""
    desk = desk or Desk()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.desk = desk  # type: ignore[attr-defined]
    desk.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield desk
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def account(number: int, changed: str | None, **more: Any) -> Record:
    """An account as the desk holds it."""
    created = {"created_at": "2024-01-01T08:00:00Z", "updated_at": changed}
    return {"id": number, "_type": "Account", "name": f"Account {number}"} | created | more


def user(number: int, changed: str | None, **more: Any) -> Record:
    """A user as the desk holds it."""
    return {
        "id": number,
        "_type": "User",
        "number": number + 10_000,
        "name": f"Ada Lovelace {number}",
        "email": f"user{number}@example.com",
        "roles": [{"id": 3, "_type": "Role", "name": "Agent"}],
        "locked": False,
        "created_at": "2024-01-01T08:00:00Z",
        "updated_at": changed,
    } | more


def ticket(number: int, changed: str | None, **more: Any) -> Record:
    """A ticket as the desk holds it, of account 1 and requested by user 1 unless said otherwise."""
    return {
        "id": number,
        "_type": "Ticket",
        "subject": f"Printer {number} is on fire",
        "description": f"<p>It burns, number {number}.</p>",
        "status": {"id": 1, "_type": "TicketStatus", "name": "New", "closed": False},
        "priority": {"id": 2, "_type": "TicketPriority", "name": "High"},
        "account": {"id": 1, "_type": "Account", "name": "Account 1"},
        "customer_user": {"id": 1, "_type": "User"},
        "assignee": {"id": 12744, "_type": "Role"},
        "user_watchers": [],
        "tags": ["printer"],
        "created_at": "2024-02-01T08:00:00Z",
        "updated_at": changed,
        "resolved_at": None,
        "responded_at": None,
        "cf_building": {"id": 374, "name": "Other", "_type": 370},
    } | more
