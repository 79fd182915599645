"""Landing: Arrow tables to Parquet files, through dlt.

Each batch is a dlt dataset of its own, written by a pipeline with its own name and working
folder: dlt has no lock between processes (see docs/decisions). The files count for nothing
until the ledger lists their batch.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bridge_pipeline.connector_kit.journal import listed, sync_folder
from bridge_pipeline.failpoints import reach
from bridge_pipeline.imports import made_to_stay
from bridge_pipeline.model import ENTITIES

Tables = Callable[[], Iterator[pa.Table]]
# There is none, or something else in its place or that of a folder above it, or the disk has lost it.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EIO}


class LandingDamaged(RuntimeError):
    """A file of a landing is missing, or is not the one that the ledger lists; `finding` says which."""

    def __init__(self, path: Path) -> None:
        self.finding = f"{path} is missing or not the file that the ledger lists"
        super().__init__(f"{self.finding}; put it back from a backup, or extract its days again")


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
        files = [_described(path, folder) for path in listed(folder, f"{entity}.*.parquet")]
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


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there that can be read and has the SHA-256 that the ledger lists.

    A process reads it through once, as long as nobody writes it again.
    """
    try:
        told = path.stat()
        identity = told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns
        return stat.S_ISREG(told.st_mode) and _digest(path, *identity) == sha256
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return False


@lru_cache(maxsize=4096)
def _digest(path: Path, *identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_damaged(folder: Path, files: list[dict[str, Any]]) -> None:
    """Looks at the files of a landing before anything is read from it.

    Raises:
        LandingDamaged: one is missing, or not the one that the ledger lists.
    """
    for file in files:
        if not is_intact(folder / file["path"], file["sha256"]):
            raise LandingDamaged(folder / file["path"])


def read_landed(
    folder: Path, files: list[dict[str, Any]], entity: str, columns: tuple[str, ...] | None = None
) -> Iterator[pa.Table]:
    """The landed rows of a batch, one row group at a time.

    Raises:
        LandingDamaged: a file is missing, or not the one that the ledger lists.
    """
    refuse_damaged(folder, files)
    schema = ENTITIES[entity].landing_schema
    for file in files:
        with pq.ParquetFile(folder / file["path"]) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=list(columns) if columns else None)
                yield table.select(columns or schema.names)
