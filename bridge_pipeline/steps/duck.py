"""DuckDB, which sorts and groups landed rows and has a disk where memory ends: how it is opened.

What is asked of it is the business of those who ask.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

# Up to so many rows it takes longer to start than to answer.
_FEW = 20_000
# The instance that a thread keeps for few rows.
_kept = threading.local()


@contextmanager
def opened(rows: int, scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB for about so many rows, within bounded memory.

    For few it is one that this thread keeps: each start takes 30 ms, and a day of three small entities had
    nine of them. Temporary tables and what was registered are gone with the block; others must not be made.

    Args:
        scratch: where what does not fit into memory goes; made when it is needed.
    """
    if rows > _FEW:
        with _connected(scratch) as db:
            yield db
    else:
        with _instance(scratch).cursor() as db:
            yield db


def _instance(scratch: Path) -> duckdb.DuckDBPyConnection:
    db: duckdb.DuckDBPyConnection | None = getattr(_kept, "instance", None)
    if db is not None:
        try:
            # What is set takes no parameters.
            folder = str(scratch).replace("'", "''")
            db.execute(f"set temp_directory = '{folder}'")
            return db
        except duckdb.Error:
            # It has files in the folder before, few and long rows, and does not leave it; or something befell
            # it after which it answers nothing any more.
            db.close()
    _kept.instance = db = _connected(scratch)
    return db


def _connected(scratch: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"memory_limit": "64MB", "threads": 1, "temp_directory": str(scratch)})
