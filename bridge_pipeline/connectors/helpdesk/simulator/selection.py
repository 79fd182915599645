"""What a request wants to see of a record: `select` and `locales` (vendor-apis A.2).

Reads both and cuts records accordingly. Which records a listing holds is `query`; how a
record becomes bytes is `dialect`.
"""

from dataclasses import dataclass, field
from typing import Any

from bridge_pipeline.connectors.helpdesk.simulator.world import Record, World

# Related objects that one selection remembers; more would cost memory on a desk of millions.
_MOST_KNOWN = 50_000
_LANGUAGES = ("en", "fr", "de", "es")
# As recorded (fixture select-status-name-locales-true); names without an entry are not translated.
_TRANSLATIONS = {"Completed": ("Completed", "Confirmé", "Quittiert", "Compleatdo")}


@dataclass(frozen=True)
class Selection:
    """What a request wants to see of a record, or of a related object in it (A.2).

    Attributes:
        fields: names, each with what is wanted of the related object below it.
        languages: in which to give translatable names, None for plain names.
        known: related objects, by `_type` and id, as they were given before.
    """

    fields: "dict[str, Selection]"
    languages: tuple[str, ...] | None
    known: dict[tuple[str, int], Record] = field(default_factory=dict)

    @classmethod
    def of(cls, select: str, locales: str) -> "Selection":
        """Reads `select` and `locales`. Unknown fields and languages are ignored in silence."""
        wanted = _LANGUAGES if locales == "true" else tuple(locales.split(","))
        languages = tuple(code for code in _LANGUAGES if code in wanted) if locales else None
        whole = cls({}, languages)
        for path in (select or "*").split(","):
            below = whole
            for name in path.strip().split("."):
                below = below.fields.setdefault(name, cls({}, languages))
        return whole

    def apply(self, world: World, record: Record) -> Record:
        """The record with what is wanted of it; related objects not reached into stay stubs."""
        if "*" in self.fields:
            chosen = dict(record)
        else:
            chosen = {name: record[name] for name in ("id", "_type", *self.fields) if name in record}
        for name, below in self.fields.items():
            if below.fields and name in record:
                chosen[name] = below._reach_into(world, record[name])
        return chosen

    def _reach_into(self, world: World, value: Any) -> Any:
        if isinstance(value, list):
            return [self._reach_into(world, item) for item in value]
        # A choice of a custom field is no related object: its `_type` is a number (A.3).
        if not isinstance(value, dict) or not isinstance(value.get("_type"), str):
            return value
        key = (value["_type"], value["id"])
        if known := self.known.get(key):
            return known
        found = world.related(*key)
        if found is None:
            return value
        chosen = self.apply(world, found)
        if self.languages is not None and "name" in chosen and key[0] in world.catalogs:
            chosen["name"] = _translated(chosen["name"], self.languages)
        if world.is_steady(key[0]) and len(self.known) < _MOST_KNOWN:
            self.known[key] = chosen
        return chosen


def _translated(name: str, languages: tuple[str, ...]) -> dict[str, str]:
    names = _TRANSLATIONS.get(name, (name,) * len(_LANGUAGES))
    return {code: text for code, text in zip(_LANGUAGES, names, strict=True) if code in languages}
