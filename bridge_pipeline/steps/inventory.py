"""Which fields the payload of a batch has, and of which JSON types: taken while it is parsed.

Every record is looked at until each declared key has been seen; the types of all fields are counted
for the first records and for a sample of the rest, because looking at every field of every record
would cost more than parsing it. No value is kept, and no key that may be one.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bridge_pipeline.database.ledger import Inventory
from bridge_pipeline.redaction import redact

# All records of a small batch are in the sample, of a large one these and then every so manieth.
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


class FieldInventory:
    """Counts the fields of the records of one extraction.

    Args:
        keys: canonical column -> the record's keys it may be read from.
    """

    def __init__(self, keys: Mapping[str, tuple[str, ...]]) -> None:
        self._unseen = dict(keys)
        self._records = self._sampled = 0
        self._fields: dict[str, dict[str, int]] = {}

    def add(self, records: Sequence[Any]) -> None:
        """Looks at the records of a page; what is no JSON object is passed over."""
        for record in records:
            if type(record) is not dict:
                continue
            self._records += 1
            if self._unseen:
                self._look_for_declared(record)
            if self._records <= _WHOLE or self._records % _EVERY == 0:
                self._sampled += 1
                for key, value in record.items():
                    self._count(f"/{_name(key)}", value, 1)

    @property
    def found(self) -> Inventory:
        """What was counted so far."""
        return Inventory(self._records, self._sampled, sorted(self._unseen), self._fields)

    def _look_for_declared(self, record: dict[str, Any]) -> None:
        seen = [column for column, keys in self._unseen.items() if any(key in record for key in keys)]
        for column in seen:
            del self._unseen[column]

    def _count(self, pointer: str, value: Any, depth: int) -> None:
        types = self._fields.get(pointer)
        if types is None:
            if len(self._fields) >= _MOST_FIELDS:
                return
            types = self._fields[pointer] = {}
        kind = _TYPES.get(type(value), "string")
        types[kind] = types.get(kind, 0) + 1
        if depth == _DEEPEST:
            return
        if kind == "object":
            for key, item in value.items():
                self._count(f"{pointer}/{_name(key)}", item, depth + 1)
        elif kind == "array" and value:
            # Its items are of a kind; one speaks for them.
            self._count(f"{pointer}/{ANY}", value[0], depth + 1)


@functools.lru_cache(maxsize=4_096)
def _name(key: str) -> str:
    plain = _NAME.fullmatch(key) and not _DIGITS.search(key)
    return key if plain and redact(key) == key else ANY
