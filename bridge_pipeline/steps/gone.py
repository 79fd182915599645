"""Records that a source itself lists as deleted, in the middle of the others.

Such a report is kept with the batch and changes no row: `deleted_at` is set only after a lookup by
id says gone (rule 19).
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.connector_kit.fields import from_microseconds
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.steps.census import GoneReport

_AT_ONCE = 1_000


def keep(connection: sa.Connection, batch: Batch, reports: Iterator[GoneReport]) -> None:
    """Keeps a batch's reports; of each record the newest report counts."""
    statement = insert(t.gone_reports)
    renewed = {
        column: statement.excluded[column]
        for column in ("reported_at", "seen_at", "batch_id", "page", "position")
    }
    newer = statement.excluded.seen_at > t.gone_reports.c.seen_at
    statement = statement.on_conflict_do_update(
        index_elements=["connection", "entity", "record_id"], set_=renewed, where=newer
    )
    while rows := [_row(batch, report) for report in islice(reports, _AT_ONCE)]:
        connection.execute(statement, rows)


def _row(batch: Batch, report: GoneReport) -> dict[str, Any]:
    return {
        "tenant": batch.tenant,
        "connection": batch.connection,
        "entity": batch.entity,
        "record_id": report.id,
        "reported_at": None if report.changed_at is None else from_microseconds(report.changed_at),
        "seen_at": from_microseconds(report.seen_at),
        "batch_id": batch.id,
        "page": report.page,
        "position": report.position,
    }
