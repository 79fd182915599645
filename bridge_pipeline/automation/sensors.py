"""The sensors: what follows upstream, what is told of failed runs, the sending of messages, and what the
UI is to know of partitions."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from bridge_pipeline.automation import summaries
from bridge_pipeline.automation.alarms import tell_failed
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.steps.deliver import deliver


def follow_upstream_sensor() -> dg.AutomationConditionSensorDefinition:
    """Requests assets whose automation condition holds; runs as soon as the daemon does."""
    return dg.AutomationConditionSensorDefinition(
        "follow_upstream",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description="Materialises what lies downstream of assets that were materialised alone.",
    )


def failed_runs_sensor() -> dg.SensorDefinition:
    """Tells of runs that failed, also of those that failed while the daemon was down."""

    @dg.run_failure_sensor(
        name="failed_runs",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Puts an alarm for the reviewers into the outbox when a run fails.",
    )
    def failed_runs(context: dg.RunFailureSensorContext) -> None:
        with _workspace() as workspace:
            tell_failed(workspace, context.instance, context.dagster_run)

    return failed_runs


def deliveries_sensor() -> dg.SensorDefinition:
    """Drains the outbox; what waited while the daemon was down is sent with the first tick."""

    @dg.sensor(
        name="deliveries",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends what is due in the outbox to the reviewers: alarms, reports, digests.",
    )
    def deliveries() -> dg.SkipReason:
        with _workspace() as workspace:
            done = deliver(workspace)
        return dg.SkipReason(f"{done.sent} sent, {done.postponed} to be tried again, {done.failed} given up")

    return deliveries


def summaries_sensor() -> dg.SensorDefinition:
    """Keeps the UI's knowledge of partitions up to date, so that no reader waits for it."""

    @dg.sensor(
        name="partition_summaries",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sums up which partitions are materialised, before somebody opens their grid.",
    )
    def partition_summaries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        assert context.repository_def is not None
        assets = summaries.partitioned(context.repository_def.asset_graph)
        done = summaries.look(context.instance, assets, summaries.Look.of(context.cursor))
        context.update_cursor(done.cursor)
        return dg.SkipReason(f"{done.made} brought up to date, {len(done.due)} to follow")

    return partition_summaries


@contextmanager
def _workspace() -> Iterator[Workspace]:
    """The workspace for one tick: a tick every half minute must not leave connections behind."""
    workspace = open_workspace()
    try:
        yield workspace
    finally:
        workspace.database.engine.dispose()
