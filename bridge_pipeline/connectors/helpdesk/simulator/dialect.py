"""How Client Central answers: paths, credentials, pages, envelopes, errors, and the truth of it all.

What it has to answer with is `generated` or `replayed`; what `filter` and `select` mean is
`query` and `selection`. Sending, faults and logs are `connector_kit.simulator`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import orjson

from bridge_pipeline.connector_kit.simulator import Answer, Request, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator.generated import Changes, generate
from bridge_pipeline.connectors.helpdesk.simulator.malformed import broken
from bridge_pipeline.connectors.helpdesk.simulator.query import Matcher, QueryError, parse_filter
from bridge_pipeline.connectors.helpdesk.simulator.replayed import Replayed
from bridge_pipeline.connectors.helpdesk.simulator.selection import Selection
from bridge_pipeline.connectors.helpdesk.simulator.world import (
    Dice,
    Mask,
    Record,
    Rows,
    Table,
    World,
    instant,
    micros_of,
)

_PATH = re.compile(r"/api/v1/(accounts|users|tickets)(?:/(\d+))?\.json")
# The form of a token, and the length under which the vendor's own client refuses it (A.1).
_TOKEN = re.compile(r"(?=.{32})\d+-[A-Za-z\d_-]+")
_REMEMBERED = 8


@dataclass
class ClientCentral:
    """The API over one desk; see `connector_kit.simulator.Dialect`.

    The vendor establishes no order of listings. Here it is by id; tickets that change while
    they are read are listed by change time, so that pages shift.
    """

    options: SimulatorOptions
    world: World = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        if options.event_log and options.clock:
            self.world = Replayed(options.event_log, micros_of(options.clock)).world()
            self._changes = None
        else:
            self.world = generate(options)
            self._changes = Changes(self.world, options.profile, options.seed)
        self._listings: dict[tuple[str, str], tuple[int, Rows]] = {}
        self._selections: dict[tuple[str, str], Selection] = {}

    @property
    def records(self) -> int:
        """How many records there are, of all entities."""
        return sum(len(table.ids) for table in self.world.tables.values())

    @property
    def changes(self) -> int:
        """How often a record has changed since the start."""
        return sum(table.changes for table in self.world.tables.values())

    def answer(self, request: Request) -> Answer:
        """Answers one request. Error texts repeat the URL, credential included (F, CC-5)."""
        if request.method != "GET":
            refused = _refusal(405, "Method not allowed", request)
            return Answer(405, refused.body, headers=(("Allow", "GET"),))
        if not self._authorised(request.query.get("token", "")):
            return _refusal(401, "Invalid or missing token", request)
        if not (found := _PATH.fullmatch(request.path)):
            return _refusal(404, "Not found", request)
        entity, identity = found.groups()
        try:
            answer = self._list(entity, request) if identity is None else self._one(entity, identity, request)
        except QueryError as error:
            return _refusal(400, str(error), request)
        if self._changes:
            self._changes.after_answer()
        return answer

    def truth(self) -> Iterator[bytes]:
        """The truth as JSON: `clock`, `entities`, `unlisted`, `malformed`, `deleted` (by entity and id)."""
        tables = self.world.tables
        yield b'{"clock":' + orjson.dumps(instant(self.world.clock, 1))
        for member in ("entities", "unlisted"):
            yield b',"%b":{' % member.encode()
            for number, (entity, table) in enumerate(tables.items()):
                yield b'%b"%b":{' % (b"," if number else b"", entity.encode())
                yield from table.truth(table.order if member == "entities" else table.unlisted)
                yield b"}"
            yield b"}"
        yield b',"malformed":' + orjson.dumps(
            [
                {"entity": entity, "reason": reason, "id": int(table.ids[row])}
                for entity, table in tables.items()
                for row, reason in sorted(table.malformed.items())
                if row not in table.deleted
            ]
        )
        deleted = {
            entity: {
                str(table.ids[row]): {"deleted_at": instant(moment, 1)}
                for row, moment in table.deleted.items()
            }
            for entity, table in tables.items()
        }
        yield b',"deleted":' + orjson.dumps(deleted) + b"}"

    def _authorised(self, token: str) -> bool:
        if self.options.token is not None:
            return token == self.options.token
        return _TOKEN.fullmatch(token) is not None

    def _one(self, entity: str, identity: str, request: Request) -> Answer:
        table = self.world.tables[entity]
        row = table.row_of(int(identity)) if len(identity) < 20 else None
        if row is None:
            return _refusal(404, "Not found", request)
        return Answer(200, b'{"data":%b}' % self._rendered(table, row, self._selection(request)))

    def _list(self, entity: str, request: Request) -> Answer:
        table = self.world.tables[entity]
        rows = self._matching(entity, table, request.query.get("filter", ""))
        page, size = _page_number(request.query.get("page", "")), self.options.page_size
        start = (page - 1) * size
        end = start + size
        if start and self._repeats(entity, page):
            start -= 1
        selection = self._selection(request)
        data = b",".join(self._rendered(table, row, selection) for row in rows[start:end].tolist())
        count = len(rows) if request.query.get("count") == "true" else None
        return Answer(200, self._enveloped(entity, data, page, len(rows), count))

    def _enveloped(self, entity: str, data: bytes, page: int, total: int, count: int | None) -> bytes:
        match self.options.envelope:
            case "array":
                return b"[%b]" % data
            case "data":
                head: Record = {}
            case "named":
                head = {}
            case _:
                pages = -(-total // self.options.page_size)
                head = {"page": page, "more": page < pages, "total_pages": pages}
        if count is not None:
            head["count"] = count
        name = entity if self.options.envelope == "named" else "data"
        members = [orjson.dumps(head)[1:-1]] if head else []
        return b"{%b}" % b",".join([*members, b'"%b":[%b]' % (name.encode(), data)])

    def _selection(self, request: Request) -> Selection:
        """What a request selects, remembered together with the related objects it has found."""
        key = (request.query.get("select", ""), request.query.get("locales", ""))
        if key not in self._selections:
            _make_room(self._selections)
            self._selections[key] = Selection.of(*key)
        return self._selections[key]

    def _rendered(self, table: Table, row: int, selection: Selection) -> bytes:
        record = selection.apply(self.world, table.build(row))
        if reason := table.malformed.get(row):
            return broken(record, reason)
        return orjson.dumps(record)

    def _matching(self, entity: str, table: Table, expression: str) -> Rows:
        """The rows of a listing in order, remembered until a record changes.

        Raises:
            QueryError: the expression is not in the query language.
        """
        if not expression or self.options.filter == "ignored":
            return table.order
        key = (entity, expression)
        changes, rows = self._listings.get(key, (-1, table.order))
        if changes == table.changes:
            return rows
        matcher = Matcher(self.world, table, self.options.filter == "local_time")
        rows = matcher.rows(parse_filter(expression), table.order)
        if self.options.filter == "hiding":
            rows = rows[_shown(table.ids[rows], self.options.seed)]
        self._listings.pop(key, None)
        _make_room(self._listings)
        self._listings[key] = (table.changes, rows)
        return rows

    def _repeats(self, entity: str, page: int) -> bool:
        share = Dice(self.options.seed, crc32(entity.encode()), page).below(10_000) / 10_000
        return share < self.options.profile.repeats


def _make_room(remembered: dict[Any, Any]) -> None:
    """Forgets the oldest entry if there are many; clients come with endless filters and selections."""
    if len(remembered) >= _REMEMBERED:
        del remembered[next(iter(remembered))]


def _shown(ids: Rows, seed: int) -> Mask:
    """Which of the records a filter that hides rows lets through: about 97 %, always the same."""
    scattered = (ids.astype(np.uint64) + np.uint64(seed % 2**32)) * np.uint64(0x9E3779B97F4A7C15)
    return (scattered >> np.uint64(32)) % np.uint64(100) >= np.uint64(3)


def _page_number(text: str) -> int:
    """The page asked for; what is no positive number means the first."""
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 16 else 1


def _refusal(status: int, text: str, request: Request) -> Answer:
    return Answer(status, orjson.dumps({"error": f"{text}: {request.method} {request.target}"}))
