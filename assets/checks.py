"""The checks of `extracted/<entity>`: the suites and the facts of the batch, as asset checks.

Only facts of a batch block (rule 14). The ledger holds the verdict; see `steps.check`.
"""

from collections.abc import Iterator

import dagster as dg

from assets import keys, runs, shown
from assets.partitions import scope_of
from bridge_pipeline import connectors, naming
from bridge_pipeline.model import Entity
from bridge_pipeline.steps.check import check_newest
from bridge_pipeline.steps.suites import declared
from resources.storage import events_together
from resources.workspace import WorkspaceResource


def entity_checks(entity: Entity) -> dg.AssetChecksDefinition:
    """All checks of one entity, whatever the connector, in one step."""
    specs = _specs(entity)

    @dg.multi_asset_check(
        name=f"check_{entity.name}", specs=specs, can_subset=False, op_tags=keys.op_tags(entity.name)
    )
    def checks(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.Output[None] | dg.AssetCheckEvaluation]:
        scope, opened = scope_of(context.run), workspace.open()
        with runs.bound(context, scope, entity) as run_id:
            verdict = check_newest(opened, scope.connection, entity.name, scope.window, run_id)
            found, batch = (verdict.results, verdict.batch) if verdict else ([], None)
            results = shown.check_results(opened, scope.connection, entity, specs, found, batch)
            with events_together(context.instance):
                yield from shown.evaluations(context.instance, scope, specs, results)

    return checks


def _specs(entity: Entity) -> list[dg.AssetCheckSpec]:
    """Every expectation that any connector has of the entity's batches and their rows."""
    expected = {
        expectation.name: expectation
        for connector in connectors.all_connectors().values()
        for expectation in declared(connector, entity.name)
        if expectation.subject in ("rows", "batch")
    }
    return [shown.check_spec(naming.EXTRACTED, entity, each) for each in expected.values()]
