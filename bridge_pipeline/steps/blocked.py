"""What blocked batches hold back: a certificate may not bring it past the checks into tables (rule 15)."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain

import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import is_intact, read_landed

# Id, change mark (None for whatever version), and the batch.
Blocked = tuple[str, datetime | None, int]


def blocked_records(
    workspace: Workspace, connection: sa.Connection, name: str, entity: str, lookups: Sequence[int]
) -> Iterator[Blocked]:
    """The records of an entity's blocked batches, and of those of the batches `lookups` that are blocked.

    Other lookups and replays are left out: they hold nothing but what is asked for again. The
    connection is not used any more when the first record comes.
    """
    b = t.batches
    wanted = sa.or_(b.c.kind.not_in(ledger.SINGLE), b.c.id.in_(lookups))
    mine = sa.and_(b.c.connection == name, b.c.entity == entity, b.c.verdict == "blocked", wanted)
    batches = ledger.list_batches(connection, mine)
    batches = [batch for batch in batches if _tells(workspace, connection, batch)]
    single = [batch.id for batch in batches if batch.kind in ledger.SINGLE]
    return chain(_refused(connection, single), _landed(workspace, batches))


def _tells(workspace: Workspace, connection: sa.Connection, batch: Batch) -> bool:
    """Whether it counts what a batch holds back: not where its files are damaged and its days read since."""
    folder = landing_of(workspace, batch)
    if batch.kind in ledger.SINGLE or all(is_intact(folder / f["path"], f["sha256"]) for f in batch.files):
        return True
    return ledger.unreadable_batch(connection, batch.connection, batch.entity, batch.window) is not None


def _refused(connection: sa.Connection, batches: Sequence[int]) -> list[Blocked]:
    """What lookups brought straight into quarantine."""
    q, s = t.quarantine, t.quarantine_sightings
    same = [q.c[key] == s.c[key] for key in ("connection", "entity", "sha256")]
    query = (
        sa.select(q.c.record_id, s.c.batch_id)
        .join_from(q, s, sa.and_(*same))
        .where(s.c.batch_id.in_(batches), q.c.record_id.is_not(None))
    )
    return [(row.record_id, None, row.batch_id) for row in connection.execute(query)]


def _landed(workspace: Workspace, batches: Sequence[Batch]) -> Iterator[Blocked]:
    for batch in batches:
        folder = landing_of(workspace, batch)
        for rows in read_landed(folder, batch.files, batch.entity, ("id", "updated_at")):
            for record in rows.to_pylist():
                yield record["id"], record["updated_at"], batch.id
