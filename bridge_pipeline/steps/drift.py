"""Which fields of the payload are new, have vanished, or have another type than before.

Compared are inventories (`inventory`): names and types of fields, never values. A field counts as
vanished where chance would leave it out of so many records less than once in a hundred times; types
and shares are those of the inventories' samples, whether a column's keys are there is known exactly.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.model.inventory import Inventory
from bridge_pipeline.steps.inventory import ANY

# So many batches back; of those, the latest that together have enough records say what is usual.
MOST_BATCHES = 30
MOST_NAMED = 25
_ENOUGH = 200
_CHANCE = 0.01

Types = dict[str, int]
Before = list[tuple[Inventory, bool]]


@dataclass(frozen=True)
class Change:
    """A field that is not as it was; `field` is a JSON pointer, `types` those before and now."""

    field: str
    change: str
    types: str


@dataclass(frozen=True)
class Found:
    """What a comparison came to, over so many fields."""

    fields: int
    changes: list[Change]


@dataclass(frozen=True)
class Fields:
    """Which fields are compared: those that declared columns are read from, or all others."""

    columns: dict[str, tuple[str, ...]]
    declared: bool


def declared(stream: Stream) -> Fields:
    """The fields that the stream's columns are read from."""
    return Fields(stream.keys, True)


def others(stream: Stream) -> Fields:
    """All fields but those."""
    return Fields(stream.keys, False)


def compare(now: Inventory, before: Before, fields: Fields) -> Found:
    """What changed since the batches `before`, newest first, each with whether it had to be accepted."""
    usual, sampled = _usual(before)
    known: dict[str, Types] = {}
    for inventory, _ in before:
        _merge(known, inventory.fields)
    if fields.declared:
        changes = [*_columns_gone(now, usual, sampled, fields), *_columns_retyped(now, usual, fields)]
        return Found(len(fields.columns), changes)
    top = {f"/{key}" for keys in fields.columns.values() for key in keys}
    mine = {pointer for pointer in {*known, *now.fields} if pointer not in top}
    changes = [*_new(now, known, mine), *_gone(now, usual, sampled, mine), *_retyped(now, known, mine)]
    return Found(len(mine), changes)


def without(before: Before, excluded: Sequence[str]) -> Before:
    """The inventories without the fields that the glob patterns leave out, at whatever depth."""

    def is_kept(pointer: str) -> bool:
        # What stands for many names may be none of those that are left out.
        names = [name for name in pointer.split("/")[1:] if name != ANY]
        return not any(fnmatchcase(name, each) for name in names for each in excluded)

    return [
        (
            replace(each, fields={name: types for name, types in each.fields.items() if is_kept(name)}),
            accepted,
        )
        for each, accepted in before
    ]


def _usual(before: Before) -> tuple[dict[str, Types], int]:
    """The fields of the latest batches with enough records, and how many those are.

    A batch that a reviewer accepted is what was accepted as the new shape: nothing before it counts.
    """
    fields: dict[str, Types] = {}
    sampled = 0
    for inventory, accepted in before:
        _merge(fields, inventory.fields)
        sampled += inventory.sampled
        if accepted or sampled >= _ENOUGH:
            break
    return fields, sampled


def _merge(into: dict[str, Types], fields: dict[str, Types]) -> None:
    for pointer, types in fields.items():
        into[pointer] = dict(Counter(into.get(pointer, {})) + Counter(types))


def _columns_gone(now: Inventory, usual: dict[str, Types], sampled: int, fields: Fields) -> Iterable[Change]:
    for column in now.absent:
        keys = [f"/{key}" for key in fields.columns.get(column, ())]
        had = max(
            (key for key in keys if key in usual), key=lambda key: sum(usual[key].values()), default=None
        )
        if had and _unlikely(sum(usual[had].values()), sampled, now.records):
            yield Change(had, f"vanished, {column} is read from it", _told(usual[had]))


def _columns_retyped(now: Inventory, usual: dict[str, Types], fields: Fields) -> Iterable[Change]:
    for pointer in sorted({f"/{key}" for keys in fields.columns.values() for key in keys}):
        types, was = _typed(now.fields.get(pointer)), _typed(usual.get(pointer))
        strange = sum(count for kind, count in types.items() if kind not in was)
        if (
            was
            and 2 * strange > sum(types.values())
            and _unlikely(sum(was.values()), sum(was.values()), strange)
        ):
            yield Change(pointer, "another type in most records", f"{_told(was)} before, {_told(types)} now")


def _new(now: Inventory, known: dict[str, Types], mine: set[str]) -> Iterable[Change]:
    for pointer in sorted(mine & now.fields.keys() - known.keys()):
        # What lies below a new field is new with it.
        if not any(above in now.fields and above not in known for above in _above(pointer)):
            yield Change(pointer, "new", _told(now.fields[pointer]))


def _gone(now: Inventory, usual: dict[str, Types], sampled: int, mine: set[str]) -> Iterable[Change]:
    for pointer in sorted(mine & usual.keys() - now.fields.keys()):
        above = _above(pointer)
        # What lies below a field can only be missed where that one has something in it.
        room = _containers(usual.get(above[-1])) if above else sampled
        missed = _containers(now.fields.get(above[-1])) if above else now.sampled
        if _unlikely(sum(usual[pointer].values()), room, missed):
            yield Change(pointer, "vanished", _told(usual[pointer]))


def _containers(types: Types | None) -> int:
    return sum(count for kind, count in (types or {}).items() if kind in ("object", "array"))


def _retyped(now: Inventory, known: dict[str, Types], mine: set[str]) -> Iterable[Change]:
    for pointer in sorted(mine & now.fields.keys() & known.keys()):
        types, was = _typed(now.fields[pointer]), _typed(known[pointer])
        if was and types.keys() - was.keys():
            yield Change(pointer, "another type", f"{_told(was)} before, {_told(types)} now")


def _unlikely(had: int, of: int, missing: int) -> bool:
    """Whether chance would leave a field out of `missing` records, if `had` of `of` had it before."""
    without = (max(of - had, 0) + 1) / (of + 2)
    return without**missing < _CHANCE


def _above(pointer: str) -> list[str]:
    parts = pointer.split("/")[1:]
    return ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts))]


def _typed(types: Types | None) -> Types:
    """Without null: a value that is missing has no type."""
    return {kind: count for kind, count in (types or {}).items() if kind != "null"}


def _told(types: Types) -> str:
    return " or ".join(sorted(_typed(types))) or "null"
