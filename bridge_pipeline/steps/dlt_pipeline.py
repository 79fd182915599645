"""dlt: its settings, and tables by one of its pipelines to Parquet files.

Its import takes a third of a second, so it is for `land` alone, which is for everybody else.
"""

import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from bridge_pipeline.connector_kit.journal import make_folder
from bridge_pipeline.failpoints import reach
from bridge_pipeline.imports import hollow

# What follows the first of a pipeline's three steps, and what speaks SQL: half of the library's import,
# which only hands their names on. Whoever asks one for a table is refused.
_NEVER_USED = (
    "dlt.common.libs.sqlglot",
    "dlt.dataset",
    "dlt.destinations",
    "dlt.destinations.dataset",
    "dlt.destinations.decorators",
    "dlt.destinations.fs_client",
    "dlt.destinations.job_client_impl",
    "dlt.destinations.sql_client",
    "dlt.load",
    "dlt.load.configuration",
    "dlt.load.exceptions",
    "dlt.normalize.normalize",
    "dlt.pipeline.dbt",
    "sqlglot",
    "sqlglot.expressions",
)
with hollow(*_NEVER_USED):
    import dlt
    from dlt.common import logger
    from dlt.common.configuration.container import Container
    from dlt.common.configuration.providers import ConfigProvider, CustomLoaderDocProvider
    from dlt.common.configuration.specs import RuntimeConfiguration
    from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
    from dlt.common.runtime.run_context import RunContext
    from dlt.pipeline.exceptions import PipelineStepFailed
    from dlt.sources import DltResource

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


def write_parquet(entity: str, tables: Tables, folder: Path, work: Path) -> None:
    """Writes the tables into `folder` by a pipeline of their own, which works in `work`.

    dlt has written them as Parquet when it has extracted them; its other two steps would link these very
    files and copy them. What the tables raise is raised as it is.
    """
    _settle_dlt()
    pipeline = dlt.pipeline(f"batch_{folder.name}", pipelines_dir=str(work))
    try:
        # It looks at every table whether it is one of these.
        with hollow("dlt.dataset.relation"):
            extracted = pipeline.extract(connection_source({entity: tables}))
    except PipelineStepFailed as failure:
        # dlt wraps what the tables raised; the caller is to see that itself.
        raised = _raised_within(failure)
        raise raised from raised.__cause__
    make_folder(folder.parent)
    folder.mkdir()
    for package in extracted.load_packages:
        for job in package.jobs["new_jobs"]:
            if job.job_file_info.table_name == entity:
                shutil.move(job.file_path, folder / job.job_file_info.job_id())
                reach("land.moved")


class _Alone(RunContext):
    """dlt's surroundings: no plugin that another package brings, and no requests that it sends itself.

    To look for the one in all packages there are, and to import what the other takes, was a third of the
    first small batch.
    """

    def initial_providers(self) -> list[ConfigProvider]:
        return [CustomLoaderDocProvider("bridge", lambda: _SETTINGS)]

    def initialize_runtime(self, runtime_config: RuntimeConfiguration | None = None) -> None:
        self._runtime_config = runtime_config or RuntimeConfiguration(dlthub_telemetry=False)
        logger.LOGGER = logging.getLogger("dlt")


@functools.cache
def _settle_dlt() -> None:
    """Gives dlt its settings, and nowhere else to look for any.

    It asks for each of hundreds of values, many times a pipeline, at every place it knows: the
    environment and files of the current folder and the user's, none of which is to change what lands.
    That took two thirds of the time of a small batch.
    """
    Container()[PluggableRunContext] = PluggableRunContext(_Alone(None))


def _raised_within(failure: BaseException) -> BaseException:
    """What dlt's errors come from; another one that this came from stays its cause."""
    while type(failure).__module__.startswith("dlt.") and failure.__cause__ is not None:
        failure = failure.__cause__
    return failure
