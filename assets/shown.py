"""What the UI shows of a materialisation or check: counts, links, masked samples.

Only presentation: every number comes from a step's result.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator

from assets import keys
from assets.partitions import Scope
from bridge_pipeline import naming
from bridge_pipeline.database import registry
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked, masked_text
from bridge_pipeline.model import ENTITIES, Entity
from bridge_pipeline.model.expectation import LOADED, Expectation, of_tables
from bridge_pipeline.steps.audit import AuditFile
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.links import record_url
from bridge_pipeline.steps.load import EquationBroken
from bridge_pipeline.steps.metering import quota_of
from bridge_pipeline.steps.report import Report
from bridge_pipeline.steps.tables import TableUpdate

_SAMPLE = 5


def batch(context: dg.AssetExecutionContext, workspace: Workspace, landed: Batch) -> dg.MaterializeResult:
    """A landed batch: its equation, how it is proven complete, and where it lies."""
    rows = _rows_by_day(workspace, landed)
    days = {day: {"dagster/partition_row_count": rows[day]} for day in landed.window.days()}
    _tell_of_days(context, landed.connection, days)
    folder = landing_of(workspace, landed)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": landed.landed,
            "batch": landed.id,
            "kind": landed.kind,
            "fetched": landed.fetched,
            "outside": landed.outside,
            "duplicate": landed.duplicate,
            "quarantined": landed.quarantined,
            "landed": landed.landed,
            "requests": landed.requests,
            "pages": landed.pages,
            "bytes": sum(file["bytes"] for file in landed.files),
            "quota": dg.MetadataValue.json(_quota(workspace, landed)),
            "quota_waited_seconds": round(sum(each["waited"] for each in landed.quota.values()), 1),
            "proof": dg.MetadataValue.json(landed.proof),
            "files": dg.MetadataValue.path(str(folder)),
            "sample": dg.MetadataValue.md(_sample(workspace, landed)),
        }
    )


def _tell_of_days(
    context: dg.AssetExecutionContext, connection: str, days: Mapping[date, Mapping[str, Any]]
) -> None:
    """Adds what is shown of each day's partition to its materialisation.

    Dagster's `add_asset_metadata` lists all partitions of the run for each of them, and copies what it was
    told of the others: 365 days took as long as a third of their tickets' extraction.
    """
    step = context.get_step_execution_context()
    told = {
        AssetMetadataHandle(
            asset_key=context.asset_key, partition_key=naming.partition_key(connection, day)
        ): metadata
        for day, metadata in days.items()
    }
    before = step._metadata_accumulator.per_output_metadata
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata={**before, **told})


def _quota(workspace: Workspace, landed: Batch) -> dict[str, Any]:
    """By bucket, what the batch's requests used and waited for, and what is left now."""
    record = registry.get(workspace.database.engine, landed.connection)
    now = {level["bucket"]: level for level in quota_of(workspace, record)}
    return {
        name: {
            "used": spent["used"],
            "waited_seconds": round(spent["waited"], 1),
            **{key: now[name][key] for key in ("limit", "seconds", "left", "wait") if name in now},
        }
        for name, spent in landed.quota.items()
    }


def table_update(workspace: Workspace, update: TableUpdate) -> dg.MaterializeResult:
    """What a load changed."""
    terms = ("loaded", "unchanged", "superseded", "placeholders")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": update.rows,
            "batches": ", ".join(str(result.batch.id) for result in update.loads) or "none: up to date",
            **{term: update.total(term) for term in terms},
            "database": workspace.database.libpq(show_secrets=False),
        }
    )


def table_checks(
    workspace: Workspace, scope: Scope, entity: Entity, update: TableUpdate
) -> Iterator[dg.AssetCheckResult]:
    """The checks of a load, and of the references afterwards."""
    return check_results(workspace, scope.connection, entity, table_specs(entity), update.checks)


def table_specs(entity: Entity) -> list[dg.AssetCheckSpec]:
    """The checks that a table's materialisation brings: of its load, and of the tables afterwards."""
    return [check_spec(naming.TABLES, entity, expectation) for expectation in (LOADED, *of_tables(entity))]


def check_spec(layer: str, entity: Entity, expectation: Expectation) -> dg.AssetCheckSpec:
    """An expectation as Dagster declares it."""
    return dg.AssetCheckSpec(
        expectation.name,
        asset=keys.key(layer, entity.name),
        description=expectation.sentence,
        blocking=expectation.severity == "block",
    )


def broken_equation(
    workspace: Workspace, scope: Scope, entity: Entity, broken: EquationBroken
) -> Iterator[dg.AssetCheckResult]:
    """The equation of a load that was undone."""
    specs = [check_spec(naming.TABLES, entity, LOADED)]
    return check_results(workspace, scope.connection, entity, specs, [broken.result])


def audit_files(
    context: dg.AssetExecutionContext, scope: Scope, files: list[AuditFile]
) -> dg.MaterializeResult:
    """The current audit files of the days, each with its rows and a link."""
    days = {
        file.day: {
            "dagster/partition_row_count": file.rows,
            "file": dg.MetadataValue.path(str(file.path)),
            "version": file.version,
        }
        for file in files
    }
    _tell_of_days(context, scope.connection, days)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(file.rows for file in files),
            "days": len(files),
            "versions_added": sum(file.added for file in files),
            "folder": dg.MetadataValue.path(str(files[0].path.parent.parent)) if files else "no days",
        }
    )


