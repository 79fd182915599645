"""The landed rows of a batch as a load takes them: which there are, and those that it chose.

Rows are known by their number, `seq`; a choice says of each number whether it is taken. What is taken
where is decided in `load`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.model import ENTITIES, Entity
from bridge_pipeline.steps import duck
from bridge_pipeline.steps.land import read_landed

# Whether each row is taken, by its number; None takes all of them.
Choice = np.ndarray | None

# Rows whose links and parents are written together: each statement costs as much as hundreds of them. Few
# may have as many people as many.
_ROWS_AT_A_TIME = 50_000
_LINKS_AT_A_TIME = 16_000_000
_HASH_LETTERS = 64


@dataclass(frozen=True)
class Landed:
    """The landed rows of one batch.

    Attributes:
        folder: where they lie.
        scratch: where what does not fit into memory goes; made when it is needed, and removed.
    """

    batch: Batch
    folder: Path
    scratch: Path

    def read(self, columns: tuple[str, ...], chosen: Choice = None) -> Iterator[pa.Table]:
        """The chosen rows with these columns, a row group at a time.

        Raises:
            LandingDamaged: a file is missing, or not the one that the ledger lists.
        """
        if chosen is not None and not chosen.any():
            return
        wanted = columns if chosen is None or "seq" in columns else (*columns, "seq")
        for rows in read_landed(self.folder, self.batch.files, self.batch.entity, wanted):
            kept = rows if chosen is None else rows.filter(_among(chosen, rows["seq"]))
            yield kept.select(columns)

    def among(self, parts: Iterator[pa.Table], chosen: Choice) -> Iterator[pa.Table]:
        """The parts, without rows of other ids than those of the chosen rows; these must be few."""
        ids = [rows["id"] for rows in self.read(("id",), chosen)]
        known = pc.SetLookupOptions(pa.chunked_array([chunk for each in ids for chunk in each.chunks]))
        for part in parts:
            yield part.filter(pc.call_function("is_in", [part["id"]], known))

    def count(self) -> int:
        """How many rows the files hold."""
        return sum(rows.num_rows for rows in self.read(("seq",)))

    def older(self, refused: np.ndarray) -> np.ndarray:
        """The numbers of the rows that are not the newest of their id.

        Args:
            refused: numbers of rows that do not count.
        """
        with duck.opened(self.batch.landed, self.scratch) as db:
            db.register("ids", self._stream(("id",)))
            db.execute(_REPEATED)
            if db.execute("select count(*) from repeated").fetchall() == [(0,)]:
                return np.zeros(0, np.int64)
            db.register("refused", pa.table({"seq": pa.array(refused, pa.int64())}))
            db.register("landed", self._stream(("seq", "id", "updated_at", "fetched_at")))
            return db.execute(_OLDER).fetchnumpy()["seq"].astype(np.int64)

    def _stream(self, columns: tuple[str, ...]) -> pa.RecordBatchReader:
        schema = pa.schema([ENTITIES[self.batch.entity].landing_schema.field(name) for name in columns])
        batches = (batch for rows in self.read(columns) for batch in rows.cast(schema).to_batches())
        return pa.RecordBatchReader.from_batches(schema, batches)


_REPEATED = "create temporary table repeated as select id from ids group by id having count(*) > 1"

# Few batches hold an id twice: only those are sorted.
_OLDER = """
select seq from (
    select seq, row_number() over (
        partition by id order by updated_at desc nulls last, fetched_at desc, seq desc
    ) as place
    from landed
    where id in (select id from repeated) and seq not in (select seq from refused)
)
where place > 1
"""


def in_portions(parts: Iterator[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """The parts, tens of thousands of rows at a time, of fewer with many people; each portion must be taken
    before the next."""
    for part in parts:
        yield _portion(part, parts)


def _portion(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    rows = linked = 0
    part: pa.Table | None = first
    while part is not None:
        yield part
        rows += part.num_rows
        linked += part["people"].nbytes if "people" in part.column_names else 0
        full = rows >= _ROWS_AT_A_TIME or linked >= _LINKS_AT_A_TIME
        part = None if full else next(rest, None)


class Referred:
    """What rows of an entity refer to, gathered while they pass.

    Attributes:
        links: their people, as `people_of` gives them.
    """

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        self._ids: dict[str, list[pa.Array]] = {parent: [] for parent in entity.parent_entities}
        self.links: list[pa.Table] = []

    def gathered(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The parts, each looked at before it is given."""
        for rows in parts:
            for column in self._entity.parents:
                self._ids[column.references or ""].append(rows[column.name].unique())
            if self._entity.people:
                links = people_of(rows)
                self._ids["users"].append(links["user_id"].unique())
                self.links.append(links)
            yield rows

    def ids(self) -> dict[str, list[str]]:
        """The ids that the rows hold, each once, by the entity that they are of."""
        return {
            parent: pa.chunked_array(found, pa.string()).unique().drop_null().to_pylist()
            for parent, found in self._ids.items()
        }


def people_of(rows: pa.Table) -> pa.Table:
    """The people of rows with `id` and `people`, as `ticket_id`, `user_id` and `part`."""
    # One text of JSON costs less than as many as there are rows.
    found = orjson.loads(f"[{','.join(rows['people'].fill_null('[]').to_pylist())}]")
    tickets = np.repeat(np.arange(rows.num_rows), [len(people) for people in found])
    persons = [person for people in found for person in people]
    columns = {
        "ticket_id": rows["id"].take(pa.array(tickets, pa.int64())),
        "user_id": pa.array([person["user_id"] for person in persons], pa.string()),
        "part": pa.array([person["part"] for person in persons], pa.string()),
    }
    return pa.table(columns)


def held_among(rows: pa.Table, hashes: str) -> tuple[np.ndarray, int]:
    """The `seq` of rows with `content_hash` whose hashes a table holds, and how many of those it holds.

    A hash covers all that a row holds, its id too (rule 7): both are as many.

    Args:
        hashes: those of the table's rows, one after the other.
    """
    data = hashes.encode()
    starts = np.arange(0, len(data) + 1, _HASH_LETTERS, dtype=np.int32)
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    held = pa.Array.from_buffers(pa.string(), len(starts) - 1, buffers)
    places = pc.call_function("index_in", [rows["content_hash"]], pc.SetLookupOptions(held))
    found = rows["seq"].filter(places.is_valid()).to_numpy()
    return found, len(places.drop_null().unique())


def _among(chosen: np.ndarray, numbers: pa.ChunkedArray) -> pa.Array:
    found = numbers.to_numpy()
    within = found < len(chosen)
    return pa.array(within & chosen[np.where(within, found, 0)])
