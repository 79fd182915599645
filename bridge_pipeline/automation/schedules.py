"""The schedules, each for all connections: settled days that the ledger lacks (rule 20), certificates."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from assets.partitions import CONNECTION_TAG, SCHEDULED_TAG
from bridge_pipeline import naming
from bridge_pipeline.automation.jobs import (
    CERTIFY_JOB,
    DAILY_JOB,
    UNFINISHED,
    keys_for,
    range_tags,
)
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.due import due_spans, entities_of

# A run that is asked for comes into the queue within seconds.
_INTO_THE_QUEUE = timedelta(hours=1)


def daily_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Looks for gaps itself, so that a tick that never ran loses no day."""

    @dg.schedule(
        job_name=DAILY_JOB,
        cron_schedule=settings.schedule_cron,
        execution_timezone="UTC",
        name="settled_days",
        description="Requests every settled day of every connection that is not complete in the ledger.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def settled_days(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        workspace = open_workspace()
        requests = [
            request
            for record in registry.list_connections(workspace.database.engine)
            if record.scheduled and not _busy(context.instance, record.name)
            for request in _requests(context, workspace, record)
        ]
        yield from requests or [dg.SkipReason("every settled day is complete or being extracted")]

    return settled_days


def certify_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Asks for a certificate of every scheduled connection that anything was extracted of."""

    @dg.schedule(
        job_name=CERTIFY_JOB,
        cron_schedule=settings.certify_cron,
        execution_timezone="UTC",
        name="certificates",
        description="Accounts for every record that each connection's source has.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def certificates(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        engine = open_workspace().database.engine
        now = context.scheduled_execution_time or datetime.now(UTC)
        with engine.connect() as connection:
            wanted = [
                record.name
                for record in registry.list_connections(engine)
                if record.scheduled and ledger.first_day_read(connection, record.name)
            ]
        for name in wanted:
            tags = {CONNECTION_TAG: name}
            yield dg.RunRequest(run_key=f"{name}--{now.isoformat()}", partition_key=name, tags=tags)
        if not wanted:
            yield dg.SkipReason("nothing was extracted of any scheduled connection yet")

    return certificates


def _requests(
    context: dg.ScheduleEvaluationContext, workspace: Workspace, record: ConnectionRecord
) -> Iterator[dg.RunRequest]:
    now = context.scheduled_execution_time or datetime.now(UTC)
    keys = keys_for(entities_of(record), context.repository_def.asset_graph.get_all_asset_keys())
    for first, last in due_spans(workspace, record, now):
        start, end = (naming.partition_key(record.name, day) for day in (first, last))
        yield dg.RunRequest(
            # The tick is part of the key: a span that failed is asked for again by the next.
            run_key=f"{start}--{end}--{now.isoformat()}",
            tags=range_tags(record.name, start, end) | {SCHEDULED_TAG: now.isoformat()},
            asset_selection=keys,
        )


def _busy(instance: dg.DagsterInstance, connection: str) -> bool:
    """Whether a run of the connection is waiting or under way; its days are asked for next time."""
    tags = {CONNECTION_TAG: connection}
    made, long_ago = [dg.DagsterRunStatus.NOT_STARTED], datetime.now(UTC) - _INTO_THE_QUEUE
    # Whoever asked for it was killed, or could not write on, before it came into the queue. Nobody else puts
    # it there.
    for run in instance.get_runs(dg.RunsFilter(statuses=made, tags=tags, created_before=long_ago)):
        instance.report_run_failed(run, message="it was asked for and never came into the queue")
    return instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED, tags=tags)) > 0
