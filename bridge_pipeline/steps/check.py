"""Checks of a landed batch: Great Expectations over its rows, facts over the whole.

Gives the verdict that everything downstream asks the ledger for.
"""

import functools
import gc
import hashlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked
from bridge_pipeline.model import ENTITIES, Entity, Window
from bridge_pipeline.model.expectation import SUITES, Expectation
from bridge_pipeline.steps import facts
from bridge_pipeline.steps.extract import add_to_quarantine, journal_of, landing_of
from bridge_pipeline.steps.land import read_landed

if TYPE_CHECKING:
    from great_expectations import ValidationDefinition

log = structlog.get_logger(__name__)
# Rows that Great Expectations sees at a time: large enough that its own cost per call is small.
_AT_ONCE = 4_000
_EXAMPLES = 10


@dataclass(frozen=True)
class Verdict:
    """What the checks of a batch came to."""

    batch: Batch
    results: list[CheckResult]


@dataclass
class _Tally:
    """What one expectation found so far."""

    evaluated: int = 0
    unexpected: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def expectations_of(connector: str, entity: str) -> tuple[Expectation, ...]:
    """The suite of an entity with the connector's additions, which replace those of the same name."""
    added = connectors.get(connector).expectations.get(entity, ())
    names = {expectation.name for expectation in added}
    return (*(e for e in SUITES[entity] if e.name not in names), *added)


def check(workspace: Workspace, batch_id: int) -> Verdict:
    """Runs all checks of a batch, takes rejected rows out, and records results and verdict.

    Running it again gives the same results; a batch that a reviewer accepted stays accepted.

    Raises:
        UnknownBatch: the ledger lists no such batch.
    """
    with workspace.database.engine.connect() as connection:
        batch = ledger.batch(connection, batch_id)
        record = registry.get(workspace.database.engine, batch.connection)
    folder = landing_of(workspace, batch)
    suite = expectations_of(record.connector, batch.entity)
    # Rows of files that were tampered with say nothing.
    tallies = _validate(batch, folder, suite) if facts.landing_intact(batch, folder).passed else {}
    rejected = {
        row: e.name
        for e in suite
        if e.severity == "quarantine" and e.name in tallies
        for row in tallies[e.name].rows
    }
    results = [
        *(_result(e, tallies[e.name]) for e in suite if e.name in tallies),
        *facts.facts(batch, folder, len(rejected), workspace.settings),
    ]
    with workspace.database.engine.begin() as connection:
        advisory_lock(connection, f"check:{batch_id}")
        _take_out(workspace, connection, batch, rejected)
        ledger.record_checks(connection, batch_id, results, len(rejected))
        batch = ledger.batch(connection, batch_id)
    log.info("batch checked", batch=batch_id, verdict=batch.verdict)
    return Verdict(batch, results)


def check_newest(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> Verdict | None:
    """Checks the run's own batch of a window, else the newest; None where there is none."""
    with workspace.database.engine.connect() as connection:
        batch = ledger.newest_batch(connection, name, entity, window, run_id)
    return check(workspace, batch.id) if batch else None


def _validate(batch: Batch, folder: Path, suite: tuple[Expectation, ...]) -> dict[str, _Tally]:
    tallies = {expectation.name: _Tally() for expectation in suite}
    if not batch.landed:
        return tallies
    entity = ENTITIES[batch.entity]
    columns = tuple(dict.fromkeys(["seq", "id", *(c for e in suite for c in e.columns)]))
    _great_expectations()
    # What lives now outlives the chunks; the collections after each need not look at it.
    gc.freeze()
    for rows in _chunks(read_landed(folder, batch.files, batch.entity, columns)):
        # A context keeps all results it ever had, so each chunk has one of its own (L9).
        outcome: Any = _definition(batch.entity, suite).run(
            batch_parameters={"dataframe": rows.to_pandas()},
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["seq", "id"]},
        )
        # Great Expectations groups the results by column: their order is not that of the suite.
        found = {_name(result): result for result in outcome.results}
        for expectation in suite:
            _add(tallies[expectation.name], expectation, entity, found[expectation.name], rows.num_rows)
        # A context and its frame refer to each other in circles: they go when asked to (L9).
        del outcome, found, rows
        gc.collect()
    gc.unfreeze()
    return tallies


def _name(outcome: Any) -> str:
    return outcome.expectation_config.meta["name"]


def _definition(entity: str, suite: tuple[Expectation, ...]) -> "ValidationDefinition":
    """The suite as Great Expectations runs it, on data frames handed to it one by one."""
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("landing").add_dataframe_asset(entity)
    data = asset.add_batch_definition_whole_dataframe("rows")
    rules = [getattr(gx.expectations, e.kind)(**e.arguments, meta={"name": e.name}) for e in suite]
    gx_suite = context.suites.add(gx.ExpectationSuite(name=entity, expectations=rules))
    return context.validation_definitions.add(gx.ValidationDefinition(name=entity, data=data, suite=gx_suite))


@functools.cache
def _great_expectations() -> Any:
    """The library. Its import takes seconds, so only a check pays for it; and it must not call home."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    return importlib.import_module("great_expectations")


def _chunks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about `_AT_ONCE`."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= _AT_ONCE:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _add(tally: _Tally, expectation: Expectation, entity: Entity, outcome: Any, rows: int) -> None:
    result = outcome.result
    if "unexpected_count" not in result:
        raise RuntimeError(
            f"the expectation {expectation.name} could not be evaluated: {outcome.exception_info}"
        )
    tally.evaluated += rows
    tally.unexpected += result["unexpected_count"]
    found = result["unexpected_index_list"] or []
    if expectation.severity == "quarantine":
        tally.rows += [int(row["seq"]) for row in found]
    for row in found[: _EXAMPLES - len(tally.examples)]:
        values = {column: masked(entity, column, row.get(column)) for column in expectation.columns}
        tally.examples.append({"id": str(row["id"])} | values)


def _result(expectation: Expectation, tally: _Tally) -> CheckResult:
    return CheckResult(
        name=expectation.name,
        severity=expectation.severity,
        description=expectation.description,
        owner=expectation.owner,
        passed=tally.unexpected == 0,
        evaluated=tally.evaluated,
        unexpected=tally.unexpected,
        examples=tally.examples,
    )


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
    for record in _exact_records(workspace, batch, new):
        add_to_quarantine(connection, batch, [record])


def _exact_records(workspace: Workspace, batch: Batch, rejected: dict[int, str]) -> Iterator[dict[str, Any]]:
    """The rejected rows as they go to quarantine, with their bytes from the journal."""
    record = registry.get(workspace.database.engine, batch.connection)
    stream = connectors.get(record.connector).stream(batch.entity)
    journal = journal_of(workspace, batch)
    columns = ("seq", "id", "page", "position")
    for table in read_landed(landing_of(workspace, batch), batch.files, batch.entity, columns):
        found = table.filter(pc.field("seq").isin(list(rejected))).to_pylist()
        for page, of_page in groupby(found, key=lambda row: row["page"]):
            body = journal.body(page)
            if batch.kind == "lookup":
                exact = [pages.parse_single(body, stream.single_names)[1]]
            else:
                exact = pages.exact_records(body, stream.names)
            for row in of_page:
                raw = exact[row["position"]]
                yield {
                    "sha256": hashlib.sha256(raw).hexdigest(),
                    "reason": rejected[row["seq"]],
                    "pointer": "",
                    "detail": "rejected by an expectation",
                    "record_id": row["id"],
                    "raw": raw,
                    "page": page,
                    "position": row["position"],
                }
