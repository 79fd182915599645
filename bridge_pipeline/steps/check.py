"""Checks of a landed batch: Great Expectations over its rows, facts over the whole.

Gives the verdict that everything downstream asks the ledger for.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import Window
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps import facts, gx_worker, rows
from bridge_pipeline.steps.announce import tell_verdict
from bridge_pipeline.steps.extract import add_to_quarantine, journal_of, landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.rows import Tally
from bridge_pipeline.steps.suites import suite_of
from bridge_pipeline.workers import WorkerEnded

log = structlog.get_logger(__name__)
_BY_EXPECTATION = "rejected by an expectation"
# Rows that are looked at again for less than what they wait for.
_SMALL = 20_000


@dataclass(frozen=True)
class Verdict:
    """What the checks of a batch came to."""

    batch: Batch
    results: list[CheckResult]


@dataclass(frozen=True)
class _Asked:
    """What is asked of the rows of a batch."""

    batch_id: int
    suite: tuple[Expectation, ...]
    clear: bool


# What was begun ahead: what was asked, and what waits for the outcome.
_begun: tuple[_Asked, Callable[[], dict[str, Tally]]] | None = None


def begin(workspace: Workspace, batch: Batch) -> None:
    """Lets another process begin to judge the rows of a small batch, before `check` asks for the outcome.

    Nothing depends on it: what cannot be begun, or is asked otherwise by then, `check` does itself.
    """
    global _begun
    if batch.landed > _SMALL or not gx_worker.is_there():
        return
    try:
        record = registry.get(workspace.database.engine, batch.connection)
        clear = registry.shows_personal_data(workspace.database.engine, batch.tenant)
        suite = _of_rows(suite_of(workspace, record, batch.entity))
        outcome = rows.begin(batch, landing_of(workspace, batch), suite, clear)
        _begun = _Asked(batch.id, suite, clear), outcome
    except Exception as error:
        # The batch is landed: whatever is wrong, the check meets it again and says so as its own.
        log.info("rows are not judged ahead", batch=batch.id, reason=type(error).__name__)


def _tallies(asked: _Asked, batch: Batch, folder: Path) -> dict[str, Tally]:
    global _begun
    begun, _begun = _begun, None
    if begun is not None and begun[0] == asked:
        # Whoever was asked in between had another process.
        with suppress(WorkerEnded):
            return begun[1]()
    return rows.begin(batch, folder, asked.suite, asked.clear)()


def _of_rows(suite: tuple[Expectation, ...]) -> tuple[Expectation, ...]:
    return tuple(e for e in suite if e.subject == "rows" and e.enabled)


def check(workspace: Workspace, batch_id: int) -> Verdict:
    """Runs all checks of a batch, takes rejected rows out, and records results and verdict.

    Running it again gives the same results; a batch that a reviewer accepted stays accepted.

    Raises:
        UnknownBatch: the ledger lists no such batch.
        InvalidExpectations: the tenant's file of expectations is wrong; the batch stays unchecked.
    """
    with workspace.database.engine.connect() as connection:
        batch = ledger.batch(connection, batch_id)
    record = registry.get(workspace.database.engine, batch.connection)
    suite = suite_of(workspace, record, batch.entity)
    of_rows = _of_rows(suite)
    evidence = facts.gather(workspace, batch, connectors.get(record.connector).stream(batch.entity))
    # Rows of files that were tampered with say nothing.
    clear = registry.shows_personal_data(workspace.database.engine, batch.tenant)
    tallies = _tallies(_Asked(batch.id, of_rows, clear), batch, evidence.folder) if evidence.intact else {}
    rejected = {row: e.name for e in of_rows if e.name in tallies for row in tallies[e.name].rows}
    results = [
        *(_judged(e, tallies[e.name]) for e in of_rows if e.name in tallies),
        *(facts.switched_off(e) for e in suite if e.subject in ("rows", "batch") and not e.enabled),
        *facts.facts(evidence, len(rejected), [e for e in suite if e.subject == "batch" and e.enabled]),
    ]
    reach("check.judged")
    with transaction(workspace.database.engine, "check") as connection:
        advisory_lock(connection, f"check:{batch_id}")
        _take_out(workspace, connection, batch, rejected)
        reach("check.rows_taken_out")
        ledger.record_checks(connection, batch_id, results, len(rejected))
        reach("check.verdict_kept")
        ledger.record_day_counts(connection, batch_id, evidence.days)
        batch = ledger.batch(connection, batch_id)
        tell_verdict(connection, batch, results, workspace.settings)
    log.info("batch checked", batch=batch_id, verdict=batch.verdict)
    return Verdict(batch, results)


def check_newest(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> Verdict | None:
    """Checks the run's own batch of a window, else the newest; None where there is none.

    Then those that earlier runs left unchecked because they died: what they landed is as good as any.
    """
    with workspace.database.engine.connect() as connection:
        batch = ledger.newest_batch(connection, name, entity, window, run_id)
    if batch is None:
        return None
    verdict = check(workspace, batch.id)
    with workspace.database.engine.connect() as connection:
        orphans = ledger.pending_before(connection, name, entity, batch.id)
    for orphan in orphans:
        log.warning("checking a batch that its run left unchecked", batch=orphan)
        check(workspace, orphan)
    return verdict


def _judged(expectation: Expectation, tally: Tally) -> CheckResult:
    passed = tally.unexpected <= expectation.allowed_share * tally.evaluated
    return facts.result(expectation, passed, tally.evaluated, tally.unexpected, tally.examples)


def _take_out(
    workspace: Workspace, connection: sa.Connection, batch: Batch, rejected: dict[int, str]
) -> None:
    """Moves rejected rows to quarantine with their exact bytes; those moved before stay moved."""
    query = sa.select(t.rejections.c.seq).where(t.rejections.c.batch_id == batch.id)
    known = set(connection.execute(query).scalars())
    new = {seq: name for seq, name in rejected.items() if seq not in known}
    if not new:
        return
    rows = [{"batch_id": batch.id, "seq": seq, "reason": name} for seq, name in new.items()]
    connection.execute(t.rejections.insert(), rows)
    reach("check.rows_refused")
    found = _replayed_records if batch.kind == "replay" else _exact_records
    for record in found(workspace, batch, new):
        add_to_quarantine(connection, batch, [record])


def _replayed_records(
    workspace: Workspace, batch: Batch, rejected: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """The rejected rows of a replay: their bytes never left quarantine."""
    columns = ("seq", "id", "page")
    for table in read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns):
        for row in table.filter(pc.field("seq").isin(list(rejected))).to_pylist():
            why = {"reason": rejected[row["seq"]], "pointer": "", "detail": _BY_EXPECTATION}
            yield why | {"record_id": row["id"], "page": row["page"]}


def _exact_records(workspace: Workspace, batch: Batch, rejected: dict[int, str]) -> Iterator[dict[str, Any]]:
    """The rejected rows as they go to quarantine, with their bytes from the journal."""
    record = registry.get(workspace.database.engine, batch.connection)
    stream = connectors.get(record.connector).stream(batch.entity)
    journal = journal_of(workspace, batch)
    columns = ("seq", "id", "page", "position", "fetched_at")
    for table in read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns):
        found = table.filter(pc.field("seq").isin(list(rejected))).to_pylist()
        for page, of_page in groupby(found, key=lambda row: row["page"]):
            body = journal.body(page)
            if batch.kind == "lookup":
                exact = [pages.parse_single(body, stream.single_names)[1]]
            else:
                exact = stream.exact_records(body)
            for row in of_page:
                raw = exact[row["position"]]
                yield {
                    "sha256": hashlib.sha256(raw).hexdigest(),
                    "reason": rejected[row["seq"]],
                    "pointer": "",
                    "detail": _BY_EXPECTATION,
                    "record_id": row["id"],
                    "raw": raw,
                    "page": page,
                    "position": row["position"],
                    "fetched_at": row["fetched_at"],
                }
