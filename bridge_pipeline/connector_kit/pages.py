"""Bodies of list answers, taken apart into records.

A body is parsed in one go where that is known to change nothing. `orjson` turns integers
beyond 64 bits into floats, rounds decimals to doubles, drops all but the last of repeated
keys, and refuses a whole page for one lone surrogate, `NaN`, `1e400` or deep nesting; such
pages are split into the exact bytes of their records, and each record is parsed alone, so
that a bad one never harms its neighbours. A decimal that no double holds is a `Decimal`.

What a record means is not decided here; see `fields` and the connectors' streams.
"""

import fnmatch
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

from bridge_pipeline.redaction import redact

_BOM = b"\xef\xbb\xbf"
# Only numbers of 16 digits and more, or with an exponent of three, can be changed by becoming a double
# or 64 bits. They are found in the page's shape, ten times faster than by a regular expression: every
# digit or point as 9, e as e, a sign as -, all else blank. UUIDs, hashes and texts are full of such, so
# each is looked at where it stands.
_SHAPE = bytes(
    {43: b"-", 45: b"-", 46: b"9", 69: b"e", 101: b"e"}.get(i, b"9" if 48 <= i <= 57 else b" ")[0]
    for i in range(256)
)
_SUSPECT_SHAPES = (b"9" * 16, b"9e999", b"9e-999")
_NUMBER = re.compile(rb"-?[0-9.]+(?:[eE][+-]?[0-9]+)?")
_NUMERIC = b"0123456789.+-eE"
_BEFORE_NUMBER = b":,[ \t\r\n"
# Postgres holds more, but nobody means them.
_MOST_DIGITS = 4_000
# A string that never ends is one token up to the end, or each quote in it would be tried again.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
_COMMA = re.compile(rb"\s*,")
_COLON = re.compile(rb"\s*:")
_COLON_BYTE = ord(":")
_DEPTH = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_BLANK = b" \t\r\n"
# Deeper ones are refused before they are parsed, not where the stack happens to end.
_DEEPEST = 500
_READ, _SHOWN = 4_096, 100
# Of an answer that failed, in every vendor's form (vendor-apis B.7, C.10, D.8); that of a good one has none.
_COMPLAINTS = ("error", "errors")
_FAILURE = {"status": "failure"}


class UnreadableBody(ValueError):
    """A body that is no list answer: cut, empty, HTML or of an unknown envelope."""


