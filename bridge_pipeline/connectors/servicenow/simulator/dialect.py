"""How an instance answers: paths, parameters, access, pages, forms of values, errors (vendor-apis D).

What it holds is `generated` or `replayed`; what a query means is `query`. Sending, faults and logs
are `connector_kit.simulator`. Writing is not simulated.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote, unquote, urlencode
from zlib import crc32

import orjson

from bridge_pipeline.connector_kit.simulator import Answer, Request, SimulatorOptions
from bridge_pipeline.connectors.servicenow.simulator.generated import Changes, Generated
from bridge_pipeline.connectors.servicenow.simulator.habits import HABITS, Habits
from bridge_pipeline.connectors.servicenow.simulator.query import Query, Value, parse
from bridge_pipeline.connectors.servicenow.simulator.replayed import replayed
from bridge_pipeline.connectors.servicenow.simulator.schema import COLUMNS, DURATIONS, LABELS, REFERENCES
from bridge_pipeline.connectors.servicenow.simulator.signing_in import Doorkeeper
from bridge_pipeline.connectors.servicenow.simulator.world import (
    Fields,
    Row,
    Table,
    World,
    key_of,
    read,
    written,
)

_PATH = re.compile(r"/api/now/(v[12]/)?(table|stats)/(\w+)(?:/([^/]+))?")
_LIMIT = 10_000
# Of the user who asks; display mode shows times in it (D.3).
_USER_ZONE = timedelta(hours=-8)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_REMEMBERED = 8
_ENTITIES = {
    "accounts": "core_company",
    "users": "sys_user",
    "groups": "sys_user_group",
    "tickets": "incident",
    "comments": "sys_journal_field",
    "assets": "cmdb_ci",
    "problems": "problem",
    "changes": "change_request",
}
_INCIDENT_ENTRIES = ("comments", "work_notes")
_AUDIT = "sys_audit_delete"
_RULE = "00000000000000000000000000000001"
_HOUR = 3_600
_CANCELLED = (
    b'...,"error":{"message":"Transaction cancelled: maximum execution time exceeded","detail":"maximum '
    b"execution time exceeded Check logs for error trace or enable glide.rest.debug property to verify REST "
    b'request processing"},"status":"failure"}'
)


@dataclass
class ServiceNow:
    """The API over one instance; see `connector_kit.simulator.Dialect`."""

    options: SimulatorOptions
    habits: Habits | None = None
    world: World = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self._habits = self.habits or HABITS[options.faults]
        if options.event_log and options.clock:
            # What is recorded is served as it is, whatever befalls the requests for it.
            self._habits = replace(self._habits, hidden_per_mille=0, hidden_run=0, malformed=False)
            self.world = replayed(options.event_log, options.clock)
            self._changes = None
        else:
            self.world = Generated(options, self._habits).world(options.clock)
            self._changes = Changes(self.world, options.profile, options.seed)
        self.door = Doorkeeper(self._habits, options.token)
        self._answers = 0
        self._listings: dict[tuple[str, str], tuple[int, list[Row]]] = {}

    @property
    def records(self) -> int:
        """How many records there are, of all entities."""
        return sum(len(table.rows) for table in self.world.tables.values())

    @property
    def changes(self) -> int:
        """How often a record has changed since the start, or become visible."""
        late = (
            sum(row.appears > self._answers for t in self.world.tables.values() for row in t.rows.values())
            if self.options.profile.create_every
            else 0
        )
        return sum(table.changes for table in self.world.tables.values()) * 1_000 - late

    def answer(self, request: Request) -> Answer:
        """Answers one request."""
        if request.path == "/oauth_token.do":
            return self.door.token(request)
        answer = self._checked(request)
        self._answers += 1
        if self._changes:
            self._changes.after_answer()
        return replace(answer, headers=(*answer.headers, *self._headers(request)))

    def table_of(self, entity: str) -> Table:
        """The table that an entity is read from."""
        return self.world.tables[_ENTITIES[entity]]

    def truth(self) -> Iterator[bytes]:
        """The truth as JSON: `clock`, `entities`, `unlisted` (hidden), `malformed`, `deleted`."""
        tables = {entity: self.world.tables[table] for entity, table in _ENTITIES.items()}
        yield b'{"clock":' + orjson.dumps(f"{written(self.world.clock).replace(' ', 'T')}Z")
        for member, hidden in (("entities", False), ("unlisted", True)):
            yield b',"%b":{' % member.encode()
            for number, (entity, table) in enumerate(tables.items()):
                yield b'%b"%b":{' % (b"," if number else b"", entity.encode())
                shown = replace(table, rows={row.id: row for row in self._true(entity, table)})
                yield from shown.truth(hidden, self._answers)
                yield b"}"
            yield b"}"
        malformed = [
            {"entity": "tickets", "reason": "time_invalid", "id": row.id}
            for row in tables["tickets"].rows.values()
            if not row.hidden and self._malformed(tables["tickets"], row)
        ]
        deleted = {
            entity: {
                key: {"deleted_at": f"{moment.replace(' ', 'T')}Z"} for key, moment in table.deleted.items()
            }
            for entity, table in tables.items()
        }
        yield b',"malformed":' + orjson.dumps(malformed) + b',"deleted":' + orjson.dumps(deleted) + b"}"

    def _true(self, entity: str, table: Table) -> Iterator[Row]:
        """The rows that are records of an entity."""
        for row in table.rows.values():
            if entity == "comments":
                fields = table.fields(row)
                if fields.get("name") != "incident" or fields.get("element") not in _INCIDENT_ENTRIES:
                    continue
            if entity != "tickets" or not self._malformed(table, row):
                yield row

    def _malformed(self, table: Table, row: Row) -> bool:
        return self._habits.malformed and table.fields(row)["resolved_at"].startswith("0000")

    def _headers(self, request: Request) -> tuple[tuple[str, str], ...]:
        found = [
            ("server", "snow_adc"),
            ("x-is-logged-in", "true"),
            ("x-transaction-id", f"{crc32(request.target.encode()):08x}{self._answers:08x}"),
        ]
        if limit := self.options.requests_per_minute:
            found += rate_headers(limit)
        return tuple(found)

    def _checked(self, request: Request) -> Answer:
        if not self.door.admits(request):
            refused = _refusal(401, "User Not Authenticated", "Required to provide Auth information")
            return replace(refused, headers=(("WWW-Authenticate", 'Basic realm="Service-now"'),))
        if request.method != "GET":
            return _refusal(405, "Method not supported", None)
        accept = request.headers.get("accept", "*/*")
        if not any(kind in accept for kind in ("json", "*/*")):
            return _refusal(406, "Invalid accept header value", accept)
        found = _PATH.fullmatch(request.path)
        if not found:
            return _refusal(400, "Requested URI does not represent any resource", request.path)
        version, api, name, record_id = found.groups()
        if name not in (*self.world.tables, _AUDIT):
            return _refusal(400, f"Invalid table {name}", None)
        if name in self._habits.forbidden:
            return _refusal(403, "User Not Authorized", "Failed API level ACL Validation")
        table = self._audited() if name == _AUDIT else self.world.tables[name]
        if record_id is not None:
            return self._one(table, unquote(record_id), request)
        if api == "stats":
            count = str(len(self._matching(table, request)))
            return _found({"stats": {"count": count}})
        return self._list(table, request, version or "")

    def _audited(self) -> Table:
        """What was deleted from tables whose deletions leave a trace (D.4, 6)."""
        gone = [
            (name, key, moment)
            for name, table in self.world.tables.items()
            if name not in self._habits.unaudited
            for key, moment in table.deleted.items()
        ]

        def build(row: Row) -> Fields:
            name, key, _ = gone[row.number]
            return {"tablename": name, "documentkey": key, "display_value": key, "payload": f"<{name}/>"}

        audit = Table(_AUDIT, COLUMNS[_AUDIT], REFERENCES[_AUDIT], build)
        for number, (name, key, moment) in enumerate(gone):
            audit.add(Row(key_of(_AUDIT, name, key), number, moment, moment))
        return audit

    def _one(self, table: Table, record_id: str, request: Request) -> Answer:
        row = table.rows.get(record_id)
        if row is None or not self._visible(row):
            detail = "Record doesn't exist or ACL restricts the record retrieval"
            return _refusal(404, "No Record found", detail)
        return _found(self._shown(table, row, request))

    def _list(self, table: Table, request: Request, version: str) -> Answer:
        limit, offset = (request.query.get(f"sysparm_{n}", d) for n, d in (("limit", _LIMIT), ("offset", 0)))
        try:
            limit, offset = int(limit), int(offset)
        except ValueError:
            limit, offset = _LIMIT, 0
        if offset < 0:
            return _refusal(400, "Invalid offset", "sysparm_offset must not be negative")
        rows = self._matching(table, request)
        # The limit is applied first and access rules after it (D.2).
        page = rows[offset : offset + max(0, limit)]
        shown = [self._shown(table, row, request) for row in page if not row.hidden]
        if version == "v1/" and not shown:
            return _refusal(
                404, "No Record found", "Record doesn't exist or ACL restricts the record retrieval"
            )
        headers = []
        if request.query.get("sysparm_no_count") != "true":
            headers.append(("X-Total-Count", str(len(rows))))
        if request.query.get("sysparm_suppress_pagination_header") != "true":
            headers += _links(request, len(rows), limit, offset)
        body = b'{"result":' + orjson.dumps(shown) + b"}"
        if self._too_slow(page, request):
            body = body[: len(body) // 2] + _CANCELLED
        return Answer(200, body, "application/json;charset=UTF-8", tuple(headers))

    def _too_slow(self, page: list[Row], request: Request) -> bool:
        narrow = 0 < len(_fields(request)) < 5
        return not narrow and len(page) > (self._habits.cancels_above or len(page))

    def _matching(self, table: Table, request: Request) -> list[Row]:
        """The rows of an answer, hidden ones included, in order; remembered until a row changes."""
        text = request.query.get("sysparm_query", "") or _pairs(request)
        key, state = (table.name, text), table.changes * 1_000_000 + self._late(table)
        known, rows = self._listings.get(key, (-1, []))
        if known != state:
            rows = self._found(table, text)
            if len(self._listings) >= _REMEMBERED:
                del self._listings[next(iter(self._listings))]
            self._listings[key] = (state, rows)
        if "ORDERBY" in text:
            return rows
        # Without an order the database gives rows as they come.
        turn = self._answers * 7 % max(1, len(rows))
        return rows[turn:] + rows[:turn]

    def _late(self, table: Table) -> int:
        if not self.options.profile.create_every:
            return 0
        return sum(row.appears <= self._answers for row in table.rows.values())

    def _found(self, table: Table, text: str) -> list[Row]:
        query = parse(text, lambda column: self._known(table, column))
        if query.dropped and self._habits.no_rows:
            return []
        value = self._value(table)
        rows = [r for r in table.rows.values() if r.appears <= self._answers and query.matches(r, value)]
        return _ordered(rows, query, value)

    def _known(self, table: Table, column: str) -> bool:
        if self._habits.no_time_queries and column.startswith("sys_updated"):
            return False
        head, _, rest = column.partition(".")
        if rest:
            target = self.world.tables.get(table.references.get(head, ""))
            return target is not None and self._known(target, rest)
        return column in table.columns

    def _value(self, table: Table) -> Value:
        def value(row: Row, column: str) -> str:
            head, _, rest = column.partition(".")
            found = table.value(row, head)
            if not rest:
                return found
            target = self.world.tables.get(table.references.get(head, ""))
            other = target.rows.get(found) if target else None
            return "" if other is None or target is None else self._value(target)(other, rest)

        return value

    def _visible(self, row: Row) -> bool:
        return not row.hidden and row.appears <= self._answers

    def _shown(self, table: Table, row: Row, request: Request) -> dict[str, Any]:
        """A row in the form asked for (D.2); unknown names among the fields are ignored."""
        mode = request.query.get("sysparm_display_value", "false")
        bare = request.query.get("sysparm_exclude_reference_link", "false") == "true"
        value, fields = self._value(table), table.fields(row)
        wanted = [f for f in _fields(request) if self._known(table, f) or f in fields] or list(fields)
        host = f"http://{request.headers.get('host', 'localhost')}"
        shown: dict[str, Any] = {}
        for column in wanted:
            raw = fields[column] if column in fields else value(row, column)
            target = table.references.get(column)
            link = f"{host}/api/now/table/{target}/{raw}" if target and raw else None
            shown[column] = _form(raw, self._display(table, column, raw), link, mode, bare)
        return shown

    def _display(self, table: Table, column: str, raw: str) -> str:
        if raw == "":
            return ""
        if target := self.world.tables.get(table.references.get(column, "")):
            other = target.rows.get(raw)
            fields = target.build(other) if other else {}
            return fields.get("number") or fields.get("name") or raw
        if column in DURATIONS:
            return _spoken(raw)
        if _TIME.fullmatch(raw) and not raw.startswith("0000"):
            return written(read(raw) + _USER_ZONE)
        labels = LABELS.get(f"{table.name}.{column}") or LABELS.get(column) or {}
        return labels.get(raw, raw)


class Throttling:
    """429 in two forms (D.7): of a rate limit rule, and of a full pool of threads, which adds no header.

    Where a limit is enforced it is always the rule's, whose `Retry-After` is true.
    """

    def __init__(self, options: SimulatorOptions) -> None:
        self._enforced = options.requests_per_minute
        self._times = 0

    def __call__(self, retry_after: str) -> Answer:
        self._times += 1
        if self._times % 2 == 0 and not self._enforced:
            return _refusal(429, "Too many requests", "The queue of the semaphore API_INT is full")
        detail = "Rate limit of 100 requests per hour for Table API exceeded"
        headers = (("Retry-After", retry_after), *rate_headers(self._enforced))
        return replace(_refusal(429, "Rate limit exceeded", detail), headers=headers)


def server_error(request: Request, variant: int) -> Answer:
    """500 with the API's own body, or the gateway's HTML while the instance restarts."""
    if variant % 3 == 0:
        return _refusal(500, "Exception while executing request: null", "Check logs for error trace")
    return Answer(
        (502, 503)[variant % 2], b"<html><body><h1>Instance is restarting</h1></body></html>", "text/html"
    )


def rate_headers(per_minute: int | None) -> list[tuple[str, str]]:
    """What a matched rule adds; how much is left is not said."""
    now = int(time.time())
    return [
        ("X-RateLimit-Limit", str(per_minute * 60 if per_minute else 100)),
        ("X-RateLimit-Reset", str(now - now % _HOUR + _HOUR)),
        ("X-RateLimit-Rule", _RULE),
    ]


def _form(raw: str, display: str, link: str | None, mode: str, bare: bool) -> Any:
    """A value by `sysparm_display_value` and `sysparm_exclude_reference_link`."""
    if mode == "all":
        both = {"display_value": display, "value": raw}
        return both if link is None or bare else both | {"link": link}
    text = display if mode == "true" else raw
    if link is None or bare:
        return text
    return {"link": link, "display_value" if mode == "true" else "value": text}


def _spoken(raw: str) -> str:
    """A duration in words, without its seconds."""
    length = read(raw) - read("1970-01-01 00:00:00")
    hours, minutes = divmod(length.seconds // 60, 60)
    parts = ((length.days, "Day"), (hours, "Hour"), (minutes, "Minute"))
    return " ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in parts if n) or "0 Seconds"


def _ordered(rows: list[Row], query: Query, value: Value) -> list[Row]:
    for column, descending in reversed(query.order):
        rows.sort(key=lambda row: value(row, column), reverse=descending)
    return rows


def _fields(request: Request) -> list[str]:
    return [name.strip() for name in request.query.get("sysparm_fields", "").split(",") if name.strip()]


def _pairs(request: Request) -> str:
    """The other way to filter: `name=value` beside the parameters."""
    return "^".join(f"{k}={v}" for k, v in request.query.items() if not k.startswith("sysparm_"))


def _links(request: Request, total: int, limit: int, offset: int) -> list[tuple[str, str]]:
    """`Link`, unless one page holds everything (D.2)."""
    if limit <= 0 or total <= limit:
        return []
    found = {"first": 0, "last": (total - 1) // limit * limit}
    if offset > 0:
        found["prev"] = max(0, offset - limit)
    if offset + limit < total:
        found["next"] = offset + limit
    host = request.headers.get("host", "localhost")

    def link(name: str) -> str:
        query = urlencode(request.query | {"sysparm_offset": str(found[name])}, quote_via=quote)
        return f'<http://{host}{request.path}?{query}>;rel="{name}"'

    return [("Link", ",".join(link(name) for name in ("first", "prev", "next", "last") if name in found))]


def _found(result: Any) -> Answer:
    return Answer(200, b'{"result":' + orjson.dumps(result) + b"}", "application/json;charset=UTF-8")


def _refusal(status: int, message: str, detail: str | None) -> Answer:
    body = {"error": {"message": message, "detail": detail}, "status": "failure"}
    return Answer(status, orjson.dumps(body), "application/json;charset=UTF-8")
