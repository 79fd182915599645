"""What a row costs at least: the parts of a run that no pipeline with its guarantees can do without, each
alone, each by the fastest library at hand, and nothing between them.

Two readings of the source, a journal on disk, parsing, a hash of each record, Parquet, a table of the same
columns and indexes, CSV with its SHA-256. There is no quota, no census, no ledger, no check and no Dagster.
"""

import hashlib
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import psycopg
import pyarrow as pa
import zstandard
from pyarrow import csv
from pyarrow import parquet as pq

from bench.subjects import COLUMNS, PLAIN, TIMES

# Seconds of one core that its work is measured by, roughly.
_LOAD = 0.5
_TRIES = 7
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_INDEXES = "primary key (id)", "unique (updated_at, id)"


def cores_together() -> float:
    """How much more work all cores do at once than one alone does in the same time.

    Those of a virtual machine are often halves of one, and do not do twice as much. By the clock: the time
    that its host takes away is no CPU of anybody's. The median of tries in turns.

    Raises:
        BrokenProcessPool: a process that was to work has ended.
    """
    record = {"id": 4711, "subject": "Printer", "tags": ["network", "vpn"], "status": {"name": "Open"}}
    body = orjson.dumps([record] * 2_000)
    times = round(100 * _LOAD / _parse(body, 100))
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, multiprocessing.get_context("forkserver")) as pool:
        # It starts a process when there is none that rests.
        _at_once(pool, count, body, times)
        tries = [[_at_once(pool, each, body, times) for each in (1, count)] for _ in range(_TRIES)]
    return median(count * alone / together for alone, together in tries)


def _at_once(pool: ProcessPoolExecutor, processes: int, body: bytes, times: int) -> float:
    """Seconds until each of so many processes has parsed a body so often, all at once."""
    return max(pool.map(_parse, [body] * processes, [times] * processes))


def _parse(body: bytes, times: int) -> float:
    """Seconds by the clock."""
    began = time.perf_counter()
    for _ in range(times):
        orjson.loads(body)
    return time.perf_counter() - began


class Parts:
    """CPU of this process by part, in seconds, over all pages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what is done within as that part."""
        began = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began


def measured(bodies: Callable[[], Iterator[bytes]], database: str, folder: Path) -> tuple[int, Parts]:
    """The rows of the pages, and what each part of them cost.

    Args:
        bodies: reads the listing once.
        database: where a table is made and filled.
        folder: an empty one.
    """
    parts, rows = Parts(), 0
    # Arrow imports pandas when it makes its first array.
    pa.array([0])
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(f"create table least ({COLUMNS}, content_hash text, {', '.join(_INDEXES)})")
        for sweep in range(2):
            pages = bodies()
            while True:
                with parts.part("asked for, twice, with SHA-256"):
                    body = next(pages, b"")
                    digest = hashlib.sha256(body).hexdigest()
                if not body:
                    break
                with parts.part("journalled, twice, compressed once"):
                    _keep(folder / digest, body, sweep == 0)
                if sweep == 0:
                    rows += _written(parts, cursor, body, folder / f"{digest}.parquet")
    return rows, parts


def _keep(path: Path, body: bytes, first: bool) -> None:
    frame = zstandard.ZstdCompressor(level=3).compress(body) if first else path.read_bytes()
    with path.with_suffix("" if first else ".again").open("wb") as file:
        file.write(frame)
        file.flush()
        os.fsync(file.fileno())


def _written(parts: Parts, cursor: psycopg.Cursor[Any], body: bytes, path: Path) -> int:
    with parts.part("parsed"):
        records = orjson.loads(body)["data"]
    with parts.part("hashed"):
        dumped = [orjson.dumps(record, option=orjson.OPT_SORT_KEYS) for record in records]
        hashes = [hashlib.sha256(each).hexdigest() for each in dumped]
    with parts.part("made columns"):
        table = _table(records, hashes)
    with parts.part("landed as Parquet"):
        landed = table.append_column("raw", pa.array(dumped, pa.binary()))
        pq.write_table(landed, path, compression="zstd")
    with parts.part("CSV, with SHA-256"):
        text = io.BytesIO()
        csv.write_csv(table, text)
        hashlib.sha256(text.getbuffer()).hexdigest()
    into = f"copy least ({', '.join(table.column_names)}) from stdin (format csv, header)".encode()
    with parts.part("sent to Postgres"), cursor.copy(into) as copy:
        copy.write(text.getbuffer())
    return len(records)


def _table(records: list[dict[str, Any]], hashes: list[str]) -> pa.Table:
    rest = [{key: value for key, value in each.items() if key not in PLAIN} for each in records]
    plain = {
        name: pa.array([each[name] for each in records], pa.string())
        for name in ("subject", "description", *TIMES)
    }
    times = {name: plain[name].cast(_TIMESTAMP) for name in TIMES}
    return pa.table(
        {
            "id": pa.array([str(each["id"]) for each in records]),
            **plain,
            **times,
            "status": pa.array([each["status"]["name"] for each in records]),
            "priority": pa.array([each["priority"]["name"] for each in records]),
            "account_id": pa.array([str(each["account"]["id"]) for each in records]),
            "is_closed": pa.array([each["status"]["closed"] for each in records]),
            "tags": pa.array([orjson.dumps(each["tags"]).decode() for each in records]),
            "custom_fields": pa.array([orjson.dumps(each).decode() for each in rest]),
            "content_hash": pa.array(hashes),
        }
    )
