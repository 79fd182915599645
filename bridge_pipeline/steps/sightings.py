"""When records were seen, also where their rows in the tables were left as they were.

A row that a load finds unchanged is not written, and keeps the fetch time of the page that brought it
first. That it was seen again is known from the landing of the batch that saw it: read where it matters,
which is after something else was observed meanwhile (rules 7 and 19).
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed

# The columns of a sighting, with their Postgres types.
SIGHTED = {"id": "text", "content_hash": "text", "fetched_at": "timestamptz"}


def sightings(
    workspace: Workspace, connection: sa.Connection, name: str, entity: str, since: datetime
) -> Iterator[pa.Table]:
    """What the loaded batches of an entity saw after a moment, with the columns of `SIGHTED`.

    The connection is not used any more when the first rows come.
    """
    return seen_in(workspace, ledger.loaded_since(connection, name, entity, since), since)


def seen_in(workspace: Workspace, batches: Sequence[Batch], since: datetime) -> Iterator[pa.Table]:
    """What these batches saw after a moment, with the columns of `SIGHTED`."""
    for batch in batches:
        for rows in read_landed(landing_of(workspace, batch), batch.files, batch.entity, tuple(SIGHTED)):
            yield rows.filter(pc.field("fetched_at") > pa.scalar(since, rows["fetched_at"].type))
