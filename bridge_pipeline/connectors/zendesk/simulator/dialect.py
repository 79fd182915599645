"""How Zendesk Support answers: exports, lists, single records, errors, and the truth of it all.

What it has to answer with is `world` and `records`; how it counts requests is `limits`. Sending,
faults and logs are `connector_kit.simulator`. What is not recorded and decided here: the order of
lists is by id, deleted organizations move in the export at their deletion, events of scrubbed tickets
leave the event stream, tickets of a merged user move in the export as by the system and without an
event, and the texts for a page too deep and for a bad cursor of an export.
"""

import base64
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson

from bridge_pipeline.connector_kit.simulator import Answer, Request, SimulatorOptions
from bridge_pipeline.connectors.zendesk.simulator.limits import Limits
from bridge_pipeline.connectors.zendesk.simulator.records import Records, comment_id, instant
from bridge_pipeline.connectors.zendesk.simulator.tokens import Tokens
from bridge_pipeline.connectors.zendesk.simulator.world import (
    DAY,
    LIVE,
    SCRUBBED,
    Changes,
    Rows,
    World,
    generate,
)

_NAMES = {"organizations": "accounts", "users": "users", "groups": "groups", "tickets": "tickets"}
_CURSOR_EXPORT = re.compile(r"/api/v2/incremental/(tickets|users)/cursor(?:\.json)?")
_TIME_EXPORT = re.compile(r"/api/v2/incremental/(tickets|users|organizations|ticket_events)(?:\.json)?")
_LIST = re.compile(r"/api/v2/(tickets|users|organizations|groups|deleted_tickets)(?:\.json)?")
_COUNT = re.compile(r"/api/v2/(tickets|users|organizations|groups)/count(?:\.json)?")
_ONE = re.compile(r"/api/v2/(tickets|users|organizations|groups)/(\d{1,18})(?:\.json)?")
_COMMENTS = re.compile(r"/api/v2/tickets/(\d{1,18})/comments(?:\.json)?")
_MARK = re.compile(rb'"generated_timestamp":\d+,')
_WITHHELD = 60
_ARCHIVED_AFTER = 120 * DAY
_OFFSET_PAGES, _LIST_PAGE = 100, 100
_PLAN = 700


@dataclass(frozen=True)
class Behaviour:
    """What can be switched in how the account behaves (vendor-apis F, ZD-1 to ZD-12).

    Attributes:
        export_page: most records that a page of an export holds.
        limits: whether requests over a limit are refused.
        spelling: `2024` or `2023`, the year whose names of rate headers are used.
        rescued: whether a time-based page that holds one second is extended to all of it.
        gateway_rows: a page with more records than this is given up by the gateway; 0 for none.
        cursor_pages: whether lists know cursor pages; without, `page[size]` is ignored.
        forbidden: entities that the credential may not read.
        token_life: how many requests an OAuth token is good for; 0 for any number.
        marked_lookups: whether a ticket that is asked for by its id tells its `generated_timestamp`.
    """

    export_page: int = 1_000
    limits: bool = True
    spelling: str = "2024"
    rescued: bool = True
    gateway_rows: int = 0
    cursor_pages: bool = True
    forbidden: frozenset[str] = frozenset()
    token_life: int = 0
    marked_lookups: bool = True

    @classmethod
    def of(cls, options: SimulatorOptions) -> "Behaviour":
        """What goes with the options' profile of faults: a hostile account makes use of all it may do."""
        if options.faults != "hostile":
            return cls()
        return cls(spelling=("2024", "2023")[options.seed % 2], gateway_rows=600, token_life=40)


