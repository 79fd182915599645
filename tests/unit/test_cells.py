"""Cells of audit files: no spreadsheet runs one, and one quote taken off gives the value back."""

import pyarrow as pa
import pytest

from bridge_pipeline.steps.cells import lines, written

RUNS = ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
BLANKS = [" ", "\t", "\r", "\n", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2028", "\u3000", "'"]


def cells(texts):
    column = texts if isinstance(texts, pa.ChunkedArray) else pa.array(texts, pa.string())
    return written(pa.table({"text": column}))["text"].to_pylist()


@pytest.mark.parametrize("mark", RUNS)
@pytest.mark.parametrize("before", ["", *BLANKS, "' "])
def test_a_cell_that_would_run_is_disarmed(mark, before):
    assert cells([f"{before}{mark}1"]) == [f"'{before}{mark}1"]


@pytest.mark.parametrize("text", ["'", "'twas", "\tx", "\nx", "\rx"])
def test_a_cell_that_begins_with_a_quote_or_a_break_gets_one_more(text):
    assert cells([text]) == [f"'{text}"]


@pytest.mark.parametrize("text", ["", "a=1", " x", "1-2", "\u3042", "\u1680x", "\u00e9", None])
def test_other_cells_stay_as_they_are(text):
    assert cells([text]) == [text]


def test_cells_of_a_part_of_a_table_are_looked_at_where_they_stand():
    texts = pa.chunked_array([pa.array(["a", "bb", "=c", None, "", "=d"])]).slice(1, 5)
    assert cells(texts) == ["bb", "'=c", None, "", "'=d"]


def test_null_is_told_from_no_text():
    assert bytes(lines(pa.table({"a": ["x", None, ""], "b": ["1", "2", "3"]}))) == b'"x","1"\n,"2"\n"","3"\n'
