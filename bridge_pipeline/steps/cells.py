"""Cells of audit files: rows as CSV that is safe to open in a spreadsheet.

All values are quoted, null is an empty cell without quotes, and cells that a spreadsheet would
run are disarmed. Which rows stand in a file, and in which order, is in `picks` and `ordering`.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

# What Unicode calls white space.
_BLANKS = r"\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
# A cell runs if it begins with one of = + - @ or their full-width forms, or with a tab or line
# break; blanks and quotes before those do not help. One quote is put before, also before a cell
# that begins with a quote itself, so that taking one quote off gives the value back.
GUARD = rf"^[{_BLANKS}']*[=+\-@＝＋－＠]|^[\t\r\n']"
# What the UTF-8 of such a cell begins with; those of the longer ones are of other characters, too.
_BEGINNINGS = np.isin(np.arange(256), [*b"\t\n\v\f\r '=+-@", 0xC2, 0xE1, 0xE2, 0xE3, 0xEF])
_OPTIONS = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")


def header(columns: tuple[str, ...]) -> bytes:
    """The first line of a file with these columns."""
    return ",".join(f'"{name}"' for name in columns).encode() + b"\n"


def written(rows: pa.Table) -> pa.Table:
    """Rows as texts: times in ISO 8601 to the microsecond, in UTC, booleans as words, texts disarmed."""
    return pa.table([_cells(column) for column in rows.columns], names=rows.column_names)


def lines(rows: pa.Table) -> pa.Buffer:
    """Rows of texts as lines."""
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(rows, sink, _OPTIONS)
    return sink.getvalue()


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        # Without the zone, which would be looked up for each value.
        times = column.cast(pa.timestamp("us")).cast(pa.string()).cast(pa.binary())
        options = pc.ReplaceSliceOptions(10, 11, b"T")
        return _joined(pc.call_function("binary_replace_slice", [times], options).cast(pa.string()), "Z")
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    return _disarmed(column)


def _disarmed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    found = np.concatenate([np.zeros(0, bool), *map(_suspects, texts.chunks)])
    # Few cells begin so: only those are worth an expression.
    places = np.flatnonzero(found)
    if not len(places):
        return texts
    options = pc.MatchSubstringOptions(GUARD)
    matches = pc.call_function("match_substring_regex", [texts.take(pa.array(places))], options)
    found[places] = matches.fill_null(False).to_numpy()
    return pc.call_function("if_else", [pa.array(found), _joined("'", texts), texts])


def _suspects(texts: pa.StringArray) -> np.ndarray:
    """Whether each cell begins as one that runs does, by its first byte."""
    found = np.zeros(len(texts), bool)
    _, starts, data = texts.buffers()
    if data is None or not len(texts):
        return found
    borders = np.frombuffer(starts, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    filled = np.flatnonzero(np.diff(borders))
    found[filled] = _BEGINNINGS[np.frombuffer(data, np.uint8)[borders[filled]]]
    return found


def _joined(*pieces: str | pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.call_function("binary_join_element_wise", [*map(_operand, pieces), pa.scalar("")])


def _operand(piece: str | pa.ChunkedArray) -> pa.Scalar | pa.ChunkedArray:
    return pa.scalar(piece) if isinstance(piece, str) else piece
