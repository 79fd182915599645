"""Runs from the command line: Dagster's instance of this home, and days run in this process."""

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.utils import make_new_run_id

from assets.partitions import CONNECTION_TAG, connection_days
from bridge_pipeline import naming
from bridge_pipeline.automation.alarms import tell_failed, told_of
from bridge_pipeline.automation.executing import executing, forget, taken_over, written_down
from bridge_pipeline.automation.jobs import DAILY_JOB, keys_for, range_tags
from bridge_pipeline.automation.launcher import HealthCheckedRunLauncher
from bridge_pipeline.automation.summaries import add_connection
from bridge_pipeline.connector_kit.journal import write_durably
from bridge_pipeline.database import registry
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.imports import made_to_stay
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps import gx_worker
from bridge_pipeline.steps.due import checked_request
from resources.storage import storage_kept

STORAGE_VARIABLE = "BRIDGE_DAGSTER_STORAGE_URL"
# How many events Dagster stores at once, where it stores several: those planned, and those of many days.
_BATCHES = ("DAGSTER_EVENT_BATCH_SIZE", "500")
_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED]
_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.CANCELING]
_ENDED_BACKFILLS = {
    BulkActionStatus.COMPLETED,
    BulkActionStatus.COMPLETED_SUCCESS,
    BulkActionStatus.COMPLETED_FAILED,
    BulkActionStatus.FAILED,
    BulkActionStatus.CANCELED,
}

_LOST = "the process that executed this run ended"
# Of runs of the command line: the host that executes it.
PROCESS_TAG = "bridge/process"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended; `failures` says of each failed step or blocking check why, in one line."""

    run_id: str
    success: bool
    failures: tuple[str, ...]


def run_days(
    workspace: Workspace, name: str, first: date, last: date, entities: tuple[str, ...] | None = None
) -> RunOutcome:
    """Materialises the days from `first` to `last` of a connection, in this process.

    Waits until no other process does so for the same connection.

    Args:
        entities: only these; None for all the connection has.

    Raises:
        ValueError: the days or entities cannot be asked for.
        UnknownConnection: there is no such connection.
    """
    record = registry.get(workspace.database.engine, name)
    wanted = checked_request(workspace, record, first, last, entities)
    with made_to_stay():
        instance = prepare_instance(workspace)
        _add_partition(workspace, instance, record)
        # Importing the definitions takes seconds; only a run pays for it.
        from bridge_pipeline.definitions import defs

        job = defs.resolve_job_def(DAILY_JOB)
    keys = keys_for(wanted, defs.resolve_asset_graph().get_all_asset_keys())
    start, end = naming.partition_key(name, first), naming.partition_key(name, last)
    # Two runs of a connection would stop at each other's unchecked batches: the second one waits (L5).
    # Great Expectations is imported while records are fetched.
    run_id = make_new_run_id()
    with (
        exclusively(workspace, f"run:{name}"),
        storage_kept(instance),
        gx_worker.ready(),
        executing(instance, run_id),
    ):
        result = job.execute_in_process(
            instance=instance,
            asset_selection=keys,
            run_id=run_id,
            tags=range_tags(name, start, end) | {PROCESS_TAG: socket.gethostname()},
            raise_on_error=False,
        )
    if not result.success:
        # The daemon's sensor sees only runs of the daemon.
        tell_failed(workspace, instance, result.dagster_run)
    return RunOutcome(result.run_id, result.success, _failures(result))


def prepare_instance(workspace: Workspace) -> dg.DagsterInstance:
    """Dagster's instance of this home; runs of it whose process died are ended as failed.

    Sets `DAGSTER_HOME` and the storage's address for this process and its children.
    """
    instance = _instance(workspace)
    _settle_dead_runs(workspace, instance)
    return instance


def _instance(workspace: Workspace) -> dg.DagsterInstance:
    os.environ["DAGSTER_HOME"] = str(workspace.home.dagster)
    os.environ[STORAGE_VARIABLE] = workspace.dagster_database.psycopg2()
    os.environ.setdefault(*_BATCHES)
    target = workspace.home.dagster / "dagster.yaml"
    configuration = (PROJECT_ROOT / "dagster.yaml").read_bytes()
    if not target.is_file() or target.read_bytes() != configuration:
        write_durably(target, configuration)
    _write_dotenv(workspace)
    return dg.DagsterInstance.get()


def settle_lost_runs(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """Ends the runs whose processes went with the machine, before a new daemon begins.

    The daemon itself sees only those that had started, and gives the others, and those that were
    being cancelled, three minutes in which they hold their place in the queue.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, HealthCheckedRunLauncher):
        return
    for run in instance.get_runs(dg.RunsFilter(statuses=[*_UNFINISHED, dg.DagsterRunStatus.CANCELING])):
        if launcher.is_lost(run):
            _end_lost(workspace, instance, run)


