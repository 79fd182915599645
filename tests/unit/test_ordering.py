"""Rows come out by rank whatever order they came in, and those that came nearly so touch no disk."""

import numpy as np
import pyarrow as pa
import pytest

from bridge_pipeline.steps import ordering

ROWS = 3_000
# Of a row of two numbers, in bytes: some 250 of them fit.
BUDGET = 4_000


def _days(rows: int) -> np.ndarray:
    """As by time of change: within each day in any order."""
    random = np.random.default_rng(5)
    return np.concatenate([start + random.permutation(100) for start in range(0, rows, 100)])


ORDERS = {
    "in order": np.arange(ROWS),
    "in order but for days": _days(ROWS),
    "the other way round": np.arange(ROWS)[::-1],
    "in no order": np.random.default_rng(7).permutation(ROWS),
    "in order, then in none": np.r_[np.arange(ROWS // 2), ROWS - 1 - np.arange(ROWS // 2)],
    "with gaps": np.r_[np.arange(ROWS // 3), np.arange(ROWS // 2, ROWS)],
    "one": np.arange(1),
    "none": np.arange(0),
}


def _parts(ranks: np.ndarray, opened: list[int] | None = None, scratch=None):
    for start in range(0, len(ranks), 70):
        if opened is not None:
            opened.append(len(list(scratch.iterdir())))
        part = ranks[start : start + 70]
        yield pa.table({"value": part * 3, ordering.RANK: part})


@pytest.mark.parametrize("order", ORDERS)
def test_rows_come_out_by_rank(order, tmp_path):
    ranks = ORDERS[order].astype(np.int64)

    found = list(ordering.in_order(_parts(ranks), range(ROWS), tmp_path, BUDGET))

    values = [value for table in found for value in table["value"].to_pylist()]
    assert values == (np.sort(ranks) * 3).tolist()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("order", "written"), [("in order", False), ("in order but for days", False), ("in no order", True)]
)
def test_only_rows_that_come_out_of_order_are_written_down(order, written, tmp_path):
    made: list[int] = []

    list(ordering.in_order(_parts(ORDERS[order], made, tmp_path), range(ROWS), tmp_path, BUDGET))

    assert any(made) == written


def test_rows_are_given_before_the_last_one_has_come(tmp_path):
    asked: list[int] = []

    next(ordering.in_order(_parts(ORDERS["in order"], asked, tmp_path), range(ROWS), tmp_path, BUDGET))

    assert len(asked) < ROWS / 70 / 2
