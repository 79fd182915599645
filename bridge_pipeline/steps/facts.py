"""Facts of a batch as a whole: the checks that may block it (rule 14).

The rows themselves are the business of the expectations in `rows`. How volumes and fields are
compared with those of earlier batches is in `volume` and `drift`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.pages import patterns_of
from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.model.inventory import Inventory
from bridge_pipeline.steps import drift, duck, volume
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.land import is_intact, read_landed


@dataclass(frozen=True)
class Evidence:
    """What the facts of a batch are judged by.

    `damaged` are landing files that are not what the ledger lists. `days` are the rows per day of the
    window, `usual` what earlier batches held, `fields` and `before` the payload's fields now and then.
    `refused_before` are quarantined records of a certificate's batch that an earlier one brought.
    """

    batch: Batch
    folder: Path
    damaged: list[str]
    refused_before: int
    rows: int
    versions: int
    days: dict[date, int]
    usual: volume.History
    fields: Inventory | None
    before: list[tuple[Inventory, bool]]
    stream: Stream
    lag: timedelta

    @property
    def intact(self) -> bool:
        """Whether the landing files are those of the ledger."""
        return not self.damaged


def gather(workspace: Workspace, batch: Batch, stream: Stream) -> Evidence:
    """Reads what the facts of a batch are judged by; judges nothing."""
    folder = landing_of(workspace, batch)
    damaged = [file["path"] for file in batch.files if not is_intact(folder / file["path"], file["sha256"])]
    rows, versions = (0, 0) if damaged else _versions(batch, folder)
    days = {} if damaged or batch.kind in ledger.SINGLE else _days(batch, folder)
    with workspace.database.engine.connect() as connection:
        again = ledger.refused_before(connection, batch.id) if batch.proof.get("for") == "certificate" else 0
        return Evidence(
            batch=batch,
            folder=folder,
            damaged=damaged,
            refused_before=again,
            rows=rows,
            versions=versions,
            days=days,
            usual=volume.history(connection, batch),
            fields=ledger.inventory_of(connection, batch.id),
            # What the connection leaves out itself is not missing.
            before=drift.without(
                ledger.inventories_before(connection, batch, drift.MOST_BATCHES),
                patterns_of(batch.entity, batch.excluded),
            ),
            stream=stream,
            lag=workspace.settings.settle_lag,
        )


def facts(evidence: Evidence, rejected: int, expected: list[Expectation]) -> list[CheckResult]:
    """Judges what is expected of a batch; `rejected` rows were taken out by expectations of rows."""
    judges: dict[str, Callable[[Expectation], CheckResult]] = {
        "equation": lambda e: _equation(e, evidence),
        "landing_intact": lambda e: _landing_intact(e, evidence),
        "versions_unique": lambda e: _versions_unique(e, evidence),
        "quarantined_share": lambda e: _quarantined_share(e, evidence, rejected),
        "declared_fields": lambda e: _compared(e, evidence, drift.declared(evidence.stream)),
        "other_fields": lambda e: _compared(e, evidence, drift.others(evidence.stream)),
        "day_volume": lambda e: _day_volume(e, evidence),
        "newest_day_filled": lambda e: _newest_day_filled(e, evidence),
    }
    return [judges[expectation.name](expectation) for expectation in expected]


def result(
    expectation: Expectation,
    passed: bool,
    evaluated: int,
    unexpected: int,
    examples: list[dict[str, Any]],
    **more: Any,
) -> CheckResult:
    """The outcome of an expectation, with what it held the data to and who said so."""
    stage = expectation.subject if expectation.subject in ("load", "tables") else "batch"
    known = {
        "name": expectation.name,
        "severity": expectation.severity,
        "description": expectation.sentence,
        "owner": expectation.owner,
        "stage": stage,
        "source": expectation.source,
        "threshold": expectation.thresholds,
        "replaced": dict(expectation.replaced),
        "note": expectation.reason,
    }
    counts = {"passed": passed, "evaluated": evaluated, "unexpected": unexpected, "examples": examples}
    return CheckResult(**known | counts | more)


def not_judged(expectation: Expectation, why: str) -> CheckResult:
    """The outcome of an expectation that has nothing to go by."""
    return result(expectation, True, 0, 0, [], judged=False, note=f"not judged: {why}")


def switched_off(expectation: Expectation) -> CheckResult:
    """The outcome of an expectation that the tenant's file switched off."""
    reason = f": {expectation.reason}" if expectation.reason else ""
    return result(expectation, True, 0, 0, [], judged=False, note=f"switched off by the tenant{reason}")


def _fact(
    expectation: Expectation, passed: bool, evaluated: int, unexpected: int, **example: Any
) -> CheckResult:
    return result(expectation, passed, evaluated, unexpected, [] if passed else [example])


def _equation(expectation: Expectation, evidence: Evidence) -> CheckResult:
    batch = evidence.batch
    # `fetched` counts what the journal holds, the rows are those in the Parquet files.
    landed = batch.landed if evidence.damaged else evidence.rows
    accounted = batch.outside + batch.duplicate + batch.quarantined + landed
    difference = abs(batch.fetched - accounted)
    note = (
        f"{batch.fetched} fetched (journal) = {batch.outside} outside + {batch.duplicate} duplicate + "
        f"{batch.quarantined} quarantined (parser) + {landed} landed (Parquet)"
    )
    examples = [{"fetched": batch.fetched, "accounted": accounted}] if difference else []
    return result(expectation, not difference, batch.fetched, difference, examples, note=note)