class FailedAnswer(UnreadableBody):
    """An answer that says of itself that it failed, whatever its status: what it lists may be anything."""


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be accepted: why, and where in it (a JSON pointer)."""

    raw: bytes
    reason: str
    pointer: str = ""
    detail: str = ""
    record_id: str | None = None


@dataclass(frozen=True)
class PageContent:
    """The records of one list answer, in order, and what its envelope says of further pages.

    `envelope` are the members beside the records that are no lists; `exact` are the records' bytes, where
    they are known. `body` is there, with its SHA-256 as `digest`, where `parse_list` gives these records.
    """

    records: Sequence[Any]
    more: bool | None = None
    total_pages: int | None = None
    total: int | None = None
    exact: Sequence[bytes] | None = field(default=None, repr=False)
    envelope: Mapping[str, Any] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    digest: bytes | None = None

    def says_more(self, page: int) -> bool:
        """Whether the envelope of the page with that number, from 1, says that more follow."""
        return self.more is True or (self.total_pages or 0) > page


def parse_list(body: bytes, names: Iterable[str]) -> PageContent:
    """Takes a list answer apart.

    Args:
        body: the whole body, decompressed.
        names: keys under which the envelope may hold its list; a bare array is accepted too.

    Returns:
        A page whose records are parsed JSON values or `Rejected`.

    Raises:
        UnreadableBody: there is no such list, or the body is cut or not JSON.
        FailedAnswer: it says that it failed, also beside a list, which is then not all there is.
    """
    body = without_mark(body)
    if not body.strip():
        raise UnreadableBody("the body is empty")
    names = tuple(names)
    if b"\\u0000" not in body and not _suspect(body):
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
        else:
            if _kept_all(body, document):
                return _page(document, names, None)
    return _parse_split(body, names)


def parse_single(body: bytes, names: Iterable[str]) -> tuple[Any, bytes]:
    """Takes the answer for one record apart: `{"data": {…}}`, `{"ticket": {…}}` or the bare record.

    Returns:
        The parsed record or a `Rejected`, and its exact bytes.

    Raises:
        UnreadableBody: the body is cut, empty or not JSON, or holds no record.
        FailedAnswer: its envelope says that it failed.
    """
    body = without_mark(body).strip()
    if not body:
        raise UnreadableBody("the body is empty")
    raw = _single_slice(body, tuple(names))
    return parse_record(raw), raw


def values_under(raw: bytes, key: str) -> list[Any]:
    """What stands under a key of a record, however unsound the rest is; several where the key is repeated."""
    found, depth = dict[bytes, None](), 0
    for token in _TOKEN.finditer(raw if raw[:1] == b"{" else b""):
        colon = _COLON.match(raw, token.end()) if depth == 1 else None
        if colon and _unquoted(token.group()) == key:
            found[raw[colon.end() : _value_end(raw, colon.end())].strip(_BLANK)] = None
        depth += _DEPTH.get(token.group(), 0)
    return [value for each in found if not isinstance(value := parse_record(each), Rejected)]


def complaint(document: Mapping[str, Any]) -> str | None:
    """What an object says of a failure, short and without secrets; None where it says nothing of one."""
    said = {key: document[key] for key in _COMPLAINTS if document.get(key)}
    said |= {key: value for key, value in _FAILURE.items() if document.get(key) == value}
    if not said:
        return None
    try:
        return _shown(orjson.dumps(said).decode())
    except TypeError:
        # Nested too deep to be written, or with what JSON cannot hold.
        return ", ".join(said)


def keys_shown(document: Mapping[str, Any]) -> str:
    """Some keys of an object, for an error."""
    return _shown(", ".join(sorted(document)[:8])) or "none"


def exact_records(body: bytes, names: Iterable[str]) -> list[bytes]:
    """The exact bytes of every record of a list answer, in order."""
    return _split(without_mark(body), tuple(names))[0]


def without_members(body: bytes, patterns: Iterable[str]) -> bytes:
    """`body` with every object member cut out whose key matches one of the glob patterns.

    All other bytes stay as they are. A member's key is matched at every depth, so that an
    excluded field does not survive inside a related object. A body that ends within such a
    member is cut off there, and found to be cut when it is parsed.
    """
    globs = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    # A page repeats its keys in every record.
    excluded = functools.cache(lambda key: globs.match(_unquoted(key)) is not None)
    kept, position = bytearray(), 0
    for token in _TOKEN.finditer(body):
        colon = _COLON.match(body, token.end())
        if token.start() < position or not colon or not excluded(token.group()):
            continue
        kept += body[position : token.start()].rstrip(_BLANK)
        position = _value_end(body, colon.end())
        if kept.endswith(b","):
            del kept[-1:]
        elif comma := _COMMA.match(body, position):
            position = comma.end()
    return bytes(kept + body[position:])


def patterns_of(entity: str, exclude: Iterable[str]) -> list[str]:
    """The glob patterns of an entity's keys among what a connection excludes (`tickets.*_password`)."""
    prefix = f"{entity}."
    return [each.removeprefix(prefix) for each in exclude if each.startswith(prefix)]


