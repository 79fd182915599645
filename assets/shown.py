"""What the UI shows of a materialisation or check: counts, links, masked samples.

Only presentation: every number comes from a step's result.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg
import pyarrow as pa

from assets import keys
from assets.partitions import Scope
from bridge_pipeline import naming
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked
from bridge_pipeline.model import ENTITIES, Entity
from bridge_pipeline.steps.audit import AuditFile
from bridge_pipeline.steps.check import Verdict
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.parents import parents_of
from bridge_pipeline.steps.tables import TableUpdate

_SAMPLE = 5


def batch(context: dg.AssetExecutionContext, workspace: Workspace, landed: Batch) -> dg.MaterializeResult:
    """A landed batch: its equation, how it is proven complete, and where it lies."""
    rows = _rows_by_day(workspace, landed)
    for day in landed.window.days():
        context.add_asset_metadata(
            {"dagster/partition_row_count": rows[day]},
            partition_key=naming.partition_key(landed.connection, day),
        )
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
            "proof": dg.MetadataValue.json(landed.proof),
            "files": dg.MetadataValue.path(str(folder)),
            "sample": dg.MetadataValue.md(_sample(workspace, landed)),
        }
    )


def table_update(
    entity: Entity, workspace: Workspace, scope: Scope, update: TableUpdate
) -> dg.MaterializeResult:
    """What a load changed, with the checks of the references."""
    terms = ("loaded", "unchanged", "superseded", "placeholders")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": update.rows,
            "batches": ", ".join(str(result.batch.id) for result in update.loads) or "none: up to date",
            **{term: update.total(term) for term in terms},
            "database": workspace.database.libpq(show_secrets=False),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=f"{parent}_known",
                passed=missing == 0,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"placeholders": missing, "connection": scope.connection},
            )
            for parent, missing in update.placeholders.items()
        ],
    )


def reference_specs(entity: Entity) -> list[dg.AssetCheckSpec]:
    """The checks that a table's materialisation brings: are all parents known?"""
    return [
        dg.AssetCheckSpec(
            f"{parent}_known",
            asset=keys.key(naming.TABLES, entity.name),
            description=f"Every one of the {parent} that {entity.name} refer to has arrived.",
        )
        for parent in parents_of(entity.name)
    ]


def audit_files(
    context: dg.AssetExecutionContext, scope: Scope, files: list[AuditFile]
) -> dg.MaterializeResult:
    """The current audit files of the days, each with its rows and a link."""
    for file in files:
        context.add_asset_metadata(
            {
                "dagster/partition_row_count": file.rows,
                "file": dg.MetadataValue.path(str(file.path)),
                "version": file.version,
            },
            partition_key=naming.partition_key(scope.connection, file.day),
        )
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(file.rows for file in files),
            "days": len(files),
            "versions_added": sum(file.added for file in files),
            "folder": dg.MetadataValue.path(str(files[0].path.parent.parent)) if files else "no days",
        }
    )


def check_results(
    specs: list[dg.AssetCheckSpec], entity: Entity, verdict: Verdict | None
) -> Iterator[dg.AssetCheckResult]:
    """A result for every declared check; one that does not apply to the connection passes as such."""
    found = {result.name: result for result in verdict.results} if verdict else {}
    accepted = verdict is not None and verdict.batch.verdict == "accepted"
    for spec in specs:
        result = found.get(spec.name)
        if result is None:
            metadata: dict[str, Any] = {"applies": "not to this connection or batch"}
            yield _check(entity, spec.name, True, "warn", metadata)
        else:
            passed = result.passed or (accepted and result.severity == "block")
            yield _check(entity, spec.name, passed, result.severity, _evidence(result, verdict))


def _check(
    entity: Entity, name: str, passed: bool, severity: str, metadata: dict[str, Any]
) -> dg.AssetCheckResult:
    blocks = severity == "block"
    return dg.AssetCheckResult(
        asset_key=keys.key(naming.EXTRACTED, entity.name),
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


def _evidence(result: CheckResult, verdict: Verdict | None) -> dict[str, Any]:
    share = 100 * result.unexpected / result.evaluated if result.evaluated else 0.0
    return {
        "batch": verdict.batch.id if verdict else None,
        "evaluated": result.evaluated,
        "unexpected": result.unexpected,
        "percent": round(share, 3),
        "severity": result.severity,
        "owner": result.owner,
        "examples": dg.MetadataValue.json(result.examples),
    }


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
    lines = [
        "| " + " | ".join(_cell(entity, name, row[name]) for name in entity.column_names) + " |"
        for row in first.slice(0, _SAMPLE).to_pylist()
    ]
    return "\n".join([head, *lines])


def _cell(entity: Entity, name: str, value: Any) -> str:
    return masked(entity, name, value).replace("|", "\\|").replace("\n", " ")
