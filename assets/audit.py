"""`audit/<entity>`: CSV files with manifests, one per connection and day."""

from collections.abc import Iterator

import dagster as dg

from assets import keys, runs, shown
from assets.partitions import scope_of
from bridge_pipeline import naming
from bridge_pipeline.model import Entity
from bridge_pipeline.steps.audit import audit_window
from resources.workspace import WorkspaceResource


def audit_asset(entity: Entity, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The asset that writes the audit files of one entity."""

    @keys.layer_asset(
        naming.AUDIT,
        entity,
        partitions,
        # The tables say where ids went that left a day.
        deps=[keys.key(naming.EXTRACTED, entity.name), keys.key(naming.TABLES, entity.name)],
        automation_condition=keys.follows_upstream(),
    )
    def audit(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.MaterializeResult]:
        scope, opened = scope_of(context.run), workspace.open()
        with runs.bound(context, scope, entity) as run_id:
            files = audit_window(opened, scope.connection, entity.name, scope.window, run_id)
            yield shown.audit_files(context, scope, files)

    return audit
