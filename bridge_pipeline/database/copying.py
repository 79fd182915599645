"""Arrow tables into Postgres by COPY in the binary format.

That format has no escapes, tells null from empty by itself, and spares the server the parsing of
times; see docs/decisions/0004. Nothing here knows a table, or which rows are to be copied.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from bridge_pipeline.ahead import ahead
from bridge_pipeline.failpoints import reach

# What is encoded at a time; a message of COPY is cut further by the driver.
_ROWS_AT_A_TIME = 2_048
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
# From 1970 to 2000, where Postgres begins to count, in microseconds.
_EPOCH = 946_684_800_000_000
_SIZES = {"bigint": 8, "timestamptz": 8, "boolean": 1}


def copy_into(
    connection: sa.Connection,
    table: str,
    types: Mapping[str, str],
    rows: Iterable[pa.Table],
    constants: Mapping[str, str | int] | None = None,
) -> int:
    """Streams rows into a table, in the caller's transaction.

    Args:
        types: Postgres type of each column, in the order of the rows' columns: `text`, `jsonb`,
            `timestamptz`, `boolean` or `bigint`.
        rows: are made in a thread of their own while the server takes those before; they may not ask
            anything of this connection.
        constants: values of further columns, the same in each row: a text or a bigint.

    Returns:
        How many rows Postgres says it took.
    """
    fixed = dict(constants or {})
    columns = ", ".join([*fixed, *types])
    prefix = (len(fixed) + len(types)).to_bytes(2, "big")
    prefix += b"".join(len(data).to_bytes(4, "big") + data for data in map(_constant, fixed.values()))
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    with driver.cursor() as cursor:
        with cursor.copy(f"copy {table} ({columns}) from stdin (format binary)".encode()) as copy:
            copy.write(_HEADER)
            with closing(ahead(_messages(rows, list(types.values()), prefix))) as messages:
                for message in messages:
                    copy.write(message)
            copy.write(_TRAILER)
        reach("copy.taken")
        return cursor.rowcount


def stage(connection: sa.Connection, table: str, types: Mapping[str, str], rows: Iterable[pa.Table]) -> None:
    """Creates a temporary table for this transaction and streams rows into it; see `copy_into`."""
    create_stage(connection, table, types)
    copy_into(connection, table, types, rows)


def create_stage(connection: sa.Connection, table: str, types: Mapping[str, str]) -> None:
    """Creates a temporary table for this transaction."""
    columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
    connection.execute(sa.text(f"create temporary table {table} ({columns}) on commit drop"))
    reach("copy.staged")


def _messages(rows: Iterable[pa.Table], types: list[str], prefix: bytes) -> Iterator[memoryview]:
    for part in rows:
        reach("copy.part")
        for batch in part.to_batches(max_chunksize=_ROWS_AT_A_TIME):
            if batch.num_rows:
                yield _encoded(batch, types, prefix)


def _constant(value: str | int) -> bytes:
    return value.encode() if isinstance(value, str) else value.to_bytes(8, "big", signed=True)


def _encoded(batch: pa.RecordBatch, types: list[str], prefix: bytes) -> memoryview:
    """The rows as COPY takes them: each with the number of its fields, and each field after its size."""
    pieces = [
        piece for column, kind in zip(batch.columns, types, strict=True) for piece in _field(column, kind)
    ]
    options = pc.JoinOptions(null_handling="replace", null_replacement="")
    rows = pc.call_function("binary_join_element_wise", [_scalar(prefix), *pieces, _scalar(b"")], options)
    _, starts, data = rows.buffers()
    return memoryview(data)[: np.frombuffer(starts, np.int32)[len(rows)]]


def _field(column: pa.Array, kind: str) -> tuple[pa.Array, pa.Array]:
    """Sizes and values of a column; a null has the size -1 and no value."""
    if kind in _SIZES:
        sizes, values = np.full(len(column), _SIZES[kind], ">i4"), _numbers(column, kind)
    else:
        values = column.cast(pa.binary())
        if kind == "jsonb":
            # The version of the format, then the text.
            values = pc.call_function("binary_join_element_wise", [_scalar(b"\x01"), values, _scalar(b"")])
        lengths = pc.call_function("binary_length", [values]).fill_null(0)
        sizes = lengths.to_numpy(zero_copy_only=False).astype(">i4")
    if column.null_count:
        sizes[column.is_null().to_numpy(zero_copy_only=False)] = -1
        values = pc.call_function("if_else", [column.is_valid(), values, _scalar(None)])
    return _pieces(sizes), values


def _numbers(column: pa.Array, kind: str) -> pa.Array:
    if kind == "boolean":
        return _pieces(column.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False))
    numbers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return _pieces((numbers - (_EPOCH if kind == "timestamptz" else 0)).astype(">i8"))


def _scalar(value: bytes | None) -> pa.Scalar:
    return pa.scalar(value, pa.binary())


def _pieces(numbers: np.ndarray) -> pa.Array:
    """The bytes of each number, without copying them."""
    width = numbers.dtype.itemsize
    starts = np.arange(len(numbers) + 1, dtype=np.int32) * width
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(numbers))]
    return pa.Array.from_buffers(pa.binary(), len(numbers), buffers)
