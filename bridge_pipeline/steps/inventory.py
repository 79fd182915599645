"""Which fields the payload of a batch has, and of which JSON types: taken while it is parsed.

Every record is looked at until each declared key has been seen; the types of all fields are counted
for the first records and for a sample of the rest, because looking at every field of every record
would cost more than parsing it. No value is kept, and no key that may be one.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge_pipeline.model.inventory import Inventory
from bridge_pipeline.redaction import redact

# All records of a small listing are in the sample, of a large one these and then every so manieth.
_WHOLE = 300
_EVERY = 64
_DEEPEST = 3
_MOST_FIELDS = 2_000
_TYPES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number",
    type(None): "null",
}  # fmt: skip
# Keys of data, such as addresses, numbers or names with blanks, are no names of fields.
_NAME = re.compile(r"[^\W\d][\w.:$-]{0,63}")
_DIGITS = re.compile(r"\d{6}")
# What stands for the items of a list and for keys that are no names.
ANY = "*"


@dataclass
class Look:
    """What the records of one page have: how many there are and are in the sample, which canonical
    columns can be read, and of the sample JSON pointer -> JSON type -> how often."""

    records: int = 0
    sampled: int = 0
    seen: list[str] = field(default_factory=list)
    fields: dict[str, dict[str, int]] = field(default_factory=dict)


class FieldInventory:
    """Counts the fields of the records of one extraction.

    Args:
        keys: canonical column -> the record's keys it may be read from.
    """

    def __init__(self, keys: Mapping[str, tuple[str, ...]]) -> None:
        self._unseen = set(keys)
        self._looks = Look()

    def add(self, look: Look) -> None:
        """Adds what a page has."""
        self._looks.records += look.records
        self._looks.sampled += look.sampled
        self._unseen.difference_update(look.seen)
        for pointer, types in look.fields.items():
            known = self._looks.fields.get(pointer)
            if known is None and len(self._looks.fields) < _MOST_FIELDS:
                known = self._looks.fields[pointer] = {}
            if known is not None:
                for kind, times in types.items():
                    known[kind] = known.get(kind, 0) + times

    @property
    def unseen(self) -> Collection[str]:
        """The canonical columns whose keys no record had so far."""
        return self._unseen

    @property
    def found(self) -> Inventory:
        """What was counted so far."""
        return Inventory(self._looks.records, self._looks.sampled, sorted(self._unseen), self._looks.fields)


def look_at(records: Sequence[Any], first: int, keys: Mapping[str, tuple[str, ...]]) -> Look:
    """Looks at the records of a page; what is no JSON object is passed over.

    Args:
        first: how many records the extraction read before this page; it decides which are in the sample.
        keys: as for `FieldInventory`.
    """
    found = [each for each in records if type(each) is dict]
    sample = [records[position] for position in sampled(first, len(records))]
    plain = [each for each in sample if type(each) is dict]
    seen = [column for column, names in keys.items() if any(name in r for r in found for name in names)]
    return Look(len(found), len(plain), seen, types_of(plain))


def sampled(first: int, count: int) -> list[int]:
    """The positions of the records of a page that are in the sample.

    Args:
        first: as for `look_at`.
        count: how many records the page has.
    """
    end = first + count
    # The next of those that are multiples.
    rest = max(first, _WHOLE) + -max(first, _WHOLE) % _EVERY
    return [number - first for number in (*range(first, min(_WHOLE, end)), *range(rest, end, _EVERY))]


def types_of(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The fields of records, as in a `Look`."""
    fields: dict[str, dict[str, int]] = {}
    for record in records:
        for key, value in record.items():
            _count(fields, f"/{_name(key)}", value, 1)
    return fields


def _count(fields: dict[str, dict[str, int]], pointer: str, value: Any, depth: int) -> None:
    types = fields.setdefault(pointer, {})
    kind = _TYPES.get(type(value), "string")
    types[kind] = types.get(kind, 0) + 1
    if depth == _DEEPEST:
        return
    if kind == "object":
        for key, item in value.items():
            _count(fields, f"{pointer}/{_name(key)}", item, depth + 1)
    elif kind == "array" and value:
        # Its items are of a kind; one speaks for them.
        _count(fields, f"{pointer}/{ANY}", value[0], depth + 1)


@functools.lru_cache(maxsize=4_096)
def _name(key: str) -> str:
    plain = _NAME.fullmatch(key) and not _DIGITS.search(key)
    return key if plain and redact(key) == key else ANY
