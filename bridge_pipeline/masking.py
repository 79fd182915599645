"""How values of people are shown where they may be seen by others: not at all, but recognisably."""

from typing import Any

from bridge_pipeline.model import Entity

_SHOWN = 120


def masked(entity: Entity, column: str, value: Any) -> str:
    """A value for a report, log or sample: personal ones keep their first letter and length."""
    if value is None or value != value:
        return "null"
    text = str(value)
    if column in _personal(entity):
        return f"{text[:1]}… ({len(text)} characters)"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _personal(entity: Entity) -> set[str]:
    # Custom fields and people may hold anything.
    declared = {column.name for column in entity.columns if column.personal}
    return declared | {"custom_fields", "people", "raw", "tags"}
