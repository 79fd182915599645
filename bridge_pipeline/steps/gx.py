"""Great Expectations: its import, and one validation of a data frame by a suite.

What it is shown of a batch, and what its answers mean for the rows, is in `rows`.
"""

import functools
import gc
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge_pipeline.imports import hidden, hollow, made_to_stay, put_off

if TYPE_CHECKING:
    import pandas as pd

# Imported by expectations about distributions and their charts alone, a third of the library's import:
# what never asks them anything need not wait for them.
_RARELY_NEEDED = ("scipy.stats", "altair")
# What it asks databases by: 20 MiB. It is shown data frames alone.
_NEVER_NEEDED = ("sqlalchemy",)
# Its kinds of sources, but for data frames, which it only hands on: a third of its import are their models.
_SOURCES = "great_expectations.datasource.fluent"
_NEVER_USED = tuple(
    f"{_SOURCES}.{name}"
    for name in (
        "alloy_datasource",
        "aurora_datasource",
        "bigquery_datasource",
        "citus_datasource",
        "databricks_sql_datasource",
        "fabric",
        "fabric_datasource",
        "neon_datasource",
        "pandas_azure_blob_storage_datasource",
        "pandas_dbfs_datasource",
        "pandas_file_path_datasource",
        "pandas_filesystem_datasource",
        "pandas_google_cloud_storage_datasource",
        "pandas_s3_datasource",
        "postgres_datasource",
        "redshift_datasource",
        "snowflake_datasource",
        "spark_azure_blob_storage_datasource",
        "spark_datasource",
        "spark_dbfs_datasource",
        "spark_file_path_datasource",
        "spark_filesystem_datasource",
        "spark_google_cloud_storage_datasource",
        "spark_s3_datasource",
        "sql_datasource",
        "sql_server_datasource",
        "sqlite_datasource",
    )
)
_COMPLETE = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}


@dataclass(frozen=True)
class Question:
    """An expectation to be judged: a class of `great_expectations.expectations` and its arguments."""

    name: str
    kind: str
    arguments: dict[str, Any]


@functools.cache
def great_expectations() -> Any:
    """The library. Its import takes seconds, so only a check pays for it; and it must not call home."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with made_to_stay(), put_off(*_RARELY_NEEDED), hidden(*_NEVER_NEEDED), hollow(*_NEVER_USED):
        return importlib.import_module("great_expectations")


def failing(questions: Iterable[Question], frame: "pd.DataFrame") -> dict[str, list[int]]:
    """Validates a frame, and gives for each question the positions of the rows that fail it.

    Raises:
        RuntimeError: Great Expectations could not evaluate one.
    """
    gx = great_expectations()
    # What lives now outlives the frame; the collection after it need not look at it.
    gc.freeze()
    try:
        return _validated(gx, questions, frame)
    finally:
        # What was shown and who judged it refer to each other in circles: they go when asked to (L9).
        gc.collect()
        gc.unfreeze()


def _validated(gx: Any, questions: Iterable[Question], frame: "pd.DataFrame") -> dict[str, list[int]]:
    # A context keeps what it was shown, so each frame has one of its own (L9).
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("landing").add_dataframe_asset("rows")
    whole = asset.add_batch_definition_whole_dataframe("all")
    asked = [getattr(gx.expectations, q.kind)(**q.arguments, meta={"name": q.name}) for q in questions]
    # Not by a validation definition: it would write every position it found into a store.
    outcome = whole.get_batch({"dataframe": frame}).validate(
        gx.ExpectationSuite(name="rows", expectations=asked), result_format=_COMPLETE
    )
    # Great Expectations groups the results by column: their order is not that of the questions.
    return {each.expectation_config.meta["name"]: _positions(each) for each in outcome.results}


def _positions(outcome: Any) -> list[int]:
    name = outcome.expectation_config.meta["name"]
    if "unexpected_count" not in outcome.result:
        raise RuntimeError(f"the expectation {name} could not be evaluated: {outcome.exception_info}")
    found = outcome.result["unexpected_index_list"] or []
    if len(found) != outcome.result["unexpected_count"]:
        raise RuntimeError(f"the expectation {name} counts {outcome.result['unexpected_count']} of {found}")
    return found