class _Refused(Exception):
    """An answer in place of the one that was asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass
class ZendeskSupport:
    """The API over one account; see `connector_kit.simulator.Dialect`."""

    options: SimulatorOptions
    behaviour: Behaviour = field(default_factory=Behaviour)
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = generate(self.options)
        self.changing = Changes(self.world, self.options.profile)
        per_minute = self.options.requests_per_minute or _PLAN
        self._limits = Limits(per_minute, self.behaviour.limits, self.behaviour.spelling)
        self._tokens = Tokens(self.options.token, self.behaviour.token_life)

    @property
    def records(self) -> int:
        """How many records there are, of all entities."""
        return sum(len(table.ids) for table in self.world.tables.values())

    @property
    def changes(self) -> int:
        """How often a record has changed since the start."""
        return sum(table.changes for table in self.world.tables.values())

    @property
    def now(self) -> int:
        """The account's time: frozen between changes if the options name a clock."""
        return self.world.clock if self.options.clock else max(self.world.clock, int(time.time()))

    def answer(self, request: Request) -> Answer:
        """Answers one request."""
        kind = _kind(request.path)
        try:
            body = self._body(request, kind)
        except _Refused as refused:
            answer = refused.answer
        else:
            answer = Answer(200, body, "application/json; charset=utf-8")
            self.changing.after_answer()
        if answer.status == 429:
            return answer
        return Answer(
            answer.status, answer.body, answer.content_type, (*answer.headers, *self._limits.headers(kind))
        )

    def truth(self) -> Iterator[bytes]:
        """The truth as JSON: `clock`, `entities`, `malformed`, `deleted` (by entity and id).

        `updated_at` is the change mark: of tickets their `generated_timestamp`.
        """
        entities: dict[str, dict[str, Any]] = {}
        deleted: dict[str, dict[str, Any]] = {}
        for entity, table in self.world.tables.items():
            entities[entity], deleted[entity] = {}, {}
            for row in range(len(table.ids)):
                if entity == "tickets" and row in self.world.malformed:
                    continue
                # A deleted user is inactive, and still a user.
                kept = table.states[row] == LIVE or entity == "users"
                (entities if kept else deleted)[entity][str(table.ids[row])] = {
                    "updated_at": instant(table.marks[row])
                }
        entities["comments"] = self._true_comments()
        broken = [
            {"entity": "tickets", "reason": reason, "id": int(self.world.tables["tickets"].ids[row])}
            for row, reason in self.world.malformed.items()
        ]
        yield orjson.dumps(
            {
                "clock": instant(self.world.clock),
                "entities": entities,
                "unlisted": {},
                "malformed": broken,
                "deleted": deleted,
            }
        )

    def _true_comments(self) -> dict[str, Any]:
        events = self.world.events
        return {
            str(comment_id(int(events.tickets[at]), int(events.numbers[at]))): {
                "updated_at": instant(events.times[at])
            }
            for at in self._visible_events(self.now + _WITHHELD)
            if events.spoken[at]
        }

    def _body(self, request: Request, kind: str | None) -> bytes:
        if request.path == "/oauth/tokens" and request.method == "POST":
            status, granted = self._tokens.grant(request.body)
            if status != 200:
                raise _refusal(status, granted)
            return orjson.dumps(granted)
        if refused := self._limits.enter(kind):
            raise _Refused(refused)
        if refusal := self._tokens.refuse(request.headers.get("authorization", "")):
            raise _refusal(401, refusal)
        if request.method != "GET":
            raise _refusal(405, {"error": "Method not allowed"})
        records = Records(self.world, _base(request))
        for pattern, answer in (
            (_CURSOR_EXPORT, self._cursor_export),
            (_TIME_EXPORT, self._time_export),
            (_LIST, self._list),
            (_COUNT, self._count),
            (_ONE, self._one),
            (_COMMENTS, self._comments),
        ):
            if found := pattern.fullmatch(request.path):
                return answer(request, records, found[1] if pattern is not _ONE else f"{found[1]}/{found[2]}")
        raise _refusal(404, {"error": "InvalidEndpoint", "description": "Not found"})

    def _allowed(self, entity: str) -> None:
        if entity in self.behaviour.forbidden:
            message = (
                "You do not have access to this page. Please contact the account owner of this help desk for "
                "further help."
            )
            raise _refusal(403, {"error": {"title": "Forbidden", "message": message}})

    # --- Exports (C.3) ------------------------------------------------------------------------

    def _cursor_export(self, request: Request, records: Records, name: str) -> bytes:
        entity = _NAMES[name]
        self._allowed(entity)
        table, query = self.world.tables[entity], request.query
        rows = self._exported(entity, query)
        marks = table.marks[rows]
        if cursor := query.get("cursor"):
            second, identity = _decoded(cursor)
            first = int(np.searchsorted(marks, second, "left"))
            same = int(np.searchsorted(marks, second, "right"))
            first += int(np.searchsorted(table.ids[rows[first:same]], identity, "right"))
        else:
            first = int(np.searchsorted(marks, self._start(query), "left"))
        size = self._export_size(query)
        page = rows[first : first + size]
        ended = first + size >= len(rows)
        after = _cursor(table.marks[page[-1]], table.ids[page[-1]]) if len(page) else None
        self._through_gateway(len(page))
        kept = {
            key: value for key, value in query.items() if key in ("per_page", "include", "exclude_deleted")
        }
        url = (
            None
            if after is None
            else f"{_base(request)}{request.path}?{urlencode({**kept, 'cursor': after})}"
        )
        head = {
            "after_url": url,
            "before_url": None,
            "after_cursor": after,
            "before_cursor": None,
            "end_of_stream": ended,
        }
        return _enveloped(name, self._rendered(records, entity, page, query), head)

    def _time_export(self, request: Request, records: Records, name: str) -> bytes:
        query = request.query
        if name == "ticket_events":
            self._allowed("comments")
            rows, times = self._visible_events(self.now - _WITHHELD), self.world.events.times
        else:
            self._allowed(_NAMES[name])
            rows, times = self._exported(_NAMES[name], query), self.world.tables[_NAMES[name]].marks
        start, size = self._start(query), self._export_size(query)
        first = int(np.searchsorted(times[rows], start, "left"))
        page, end = self._time_page(rows[first:], times, size)
        self._through_gateway(len(page))
        end = start if end is None else end
        following = {**query, "start_time": str(end)}
        head = {
            "count": len(page),
            "next_page": f"{_base(request)}{request.path}?{urlencode(following)}",
            "end_time": end,
            "end_of_stream": first + len(page) >= len(rows),
        }
        if name == "ticket_events":
            comments = "comment_events" in query.get("include", "").split(",")
            items = [orjson.dumps(records.event(int(at), comments)) for at in page]
        else:
            items = self._rendered(records, _NAMES[name], page, query)
        return _enveloped(name, items, head)

    def _time_page(self, rows: Rows, times: Rows, size: int) -> tuple[Rows, int | None]:
        """A page and its `end_time`: one second is given whole, of several the last one may be cut."""
        page = rows[:size]
        if not len(page):
            return page, None
        first, last = int(times[page[0]]), int(times[page[-1]])
        if first != last or (not self.behaviour.rescued and len(rows) > size):
            return page, last
        whole = int(np.searchsorted(times[rows], last, "right"))
        return rows[:whole], last + 1

    def _exported(self, entity: str, query: dict[str, str]) -> Rows:
        """What an export shows of a table, in its order: all but the last minute."""
        table = self.world.tables[entity]
        rows = table.order[table.marks[table.order] <= self.now - _WITHHELD]
        if entity == "tickets" and query.get("exclude_deleted") == "true":
            rows = rows[table.states[rows] == LIVE]
        return rows

    def _visible_events(self, until: int) -> Rows:
        events = self.world.events
        scrubbed = self.world.tables["tickets"].states[events.tickets] == SCRUBBED
        return np.flatnonzero((events.times <= until) & ~scrubbed)

    def _start(self, query: dict[str, str]) -> int:
        text = query.get("start_time", "")
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise _refusal(422, {"error": "InvalidValue", "description": "Invalid start_time"})
        if int(text) > self.now - _WITHHELD:
            description = "Too recent start_time. Use a start_time older than 5 minutes"
            raise _refusal(422, {"error": "InvalidValue", "description": description})
        return int(text)

    def _export_size(self, query: dict[str, str]) -> int:
        most = min(1_000, self.behaviour.export_page)
        asked = query.get("per_page", "")
        return max(1, min(int(asked), most)) if asked.isdigit() and len(asked) < 9 else most

    def _through_gateway(self, rows: int) -> None:
        if 0 < self.behaviour.gateway_rows < rows:
            raise _Refused(Answer(504, b"upstream request timeout", "text/plain"))

    def _rendered(self, records: Records, entity: str, rows: Rows, query: dict[str, str]) -> list[bytes]:
        embedded = "metric_sets" in query.get("include", "").split(",")
        return [records.rendered(entity, int(row), embedded) for row in rows]

    # --- Lists (C.2) and single records -------------------------------------------------------

    def _list(self, request: Request, records: Records, name: str) -> bytes:
        entity = _NAMES.get(name, "tickets")
        self._allowed(entity)
        table = self.world.tables[entity]
        if name == "deleted_tickets":
            rows = np.flatnonzero((table.states != LIVE) & (table.marks > self.now - 30 * DAY))
            return self._paged(
                request, name, rows, lambda row: _deleted_ticket(records.record("tickets", row))
            )
        rows = np.flatnonzero(table.states == LIVE)
        if entity == "tickets":
            closed = table.updated[rows] < self.now - _ARCHIVED_AFTER
            rows = rows[~closed] if self.options.clock else rows
        return self._paged(request, name, rows, lambda row: records.rendered(entity, row))

    def _comments(self, request: Request, records: Records, identity: str) -> bytes:
        self._allowed("comments")
        tickets, events = self.world.tables["tickets"], self.world.events
        ticket = tickets.row_of(int(identity))
        if ticket is None or tickets.states[ticket] != LIVE:
            raise _refusal(404, {"error": "RecordNotFound", "description": "Not found"})
        spoken = [at for at in events.of(ticket).tolist() if events.spoken[at]]

        def comment(at: int) -> bytes:
            number = int(events.numbers[at])
            return orjson.dumps(records.comment(ticket, number, int(events.times[at])))

        return self._paged(request, "comments", np.array(spoken, np.int64), comment)

    def _paged(self, request: Request, name: str, rows: Rows, render: Callable[[int], bytes]) -> bytes:
        by_cursor = any(key.startswith("page[") for key in request.query)
        pages = self._cursor_page if by_cursor and self.behaviour.cursor_pages else self._offset_page
        page, head = pages(request, rows)
        self._through_gateway(len(page))
        return _enveloped(name, [render(int(row)) for row in page], head)

    def _cursor_page(self, request: Request, rows: Rows) -> tuple[Rows, dict[str, Any]]:
        """A page by cursor: the last one links to another, which is empty (C.2)."""
        size = request.query.get("page[size]", "")
        count = max(1, min(int(size), _LIST_PAGE)) if size.isdigit() and len(size) < 9 else _LIST_PAGE
        first = 0
        if after := request.query.get("page[after]"):
            first = int(np.searchsorted(rows, _decoded_row(after), "right"))
        page = rows[first : first + count]
        if not len(page):
            nothing = {"has_more": False, "after_cursor": None, "before_cursor": None}
            return page, {"meta": nothing, "links": {"prev": None, "next": None}}
        cursors = {"after_cursor": _row_cursor(page[-1]), "before_cursor": _row_cursor(page[0])}
        where = f"{_base(request)}{request.path}"
        links = {
            "prev": f"{where}?{urlencode({'page[before]': cursors['before_cursor'], 'page[size]': count})}",
            "next": f"{where}?{urlencode({'page[after]': cursors['after_cursor'], 'page[size]': count})}",
        }
        return page, {"meta": {"has_more": first + count < len(rows), **cursors}, "links": links}

    def _offset_page(self, request: Request, rows: Rows) -> tuple[Rows, dict[str, Any]]:
        query = request.query
        number = int(query["page"]) if query.get("page", "").isdigit() and len(query["page"]) < 9 else 1
        size = query.get("per_page", "")
        count = max(1, min(int(size), _LIST_PAGE)) if size.isdigit() and len(size) < 9 else _LIST_PAGE
        if number > _OFFSET_PAGES:
            title = "Offset pages end here; use cursor pages"
            raise _refusal(400, {"errors": [{"code": "InvalidPaginationDepth", "title": title}]})
        page = rows[(number - 1) * count : number * count]
        where = f"{_base(request)}{request.path}"

        def link(to: int) -> str:
            return f"{where}?{urlencode({**query, 'page': str(to)})}"

        head = {
            "count": len(rows),
            "next_page": link(number + 1) if number * count < len(rows) else None,
            "previous_page": link(number - 1) if number > 1 else None,
        }
        return page, head

    def _count(self, request: Request, records: Records, name: str) -> bytes:
        self._allowed(_NAMES[name])
        live = int(np.count_nonzero(self.world.tables[_NAMES[name]].states == LIVE))
        return orjson.dumps({"count": {"value": live, "refreshed_at": instant(self.now)}})

    def _one(self, request: Request, records: Records, found: str) -> bytes:
        name, _, identity = found.partition("/")
        entity = _NAMES[name]
        self._allowed(entity)
        table = self.world.tables[entity]
        row = table.row_of(int(identity))
        if row is None or (table.states[row] != LIVE and entity != "users"):
            raise _refusal(404, {"error": "RecordNotFound", "description": "Not found"})
        embedded = "metric_sets" in request.query.get("include", "").split(",")
        rendered = records.rendered(entity, row, embedded)
        if not self.behaviour.marked_lookups:
            rendered = _MARK.sub(b"", rendered)
        return b'{"%b":%b}' % (name[:-1].encode(), rendered)


