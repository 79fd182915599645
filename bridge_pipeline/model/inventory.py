"""What fields a batch's payload has; how they are counted and compared is the business of the steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inventory:
    """The fields of a batch's payload: JSON pointer -> JSON type -> how many records of the sample.

    `absent` names the canonical columns whose keys none of all `records` had.
    """

    records: int
    sampled: int
    absent: list[str]
    fields: dict[str, dict[str, int]]
