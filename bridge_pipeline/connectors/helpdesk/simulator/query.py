"""The query language of `filter`: reading it, and finding the rows for which it holds (vendor-apis A.2).

What the vendor does not document of it and is decided here is said at `Matcher`. How a desk
mistreats its filter on purpose is `dialect`, but for times compared by their wall clock.
"""

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from bridge_pipeline.connectors.helpdesk.simulator.malformed import UNDATED
from bridge_pipeline.connectors.helpdesk.simulator.world import (
    SECOND,
    Mask,
    Rows,
    Table,
    World,
    micros_of,
)


class QueryError(ValueError):
    """A `filter` that is not in the query language."""


@dataclass(frozen=True)
class Comparison:
    """`path` holds one of `wanted` (`IN`), contains the first (`CONTAINS`) or is before or after it."""

    path: tuple[str, ...]
    operation: str
    wanted: tuple[Any, ...]
    negated: bool = False


@dataclass(frozen=True)
class All:
    """Every part holds."""

    parts: "tuple[Query, ...]"


@dataclass(frozen=True)
class Some:
    """At least one part holds."""

    parts: "tuple[Query, ...]"


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Query"


Query = Comparison | All | Some | Not

_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LEXEME = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)(?![\w.])"
    r"|(?P<sign><=|>=|<>|!=|[=<>(),])|(?P<word>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*))"
)
_LITERAL_WORDS = {"NULL": None, "TRUE": True, "FALSE": False}
_DEEPEST = 50


@lru_cache(maxsize=64)
def parse_filter(text: str) -> Query:
    """Reads a `filter`: an expression of the query language, or a JSON object of equal fields (A.2).

    A quote inside a string is doubled; keywords may be in any case; `AND` binds closer than `OR`.

    Raises:
        QueryError: it is neither.
    """
    if text.lstrip().startswith("{"):
        return _parse_json_filter(text)
    return _Parser(text).whole()


def _parse_json_filter(text: str) -> Query:
    try:
        wanted = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise QueryError(f"filter is not valid JSON: {error}") from None
    for name, value in wanted.items():
        if "." in name or isinstance(value, dict | list):
            raise QueryError(f"a JSON filter compares top level fields with plain values, not {name!r}")
    return All(tuple(Comparison((name,), "IN", (value,)) for name, value in wanted.items()))


