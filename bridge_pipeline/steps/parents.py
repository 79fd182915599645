"""Parents that records refer to and that no listing has brought: fetched by id (rule 8).

What the source does not have either stays a placeholder row, flagged as one.
"""

from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.database import registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.extract import extract_ids
from bridge_pipeline.steps.load import load, refuse_unreadable

log = structlog.get_logger(__name__)
# An id that did not bring a record is not asked for again within this time.
_ASK_AGAIN = timedelta(hours=24)


def fetch_missing(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> dict[str, int]:
    """Fetches, checks and loads the missing parents of an entity.

    Returns:
        For each parent entity the number of placeholders that are left.

    Raises:
        SourceError: the source failed; one that cannot give single records is left alone.
        BatchBlocked: the checks of what came block it.
    """
    record = registry.get(workspace.database.engine, name)
    connector = connectors.get(record.connector)
    for parent in ENTITIES[entity].parent_entities:
        if not connector.has(parent) or parent not in record.entities:
            continue
        if ids := _to_ask_for(workspace, name, parent):
            _fetch(workspace, name, parent, ids, window, run_id)
    with workspace.database.engine.connect() as connection:
        return {
            parent: _placeholders(connection, name, parent) for parent in ENTITIES[entity].parent_entities
        }


def _fetch(
    workspace: Workspace, name: str, parent: str, ids: list[str], window: Window, run_id: str | None
) -> None:
    try:
        batch = extract_ids(workspace, name, parent, ids, window, run_id)
    except SourceError as error:
        if error.status in (None, 401, 429):
            raise
        log.warning("the source gives no single records; placeholders stay", entity=parent, error=str(error))
        return
    if batch:
        checked = check(workspace, batch.id)
        refuse_unreadable(checked.batch)
        load(workspace, checked.batch, run_id)
    reach("parents.fetched")
    _remember(workspace, name, parent, ids)


def _to_ask_for(workspace: Workspace, name: str, parent: str) -> list[str]:
    table = t.desk_table(ENTITIES[parent])
    recent = sa.select(t.lookups.c.record_id).where(
        t.lookups.c.connection == name,
        t.lookups.c.entity == parent,
        t.lookups.c.looked_up_at > sa.func.now() - _ASK_AGAIN,
    )
    query = (
        sa.select(table.c.id)
        .where(table.c.connection == name, table.c.placeholder, table.c.id.not_in(recent))
        .order_by(table.c.id)
    )
    with workspace.database.engine.connect() as connection:
        return list(connection.execute(query).scalars())


def _remember(workspace: Workspace, name: str, parent: str, ids: list[str]) -> None:
    """Keeps that these ids were asked for; those that arrived are no placeholders any more."""
    statement = insert(t.lookups).values(looked_up_at=sa.func.now())
    rows = [{"connection": name, "entity": parent, "record_id": record_id} for record_id in ids]
    with transaction(workspace.database.engine, "parents") as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["connection", "entity", "record_id"],
                set_={"looked_up_at": sa.func.now()},
            ),
            rows,
        )


def _placeholders(connection: sa.Connection, name: str, parent: str) -> int:
    table = t.desk_table(ENTITIES[parent])
    query = sa.select(sa.func.count()).where(table.c.connection == name, table.c.placeholder)
    return connection.execute(query).scalar_one()
