"""`extracted/<entity>`: one landed batch per run, from the connection's API."""

from collections.abc import Iterator

import dagster as dg

from assets import keys, runs, shown
from assets.partitions import scope_of
from bridge_pipeline import naming
from bridge_pipeline.model import Entity
from bridge_pipeline.steps import check, gx_worker
from bridge_pipeline.steps.extract import extract
from resources.workspace import WorkspaceResource


def extracted_asset(entity: Entity, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The asset that extracts one entity."""

    @keys.layer_asset(naming.EXTRACTED, entity, partitions)
    def extracted(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.MaterializeResult]:
        scope, opened = scope_of(context.run), workspace.open()
        with runs.bound(context, scope, entity) as run_id:
            if runs.offers(opened, scope.connection, entity, context.log):
                # The check that follows finds it ready.
                gx_worker.start()
                asked = (scope.connection, entity.name, scope.window)
                batch = extract(opened, *asked, run_id, scope.scheduled)
                check.begin(opened, batch)
                yield shown.batch(context, opened, batch)

    return extracted
