"""The landed rows of a batch as a load takes them: which there are, and those that it chose.

Rows are known by their number, `seq`; a choice says of each number whether it is taken. What is taken
where is decided in `load`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.land import read_landed

# Whether each row is taken, by its number; None takes all of them.
Choice = np.ndarray | None

# Rows of few columns that are taken together: each statement costs as much as hundreds of them.
_ROWS_AT_A_TIME = 50_000


@dataclass(frozen=True)
class Landed:
    """The landed rows of one batch."""

    batch: Batch
    folder: Path

    def read(self, columns: tuple[str, ...], chosen: Choice = None) -> Iterator[pa.Table]:
        """The chosen rows with these columns, a row group at a time.

        Raises:
            FileNotFoundError: a file that the ledger lists is not there.
            ValueError: a file does not have the size that the ledger lists.
        """
        if chosen is not None and not chosen.any():
            return
        wanted = columns if chosen is None or "seq" in columns else (*columns, "seq")
        for rows in read_landed(self.folder, self.batch.files, self.batch.entity, wanted):
            kept = rows if chosen is None else rows.filter(_among(chosen, rows["seq"]))
            yield kept.select(columns)

    def many(self, columns: tuple[str, ...], chosen: Choice = None) -> Iterator[pa.Table]:
        """As `read`, tens of thousands of rows at a time: for columns that are short."""
        held: list[pa.Table] = []
        for rows in self.read(columns, chosen):
            held.append(rows)
            if sum(part.num_rows for part in held) >= _ROWS_AT_A_TIME:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def count(self) -> int:
        """How many rows the files hold."""
        return sum(rows.num_rows for rows in self.read(("seq",)))

    def older(self, refused: np.ndarray) -> np.ndarray:
        """The numbers of the rows that are not the newest of their id.

        Args:
            refused: numbers of rows that do not count.
        """
        config = {"memory_limit": "64MB", "threads": 1, "temp_directory": str(self.folder)}
        with duckdb.connect(config=config) as db:
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


def _among(chosen: np.ndarray, numbers: pa.ChunkedArray) -> pa.Array:
    found = numbers.to_numpy()
    within = found < len(chosen)
    return pa.array(within & chosen[np.where(within, found, 0)])
