"""The expectations of rows: Great Expectations over a landed batch, each value judged once.

Of each column it is shown what its judgement needs: whether there is a value, how long it is, how two
lie to each other, or the value itself; and of these each one once, however many rows hold it. What it
says of a value holds for all rows with that value, so counts and positions are those of the whole
batch. Examples are read from the landing files afterwards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.masking import masked, masked_key
from bridge_pipeline.memory import give_back
from bridge_pipeline.model import ENTITIES, Entity
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps import gx, gx_worker
from bridge_pipeline.steps.land import read_landed

Failing = Iterator[tuple[Expectation, np.ndarray]]
# Rows that are judged together: each time costs Great Expectations some tenths of a second.
_AT_ONCE = 250_000
# Or fewer, where there are many long values.
_MOST_BYTES = 24_000_000
# More rows than so many are worth another start of Great Expectations: it takes two seconds of a core, and
# to load and audit them several times that, while its process would stand beside with what it holds.
_WORTH_A_START = 50_000
_EXAMPLES = 10
# Kinds that judge each value for itself, whatever stands in other rows.
_BY_VALUE = {
    "ExpectColumnValuesToBeBetween",
    "ExpectColumnValuesToBeInSet",
    "ExpectColumnValuesToNotBeInSet",
    "ExpectColumnValuesToMatchRegex",
    "ExpectColumnValuesToNotMatchRegex",
}
_EITHER_MISSING = "either_value_is_missing"
# A column of zeros: where the earlier of two values lies.
_EARLIER = "earlier"


@dataclass
class Tally:
    """What one expectation found so far; `rows` are the failing rows of one that takes them out."""

    evaluated: int = 0
    unexpected: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Rule:
    """An expectation as Great Expectations is asked it, and the one column of the frame it is asked of."""

    expectation: Expectation
    question: gx.Question
    column: str
    shown: Callable[[pa.Table], pa.ChunkedArray]


@dataclass(frozen=True)
class _Values:
    """The different values of a shown column, and for each row which one it has."""

    different: pa.Array
    of_rows: np.ndarray


def _rule(expectation: Expectation) -> _Rule:
    """How an expectation is asked.

    Raises:
        ValueError: its kind does not judge each row for itself.
    """
    kind, given, columns = expectation.kind, expectation.arguments, expectation.columns
    if kind == "ExpectColumnValuesToNotBeNull":
        return _asked(expectation, kind, "presence", lambda rows: _presence(rows[columns[0]]))
    if kind == "ExpectColumnValueLengthsToBeBetween":
        kind = "ExpectColumnValuesToBeBetween"
        return _asked(expectation, kind, "length", lambda rows: _length(rows[columns[0]]))
    if kind in _BY_VALUE:
        return _asked(expectation, kind, "value", lambda rows: rows[columns[0]])
    if kind == "ExpectColumnPairValuesAToBeGreaterThanB" and given.get("ignore_row_if") == _EITHER_MISSING:
        return _asked(expectation, kind, "order", lambda rows: _order(rows[columns[0]], rows[columns[1]]))
    raise ValueError(f"{expectation.name}: rows cannot be judged by {kind}, one by one; see steps.rows")


def _asked(
    expectation: Expectation, kind: str, view: str, shown: Callable[[pa.Table], pa.ChunkedArray]
) -> _Rule:
    name = " ".join((*expectation.columns, view))
    of = {"column_A": name, "column_B": _EARLIER} if view == "order" else {"column": name}
    question = gx.Question(expectation.name, kind, expectation.arguments | of)
    return _Rule(expectation, question, name, shown)


def _presence(column: pa.ChunkedArray) -> pa.ChunkedArray:
    there = column.is_valid()
    return pc.call_function("if_else", [there, pa.scalar(1, pa.int8()), pa.scalar(None, pa.int8())])


def _length(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.call_function("utf8_length", [column])


def _order(later: pa.ChunkedArray, earlier: pa.ChunkedArray) -> pa.ChunkedArray:
    """1 where the later value is greater than the earlier one, 0 where they are equal, else -1."""
    above, below = (pc.call_function(name, [later, earlier]).cast(pa.int8()) for name in ("greater", "less"))
    return pc.call_function("subtract", [above, below])


def begin(
    batch: Batch, folder: Path, suite: tuple[Expectation, ...], clear: bool = False
) -> Callable[[], dict[str, Tally]]:
    """Begins to run the expectations of rows over a batch, in bounded memory; what it gives waits for the
    outcome, and does so once.

    Args:
        clear: whether the tenant asked for examples with personal values as they are.

    Raises:
        RuntimeError: Great Expectations could not evaluate one, or its process ended; by the outcome, too.
        ValueError: one does not judge each row for itself.
    """
    tallies = {expectation.name: Tally() for expectation in suite}
    if not batch.landed or not suite:
        return lambda: tallies
    rules = [_rule(expectation) for expectation in suite]
    # Of what the extraction left behind.
    give_back()
    turns = _answered_in_turn(rules, _parts(batch, folder, rules))
    first = list(islice(turns, 1))

    def outcome() -> dict[str, Tally]:
        for seqs, failing in chain(first, turns):
            for expectation, positions in failing():
                _add(tallies[expectation.name], expectation, seqs, positions)
            give_back()
        if batch.landed > _WORTH_A_START:
            gx_worker.dismiss()
        _add_examples(batch, folder, ENTITIES[batch.entity], suite, tallies, clear)
        return tallies

    return outcome


def _parts(batch: Batch, folder: Path, rules: list[_Rule]) -> Iterator[pa.Table]:
    """The batch as it is shown, at most `_AT_ONCE` rows at a time, with the rows' `seq`."""
    read = tuple(dict.fromkeys(["seq", *(c for rule in rules for c in rule.expectation.columns)]))
    held: list[pa.Table] = []
    for rows in read_landed(folder, batch.files, batch.entity, read):
        held.append(_shown(rules, rows))
        if sum(t.num_rows for t in held) >= _AT_ONCE or sum(t.nbytes for t in held) >= _MOST_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _shown(rules: list[_Rule], rows: pa.Table) -> pa.Table:
    """The columns of the rules, each value held once."""
    columns = {rule.column: rule.shown for rule in rules}
    encoded = {name: shown(rows).dictionary_encode() for name, shown in columns.items()}
    return pa.table({"seq": rows["seq"]} | encoded)


