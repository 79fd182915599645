"""The expectations of rows: Great Expectations over a landed batch, many rows at a time.

It sees of each column what its judgement needs: whether there is a value, how long it is, or the value
itself. That is what keeps memory flat however long the texts are, and the results are the same. It is
asked for positions of failing rows alone; examples are read from the landing files afterwards.
"""

import functools
import gc
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.masking import masked, masked_key
from bridge_pipeline.model import ENTITIES, Entity
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps.land import read_landed

if TYPE_CHECKING:
    from great_expectations import ValidationDefinition

# Rows that Great Expectations sees at a time: its cost per call is that of tens of thousands of rows.
_AT_ONCE = 50_000
# Or fewer, where the values themselves are long.
_MOST_BYTES = 16_000_000
_EXAMPLES = 10
_COMPLETE = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}


@dataclass
class Tally:
    """What one expectation found so far; `rows` are the failing rows of one that takes them out."""

    evaluated: int = 0
    unexpected: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _View:
    """What Great Expectations sees of a column for one kind of expectation, and the kind it then is."""

    name: str
    kind: str
    of: Callable[[pa.ChunkedArray], pa.ChunkedArray]


def _presence(column: pa.ChunkedArray) -> pa.ChunkedArray:
    there = column.is_valid()
    return pc.call_function("if_else", [there, pa.scalar(1, pa.int8()), pa.scalar(None, pa.int8())])


def _length(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.call_function("utf8_length", [column])


_VIEWS = {
    "ExpectColumnValuesToNotBeNull": _View("presence", "ExpectColumnValuesToNotBeNull", _presence),
    "ExpectColumnValueLengthsToBeBetween": _View("length", "ExpectColumnValuesToBeBetween", _length),
}


@dataclass(frozen=True)
class _Rule:
    """An expectation as Great Expectations runs it: its kind, arguments, and the columns of the frame."""

    expectation: Expectation
    kind: str
    arguments: dict[str, Any]
    columns: dict[str, Callable[[pa.Table], pa.ChunkedArray]]


def _rule(expectation: Expectation) -> _Rule:
    view = _VIEWS.get(expectation.kind)
    if view is None:
        columns = {name: functools.partial(_column, name) for name in expectation.columns}
        return _Rule(expectation, expectation.kind, expectation.arguments, columns)
    (source,) = expectation.columns
    name = f"{source} {view.name}"
    columns = {name: lambda rows: view.of(rows[source])}
    return _Rule(expectation, view.kind, expectation.arguments | {"column": name}, columns)


def _column(name: str, rows: pa.Table) -> pa.ChunkedArray:
    return rows[name]


def judge(
    batch: Batch, folder: Path, suite: tuple[Expectation, ...], clear: bool = False
) -> dict[str, Tally]:
    """Runs the expectations of rows over a batch, in bounded memory.

    Args:
        clear: whether the tenant asked for examples with personal values as they are.

    Raises:
        RuntimeError: Great Expectations could not evaluate one.
    """
    tallies = {expectation.name: Tally() for expectation in suite}
    if not batch.landed or not suite:
        return tallies
    entity = ENTITIES[batch.entity]
    rules = [_rule(expectation) for expectation in suite]
    great_expectations()
    # What lives now outlives the frames; the collections after each need not look at it.
    gc.freeze()
    for frame in _frames(batch, folder, rules):
        # A context keeps all results it ever had, so each frame has one of its own (L9).
        outcome: Any = _definition(batch.entity, rules).run(
            batch_parameters={"dataframe": frame.drop(columns="seq")}, result_format=_COMPLETE
        )
        # Great Expectations groups the results by column: their order is not that of the suite.
        found = {_name(result): result for result in outcome.results}
        for expectation in suite:
            _add(tallies[expectation.name], expectation, found[expectation.name], frame["seq"].to_numpy())
        # A context and its frame refer to each other in circles: they go when asked to (L9).
        del outcome, found, frame
        gc.collect()
    gc.unfreeze()
    _add_examples(batch, folder, entity, suite, tallies, clear)
    return tallies


def _frames(batch: Batch, folder: Path, rules: list[_Rule]) -> Iterator[pd.DataFrame]:
    """The batch as Great Expectations sees it, `_AT_ONCE` rows at a time, with the rows' `seq`."""
    columns = {name: make for rule in rules for name, make in rule.columns.items()}
    read = tuple(dict.fromkeys(["seq", *(c for rule in rules for c in rule.expectation.columns)]))
    held: list[pa.Table] = []
    for rows in read_landed(folder, batch.files, batch.entity, read):
        held.append(pa.table({"seq": rows["seq"]} | {name: make(rows) for name, make in columns.items()}))
        if sum(t.num_rows for t in held) >= _AT_ONCE or sum(t.nbytes for t in held) >= _MOST_BYTES:
            yield pa.concat_tables(held).to_pandas()
            held = []
    if held:
        yield pa.concat_tables(held).to_pandas()


def _name(outcome: Any) -> str:
    return outcome.expectation_config.meta["name"]


def _definition(entity: str, rules: list[_Rule]) -> "ValidationDefinition":
    """The suite as Great Expectations runs it, on data frames handed to it one by one."""
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("landing").add_dataframe_asset(entity)
    data = asset.add_batch_definition_whole_dataframe("rows")
    found = [
        getattr(gx.expectations, r.kind)(**r.arguments, meta={"name": r.expectation.name}) for r in rules
    ]
    suite = context.suites.add(gx.ExpectationSuite(name=entity, expectations=found))
    return context.validation_definitions.add(gx.ValidationDefinition(name=entity, data=data, suite=suite))


@functools.cache
def great_expectations() -> Any:
    """The library. Its import takes seconds, so only a check pays for it; and it must not call home."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    return importlib.import_module("great_expectations")


def _add(tally: Tally, expectation: Expectation, outcome: Any, seqs: np.ndarray) -> None:
    result = outcome.result
    if "unexpected_count" not in result:
        raise RuntimeError(
            f"the expectation {expectation.name} could not be evaluated: {outcome.exception_info}"
        )
    tally.evaluated += len(seqs)
    tally.unexpected += result["unexpected_count"]
    # The frame's own index: positions within it.
    failing = seqs[result["unexpected_index_list"] or []]
    if expectation.severity == "quarantine":
        tally.rows += failing.tolist()
    tally.first += failing[: _EXAMPLES - len(tally.first)].tolist()


def _add_examples(
    batch: Batch,
    folder: Path,
    entity: Entity,
    suite: tuple[Expectation, ...],
    tallies: dict[str, Tally],
    clear: bool,
) -> None:
    """Reads the first failing rows of each expectation, personal values masked unless `clear`."""
    wanted = {seq for tally in tallies.values() for seq in tally.first}
    failed = [expectation for expectation in suite if tallies[expectation.name].first]
    if not wanted:
        return
    read = tuple(dict.fromkeys(["seq", "id", *(c for e in failed for c in e.columns)]))
    rows: dict[int, dict[str, Any]] = {}
    for table in read_landed(folder, batch.files, batch.entity, read):
        found = table.filter(pc.field("seq").isin(list(wanted))).to_pylist()
        rows |= {row["seq"]: row for row in found}
        if len(rows) == len(wanted):
            break
    for expectation in failed:
        tally = tallies[expectation.name]
        for row in (rows[seq] for seq in tally.first):
            values = {
                column: masked(entity, column, row.get(column), clear) for column in expectation.columns
            }
            tally.examples.append({"id": masked_key(row["id"], clear)} | values)
