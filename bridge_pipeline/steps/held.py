"""What a connection's tables hold, as its source sent it: read out of the landed batches.

A reader that pays for every single record asks here first, a page of a list at a time; see
`connector_kit.session.Landed`. Where a payload lies is looked up, not searched for: the ids of a batch
are read once into a scratch database, and of the payloads only the row groups that are wanted.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
import structlog

from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.land import LandingDamaged, refuse_damaged

log = structlog.get_logger(__name__)

# Lists show records in the order in which they were landed, or nearly: these row groups serve many pages.
_GROUPS_AT_HAND = 4
_PLACES = """
create table places (batch integer, id text, content_hash text, path text, row_group integer, place integer,
    primary key (batch, id, content_hash)) without rowid
"""


class LandedRecords:
    """See `connector_kit.session.Landed`; a batch whose files are damaged or gone holds nothing any more.

    For one thread.
    """

    def __init__(self, workspace: Workspace, record: ConnectionRecord) -> None:
        self._workspace = workspace
        self._record = record
        self._payloads = lru_cache(_GROUPS_AT_HAND)(_payloads)
        # The batches that are entered.
        self._known = dict[int, Batch]()
        # On disk as soon as it grows, and gone with this object.
        self._places = sqlite3.connect("", isolation_level=None)
        self._places.execute(_PLACES)

    def newest(self, entity: str, shown: Mapping[str, datetime | None]) -> Mapping[str, bytes]:
        """The payloads of the versions that the entity's table holds."""
        found: dict[str, bytes] = {}
        for batch, held in groupby(self._rows(entity, shown), key=lambda row: row.batch_id):
            if self._learn(batch):
                found |= self._of_batch(batch, {(row.id, row.content_hash) for row in held})
        return found

    def _of_batch(self, batch: int, wanted: set[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
        ids = json.dumps([key for key, _ in wanted])
        query = (
            "select path, row_group, place, id, content_hash from places"
            " where batch = ? and id in (select value from json_each(?)) order by path, row_group, place"
        )
        for path, group, place, key, digest in self._places.execute(query, (batch, ids)):
            if (key, digest) in wanted:
                yield key, self._payloads(path, group)[place].as_py().encode()

    def _learn(self, number: int) -> bool:
        """Enters where each version of a batch lies, of the same one twice, either; False if damaged."""
        batch = self._known.get(number) or self._batch(number)
        folder = self._workspace.home.landing_of(batch.tenant, batch.connection, batch.entity) / str(number)
        try:
            refuse_damaged(folder, batch.files)
        except LandingDamaged as damaged:
            log.warning("nothing is taken from a damaged landing", reason=damaged.finding)
            return False
        if number not in self._known:
            self._places.execute("begin")
            for file in batch.files:
                self._enter(number, folder / file["path"])
            self._places.execute("commit")
            self._known[number] = batch
        return True

    def _batch(self, number: int) -> Batch:
        with self._workspace.database.engine.connect() as connection:
            return ledger.batch(connection, number)

    def _enter(self, batch: int, path: Path) -> None:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=["id", "content_hash"])
                versions = zip(*(column.to_pylist() for column in table.columns), strict=True)
                self._places.executemany(
                    "insert or replace into places values (?, ?, ?, ?, ?, ?)",
                    ((batch, *each, str(path), group, place) for place, each in enumerate(versions)),
                )

    def _rows(self, entity: str, shown: Mapping[str, datetime | None]) -> list[sa.Row]:
        """Id, hash and batch, by batch, of the rows that are as old as the source shows them, and were read
        without the fields that are left out now."""
        table, b = t.desk_table(ENTITIES[entity]), t.batches
        query = (
            sa.select(table.c.id, table.c.content_hash, table.c.batch_id, table.c.updated_at, b.c.excluded)
            .join(b, b.c.id == table.c.batch_id)
            .where(table.c.connection == self._record.name, table.c.id.in_(shown), ~table.c.placeholder)
            .order_by(table.c.batch_id)
        )
        with self._workspace.database.engine.connect() as connection:
            found = connection.execute(query).all()
        exclude = list(self._record.exclude)
        return [row for row in found if row.updated_at == shown[row.id] and list(row.excluded) == exclude]


def _payloads(path: str, group: int) -> pa.ChunkedArray:
    """The payloads of a row group."""
    with pq.ParquetFile(path) as parquet:
        return parquet.read_row_group(group, columns=["raw"]).column("raw")
