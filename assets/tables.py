"""`tables/<entity>`: the tables of `desk`, brought up to the readable batches of the window."""

from collections.abc import Iterator

import dagster as dg

from assets import keys, runs, shown
from assets.partitions import scope_of
from bridge_pipeline import naming
from bridge_pipeline.model import Entity
from bridge_pipeline.steps.load import EquationBroken
from bridge_pipeline.steps.tables import bring_up_to_date
from resources.storage import events_together
from resources.workspace import WorkspaceResource


def table_asset(entity: Entity, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The asset that loads one entity; its checks are those of the load and of the tables."""

    @keys.layer_asset(
        naming.TABLES,
        entity,
        partitions,
        deps=[keys.key(naming.EXTRACTED, entity.name)],
        automation_condition=keys.follows_upstream(),
        check_specs=shown.table_specs(entity),
    )
    def tables(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        scope, opened = scope_of(context.run), workspace.open()
        with runs.bound(context, scope, entity) as run_id:
            try:
                update = bring_up_to_date(opened, scope.connection, entity.name, scope.window, run_id)
            except EquationBroken as broken:
                yield from shown.broken_equation(opened, scope, entity, broken)
                raise
            yield shown.table_update(opened, update)
            with events_together(context.instance):
                yield from shown.table_checks(opened, scope, entity, update)

    return tables
