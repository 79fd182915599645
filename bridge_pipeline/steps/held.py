"""What a connection's tables hold, as its source sent it: read out of the landed batches.

A reader that pays for every single record asks here first; see `connector_kit.session.Landed`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import duckdb
import sqlalchemy as sa

from bridge_pipeline.database import tables as t
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES


class LandedRecords:
    """See `connector_kit.session.Landed`; a batch whose files are gone holds nothing any more."""

    def __init__(self, workspace: Workspace, record: ConnectionRecord) -> None:
        self._workspace = workspace
        self._record = record

    def newest(self, entity: str, ids: Collection[str]) -> Mapping[str, bytes]:
        """The payloads of the versions that the entity's table holds."""
        held = self._rows(entity, ids)
        paths = [str(path) for batch in {row.batch_id for row in held} for path in self._files(entity, batch)]
        if not paths:
            return {}
        wanted = {(row.id, row.content_hash) for row in held}
        query = "select id, content_hash, raw from read_parquet(?) where list_contains(?, id) order by seq"
        with duckdb.connect(config={"memory_limit": "256MB", "threads": 2}) as db:
            found = db.execute(query, [paths, [row.id for row in held]]).fetchall()
        return {key: raw.encode() for key, digest, raw in found if (key, digest) in wanted}

    def _rows(self, entity: str, ids: Collection[str]) -> list[sa.Row]:
        """Id, hash and batch of the rows that were read without the fields that are left out now."""
        table, b = t.desk_table(ENTITIES[entity]), t.batches
        query = (
            sa.select(table.c.id, table.c.content_hash, table.c.batch_id, b.c.excluded)
            .join(b, b.c.id == table.c.batch_id)
            .where(table.c.connection == self._record.name, table.c.id.in_(ids), ~table.c.placeholder)
        )
        with self._workspace.database.engine.connect() as connection:
            found = connection.execute(query).all()
        return [row for row in found if list(row.excluded) == list(self._record.exclude)]

    def _files(self, entity: str, batch: int) -> list[Path]:
        record = self._record
        folder = self._workspace.home.landing_of(record.tenant, record.name, entity) / str(batch)
        return sorted(folder.glob(f"{entity}.*.parquet"))