def _kind(path: str) -> str | None:
    """Which endpoint's own limit a request counts for."""
    if _CURSOR_EXPORT.fullmatch(path):
        return "cursor"
    if _TIME_EXPORT.fullmatch(path):
        return "time"
    found = _LIST.fullmatch(path)
    return found[1] if found and found[1] in ("tickets", "deleted_tickets") else None


def _refusal(status: int, body: dict[str, Any]) -> _Refused:
    return _Refused(Answer(status, orjson.dumps(body)))


def _base(request: Request) -> str:
    """The address under which the request came, which links repeat."""
    scheme = request.headers.get("x-forwarded-proto", "http")
    return f"{scheme}://{request.headers.get('host', 'localhost')}"


def _enveloped(name: str, items: list[bytes], head: dict[str, Any]) -> bytes:
    return b'{"%b":[%b],%b' % (name.encode(), b",".join(items), orjson.dumps(head)[1:])


def _cursor(second: Any, identity: Any) -> str:
    """Of the form that was recorded (C.3, 3)."""
    return base64.b64encode(f"{second}.0||{identity}|".encode()).decode()


def _decoded(cursor: str) -> tuple[int, int]:
    try:
        second, _, identity = base64.b64decode(cursor, validate=True).decode().partition(".0||")
        return int(second), int(identity.rstrip("|"))
    except ValueError:
        raise _refusal(400, {"error": "InvalidValue", "description": "Invalid cursor"}) from None


def _row_cursor(row: Any) -> str:
    return base64.b64encode(f"o|id|{row}".encode()).decode()


def _decoded_row(cursor: str) -> int:
    try:
        return int(base64.b64decode(cursor, validate=True).decode().removeprefix("o|id|"))
    except ValueError:
        error = {"code": "InvalidPaginationParameter", "title": "page[after] is not valid"}
        raise _refusal(400, {"errors": [error]}) from None


def _deleted_ticket(ticket: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "id": ticket["id"],
            "subject": ticket["subject"],
            "actor": {"id": 370_000_000_041, "name": "Ada Lovelace 0"},
            # As in the official sample (C.6).
            "deleted_at": instant(ticket["generated_timestamp"]).replace("-", ""),
            "previous_state": "open",
        }
    )