class _Parser:
    """Recursive descent over the lexemes of one expression."""

    def __init__(self, text: str) -> None:
        self._lexemes = list(self._split(text))
        self._next = 0
        self._depth = 0

    def whole(self) -> Query:
        found = self._either()
        if self._kind() is not None:
            raise QueryError(f"unexpected {self._lexemes[self._next][1]!r} in filter")
        return found

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _LEXEME.match(text, position)
            if not found or found.lastgroup is None:
                raise QueryError(f"cannot read filter at {text[position : position + 20]!r}")
            yield found.lastgroup, found[found.lastgroup]
            position = found.end()

    def _kind(self) -> str | None:
        return self._lexemes[self._next][0] if self._next < len(self._lexemes) else None

    def _take(self, *texts: str) -> str | None:
        """The next word or sign if it is one of `texts`, and moves on."""
        if self._kind() in ("word", "sign"):
            text = self._lexemes[self._next][1].upper()
            if text in texts:
                self._next += 1
                return text
        return None

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise QueryError(f"expected {text} in filter")

    def _either(self) -> Query:
        parts = [self._both()]
        while self._take("OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _both(self) -> Query:
        parts = [self._one()]
        while self._take("AND"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self) -> Query:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise QueryError(f"filter is nested deeper than {_DEEPEST}")
        if self._take("NOT"):
            found: Query = Not(self._one())
        elif self._take("("):
            found = self._either()
            self._expect(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Comparison:
        if self._kind() != "word":
            raise QueryError("expected a field in filter")
        path = tuple(self._lexemes[self._next][1].split("."))
        self._next += 1
        if negated := self._take("NOT"):
            operation = self._take("CONTAINS", "IN")
        else:
            operation = self._take("=", "<>", "!=", *_ORDERED, "CONTAINS", "IN")
        match operation:
            case None:
                raise QueryError(f"expected an operator after {'.'.join(path)!r} in filter")
            case "IN":
                return self._checked(Comparison(path, "IN", self._list(), bool(negated)))
            case "=" | "<>" | "!=":
                return self._checked(Comparison(path, "IN", (self._literal(),), operation != "="))
            case _:
                return self._checked(Comparison(path, operation, (self._literal(),), bool(negated)))

    @staticmethod
    def _checked(comparison: Comparison) -> Comparison:
        if _is_time(comparison):
            for text in comparison.wanted:
                if text is not None and _moment(text, False) is None:
                    raise QueryError(f"{text!r} in filter is not a time")
        return comparison

    def _list(self) -> tuple[Any, ...]:
        self._expect("(")
        found = [self._literal()]
        while self._take(","):
            found.append(self._literal())
        self._expect(")")
        return tuple(found)

    def _literal(self) -> Any:
        if self._kind() is None:
            raise QueryError("filter ends where a value is expected")
        kind, text = self._lexemes[self._next]
        self._next += 1
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind == "word" and text.upper() in _LITERAL_WORDS:
            return _LITERAL_WORDS[text.upper()]
        raise QueryError(f"expected a value in filter, not {text!r}")


def _is_time(comparison: Comparison) -> bool:
    return comparison.path[-1].endswith("_at") and comparison.operation != "CONTAINS"


def _moment(text: Any, wall_clock: bool) -> int | None:
    """A time's microseconds; with `wall_clock` as if every text were UTC. None if it is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return micros_of(moment.replace(tzinfo=UTC) if wall_clock else moment)


class Matcher:
    """Finds the rows of a table for which a query holds.

    Not established by the vendor and decided here: null holds in no comparison but `= NULL`;
    a related object is compared by id with numbers and by name with texts, and so are its
    arrays, any element; `CONTAINS` ignores case.
    """

    def __init__(self, world: World, table: Table, wall_clock: bool) -> None:
        self._world, self._table, self._wall_clock = world, table, wall_clock
        self._known = set(table.build(0)) if len(table.ids) else None
        undated = [row for row, reason in table.malformed.items() if reason in UNDATED]
        self._undated = np.array(undated, np.int64)

    def rows(self, query: Query, rows: Rows) -> Rows:
        """Those of `rows` that match, in the same order.

        Raises:
            QueryError: the query names a field that the records do not have.
        """
        return rows[self._mask(query, rows)]

    def _mask(self, query: Query, rows: Rows) -> Mask:
        match query:
            case All(parts):
                kept = np.ones(len(rows), np.bool_)
                # What is answered from columns comes first, so that few records must be built.
                for part in sorted(parts, key=lambda part: not self._by_column(part)):
                    kept[kept] = self._mask(part, rows[kept])
                return kept
            case Some(parts):
                return np.logical_or.reduce([self._mask(part, rows) for part in parts])
            case Not(part):
                return ~self._mask(part, rows)
            case Comparison():
                if self._known is not None and query.path[0] not in self._known:
                    raise QueryError(f"unknown field {query.path[0]!r} in filter")
                return self._column(query, rows) if self._by_column(query) else self._scan(query, rows)

    @staticmethod
    def _by_column(query: Query) -> bool:
        if not isinstance(query, Comparison) or query.operation not in _ORDERED:
            return False
        (wanted,) = query.wanted
        return query.path == ("updated_at",) or (query.path == ("id",) and type(wanted) in (int, float))

    def _column(self, query: Comparison, rows: Rows) -> Mask:
        if query.path == ("id",):
            return _ORDERED[query.operation](self._table.ids[rows], query.wanted[0])
        wanted = _moment(query.wanted[0], self._wall_clock)
        if wanted is None:
            return np.zeros(len(rows), np.bool_)
        moments = self._table.updated[rows]
        if self._wall_clock and self._table.mixes_styles:
            moments = moments + (self._table.ids[rows] % 3 == 2) * (2 * 3600 * SECOND)
        return _ORDERED[query.operation](moments, wanted) & ~np.isin(rows, self._undated)

    def _scan(self, query: Comparison, rows: Rows) -> Mask:
        values = (self._value(self._table.build(row), query.path) for row in rows.tolist())
        return np.fromiter((self._holds(query, value) for value in values), np.bool_, len(rows))

    def _value(self, value: Any, path: tuple[str, ...]) -> Any:
        for name in path:
            if isinstance(value, list):
                value = [self._member(item, name) for item in value]
            else:
                value = self._member(value, name)
        return value

    def _member(self, value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            return None
        if name not in value and isinstance(value.get("_type"), str):
            value = self._world.related(value["_type"], value["id"]) or {}
        return value.get(name)

    def _holds(self, query: Comparison, value: Any) -> bool:
        items = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
        if None in query.wanted:
            return (not items) != query.negated
        return bool(items) and any(self._item_holds(query, item) for item in items) != query.negated

    def _item_holds(self, query: Comparison, item: Any) -> bool:
        for wanted in query.wanted:
            if _is_time(query):
                left, right = _moment(item, self._wall_clock), _moment(wanted, self._wall_clock)
            else:
                left, right = self._comparable(item, wanted), wanted
            if left is None or right is None:
                continue
            if query.operation == "CONTAINS":
                holds = str(right).casefold() in str(left).casefold()
            elif query.operation == "IN":
                holds = left == right if type(left) is type(right) else str(left) == str(right)
            else:
                alike = isinstance(left, str) == isinstance(right, str) and not isinstance(left, dict)
                holds = alike and _ORDERED[query.operation](left, right)
            if holds:
                return True
        return False

    def _comparable(self, item: Any, wanted: Any) -> Any:
        if isinstance(item, dict):
            return self._member(item, "name" if isinstance(wanted, str) else "id")
        return item
