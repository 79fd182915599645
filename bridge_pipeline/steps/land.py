"""Landing: Arrow tables to Parquet files, through dlt.

Each batch is a dlt dataset of its own, written by a pipeline with its own name and working
folder: dlt has no lock between processes (see docs/decisions). The files count for nothing
until the ledger lists their batch.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bridge_pipeline.connector_kit.journal import sync_folder
from bridge_pipeline.failpoints import reach
from bridge_pipeline.imports import made_to_stay
from bridge_pipeline.model import ENTITIES

Tables = Callable[[], Iterator[pa.Table]]


def land(entity: str, tables: Tables, folder: Path, work: Path) -> list[dict[str, Any]]:
    """Writes the tables below `folder` and returns the files, durable on disk.

    Args:
        folder: of the batch; made anew.
        work: scratch folder of this pipeline alone; removed afterwards.

    Returns:
        For each file `path` (relative to `folder`), `rows`, `bytes` and `sha256`.
    """
    # Half a second, which only an extraction is to pay for.
    with made_to_stay():
        from bridge_pipeline.steps.dlt_pipeline import write_parquet
    try:
        write_parquet(entity, tables, folder, work)
        reach("land.written")
        files = [_described(path, folder) for path in sorted(folder.glob(f"{entity}.*.parquet"))]
        sync_folder(folder.parent)
        return files
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _described(path: Path, folder: Path) -> dict[str, Any]:
    reach("land.syncing")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sync_folder(path.parent)
    with pq.ParquetFile(path) as parquet:
        rows = parquet.metadata.num_rows
    return {
        "path": str(path.relative_to(folder)),
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


def read_landed(
    folder: Path, files: list[dict[str, Any]], entity: str, columns: tuple[str, ...] | None = None
) -> Iterator[pa.Table]:
    """The landed rows of a batch, one row group at a time.

    Raises:
        FileNotFoundError: a file that the ledger lists is not there.
        ValueError: a file does not have the size or rows the ledger lists.
    """
    schema = ENTITIES[entity].landing_schema
    for file in files:
        path = folder / file["path"]
        if path.stat().st_size != file["bytes"]:
            raise ValueError(f"{path} is not the file that the ledger lists: its size differs")
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=list(columns) if columns else None)
                yield table.select(columns or schema.names)
