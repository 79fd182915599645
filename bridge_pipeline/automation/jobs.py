"""The job that takes days of a connection from the source to marts, audit files and report."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from assets.partitions import CONNECTION_TAG
from bridge_pipeline import naming

if TYPE_CHECKING:
    # Dagster exports the function that makes it, not the type.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

DAILY_JOB, CERTIFY_JOB = "daily", "certify"
CERTIFICATE = dg.AssetKey(naming.asset_key(naming.QUALITY, "certificate"))
# Of runs that are waiting or under way.
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_BY_ENTITY = {naming.EXTRACTED, naming.TABLES, naming.AUDIT}


def daily_job() -> "UnresolvedAssetJobDefinition":
    """All assets and checks of days, in one run and one process."""
    return dg.define_asset_job(
        DAILY_JOB,
        selection=dg.AssetSelection.all() - dg.AssetSelection.assets(CERTIFICATE),
        description="Extract, check, load, audit and model days of one connection.",
        executor_def=dg.in_process_executor,
    )


def certify_job() -> "UnresolvedAssetJobDefinition":
    """The certificate of one connection."""
    return dg.define_asset_job(
        CERTIFY_JOB,
        selection=dg.AssetSelection.assets(CERTIFICATE),
        description="Account for every record that a connection's source has.",
        executor_def=dg.in_process_executor,
    )


def range_tags(connection: str, first_key: str, last_key: str) -> dict[str, str]:
    """The tags of a run over a range of days of one connection."""
    return {
        "dagster/asset_partition_range_start": first_key,
        "dagster/asset_partition_range_end": last_key,
        CONNECTION_TAG: connection,
    }


def keys_for(entities: Iterable[str], keys: Iterable[dg.AssetKey]) -> list[dg.AssetKey]:
    """Those of `keys` that a connection with these entities has: theirs, the models, the report."""
    wanted = set(entities)
    days = (key for key in sorted(keys) if key != CERTIFICATE)
    return [key for key in days if key.path[0] not in _BY_ENTITY or key.path[1] in wanted]
