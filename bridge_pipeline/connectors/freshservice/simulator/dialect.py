"""How Freshservice answers: lists, single records, conversations, errors, and the truth of it all.

What it has to answer with is `world` and `records`; how it counts requests is `limits`. Sending,
faults and logs are `connector_kit.simulator`. What is not recorded and decided here: ties in a list are
in the order of ids, a trashed asset is not found by its number, conversations of a trashed ticket are.
"""

import base64
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import orjson

from bridge_pipeline.connector_kit.simulator import Answer, Request, SimulatorOptions
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.limits import Limits
from bridge_pipeline.connectors.freshservice.simulator.records import (
    Records,
    instant,
    is_listed,
    said_id,
    workspace_of,
)
from bridge_pipeline.connectors.freshservice.simulator.selection import TICKET_FIELDS, selection
from bridge_pipeline.connectors.freshservice.simulator.world import (
    DAY,
    ERASED,
    LIVE,
    SPAM,
    TRASHED,
    Changes,
    Row,
    World,
    generate,
)

_KINDS = {
    "departments": "departments",
    "requesters": "people",
    "agents": "people",
    "groups": "groups",
    "tickets": "tickets",
    "assets": "assets",
    "problems": "problems",
    "changes": "changes",
}
_ENTITIES = {"departments": "accounts", "people": "users"}
_LIST = re.compile(r"/api/v2/(\w+)")
_ONE = re.compile(r"/api/v2/(\w+)/(\d{1,18})")
_FILTERED = re.compile(r"/api/v2/tickets/filter")
_SAID = re.compile(r"/api/v2/tickets/(\d{1,18})/conversations")
_PAGING = {"page", "per_page"}
# The parameters that each list knows beside those of paging (B.2).
_KNOWN = {
    "tickets": {"updated_since", "filter", "requester_id", "email", "type", "workspace_id", "include"}
    | {"order_by", "order_type"},
    "assets": {"include", "trashed"},
    "requesters": {"include_agents", "query", "email", "active"},
    "agents": {"query", "email", "active"},
}
_PAGE, _MOST, _RECENT = 30, 100, 30 * DAY
_STATES = {"deleted": TRASHED, "spam": SPAM}
_COMMON = (
    ("x-freshservice-api-version", "latest=v2; requested=v2"),
    ("x-fw-ratelimiting-managed", "true"),
    ("cache-control", "no-cache, no-store, max-age=0, must-revalidate"),
)


def kind_of(entity: str) -> str:
    """What the account calls an entity's rows."""
    return next((kind for kind, name in _ENTITIES.items() if name == entity), entity)


class _Refused(Exception):
    """An answer in place of the one that was asked for."""

    def __init__(self, status: int, body: object = None) -> None:
        super().__init__(status)
        self.answer = Answer(status, b"" if body is None else orjson.dumps(body))


@dataclass(frozen=True)
class _Listed:
    """A row as a list shows it: its change time and version there, which may be behind."""

    row: Row
    updated: int
    version: int


