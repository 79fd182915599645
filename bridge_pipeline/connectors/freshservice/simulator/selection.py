"""The query language of Freshservice's filters, such as `priority:3 AND created_at:>'2024-01-01'` (B.2).

What may be asked for, and of which record, is `dialect`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]
Selects = Callable[[Record], bool]

# Of a ticket, by their names in queries: the key of its detail. Custom fields go by their own names.
TICKET_FIELDS = {name: name for name in ("workspace_id", "requester_id", "email", "group_id", "priority")} | {
    **{name: name for name in ("status", "impact", "urgency", "due_by", "fr_due_by", "created_at")},
    "agent_id": "responder_id",
    "tag": "tags",
}
_MOST = 512
_TOKEN = re.compile(
    r"\s*(?:(?P<mark>[()])|(?P<word>AND|OR)\b|(?P<key>\w+):(?P<sign>[<>]?)(?:'(?P<text>[^']*)'|(?P<bare>[^\s()']+)))"
)


def selection(query: str, fields: Mapping[str, str]) -> Selects:
    """Which records a query means; it stands in double quotes, and its texts in single ones.

    Raises:
        ValueError: it is no such query, too long, or asks for another field.
    """
    inside = query.removeprefix('"').removesuffix('"')
    if len(query) - len(inside) != 2 or len(inside) > _MOST:
        raise ValueError("a query stands in double quotes and has at most 512 characters")
    tokens, place = [], 0
    while inside[place:].strip():
        found = _TOKEN.match(inside, place)
        if found is None:
            raise ValueError(f"not understood: {inside[place:]}")
        tokens.append(found)
        place = found.end()
    selects = _either(tokens, fields)
    if tokens:
        raise ValueError(f"not expected: {tokens[0][0]}")
    return selects


def _either(tokens: list[re.Match[str]], fields: Mapping[str, str]) -> Selects:
    parts = [_all(tokens, fields)]
    while tokens and tokens[0]["word"] == "OR":
        tokens.pop(0)
        parts.append(_all(tokens, fields))
    return lambda record: any(part(record) for part in parts)


def _all(tokens: list[re.Match[str]], fields: Mapping[str, str]) -> Selects:
    parts = [_one(tokens, fields)]
    while tokens and tokens[0]["word"] == "AND":
        tokens.pop(0)
        parts.append(_one(tokens, fields))
    return lambda record: all(part(record) for part in parts)


def _one(tokens: list[re.Match[str]], fields: Mapping[str, str]) -> Selects:
    if not tokens:
        raise ValueError("the query ends too early")
    token = tokens.pop(0)
    if token["mark"] == "(":
        inner = _either(tokens, fields)
        if not tokens or tokens.pop(0)["mark"] != ")":
            raise ValueError("a parenthesis is not closed")
        return inner
    if token["key"] is None:
        raise ValueError(f"not expected: {token[0]}")
    return _comparison(token, fields)


def _comparison(token: re.Match[str], fields: Mapping[str, str]) -> Selects:
    name, sign = token["key"], token["sign"]
    key, wanted = fields.get(name), token["text"] if token["text"] is not None else token["bare"]

    def selects(record: Record) -> bool:
        own = record["custom_fields"]
        if key is None and name not in own:
            raise ValueError(f"there is no field {name}")
        value = own.get(name) if key is None else record.get(key)
        if wanted == "null" and token["text"] is None:
            return value in (None, [])
        if isinstance(value, list):
            return wanted in map(str, value)
        if value is None:
            return False
        return _compared(value, sign, wanted)

    return selects


def _compared(value: Any, sign: str, wanted: str) -> bool:
    """Equal, or with a sign not less and not more: of numbers, and of the days of times."""
    if isinstance(value, bool):
        return str(value).lower() == wanted
    if isinstance(value, int):
        number = int(wanted)
        return value == number if not sign else value >= number if sign == ">" else value <= number
    if re.fullmatch(r"\d{4}-\d\d-\d\d", wanted):
        value = value[:10]
    return value == wanted if not sign else value >= wanted if sign == ">" else value <= wanted
