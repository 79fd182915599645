"""Purging a connection with what Dagster knows of it: its partition, its runs and their events."""

import shutil
from collections.abc import Iterator

import dagster as dg

from assets.partitions import CONNECTION_TAG
from bridge_pipeline import naming
from bridge_pipeline.automation.jobs import UNFINISHED
from bridge_pipeline.automation.runs import prepare_instance
from bridge_pipeline.database.purges import Purge
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps import purge as steps

# A run begun in the UI over one day has these instead of our own tag.
_TAGS = (CONNECTION_TAG, f"dagster/partition/{naming.CONNECTION_DIMENSION}", "dagster/partition")
_RUNS_AT_A_TIME = 100


def purge(workspace: Workspace, name: str, by: str, reason: str) -> Purge:
    """Removes a connection with all it brought; one whose purge was begun before is removed to the end.

    Raises:
        UnknownConnection: there is no such connection, and there was none.
        ConnectionBusy: a run of it is waiting or under way.
    """
    instance = prepare_instance(workspace)
    for run in _runs(instance, name, UNFINISHED):
        raise steps.ConnectionBusy(
            f"the run {run.run_id} of {name} is waiting or under way: wait until it has ended, or end it, "
            "and try again"
        )
    begun = steps.begin(workspace, name, by, reason)
    if begun.finished_at is not None:
        return begun
    _forget(workspace, instance, name)
    return steps.carry_out(workspace, begun)


def _forget(workspace: Workspace, instance: dg.DagsterInstance, name: str) -> None:
    """Removes partition and runs; their events show samples of what was extracted."""
    instance.delete_dynamic_partition(naming.CONNECTION_DIMENSION, name)
    # All of them before the first goes: a page begins behind a run that must still be there.
    for run in list(_runs(instance, name, None)):
        instance.delete_run(run.run_id)
        shutil.rmtree(workspace.home.dagster / "storage" / run.run_id, ignore_errors=True)


def _runs(
    instance: dg.DagsterInstance, name: str, statuses: list[dg.DagsterRunStatus] | None
) -> Iterator[dg.DagsterRun]:
    for tag in _TAGS:
        cursor = None
        filters = dg.RunsFilter(tags={tag: name}, statuses=statuses)
        while found := list(instance.get_runs(filters, cursor=cursor, limit=_RUNS_AT_A_TIME)):
            yield from found
            cursor = found[-1].run_id