@dataclass
class Freshservice:
    """The API over one account; see `connector_kit.simulator.Dialect`."""

    options: SimulatorOptions
    behaviour: Behaviour = field(default_factory=Behaviour)
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = generate(self.options)
        self.changing = Changes(self.world, self.options, self.behaviour)
        self._records = Records(self.world)
        behaviour = self.behaviour
        self._limits = Limits(behaviour.plan, self.options.requests_per_minute, behaviour.limits)

    @property
    def records(self) -> int:
        """How many records there are, of all entities."""
        return sum(len(rows) for rows in self.world.rows.values())

    @property
    def changes(self) -> int:
        """How often a record has changed since the start."""
        return self.world.changes

    @property
    def now(self) -> int:
        """The account's time: frozen between changes if the options name a clock."""
        return self.world.clock if self.options.clock else max(self.world.clock, int(time.time()))

    def answer(self, request: Request) -> Answer:
        """Answers one request; what fails counts against the limits like everything else."""
        counted, refusal = self._limits.enter(*_charged(request))
        links: tuple[tuple[str, str], ...] = ()
        if refusal:
            answer = refusal
        else:
            try:
                body, links = self._body(request)
                answer = Answer(200, orjson.dumps(body))
                self.changing.after_answer()
            except _Refused as refused:
                answer = refused.answer
        headers = (*answer.headers, *_COMMON, *counted, *links)
        return Answer(answer.status, answer.body, "application/json; charset=utf-8", headers)

    def truth(self) -> Iterator[bytes]:
        """The truth as JSON: `clock`, `entities`, `malformed`, `deleted` (by entity and id)."""
        entities: dict[str, dict[str, Any]] = {"comments": {}}
        deleted: dict[str, dict[str, Any]] = {"comments": {}}
        for kind, rows in self.world.rows.items():
            entity = _ENTITIES.get(kind, kind)
            entities[entity], deleted[entity] = {}, {}
            for row in rows:
                if not row.broken:
                    held = entities if row.state == LIVE else deleted
                    held[entity][str(row.id)] = {"updated_at": instant(row.updated)}
        unlisted: dict[str, dict[str, Any]] = {"comments": {}}
        for row in self.world.rows["tickets"]:
            for said in row.said:
                kept = row.state == LIVE and said.state == LIVE
                held = entities if kept else deleted
                # Nobody can ask for what was said in a ticket whose id is broken.
                held = unlisted if kept and row.broken in ("string_id", "null_id") else held
                held["comments"][str(said_id(row.number, said.number))] = {"updated_at": instant(said.at)}
        malformed = [
            {"entity": "tickets", "reason": row.broken, "id": row.id}
            for row in self.world.rows["tickets"]
            if row.broken
        ]
        yield orjson.dumps(
            {
                "clock": instant(self.world.clock),
                "entities": entities,
                "unlisted": unlisted,
                "malformed": malformed,
                "deleted": deleted,
            }
        )

    def _body(self, request: Request) -> tuple[object, tuple[tuple[str, str], ...]]:
        if not self._accepted(request.headers.get("authorization", "")):
            message = "You have to be logged in to perform this action."
            raise _Refused(401, {"code": "invalid_credentials", "message": message})
        if request.method != "GET":
            raise _Refused(405)
        answers = ((_LIST, self._list), (_FILTERED, self._filtered), (_ONE, self._one), (_SAID, self._said))
        for pattern, answer in answers:
            if found := pattern.fullmatch(request.path):
                self._allow(request.path)
                return answer(request, *found.groups())
        raise _Refused(404)

    def _accepted(self, header: str) -> bool:
        """Basic with the key as user; what follows the colon says nothing (B.1)."""
        scheme, _, value = header.partition(" ")
        try:
            user = base64.b64decode(value, validate=True).decode().partition(":")[0]
        except ValueError:
            return False
        return scheme == "Basic" and bool(user) and self.options.token in (None, user)

    def _allow(self, path: str) -> None:
        parts = path.split("/")
        if parts[-1] in self.behaviour.forbidden or parts[3] in self.behaviour.forbidden:
            message = "You are not authorized to perform this action."
            raise _Refused(403, {"code": "access_denied", "message": message})

    # --- Lists ------------------------------------------------------------------------------------

    def _list(self, request: Request, name: str) -> tuple[object, tuple[tuple[str, str], ...]]:
        if name not in _KINDS:
            raise _Refused(404)
        query = request.query
        for parameter in query:
            if parameter not in _PAGING | _KNOWN.get(name, set()):
                raise _invalid(parameter, "Unexpected/invalid field in request", "invalid_field")
        if name == "tickets":
            listed = self._tickets(query)
            included = _included(query)
            shown: Callable[[Any], object] = lambda each: self._listed_ticket(each, included)  # noqa: E731
        else:
            listed = sorted(self._plain(name, query), key=lambda row: (-row.created, row.id))
            shown = lambda row: self._record(name, row, _included(query))  # noqa: E731 - one of two
        page, links = self._paged(request, listed)
        return {name: [shown(each) for each in page]}, links

    def _plain(self, name: str, query: dict[str, str]) -> Iterable[Row]:
        for row in self.world.of(_KINDS[name]):
            if name == "assets" and query.get("trashed") == "true":
                wanted = row.state == TRASHED
            elif name in ("agents", "requesters"):
                agents = name == "agents" or query.get("include_agents") == "true"
                wanted = is_listed(row) and ((row.agent and agents) or (not row.agent and name != "agents"))
            else:
                wanted = is_listed(row)
            if wanted and (name not in ("agents", "requesters") or self._is_meant(row, query)):
                yield row

    def _is_meant(self, row: Row, query: dict[str, str]) -> bool:
        person = self._records.person(row)
        if "active" in query and str(person["active"]).lower() != query["active"]:
            return False
        if "email" in query and _address(person) != query["email"]:
            return False
        return "query" not in query or _selected(query["query"], {key: key for key in person}, person)

    def _tickets(self, query: dict[str, str]) -> list[_Listed]:
        behaviour, chosen = self.behaviour, query.get("filter")
        if chosen not in (None, "new_and_my_open", "watching", *_STATES):
            raise _invalid("filter", "It should be one of these values", "invalid_value")
        since = _moment(query["updated_since"]) if "updated_since" in query else None
        found = [each for row in self.world.of("tickets") if (each := self._seen(row))]
        found = [each for each in found if each.row.state == _STATES.get(chosen or "", LIVE)]
        workspace = query.get("workspace_id", "2")
        if workspace != "0":
            found = [e for e in found if str(workspace_of(e.row, behaviour.workspaces)) == workspace]
        if since is not None and behaviour.since:
            found = [each for each in found if each.updated >= since]
        asked = query.keys() & {"requester_id", "email", "type"}
        if asked:
            found = [each for each in found if self._is_asked_for(each, query)]
        elif since is None and chosen is None:
            found = [each for each in found if each.row.created > self.now - _RECENT]
        return self._in_order(found, query)

    def _is_asked_for(self, each: _Listed, query: dict[str, str]) -> bool:
        ticket = self._records.ticket(each.row, each.updated, each.version)
        said = {
            "requester_id": str(ticket["requester_id"]),
            "type": ticket["type"],
            "email": self._address_of(ticket["requester_id"]),
        }
        return all(said[name] == query[name] for name in said.keys() & query.keys())

    def _address_of(self, requester: int) -> str | None:
        row = self.world.find("people", requester)
        return _address(self._records.person(row)) if row else None

    def _filtered(self, request: Request) -> tuple[object, tuple[tuple[str, str], ...]]:
        """The live tickets that a query means, 30 to a page and with their number (B.2)."""
        query = request.query
        if unknown := set(query) - {"query", "page"}:
            raise _invalid(min(unknown), "Unexpected/invalid field in request", "invalid_field")
        found = []
        for each in self._tickets({"updated_since": instant(0)}):
            ticket = self._records.detail(each.row, frozenset({"tags"}), self.behaviour.workspaces)
            ticket["email"] = self._address_of(ticket["requester_id"])
            if _selected(query.get("query", ""), TICKET_FIELDS, ticket):
                found.append(each)
        page, links = self._paged(request, found)
        return {"tickets": [self._listed_ticket(e, frozenset()) for e in page], "total": len(found)}, links

    def _in_order(self, found: list[_Listed], query: dict[str, str]) -> list[_Listed]:
        by = query.get("order_by", "created_at")
        if self.behaviour.ordered == "refused" and "order_by" in query:
            raise _invalid("order_by", "Unexpected/invalid field in request", "invalid_field")
        if self.behaviour.ordered == "no" or by not in ("created_at", "updated_at"):
            by = "created_at"
        found.sort(key=lambda e: (e.updated if by == "updated_at" else e.row.created, e.row.id))
        return found if query.get("order_type") == "asc" else found[::-1]

    def _seen(self, row: Row) -> _Listed | None:
        """A ticket as lists know it: its newest version, or for a while the one before."""
        if self.world.answers >= row.listed_from:
            return _Listed(row, row.updated, row.version)
        return _Listed(row, *row.shown) if row.shown else None

    def _listed_ticket(self, each: _Listed, included: frozenset[str]) -> object:
        record = self._records.ticket(each.row, each.updated, each.version, self.behaviour.workspaces)
        return record | ({"stats": self._records.stats(each.row, record)} if "stats" in included else {})

    def _paged(self, request: Request, items: list[Any]) -> tuple[list[Any], tuple[tuple[str, str], ...]]:
        """A page, with a link to the next one if there is one, and nothing else about it."""
        size = _number(request.query, "per_page", _PAGE, _MOST)
        page = _number(request.query, "page", 1, None)
        if page > self.behaviour.deepest:
            deepest = self.behaviour.deepest
            message = f"You cannot access records beyond the {deepest}th page. Please provide a smaller page"
            raise _invalid("page", f"{message} number.", "invalid_value")
        chosen = items[(page - 1) * size : page * size]
        if page * size >= len(items) or not self.behaviour.links:
            return chosen, ()
        query = urlencode({**request.query, "page": page + 1, "per_page": size})
        host = request.headers.get("host", "localhost")
        return chosen, (("Link", f'<https://{host}{request.path}?{query}>; rel="next"'),)

    # --- Single records ---------------------------------------------------------------------------

    def _one(self, request: Request, name: str, identity: str) -> tuple[object, tuple[tuple[str, str], ...]]:
        if name not in _KINDS:
            raise _Refused(404)
        if unknown := set(request.query) - {"include"}:
            raise _invalid(min(unknown), "Unexpected/invalid field in request", "invalid_field")
        row = self.world.find(_KINDS[name], int(identity))
        if row is None or (_KINDS[name] == "people" and row.agent != (name == "agents")):
            raise _Refused(404)
        if name == "assets" and row.state == TRASHED:
            raise _Refused(404)
        return {name[:-1]: self._record(name, row, _included(request.query))}, ()

    def _record(self, name: str, row: Row, included: frozenset[str]) -> Any:
        records = self._records
        match name:
            case "departments":
                return records.department(row)
            case "requesters" | "agents":
                return records.person(row)
            case "groups":
                return records.group(row)
            case "tickets":
                return records.detail(row, included, self.behaviour.workspaces)
            case "assets":
                return records.asset(row, included)
        deleted = {"deleted": True} if row.state == TRASHED else {}
        return (records.problem(row) if name == "problems" else records.change(row)) | deleted

    def _said(self, request: Request, identity: str) -> tuple[object, tuple[tuple[str, str], ...]]:
        if unknown := set(request.query) - _PAGING:
            raise _invalid(min(unknown), "Unexpected/invalid field in request", "invalid_field")
        row = self.world.find("tickets", int(identity))
        if row is None:
            raise _Refused(404)
        said = [each for each in row.said if each.state != ERASED]
        page, links = self._paged(request, said)
        shown = [self._records.conversation(row, each) for each in page]
        return {"conversations": shown, "meta": {"count": len(said)}}, links


