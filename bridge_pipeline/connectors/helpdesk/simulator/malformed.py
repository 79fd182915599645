"""Records that no client can rely on: the kinds there are, which rows get one, and their bytes.

Answers that are spoilt as a whole are faults, in `connector_kit.simulator`.
"""

import json
from collections.abc import Callable
from typing import Any
from zlib import crc32

from bridge_pipeline.connectors.helpdesk.simulator.world import Dice, Record, Table

# Stands in a record for what the JSON encoder would not write.
_HOLE = "\ue000"
UNDATED = frozenset({"unparsable_updated_at", "null_updated_at"})
_BEYOND_64_BITS = 2**70
_DEPTH = 1_500

_BROKEN_FIELDS: dict[str, Callable[[Record], Any]] = {
    "null_id": lambda _: {"id": None},
    "string_id": lambda record: {"id": f"T-{record['id']}"},
    "negative_id": lambda record: {"id": -record["id"]},
    "id_beyond_64_bits": lambda record: {"id": _BEYOND_64_BITS + record["id"]},
    "nul_in_text": lambda record: {_text_field(record): "before\x00after"},
    "lone_surrogate": lambda record: {_text_field(record): "half a pair: \ud83d"},
    "nan": lambda _: {"spent_time": float("nan")},
    "number_beyond_double": lambda _: {"spent_time": _HOLE},
    "impossible_date": lambda _: {"created_at": "2025-02-30T10:00:00Z"},
    "unparsable_updated_at": lambda _: {"updated_at": "yesterday, about noon"},
    "null_updated_at": lambda _: {"updated_at": None},
    "deep_nesting": lambda _: {"root_cause": _HOLE},
    "wrong_type": lambda record: {_text_field(record): 12345},
}
_HOLES = {"number_beyond_double": "1e400", "deep_nesting": "[" * _DEPTH + "]" * _DEPTH}
MALFORMED = ("missing_id", *_BROKEN_FIELDS, "string_instead_of_record", "list_instead_of_record")


def _text_field(record: Record) -> str:
    return "subject" if record["_type"] == "Ticket" else "name"


def broken(record: Record, reason: str) -> bytes:
    """The bytes of a record that is malformed in the way `reason` names."""
    whole: Any = record
    if reason == "missing_id":
        whole = {name: value for name, value in record.items() if name != "id"}
    elif reason == "string_instead_of_record":
        whole = f"{record['_type']} {record['id']} could not be rendered"
    elif reason == "list_instead_of_record":
        whole = list(record.items())
    else:
        whole = record | _BROKEN_FIELDS[reason](record)
    # The standard encoder writes what orjson rightly refuses: NaN, big integers, lone surrogates.
    text = json.dumps(whole, separators=(",", ":"))
    return text.replace(json.dumps(_HOLE), _HOLES.get(reason, "")).encode()


def break_some(tables: dict[str, Table], seed: int) -> None:
    """Marks about 40 records as malformed, at most one in fifty of an entity: every kind of fault,
    and no desk so broken that a sensible threshold would refuse it whole."""
    for entity, most in (("tickets", 2 * len(MALFORMED)), ("users", 6), ("accounts", 2)):
        table = tables[entity]
        for number in range(min(most, len(table.order) // 50)):
            dice = Dice(seed, crc32(entity.encode()), number)
            row = int(table.order[dice.below(len(table.order))])
            # 5 and the number of kinds have no common divisor: each kind comes, in a mixed order.
            table.malformed.setdefault(row, MALFORMED[(5 * number + len(entity)) % len(MALFORMED)])
