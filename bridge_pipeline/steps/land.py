"""Landing: Arrow tables to Parquet files, through dlt.

Each batch is a dlt dataset of its own, written by a pipeline with its own name and working
folder: dlt has no lock between processes (see docs/decisions). The files count for nothing
until the ledger lists their batch.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.common.configuration.container import Container
from dlt.common.configuration.providers import CustomLoaderDocProvider
from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.sources import DltResource

from bridge_pipeline.connector_kit.journal import sync_folder
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import ENTITIES

# The tables' schema is the entity's declaration; a column more or another type is an error.
_CONTRACT = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}

_SETTINGS = {
    "runtime": {"dlthub_telemetry": False},
    # A pipeline is new with each batch: there is nothing to restore, and nobody reads its trace.
    "restore_from_destination": False,
    "enable_runtime_trace": False,
}

Tables = Callable[[], Iterator[pa.Table]]


@dlt.source(name="connection")
def connection_source(resources: dict[str, Tables]) -> list[DltResource]:
    """The streams of one connection as dlt resources, by entity; each yields Arrow tables."""
    return [
        dlt.resource(
            tables,
            name=entity,
            write_disposition="append",
            file_format="parquet",
            schema_contract=_CONTRACT,  # type: ignore[arg-type]
        )
        for entity, tables in resources.items()
    ]


def land(entity: str, tables: Tables, folder: Path, work: Path) -> list[dict[str, Any]]:
    """Writes the tables below `folder` and returns the files, durable on disk.

    Args:
        folder: of the batch; made anew.
        work: scratch folder of this pipeline alone; removed afterwards.

    Returns:
        For each file `path` (relative to `folder`), `rows`, `bytes` and `sha256`.
    """
    _settle_dlt()
    pipeline = dlt.pipeline(
        pipeline_name=f"batch_{folder.name}",
        pipelines_dir=str(work),
        destination=dlt.destinations.filesystem(
            bucket_url=folder.parent.as_uri(),
            layout="{table_name}.{file_id}.{ext}",
            enable_dataset_name_normalization=False,
        ),
        dataset_name=folder.name,
    )
    try:
        pipeline.run(connection_source({entity: tables}), loader_file_format="parquet")
        reach("land.written")
        return [_described(path, folder) for path in sorted(folder.glob(f"{entity}.*.parquet"))]
    except PipelineStepFailed as failure:
        # dlt wraps what the tables raised; the caller is to see that itself.
        raise _cause(failure) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.cache
def _settle_dlt() -> None:
    """Gives dlt its settings, and nowhere else to look for any.

    It asks for each of hundreds of values, many times a pipeline, at every place it knows: the
    environment and files of the current folder and the user's, none of which is to change what lands.
    That took two thirds of the time of a small batch.
    """
    providers = Container()[PluggableRunContext].providers
    providers.providers[:] = [CustomLoaderDocProvider("bridge", lambda: _SETTINGS)]


def _cause(failure: BaseException) -> BaseException:
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return failure


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