def _answered_in_turn(
    rules: list[_Rule], parts: Iterator[pa.Table]
) -> Iterator[tuple[np.ndarray, Callable[[], Failing]]]:
    """The `seq` of each part's rows and what fails among them; a part is read while another is judged."""
    judged = None
    for rows in parts:
        if judged is not None:
            yield judged
        judged = rows["seq"].to_numpy(), _failing(rules, rows)
    if judged is not None:
        yield judged


def _failing(rules: list[_Rule], rows: pa.Table) -> Callable[[], Failing]:
    """Lets rows be judged; gives, when asked, each expectation with the positions of those that fail it."""
    values = {rule.column: _values(rows[rule.column]) for rule in rules}
    answers = gx_worker.ask((rule.question for rule in rules), _frame(values))

    def failing() -> Failing:
        found = answers()
        for rule in rules:
            column, places = values[rule.column], found[rule.expectation.name]
            fails = np.zeros(len(column.different), dtype=bool)
            # Beyond its own values a column of the frame is only filled up.
            fails[places[places < len(fails)]] = True
            yield rule.expectation, np.flatnonzero(fails[column.of_rows])

    return failing


def _values(column: pa.ChunkedArray) -> _Values:
    """The different values of an encoded column; null, where there is any, is the last of them."""
    encoded = column.unify_dictionaries().combine_chunks()
    values, codes = encoded.dictionary, encoded.indices
    if codes.null_count:
        codes = codes.fill_null(len(values))
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return _Values(values, codes.to_numpy())


def _frame(values: dict[str, _Values]) -> pa.Table:
    """The different values side by side; columns with fewer than others repeat their last one."""
    size = max(len(column.different) for column in values.values())
    places = np.arange(size)
    columns = {
        name: column.different.take(pa.array(np.minimum(places, len(column.different) - 1)))
        for name, column in values.items()
    }
    return pa.table(columns | {_EARLIER: pa.array(np.zeros(size, dtype=np.int8))})


def _add(tally: Tally, expectation: Expectation, seqs: np.ndarray, positions: np.ndarray) -> None:
    tally.evaluated += len(seqs)
    tally.unexpected += len(positions)
    if expectation.severity == "quarantine":
        tally.rows += seqs[positions].tolist()
    tally.first += seqs[positions[: _EXAMPLES - len(tally.first)]].tolist()


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