def add_partition(workspace: Workspace, name: str) -> None:
    """Makes a connection a partition, so that its days can be materialised.

    Raises:
        UnknownConnection: there is no such connection.
    """
    record = registry.get(workspace.database.engine, name)
    _add_partition(workspace, prepare_instance(workspace), record)


def _add_partition(
    workspace: Workspace, instance: dg.DagsterInstance, record: registry.ConnectionRecord
) -> None:
    days = connection_days(workspace.settings.first_day)
    add_connection(instance, naming.checked_key("connection", record.name), days)


def _failures(result: dg.ExecuteInProcessResult) -> tuple[str, ...]:
    lines = []
    for event in result.all_events:
        if event.is_step_failure:
            error = told_of(event.step_failure_data.error)
            lines.append(f"{event.step_key}: {error.message.strip() if error else 'failed'}")
    return tuple(lines)


def _write_dotenv(workspace: Workspace) -> None:
    """Lets plain `dagster dev` find the default home; other homes and secrets stay out of it."""
    if workspace.home.root != PROJECT_ROOT / ".bridge" or workspace.dagster_database.secrets:
        return
    path = PROJECT_ROOT / ".env"
    ours = {
        "DAGSTER_HOME": str(workspace.home.dagster),
        STORAGE_VARIABLE: workspace.dagster_database.psycopg2(),
    }
    old = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in old if line.split("=", 1)[0] not in ours]
    new = [*kept, *(f"{key}={value}" for key, value in ours.items())]
    if new != old:
        write_durably(path, ("\n".join(new) + "\n").encode())


def end_restored_runs(workspace: Workspace) -> None:
    """Ends what ran or waited when a backup was made: nobody works at it here, and the ledger says
    what is due.

    No reviewer is told of it: the installation that was backed up looks after its own runs.
    """
    instance = _instance(workspace)
    text = "it was not finished when the backup was made from which this installation was restored"
    for run in instance.get_runs(dg.RunsFilter(statuses=[*_UNFINISHED, *_WAITING])):
        instance.report_run_failed(run, message=text)
    for backfill in instance.get_backfills():
        if backfill.status not in _ENDED_BACKFILLS:
            instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    instance.dispose()


def _settle_dead_runs(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """Ends runs of the command line whose process is gone; the daemon looks after all others (L4)."""
    here = written_down(instance)
    for run_id in here:
        with taken_over(instance, run_id) as abandoned:
            if abandoned:
                run = instance.get_run_by_id(run_id)
                if run is not None and not run.is_finished:
                    _end_lost(workspace, instance, run)
                forget(instance, run_id)
    _settle_dead_runs_elsewhere(workspace, instance, here)


def _settle_dead_runs_elsewhere(
    workspace: Workspace, instance: dg.DagsterInstance, here: Collection[str]
) -> None:
    """Ends dead runs of the command line of which this home knows nothing: its folder may have gone with a
    container, or the version before wrote nothing down there.

    A living one holds the lock of its connection.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        # One that was begun again in the UI has the tags of the former, and a code server.
        if run.run_id in here or PROCESS_TAG not in run.tags or GRPC_INFO_TAG in run.tags:
            continue
        with workspace.database.engine.begin() as connection:
            if advisory_lock(connection, f"exclusive:run:{run.tags[CONNECTION_TAG]}", wait=False):
                _end_lost(workspace, instance, run)


def _end_lost(workspace: Workspace, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, _LOST)
    else:
        instance.report_run_failed(run, message=_LOST)
        tell_failed(workspace, instance, run)
