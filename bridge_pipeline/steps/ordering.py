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

    Args:
        parts: in any order; no two rows have the same rank.
        ranks: where all ranks lie.
        folder: for scratch files, which are removed again.
        budget: bytes that are sorted in memory.
    """
    source, held, size = iter(parts), list[pa.Table](), 0
    for part in source:
        held.append(part)
        size += part.nbytes
        if size > budget and len(ranks) > 1:
            break
    else:
        yield from _sorted(held)
        return
    # As many shares as fit the budget, if the rest of the rows is like these.
    whole = size * len(ranks) / max(sum(each.num_rows for each in held), 1)
    share = -(-len(ranks) // min(max(int(whole / budget) + 1, 2), _MOST_SHARES))
    shares = [ranks[start : start + share] for start in range(0, len(ranks), share)]
    paths = [folder / f"{each.start}-{each.stop}.arrow" for each in shares]
    _spread(chain(_drained(held), source), ranks.start, share, paths)
    for each, path in zip(shares, paths, strict=True):
        if path.exists():
            yield from in_order(_read(path), each, folder, budget)
            path.unlink()


def _sorted(held: list[pa.Table]) -> Iterator[pa.Table]:
    if not held:
        return
    table = pa.concat_tables(_drained(held)).combine_chunks()
    order = np.argsort(table[RANK].to_numpy())
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        yield table.take(pa.array(order[start : start + _ROWS_AT_A_TIME]))


def _drained(held: list[pa.Table]) -> Iterator[pa.Table]:
    """The tables, each let go of once it is used."""
    while held:
        yield held.pop(0)


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