def _charged(request: Request) -> tuple[str | None, int]:
    """Whose own limit a request counts for, and how many units it costs (B.2)."""
    included = len(_included(request.query))
    if found := _LIST.fullmatch(request.path):
        return found[1], 1 + 2 * included
    found = _ONE.fullmatch(request.path)
    return ("ticket" if found and found[1] == "tickets" else None), 1 + included


def _included(query: dict[str, str]) -> frozenset[str]:
    return frozenset(name for name in query.get("include", "").split(",") if name)


def _address(person: dict[str, Any]) -> str | None:
    return person.get("primary_email") or person.get("email")


def _selected(query: str, fields: dict[str, str], record: dict[str, Any]) -> bool:
    try:
        return selection(query, fields)(record)
    except ValueError as error:
        raise _invalid("query", str(error), "invalid_value") from None


def _invalid(name: str, message: str, code: str) -> _Refused:
    errors = [{"field": name, "message": message, "code": code}]
    return _Refused(400, {"description": "Validation failed", "errors": errors})


def _number(query: dict[str, str], name: str, default: int, most: int | None) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1 or (most and int(text[:9]) > most):
        limit = f" less than or equal to {most}" if most else ""
        raise _invalid(name, f"It should be a Positive Integer{limit}", "invalid_value")
    return int(text[:9])


def _moment(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(
            "updated_since", "It should be in the 'combined date and time ISO8601' format", "invalid_date"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
