"""Which landed rows a load takes, without a database."""

from hashlib import sha256

import pyarrow as pa
import pytest

from bridge_pipeline.steps.chosen import held_among

ONE, TWO, THREE = (sha256(letter).hexdigest() for letter in (b"1", b"2", b"3"))


@pytest.mark.parametrize(
    ("landed", "held", "found", "rows"),
    [
        ([ONE, TWO, THREE], THREE + ONE, [0, 2], 2),
        ([ONE, TWO], "", [], 0),
        ([ONE], TWO, [], 0),
        # One row of the table is one, however many would claim it: such a load does not add up.
        ([ONE, ONE], ONE, [0, 1], 1),
        # What is no hash makes others unknown, never known.
        ([ONE, TWO], "short" + ONE, [], 0),
    ],
)
def test_a_row_is_held_if_the_table_has_its_hash(landed, held, found, rows):
    table = pa.table({"seq": pa.array(range(len(landed))), "content_hash": landed})
    numbers, count = held_among(table, held)
    assert (numbers.tolist(), count) == (found, rows)
