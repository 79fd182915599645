"""What every asset of a run shares: its log context, and which entities a connection has."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from assets.partitions import Scope
from bridge_pipeline.database import registry
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.logs import run_context
from bridge_pipeline.memory import give_back
from bridge_pipeline.model import Entity
from bridge_pipeline.steps.due import entities_of


@contextmanager
def bound(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, scope: Scope, entity: Entity
) -> Iterator[str]:
    """Every log line within names the run, connection, entity, window and attempt; gives the run id.

    What the step leaves free within the heap goes back before the next one begins.
    """
    with run_context(
        run_id=context.run.run_id,
        connection=scope.connection,
        entity=entity.name,
        window=str(scope.window),
        attempt=context.retry_number + 1,
    ):
        try:
            yield context.run.run_id
        finally:
            give_back()


def offers(workspace: Workspace, connection: str, entity: Entity, log: dg.DagsterLogManager) -> bool:
    """Whether the connection has the entity; one it does not have is skipped (rule 10)."""
    record = registry.get(workspace.database.engine, connection)
    offered = record.removed_at is None and entity.name in entities_of(record)
    if not offered:
        log.info(f"{connection} has no {entity.name}; nothing to extract")
    return offered
