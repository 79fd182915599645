"""`quality/report` and `quality/certificate`: what reviewers are given about a connection."""

from collections.abc import Iterator

import dagster as dg

from assets import keys, shown
from assets.partitions import CONNECTIONS, scope_of
from bridge_pipeline import naming
from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.announce import tell_report
from bridge_pipeline.steps.certificate import verdict_words
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.report import write_report
from resources.workspace import WorkspaceResource

EXPLAINED = "everything_explained"


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
        automation_condition=keys.follows_upstream(missing=True),
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


def certificate_asset() -> dg.AssetsDefinition:
    """The asset that reckons a connection against its source, and the check that says the verdict."""
    key = keys.key(naming.QUALITY, "certificate")
    spec = dg.AssetCheckSpec(
        EXPLAINED,
        asset=key,
        description="Every record of the source is loaded, deleted, archived, forbidden or quarantined.",
    )

    @dg.asset(
        key=key,
        group_name=naming.QUALITY,
        owners=[keys.QUALITY_TEAM],
        kinds={"python", "html"},
        description="The proof that nothing is missing: every id of the source, and what became of it.",
        deps=[keys.key(naming.AUDIT, entity) for entity in ENTITIES],
        partitions_def=CONNECTIONS,
        check_specs=[spec],
    )
    def certificate(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource
    ) -> Iterator[dg.MaterializeResult]:
        opened = workspace.open()
        made = certify(opened, context.partition_key, run_id=context.run.run_id)
        path = opened.home.audit / made.path
        metadata = {"certificate": dg.MetadataValue.path(str(path.with_suffix(".html"))), **_counts(made)}
        yield dg.MaterializeResult(metadata=metadata, check_results=[_verdict(made)])

    return certificate


def _counts(made: Certificate) -> dict[str, int]:
    """The records without an explanation, by entity."""
    return {f"{each['entity']} unexplained": each["unexplained"] for each in made.document["entities"]}


def _verdict(made: Certificate) -> dg.AssetCheckResult:
    title, text = verdict_words(made.document)
    return dg.AssetCheckResult(
        check_name=EXPLAINED, passed=made.complete, description=f"{title}. {text}", metadata=_counts(made)
    )
