"""What an entity is made of, and everything that derives from its declaration.

One declaration gives the landing schema (Arrow), the table columns (SQL) and the
CSV columns; nothing else lists the columns of an entity.
"""

from dataclasses import dataclass
from enum import Enum

import pyarrow as pa

from bridge_pipeline.imports import hidden

# Arrow looks for pandas when it makes its first array, and imports it to recognise what nobody here gives it:
# 30 MiB and a third of a second in each process. Who asks it for a data frame gets one all the same.
with hidden("pandas"):
    pa.array([0])

TIMESTAMP = pa.timestamp("us", tz="UTC")


class Kind(Enum):
    """The type of a canonical column: its Arrow and Postgres form."""

    TEXT = (pa.string(), "text")
    TIMESTAMP = (TIMESTAMP, "timestamptz")
    BOOLEAN = (pa.bool_(), "boolean")
    JSON = (pa.string(), "jsonb")

    def __init__(self, arrow: pa.DataType, postgres: str) -> None:
        self.arrow = arrow
        self.postgres = postgres


@dataclass(frozen=True)
class Column:
    """One canonical column.

    `personal` columns hold names, addresses or free text of people and are masked in samples.
    `references` names the entity whose id the column holds.
    """

    name: str
    kind: Kind
    description: str
    personal: bool = False
    references: str | None = None


@dataclass(frozen=True)
class Entity:
    """A canonical kind of record.

    `reference` entities are read whole on a connection's first run, and a record of theirs
    without a change time is loaded. Of other entities such a record belongs to no window and
    goes to quarantine. `people` entities carry a list of linked users.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    reference: bool = False
    people: bool = False

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the canonical columns, `id` first."""
        return tuple(column.name for column in self.columns)

    @property
    def content_names(self) -> tuple[str, ...]:
        """Names of all columns that carry the record's content, canonical and custom."""
        return (*self.column_names, *(("people",) if self.people else ()), "custom_fields")

    @property
    def parents(self) -> tuple[Column, ...]:
        """The columns that hold ids of other entities."""
        return tuple(column for column in self.columns if column.references)

    @property
    def parent_entities(self) -> tuple[str, ...]:
        """The entities whose ids the records hold, each once."""
        referred = [column.references for column in self.parents if column.references]
        return tuple(dict.fromkeys([*referred, *(["users"] if self.people else [])]))

    @property
    def landing_schema(self) -> pa.Schema:
        """The schema of landing Parquet: content, hash, and where and when each record was read.

        `seq` numbers the rows of a batch from 0; `page` and `position` point into the journal.
        """
        fields = [pa.field(c.name, c.kind.arrow, nullable=c.name != "id") for c in self.columns]
        if self.people:
            fields.append(pa.field("people", pa.string()))
        return pa.schema(
            [
                pa.field("seq", pa.int64(), nullable=False),
                *fields,
                pa.field("custom_fields", pa.string(), nullable=False),
                pa.field("content_hash", pa.string(), nullable=False),
                pa.field("fetched_at", TIMESTAMP, nullable=False),
                pa.field("page", pa.int64(), nullable=False),
                pa.field("position", pa.int64(), nullable=False),
                pa.field("raw", pa.string(), nullable=False),
            ]
        )

    @property
    def content_schema(self) -> pa.Schema:
        """Of the landing schema what a record alone decides, wherever it was read."""
        places = ("seq", "fetched_at", "page", "position")
        return pa.schema([field for field in self.landing_schema if field.name not in places])