def with_members(raw: bytes, members: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON object with other members before its own; all other bytes stay as they are."""
    inside = raw.lstrip(_BLANK)[1:].lstrip(_BLANK)
    comma = b"" if inside.startswith(b"}") else b","
    try:
        own = orjson.dumps(members)
    except TypeError:
        # Integers beyond 64 bits, and decimals that no double holds, which become text.
        own = json.dumps(members, default=str).encode()
    return own[:-1] + comma + inside


def parse_record(raw: bytes) -> Any:
    """Parses one record so that nothing is changed, or says why that cannot be done."""
    if not raw:
        return Rejected(raw, "invalid_json", detail="nothing stands here")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return Rejected(raw, "invalid_utf8", detail=f"byte {error.start}")
    if _too_deep(raw):
        return Rejected(raw, "too_deep", detail=f"nested more than {_DEEPEST} levels")
    try:
        record = None if _suspect(raw) else orjson.loads(raw)
    except orjson.JSONDecodeError:
        record = None
    if record is None or not _kept_all(raw, record):
        record = _parse_anywhere(raw, text)
    return record if isinstance(record, Rejected) else _refuse_values(raw, record) or record


def _too_deep(raw: bytes) -> bool:
    """Whether anything is nested more than `_DEEPEST` levels deep."""
    if raw.count(b"[") + raw.count(b"{") <= _DEEPEST:
        return False
    depth = 0
    for token in _TOKEN.finditer(raw):
        depth += _DEPTH.get(token.group(), 0)
        if depth > _DEEPEST:
            return True
    return False


def _suspect(data: bytes) -> bool:
    """Whether `orjson` may read a number of these as another one."""
    shape = data.translate(_SHAPE)
    return any(not _is_exact(number) for mark in _SUSPECT_SHAPES for number in _numbers(data, shape, mark))


def _numbers(data: bytes, shape: bytes, mark: bytes) -> Iterator[bytes]:
    """The numbers of the page that have a part of such a shape."""
    found = shape.find(mark)
    while found >= 0:
        # Had it begun earlier, its digits would have been found.
        first = max(0, found - 32)
        begin = first + len(data[first:found].rstrip(_NUMERIC))
        number = _NUMBER.match(data, begin)
        if number and (begin == 0 or data[begin - 1] in _BEFORE_NUMBER):
            yield number.group()
        found = shape.find(mark, max(found + len(mark), number.end() if number else 0))


def _is_exact(number: bytes) -> bool:
    """Whether 64 bits, or a double, hold exactly this number; what is no number is not in question."""
    if number.lstrip(b"-").isdigit():
        return len(number) <= 20 and -(2**63) <= int(number) < 2**64
    try:
        value = float(number)
    except ValueError:
        return True
    return math.isfinite(value) and len(number) <= _MOST_DIGITS and _same(value, number.decode())


def _same(value: float, text: str) -> bool:
    try:
        return Decimal(repr(value)) == Decimal(text)
    except ArithmeticError:
        # An exponent beyond all bounds.
        return False


def _kept_all(data: bytes, parsed: Any) -> bool:
    """Whether `orjson` kept every member: it drops all but the last of repeated keys, and their colons."""
    # Most pages have no such escape at all.
    if b"\\u003" in data and (b"\\u003a" in data or b"\\u003A" in data):
        # A colon that was written as an escape could stand in for one that was dropped.
        return False
    try:
        return count_colons(orjson.dumps(parsed)) == count_colons(data)
    except TypeError:
        # Nested deeper than it can be written.
        return False


def count_colons(data: Any) -> int:
    """How many colons stand in bytes of JSON; each member of an object has one."""
    # Seven times as fast as `bytes.count`.
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _COLON_BYTE))


def without_mark(body: bytes) -> bytes:
    """The body without the byte order mark that it may begin with."""
    return body.removeprefix(_BOM)


def _page(document: Any, names: tuple[str, ...], exact: list[bytes] | None) -> PageContent:
    if isinstance(document, list):
        return PageContent(document, exact=exact)
    if not isinstance(document, dict):
        raise UnreadableBody(f"the body is a JSON {type(document).__name__}, not a list of records")
    _refuse_failed(document)
    lists = [name for name in names if isinstance(document.get(name), list)]
    if len(lists) > 1:
        raise UnreadableBody(f"lists under {' and '.join(lists)}: which holds the records is not known")
    if not lists:
        raise UnreadableBody(f"no list under {' or '.join(names)}; the body's keys: {keys_shown(document)}")
    more = document.get("more")
    return PageContent(
        document[lists[0]],
        more if isinstance(more, bool) else None,
        _count(document.get("total_pages")),
        _count(document.get("count")),
        exact,
        {key: value for key, value in document.items() if not isinstance(value, list)},
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parse_split(body: bytes, names: tuple[str, ...]) -> PageContent:
    slices, (start, end) = _split(body, names)
    document = _read_envelope(body[: start + 1] + body[end:])
    page = _page(document, names, slices)
    return replace(page, records=[parse_record(raw) for raw in slices])


def _read_envelope(rest: bytes) -> Any:
    """What stands around the records: small and harmless."""
    try:
        return json.loads(rest, object_pairs_hook=_members)
    except (ValueError, RecursionError) as error:
        raise UnreadableBody(f"the envelope is not JSON: {type(error).__name__}") from None


def _split(body: bytes, names: tuple[str, ...]) -> tuple[list[bytes], tuple[int, int]]:
    """The records' slices, and where the list's brackets stand: `[` and `]`."""
    start = _list_start(body, names)
    slices: list[bytes] = []
    depth, item = 0, start + 1
    for token in _TOKEN.finditer(body, start):
        mark = token.group()
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                last = body[item : token.start()].strip(_BLANK)
                if last or slices:
                    slices.append(last)
                return slices, (start, token.start())
        elif mark == b"," and depth == 1:
            slices.append(body[item : token.start()].strip(_BLANK))
            item = token.end()
    raise UnreadableBody("the body ends in the middle of its list")


def _list_start(body: bytes, names: tuple[str, ...]) -> int:
    """Position of the `[` that opens the list of records."""
    first = len(body) - len(body.lstrip(_BLANK))
    if body[first : first + 1] == b"[":
        return first
    if body[first : first + 1] != b"{":
        raise UnreadableBody(f"the body is not JSON; it begins with {_shown(body)!r}")
    start = _member_start(body, names, b"[")
    if start is None:
        raise UnreadableBody(f"the body is cut, or has no list under {' or '.join(names)}")
    return start


def _member_start(body: bytes, names: tuple[str, ...], bracket: bytes) -> int | None:
    """Position of the bracket that opens the value of a top-level member called one of `names`."""
    depth, key = 0, b""
    for token in _TOKEN.finditer(body):
        mark = token.group()
        if mark == bracket and depth == 1 and _unquoted(key) in names:
            return token.start()
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
        elif mark == b",":
            key = b"" if depth == 1 else key
        elif depth == 1 and _COLON.match(body, token.end()):
            key = mark
    return None


def _single_slice(body: bytes, names: tuple[str, ...]) -> bytes:
    if body[:1] != b"{" or _object_end(body, 0) != len(body):
        raise UnreadableBody("the body is cut or is no JSON object")
    start = _member_start(body, names, b"{")
    if start is not None:
        end = _object_end(body, start)
        _refuse_failed(_read_envelope(body[:start] + b"null" + body[end:]))
        return body[start:end]
    if _has_member(body, b'"id"'):
        # What it says of an error may be the record's own.
        return body
    _refuse_failed(_read_envelope(body))
    raise UnreadableBody(f"no record under {' or '.join(names)}")


def _refuse_failed(envelope: Mapping[str, Any]) -> None:
    if said := complaint(envelope):
        raise FailedAnswer(f"the answer says that it failed: {said}")


def _has_member(body: bytes, key: bytes) -> bool:
    """Whether the object has a top-level member with that key."""
    depth = 0
    for token in _TOKEN.finditer(body):
        mark = token.group()
        if mark == key and depth == 1 and _COLON.match(body, token.end()):
            return True
        depth += _DEPTH.get(mark, 0)
    return False


def _object_end(body: bytes, start: int) -> int | None:
    """Position behind the bracket that closes the one at `start`; None if the body is cut."""
    depth = 0
    for token in _TOKEN.finditer(body, start):
        depth += _DEPTH.get(token.group(), 0)
        if depth == 0:
            return token.end()
    return None


def _value_end(body: bytes, start: int) -> int:
    """Position behind the JSON value that begins at or after `start`."""
    token = _TOKEN.search(body, start)
    if token is None:
        return len(body)
    between = body[start : token.start()].strip(_BLANK)
    if between or token.group() in (b",", b"]", b"}"):
        return token.start()
    if token.group() in (b"[", b"{"):
        return _object_end(body, token.start()) or len(body)
    return token.end()


def _unquoted(token: bytes) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        return token.decode("utf-8", "replace")


def _shown(text: str | bytes) -> str:
    """The beginning of a text for an error. What is cut off no longer looks like the secret it is part
    of, so secrets are taken out first."""
    whole = text[:_READ].decode("utf-8", "replace") if isinstance(text, bytes) else text
    return redact(whole)[:_SHOWN]


class _Constant(ValueError):
    pass


class _Repeated(ValueError):
    pass


def _refuse_constant(name: str) -> None:
    raise _Constant(name)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; a key may be repeated only with the same value."""
    members = dict(pairs)
    if len(members) != len(pairs):
        for key, value in pairs:
            # By what they are: 1, 1.0 and true are equal in Python.
            if repr(members[key]) != repr(value):
                # In ASCII, whatever it holds.
                raise _Repeated(json.dumps(key)[:_SHOWN])
    return members


def _decimal(text: str) -> float | Decimal:
    """A number with point or exponent: a double where that is exact; infinite where it is beyond reach."""
    value = float(text)
    if math.isinf(value) or _same(value, text):
        return value
    try:
        exact = Decimal(text)
    except ArithmeticError:
        return math.inf
    # Down to 4,000 places behind the point, exponent and all.
    exponent = exact.as_tuple().exponent
    within = len(text) <= _MOST_DIGITS and isinstance(exponent, int) and -exponent <= _MOST_DIGITS
    return exact if within else math.inf


def _integer(text: str) -> int | float:
    """An integer; infinite where it has more digits than anybody means."""
    # Python's own limit can be set to none.
    return int(text) if len(text) <= _MOST_DIGITS else math.inf


def _parse_anywhere(raw: bytes, text: str) -> Any:
    """A record as `json` reads it, however little is left of the stack."""
    try:
        return _parse_strictly(raw, text)
    except RecursionError:
        # A new thread begins at the bottom of a stack of its own.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_parse_strictly, raw, text).result()


def _parse_strictly(raw: bytes, text: str) -> Any:
    """A record as `json` reads it, slowly and exactly; or why it is refused."""
    try:
        return json.loads(
            text,
            parse_int=_integer,
            parse_float=_decimal,
            parse_constant=_refuse_constant,
            object_pairs_hook=_members,
        )
    except _Constant as error:
        return Rejected(raw, "not_a_number", detail=f"the literal {error}")
    except _Repeated as error:
        return Rejected(raw, "repeated_key", detail=f"with different values: {error}")
    except json.JSONDecodeError as error:
        return Rejected(raw, "invalid_json", detail=str(error)[:200])
    except ValueError:
        # The interpreter was told to read even fewer digits.
        return Rejected(raw, "number_out_of_range", detail="too many digits")


def _refuse_values(raw: bytes, record: Any) -> Rejected | None:
    """Refuses what Postgres cannot hold or JSON numbers cannot express, with its JSON pointer."""
    stack: list[tuple[str, Any]] = [("", record)]
    while stack:
        pointer, value = stack.pop()
        if isinstance(value, str):
            if reason := _bad_text(value):
                return Rejected(raw, reason, pointer, record_id=_id_of(record))
        elif isinstance(value, dict):
            for key, inner in value.items():
                if reason := _bad_text(key):
                    return Rejected(raw, reason, pointer, detail="in a key", record_id=_id_of(record))
                stack.append((f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", inner))
        elif isinstance(value, list):
            stack.extend((f"{pointer}/{index}", inner) for index, inner in enumerate(value))
        elif isinstance(value, float) and value in (float("inf"), float("-inf")):
            return Rejected(raw, "number_out_of_range", pointer, record_id=_id_of(record))
    return None


def _bad_text(text: str) -> str | None:
    if "\x00" in text:
        return "nul_character"
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "lone_surrogate"
    return None


def _id_of(record: Any) -> str | None:
    value = record.get("id") if isinstance(record, dict) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
