"""The run launcher: Dagster's own for one machine, which also notices that a run is dead.

Without it a run whose worker and code server die together stays STARTED for ever.
"""

import json
from ipaddress import ip_address

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value

from bridge_pipeline.automation.executing import is_abandoned
from bridge_pipeline.processes import began, lives

# Seconds that a code server may take to say whether it executes a run.
_PATIENCE = 10
# Among the first so many events of a run's engine its worker tells its number.
_FIRST_EVENTS = 10
# Of so many runs it is kept which process executes them: more than ever run at once.
_KEPT = 1_000


class HealthCheckedRunLauncher(DefaultRunLauncher):
    """Starts runs in processes of the code server, and asks it whether they are alive."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        # When the process of a run began, as it was first seen.
        self._began: dict[str, str] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process that executes a run is alive, as far as this machine can tell."""
        if GRPC_INFO_TAG in run.tags:
            return _health(self._executes(run.run_id))
        # Whoever began it executes it in its own process.
        return _health(not is_abandoned(self._instance, run.run_id))

    def is_lost(self, run: dg.DagsterRun) -> bool:
        """Whether what was given a run is gone for certain, also a run that has not started yet."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return False
        try:
            client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_PATIENCE)
        except DagsterUserCodeUnreachableError as error:
            return not _too_slow(error) and not self._worker_lives(run.run_id)
        return False

    def _executes(self, run_id: str) -> bool:
        client = self._get_grpc_client_for_termination(run_id)
        if client is None:
            # Finished by now.
            run = self._instance.get_run_by_id(run_id)
            return run is None or run.is_finished
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=_PATIENCE)
            if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
                return self._worker_lives(run_id) is not False
        except DagsterUserCodeUnreachableError as error:
            # One that is too busy to answer is there: a machine under load must not lose its runs. And
            # a worker goes on without its server.
            return _too_slow(error) or bool(self._worker_lives(run_id))
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished

    def _worker_lives(self, run_id: str) -> bool | None:
        """Whether the process that a code server gave a run to is there; None while it is not known.

        The server looks after it itself, but never again once it could not reach the database for that.
        """
        if not self._is_near(run_id):
            return None
        told = self._instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=_FIRST_EVENTS
        )
        for entry in (record.event_log_entry for record in told.records):
            number = entry.get_dagster_event().engine_event_data.metadata.get("pid")
            if isinstance(number, dg.TextMetadataValue) and number.value and number.value.isdecimal():
                return self._still_runs(run_id, int(number.value), entry.timestamp)
        return None

    def _is_near(self, run_id: str) -> bool:
        """Whether the code server of a run was reached within this machine: elsewhere numbers mean others."""
        run = self._instance.get_run_by_id(run_id)
        where = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")) if run else {}
        return "socket" in where or _is_loopback(where.get("host", ""))

    def _still_runs(self, run_id: str, pid: int, moment: float) -> bool:
        """Whether a process is the worker of a run, which told of itself at a moment."""
        try:
            since = began(pid)
            if run_id not in self._began and not _may_be_worker(pid, moment):
                return False
        except psutil.NoSuchProcess:
            return False
        first = self._began.setdefault(run_id, since)
        if len(self._began) > _KEPT:
            del self._began[next(iter(self._began))]
        return lives(pid, first)


def _may_be_worker(pid: int, moment: float) -> bool:
    """Whether a process can have told of itself at a moment (seconds since 1970): numbers are given again."""
    process = psutil.Process(pid)
    if process.create_time() < moment + 1:
        return True
    # It seems to have begun later also where the clock was set since. Code servers start workers so.
    try:
        return "--multiprocessing-fork" in process.cmdline()
    except psutil.AccessDenied:
        return True


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _too_slow(error: DagsterUserCodeUnreachableError) -> bool:
    """Whether a server was reached and did not answer in time."""
    # Whoever asked a server has it; runs of the command line ask none.
    import grpc

    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and cause.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def _health(healthy: bool) -> CheckRunHealthResult:
    if healthy:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.FAILED, "the process that executed this run ended")
