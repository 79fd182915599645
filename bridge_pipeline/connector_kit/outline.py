"""List answers taken apart as far as a listing needs it: how many records, their bytes, and the envelope.

To parse the records takes several times as long, and may be done by another process or not at all. Nothing
is decided here that `pages.parse_list` would decide otherwise: what is not plainly an object with one list
is left to it.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import orjson

from bridge_pipeline.connector_kit.pages import PageContent, count_colons, parse_list, without_mark

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BRACKET = ord("[")
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


class Reader:
    """Takes the list answers of one extraction apart; records are parsed when somebody looks at them.

    A listing is read again to see that it is whole: an answer with the very bytes of an earlier one is
    not even looked into. What is known of each answer stays for the whole extraction, so `envelope` is
    empty: there may be much in it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._known: dict[bytes, tuple[int, PageContent]] = {}

    def parse_list(self, body: bytes) -> PageContent:
        """The page of a body; see `pages.parse_list`.

        Raises:
            UnreadableBody: as there.
        """
        digest = hashlib.sha256(body).digest()
        if digest in self._known:
            count, content = self._known[digest]
            return self._unread(body, content, _Later(count, lambda: exact_records(body, self._names)))
        outlined = outline(body, self._names)
        if outlined is None:
            return parse_list(body, self._names)
        content, exact = outlined
        content = replace(content, digest=digest, envelope={})
        self._known[digest] = len(exact), content
        return self._unread(body, content, _Later(len(exact), lambda: list(map(bytes, exact))))

    def _unread(self, body: bytes, content: PageContent, exact: "_Later") -> PageContent:
        records = _Later(len(exact), lambda: parse_list(body, self._names).records)
        return replace(content, records=records, exact=exact, body=body)


class _Later(Sequence[Any]):
    """So many values that are made when they are looked at."""

    def __init__(self, count: int, make: Callable[[], Sequence[Any]]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._made[index]

    @functools.cached_property
    def _made(self) -> Sequence[Any]:
        return self._make()


def outline(body: bytes, names: Iterable[str]) -> tuple[PageContent, list[msgspec.Raw]] | None:
    """The page of a list answer without its records, and their bytes; None where `parse_list` is to say.

    Args:
        body: the whole body, decompressed.
        names: as for `parse_list`.

    Raises:
        FailedAnswer: as there.
    """
    body = without_mark(body)
    try:
        members = _MEMBERS.decode(body)
        lists = [name for name in names if name in members and memoryview(members[name])[0] == _BRACKET]
        if len(lists) != 1 or not all(map(str.isidentifier, members)):
            return None
        listed = members.pop(lists[0])
        records = _ITEMS.decode(listed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    rest = b",".join(orjson.dumps(key) + b":" + bytes(value) for key, value in members.items())
    envelope = b"{" + rest + b"," * bool(rest) + orjson.dumps(lists[0]) + b":[]}"
    # Of a repeated key only the last was kept. Identifiers hold no colons, values are there as they were.
    if count_colons(envelope) + count_colons(listed) != count_colons(body):
        return None
    return parse_list(envelope, names), records


def exact_records(body: bytes, names: Iterable[str]) -> list[bytes]:
    """The exact bytes of the records of a list answer that has an outline, in order."""
    outlined = outline(body, names)
    assert outlined
    return [bytes(record) for record in outlined[1]]