def check_results(
    workspace: Workspace,
    name: str,
    entity: Entity,
    specs: list[dg.AssetCheckSpec],
    found: list[CheckResult],
    batch: Batch | None = None,
) -> Iterator[dg.AssetCheckResult]:
    """A result for every declared check; one that does not apply to the connection passes as such."""
    record = registry.get(workspace.database.engine, name)
    by_name = {result.name: result for result in found}
    for spec in specs:
        result = by_name.get(spec.name)
        if result is None:
            metadata: dict[str, Any] = {"applies": "not to this connection or batch"}
            yield _check(spec, True, "warn", metadata)
        else:
            # What a reviewer accepted no longer stops anything.
            accepted = batch is not None and batch.verdict == "accepted" and result.severity == "block"
            evidence = _evidence(workspace, record, entity, result)
            evidence |= _batch_facts(workspace, batch) if batch else {}
            yield _check(spec, result.passed or accepted, result.severity, evidence, result.note)


def evaluations(
    instance: dg.DagsterInstance,
    scope: Scope,
    specs: list[dg.AssetCheckSpec],
    results: Iterable[dg.AssetCheckResult],
) -> Iterator[dg.Output[None] | dg.AssetCheckEvaluation]:
    """The results of a step that only checks one asset, as what Dagster makes of them by itself.

    By itself it takes for the materialisation that was checked the asset's newest, be it another
    connection's, and lists every partition there is on the way. This takes that of the scope's last day.
    """
    target = _target(instance, scope, specs[0].asset_key)
    for spec, result in zip(specs, results, strict=True):
        yield dg.Output(None, output_name=spec.get_python_identifier())
        yield dg.AssetCheckEvaluation(
            asset_key=spec.asset_key,
            check_name=spec.name,
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            blocking=spec.blocking,
        )


def _target(
    instance: dg.DagsterInstance, scope: Scope, asset: dg.AssetKey
) -> AssetCheckEvaluationTargetMaterializationData | None:
    last = naming.partition_key(scope.connection, scope.days[-1])
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[last])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    return None


def quality_report(report: Report) -> dg.MaterializeResult:
    """A report: its verdict, the page itself as Markdown, and where its files lie."""
    workbook = dg.MetadataValue.path(str(report.workbook)) if report.workbook else "no rejected records"
    return dg.MaterializeResult(
        metadata={
            "verdict": f"{report.verdict.title}. {report.verdict.text}",
            "summary": dg.MetadataValue.md(report.markdown),
            "report": dg.MetadataValue.path(str(report.html)),
            "rejected records": workbook,
        }
    )


def _check(
    spec: dg.AssetCheckSpec, passed: bool, severity: str, metadata: dict[str, Any], note: str = ""
) -> dg.AssetCheckResult:
    blocks = severity == "block"
    return dg.AssetCheckResult(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
        description=note or None,
        metadata=metadata,
    )


def _batch_facts(workspace: Workspace, batch: Batch) -> dict[str, Any]:
    if batch.verdict != "accepted":
        return {"batch": batch.id}
    clear = registry.shows_personal_data(workspace.database.engine, batch.tenant)
    by, reason = (masked_text(each, clear) for each in (batch.accepted_by, batch.accept_reason))
    return {"batch": batch.id, "accepted_by": by, "accept_reason": reason}


def _evidence(
    workspace: Workspace, record: ConnectionRecord, entity: Entity, result: CheckResult
) -> dict[str, Any]:
    """Counts, share, threshold and who set it, masked examples, and where to look further."""
    share = 100 * result.unexpected / result.evaluated if result.evaluated else 0.0
    replaced = {"replaced_by_tenant": dg.MetadataValue.json(result.replaced)} if result.replaced else {}
    return {
        "judged": result.judged,
        "evaluated": result.evaluated,
        "unexpected": result.unexpected,
        "percent": round(share, 3),
        "severity": result.severity,
        "owner": result.owner,
        "source": result.source,
        "threshold": dg.MetadataValue.json(result.threshold),
        **replaced,
        "examples": dg.MetadataValue.json(result.examples),
        "link": _link(workspace, record, entity, result),
    }


def _link(
    workspace: Workspace, record: ConnectionRecord, entity: Entity, result: CheckResult
) -> dg.MetadataValue:
    """The first example's page at the source where that is known, else the folder of the reports."""
    ids = [str(example["id"]) for example in result.examples if "id" in example]
    page = record_url(record, entity.name, ids[0]) if ids else None
    reports = workspace.home.reports / record.tenant / record.name
    return dg.MetadataValue.url(page) if page else dg.MetadataValue.path(str(reports))


def _rows_by_day(workspace: Workspace, landed: Batch) -> Counter[date]:
    counts: Counter[date] = Counter()
    for table in read_landed(landing_of(workspace, landed), landed.files, landed.entity, ("updated_at",)):
        for day in table["updated_at"].cast(pa.date32()).value_counts().to_pylist():
            if day["values"] is not None:
                counts[day["values"]] += day["counts"]
    return counts


def _sample(workspace: Workspace, landed: Batch) -> str:
    """The first rows as a table, personal values masked."""
    entity = ENTITIES[landed.entity]
    rows = read_landed(landing_of(workspace, landed), landed.files, landed.entity, entity.column_names)
    first = next(rows, None)
    if first is None:
        return "no rows"
    head = f"| {' | '.join(entity.column_names)} |\n|{' --- |' * len(entity.column_names)}"
    clear = registry.shows_personal_data(workspace.database.engine, landed.tenant)
    lines = [
        "| " + " | ".join(_cell(entity, name, row[name], clear) for name in entity.column_names) + " |"
        for row in first.slice(0, _SAMPLE).to_pylist()
    ]
    return "\n".join([head, *lines])


def _cell(entity: Entity, name: str, value: Any, clear: bool) -> str:
    return masked(entity, name, value, clear).replace("|", "\\|").replace("\n", " ")
