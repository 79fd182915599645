"""The run launcher notices that what executed a run is dead, and leaves living runs alone."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import dagster as dg
import grpc
import pytest
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test
from dagster._grpc.__generated__ import dagster_api_pb2, dagster_api_pb2_grpc
from dagster._grpc.types import CanCancelExecutionResult
from dagster._serdes import serialize_value

from bridge_pipeline import processes
from bridge_pipeline.automation import launcher as module
from bridge_pipeline.automation.executing import executing, written_down
from bridge_pipeline.automation.launcher import HealthCheckedRunLauncher
from bridge_pipeline.automation.runs import settle_lost_runs


@pytest.fixture
def instance():
    """An instance whose runs are launched, and looked after, by the launcher of `dagster.yaml`."""
    launcher = {"module": HealthCheckedRunLauncher.__module__, "class": HealthCheckedRunLauncher.__name__}
    with dg.instance_for_test(overrides={"run_launcher": launcher}) as instance:
        yield instance


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.communicate(b"\n")
    return process.pid


def run_of(instance, tags, status=dg.DagsterRunStatus.STARTED):
    return create_run_for_test(instance, job_name="daily", status=status, tags=tags)


def health(instance, run):
    launcher = instance.run_launcher
    assert isinstance(launcher, HealthCheckedRunLauncher)
    assert launcher.supports_check_run_worker_health
    return launcher.check_run_worker_health(run).status


@contextmanager
def beside(instance, run) -> Iterator[subprocess.Popen[bytes]]:
    """Another process executes a run, until the context ends."""
    program = (
        "import sys, dagster as dg; from bridge_pipeline.automation.executing import executing\n"
        "with dg.DagsterInstance.from_config(sys.argv[1]) as instance, executing(instance, sys.argv[2]):\n"
        "    print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, instance.root_directory, run.run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_run_of_the_command_line_is_healthy_until_its_process_ends_whatever_the_host_is_called(
    instance, monkeypatch
):
    run = run_of(instance, {})
    with beside(instance, run) as process:
        monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
        assert health(instance, run) == WorkerStatus.RUNNING
        process.send_signal(signal.SIGSTOP)
        assert health(instance, run) == WorkerStatus.RUNNING, "a machine that slept has lost nothing"
        process.kill()
        process.wait()
        assert health(instance, run) == WorkerStatus.FAILED


def test_of_a_run_of_another_home_nothing_is_known(instance):
    run = run_of(instance, {})
    assert health(instance, run) == WorkerStatus.RUNNING
    assert written_down(instance) == []


def test_a_run_that_has_ended_is_written_down_no_more(instance):
    with executing(instance, "1234"):
        assert written_down(instance) == ["1234"]
    assert written_down(instance) == []


def test_a_run_that_ended_by_an_error_is_found_again(instance):
    run = run_of(instance, {})
    with suppress(OSError), executing(instance, run.run_id):
        raise OSError
    assert health(instance, run) == WorkerStatus.FAILED


def test_a_run_whose_code_server_is_gone_is_not_healthy(instance):
    # Nothing listens there: worker and code server died together.
    tags = {".dagster/grpc_info": '{"host": "127.0.0.1", "port": 1}'}
    assert health(instance, run_of(instance, tags)) == WorkerStatus.FAILED


@pytest.mark.slow
def test_a_code_server_that_is_too_busy_to_answer_is_not_gone(instance, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 1)
    # It takes connections and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as busy:
        tags = {".dagster/grpc_info": json.dumps({"host": "127.0.0.1", "port": busy.getsockname()[1]})}
        assert health(instance, run_of(instance, tags)) == WorkerStatus.RUNNING


class Stubborn(dagster_api_pb2_grpc.DagsterApiServicer):
    """A code server that no longer looks after its runs: it has every one that it is asked for."""

    def CanCancelExecution(self, request, context):
        answer = serialize_value(CanCancelExecutionResult(can_cancel=True))
        return dagster_api_pb2.CanCancelExecutionReply(serialized_can_cancel_execution_result=answer)


@pytest.fixture
def stubborn() -> Iterator[dict[str, str]]:
    """The tags of a run that such a server was given."""
    server = grpc.server(ThreadPoolExecutor(1))
    dagster_api_pb2_grpc.add_DagsterApiServicer_to_server(Stubborn(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield {".dagster/grpc_info": json.dumps({"host": "127.0.0.1", "port": port})}
    server.stop(None).wait()


WORKERS = [("dead", WorkerStatus.FAILED), ("own", WorkerStatus.RUNNING), (None, WorkerStatus.RUNNING)]


@pytest.mark.parametrize(("worker", "status"), WORKERS)
def test_a_code_server_is_not_believed_that_has_a_run_whose_worker_ended(
    instance, stubborn, dead, worker, status
):
    run = create_run_for_test(instance, job_name="daily", status=dg.DagsterRunStatus.STARTED, tags=stubborn)
    if worker is not None:
        worked_at(instance, run, os.getpid() if worker == "own" else dead)
    assert instance.run_launcher.check_run_worker_health(run).status == status


def worked_at(instance, run, pid, moment=None):
    """A worker tells, now or at a moment, that it has begun with a run."""
    data = EngineEventData.in_process(pid)
    event = DagsterEvent(dg.DagsterEventType.ENGINE_EVENT.value, "daily", event_specific_data=data)
    entry = dg.EventLogEntry(None, "info", "", run.run_id, moment or time.time(), dagster_event=event)
    instance.handle_new_event(entry)


def test_a_worker_of_another_machine_is_not_looked_for_on_this_one(instance, stubborn, dead):
    server = json.loads(stubborn[".dagster/grpc_info"])
    # The same server by an address that might be anybody's.
    tags = {".dagster/grpc_info": json.dumps(server | {"host": "0.0.0.0"})}
    run = create_run_for_test(instance, job_name="daily", status=dg.DagsterRunStatus.STARTED, tags=tags)
    worked_at(instance, run, dead)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING


def test_a_process_that_got_the_number_of_a_worker_is_not_taken_for_it(instance, stubborn, monkeypatch):
    run = create_run_for_test(instance, job_name="daily", status=dg.DagsterRunStatus.STARTED, tags=stubborn)
    worked_at(instance, run, os.getpid())
    # As long as the worker runs, the number is of one that began at another time.
    monkeypatch.setattr(module, "began", lambda _: processes.began(1))
    monkeypatch.setattr(module, "lives", lambda _, since: processes.lives(1, since))
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    monkeypatch.undo()
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_a_worker_lives_however_the_clock_was_set_since_it_told_of_itself(instance, stubborn):
    run = create_run_for_test(instance, job_name="daily", status=dg.DagsterRunStatus.STARTED, tags=stubborn)
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    assert worker.pid
    worked_at(instance, run, worker.pid, time.time() - 3_600)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    worker.kill()
    worker.join()
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


GONE = {".dagster/grpc_info": '{"host": "127.0.0.1", "port": 1}'}


# One that began after the worker told its number is another process that was given it.
@pytest.mark.parametrize(("moment", "lives"), [(None, True), (1.0, False)])
def test_a_worker_goes_on_without_its_code_server(instance, workspace, moment, lives):
    run = create_run_for_test(instance, job_name="daily", status=dg.DagsterRunStatus.STARTED, tags=GONE)
    worked_at(instance, run, os.getpid(), moment)
    found = instance.run_launcher.check_run_worker_health(run).status
    assert found == (WorkerStatus.RUNNING if lives else WorkerStatus.FAILED)
    settle_lost_runs(workspace, instance)
    ended = instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert ended != lives


SETTLED = [
    (dg.DagsterRunStatus.STARTED, GONE, dg.DagsterRunStatus.FAILURE),
    (dg.DagsterRunStatus.STARTING, GONE, dg.DagsterRunStatus.FAILURE),
    (dg.DagsterRunStatus.CANCELING, GONE, dg.DagsterRunStatus.CANCELED),
    # Not given to any process yet: the daemon will.
    (dg.DagsterRunStatus.NOT_STARTED, {}, dg.DagsterRunStatus.NOT_STARTED),
    # Of the command line, in another home.
    (dg.DagsterRunStatus.STARTED, {}, dg.DagsterRunStatus.STARTED),
]


@pytest.mark.parametrize(("status", "tags", "settled"), SETTLED)
def test_what_went_with_the_machine_is_settled_before_a_new_daemon_begins(
    instance, workspace, status, tags, settled
):
    run = create_run_for_test(instance, job_name="daily", status=status, tags=tags)
    settle_lost_runs(workspace, instance)
    assert instance.get_run_by_id(run.run_id).status == settled