def _landing_intact(expectation: Expectation, evidence: Evidence) -> CheckResult:
    wrong = evidence.damaged
    return _fact(expectation, not wrong, len(evidence.batch.files), len(wrong), files=wrong)


def _versions_unique(expectation: Expectation, evidence: Evidence) -> CheckResult:
    repeated = evidence.rows - evidence.versions
    return _fact(expectation, not repeated, evidence.rows, repeated, repeated=repeated)


def _quarantined_share(expectation: Expectation, evidence: Evidence, rejected: int) -> CheckResult:
    """Records of the window against the window, and those without a readable time against all read.

    What a certificate asks for again because it was refused was counted when it was read first.
    """
    batch = evidence.batch
    most, minimum = expectation.arguments["max_share"], expectation.arguments["minimum"]
    undated, elsewhere = (batch.proof.get(f"quarantined_{name}", 0) for name in ("undated", "elsewhere"))
    bad = batch.quarantined - undated - elsewhere + rejected
    of_window = batch.landed + batch.quarantined - undated - elsewhere
    of_all = batch.fetched - batch.duplicate
    again = evidence.refused_before
    found = [(max(0, bad - again), of_window), (max(0, bad + undated - again), of_all)]
    # What a replay refuses was counted when it was read.
    judged = [pair for pair in found if pair[1] >= minimum and batch.kind != "replay"]
    share, (bad, distinct) = max(((pair[0] / pair[1] if pair[1] else 0.0), pair) for pair in judged or found)
    passed = not judged or share <= most
    return _fact(expectation, passed, distinct, bad, share=round(share, 4), most=most)


def _compared(expectation: Expectation, evidence: Evidence, wanted: drift.Fields) -> CheckResult:
    if evidence.batch.kind in ledger.SINGLE:
        return not_judged(expectation, "single records have fields of their own")
    if evidence.fields is None or not evidence.fields.records:
        return not_judged(expectation, "no records to look at")
    if not evidence.before:
        return not_judged(expectation, "no earlier batch to compare with")
    found = drift.compare(evidence.fields, evidence.before, wanted)
    records, sampled = evidence.fields.records, evidence.fields.sampled
    note = (
        f"types from a sample of {sampled} of {records} records" if sampled < records else expectation.reason
    )
    examples = [vars(change) for change in found.changes[: drift.MOST_NAMED]]
    return result(expectation, not found.changes, found.fields, len(found.changes), examples, note=note)


def _day_volume(expectation: Expectation, evidence: Evidence) -> CheckResult:
    judged = volume.judged(evidence.batch, evidence.days, evidence.usual, expectation.arguments, evidence.lag)
    if not judged:
        return not_judged(expectation, volume.too_little(expectation.arguments))
    low = [day for day in judged if day.rows <= (1 - expectation.arguments["drop"]) * day.usual]
    examples = [{"day": str(day.day), "records": day.rows, "usual": day.usual} for day in low[:10]]
    return result(expectation, not low, len(judged), len(low), examples)


def _newest_day_filled(expectation: Expectation, evidence: Evidence) -> CheckResult:
    newest = ledger.newest_settled(evidence.batch.fetched_from, evidence.lag)
    if newest not in evidence.days:
        return not_judged(expectation, "the newest settled day is not in the window")
    days = {newest: evidence.days[newest]}
    judged = volume.judged(evidence.batch, days, evidence.usual, expectation.arguments, evidence.lag)
    if not judged:
        return not_judged(expectation, volume.too_little(expectation.arguments))
    # Who reads a day again, or long after, finds what has moved on since (rule 16).
    first = evidence.batch.first_read_of == newest
    empty = not days[newest]
    return result(
        expectation,
        not empty,
        1,
        int(empty),
        [{"day": str(newest), "records": 0, "usual": judged[0].usual}] if empty else [],
        severity=expectation.severity if first else "warn",
        note=expectation.reason if first else "not the schedule's first read of the day: warns at most",
    )


def _versions(batch: Batch, folder: Path) -> tuple[int, int]:
    """How many rows the landing files hold, and how many different versions of records."""
    paths = [str(folder / file["path"]) for file in batch.files]
    if not paths:
        return 0, 0
    # Grouping spills to disk where it must; counting distinct values does not.
    query = """
        select coalesce(sum(n), 0)::bigint, count(*) from (
            select count(*) as n from read_parquet($paths) group by id, content_hash
        )"""
    with duck.opened(batch.landed, folder) as db:
        found = db.execute(query, {"paths": paths}).fetchone()
    return found or (0, 0)


def _days(batch: Batch, folder: Path) -> dict[date, int]:
    """Rows per day of the window, also of days without any."""
    counts: Counter[date] = Counter()
    for rows in read_landed(folder, batch.files, batch.entity, ("updated_at",)):
        for day in rows["updated_at"].cast(pa.date32()).value_counts().to_pylist():
            counts[day["values"]] += day["counts"]
    return {day: counts[day] for day in batch.window.days()}
