"""Rows in a given order, of which there may be more than fit into memory.

What does not fit is spread over scratch files, each with a range of the order. Which order that
is, and what the rows are, is the business of the caller.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

RANK = "rank"
# What is sorted at a time, in bytes; about three times as much is held meanwhile.
BUDGET = 16 << 20
_ROWS_AT_A_TIME = 8_192
# Scratch files that are open together.
_MOST_SHARES = 128


def in_order(parts: Iterable[pa.Table], ranks: range, folder: Path, budget: int) -> Iterator[pa.Table]:
    """The rows by their int64 column `rank`, some thousands at a time.

    Rows whose turn it is are given at once: those that come nearly in order are never written down.

    Args:
        parts: in any order; no two rows have the same rank.
        ranks: where all ranks lie; those that no row has make the rows after them wait.
        folder: for scratch files, which are removed again.
        budget: bytes that are sorted in memory.
    """
    source, due, held, size = iter(parts), ranks.start, list[pa.Table](), 0
    for part in source:
        held.append(part)
        size += part.nbytes
        if size <= budget or ranks.stop - due == 1:
            continue
        table, order, places = _sorted(held)
        ready = _leading(places, due)
        yield from _taken(table, order[:ready])
        due += ready
        held = [table.take(pa.array(order[ready:]))]
        size = held[0].nbytes
        # What is kept is copied again each time.
        if size > budget / 2:
            yield from _by_shares(held[0], source, range(due, ranks.stop), folder, budget)
            return
    if held:
        table, order, _ = _sorted(held)
        yield from _taken(table, order)


def _by_shares(
    held: pa.Table, rest: Iterator[pa.Table], ranks: range, folder: Path, budget: int
) -> Iterator[pa.Table]:
    """The rows by way of scratch files that each fit the budget, if the rest is like what is held."""
    whole = held.nbytes * len(ranks) / held.num_rows
    share = -(-len(ranks) // min(max(int(whole / budget) + 1, 2), _MOST_SHARES))
    shares = [ranks[start : start + share] for start in range(0, len(ranks), share)]
    paths = [folder / f"{each.start}-{each.stop}.arrow" for each in shares]
    _spread(chain([held], rest), ranks.start, share, paths)
    for each, path in zip(shares, paths, strict=True):
        if path.exists():
            yield from in_order(_read(path), each, folder, budget)
            path.unlink()


def _sorted(held: list[pa.Table]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Tables as one, where its rows stand in order, and their ranks in that order."""
    table = pa.concat_tables(held)
    ranks = table[RANK].to_numpy()
    order = np.argsort(ranks, kind="stable")
    return table, order, ranks[order]


def _leading(ranks: np.ndarray, due: int) -> int:
    """How many ordered ranks follow each other without a gap from the one that is due."""
    gaps = np.flatnonzero(ranks != np.arange(due, due + len(ranks)))
    return int(gaps[0]) if len(gaps) else len(ranks)


def _taken(table: pa.Table, order: np.ndarray) -> Iterator[pa.Table]:
    """The rows at these places, some thousands at a time."""
    # Rows that are in order already need no copy.
    as_they_are = bool((order == np.arange(len(order))).all())
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        places = order[start : start + _ROWS_AT_A_TIME]
        yield table.slice(start, len(places)) if as_they_are else table.take(pa.array(places))


def _spread(parts: Iterable[pa.Table], first: int, share: int, paths: list[Path]) -> None:
    with ExitStack() as stack:
        files: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for part in parts:
            places = (part[RANK].to_numpy() - first) // share
            order = np.argsort(places, kind="stable")
            found, starts = np.unique(places[order], return_index=True)
            for place, chosen in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
                if place not in files:
                    files[place] = stack.enter_context(pa.ipc.new_stream(str(paths[place]), part.schema))
                files[place].write_table(part.take(pa.array(chosen)))


def _read(path: Path) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(str(path)) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])
