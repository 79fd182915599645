"""`quality/report`: the data-quality report of a connection, for reviewers."""

from collections.abc import Iterator

import dagster as dg

from assets import keys, shown
from assets.partitions import scope_of
from bridge_pipeline import naming
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.announce import tell_report
from bridge_pipeline.steps.report import write_report
from resources.workspace import WorkspaceResource


def report_asset(partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The asset that writes the report up to the last day of a window."""

    @dg.asset(
        key=keys.key(naming.QUALITY, "report"),
        group_name=naming.QUALITY,
        owners=[keys.QUALITY_TEAM],
        kinds={"python", "html"},
        description="One page that says whether the data is complete and right, and what is not.",
        deps=[keys.key(naming.AUDIT, entity) for entity in ENTITIES],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        automation_condition=keys.follows_upstream(),
        output_required=False,
        # After everything else that can run.
        op_tags={"dagster/priority": "-10"},
    )
    def report(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.MaterializeResult]:
        scope = scope_of(context.run)
        opened = workspace.open()
        written = write_report(opened, scope.connection, scope.days[-1])
        tell_report(opened, written)
        yield shown.quality_report(written)

    return report
