"""Worker, code servers, daemon and webserver are killed together, and the database server stays.

What was written stays, too: what a power cut would take is the business of `test_durability`.

After `bridge up` again every run leaves STARTED by itself, and its place in the queue is free.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

import dagster as dg
import httpx
import psutil
import pytest

from bridge_pipeline import naming, processes
from bridge_pipeline.automation.jobs import DAILY_JOB, range_tags
from bridge_pipeline.automation.runs import add_partition, prepare_instance
from bridge_pipeline.database import embedded
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.settings import PROJECT_ROOT
from tests.integration.desk import Desk, account, serving, ticket
from tests.integration.flow import NAME, connect
from tests.torture.figures import RUNS, figures_of

DAY = "2024-03-01"
STARTED = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)
OPEN = (*STARTED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.CANCELING)


class Installed:
    """A home of its own, with `bridge up` in it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.port = port
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home.parent),
            "LANG": "C.UTF-8",
            "BRIDGE_HOME": str(home),
            "BRIDGE_DATABASE_URL": "",
            # The code beside these tests, whatever else is installed.
            "PYTHONPATH": str(PROJECT_ROOT),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Starts the stack and waits until the webserver answers."""
        self.process = self.start(self.port)
        until(self._answers, 300)

    def start(self, port: int) -> subprocess.Popen[bytes]:
        """Starts the stack; it serves some time later."""
        command = [PROJECT_ROOT / ".venv/bin/bridge", "up", "--port", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self.environment, cwd=self.home.parent, **quiet)

    def bridge(self, *words: str) -> None:
        """Runs a command."""
        command = [PROJECT_ROOT / ".venv/bin/bridge", *words]
        subprocess.run(command, env=self.environment, cwd=self.home.parent, check=True, capture_output=True)

    def crash(self) -> int:
        """Kills all processes of the stack at once; how many these were. The database is not among them."""
        # Runs and code servers have sessions of their own and may have lost their parents.
        family = of_home(self.home)
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)
        if self.process is not None:
            self.process.wait()
        return len(family)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def of_home(home: Path) -> list[psutil.Process]:
    """The processes of a home but those of its database: all were told of it by their environment."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get("BRIDGE_HOME") == str(home) and each.name() != "postgres":
                found.append(each)
    return found


def until(true: Callable[[], bool], seconds: float) -> float:
    """Waits until something is so; the seconds that took. It is asked for, not hoped for."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"not so after {seconds} s: {true.__name__}")
        time.sleep(0.2)
    return time.monotonic() - begin


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    root = Path(tempfile.mkdtemp(prefix="bridge-crash-"))
    root.chmod(0o755)
    made = Installed(root / "home", free_port())
    monkeypatch.setenv("BRIDGE_HOME", str(made.home))
    for name in ("DAGSTER_HOME", "BRIDGE_DAGSTER_STORAGE_URL"):
        monkeypatch.setenv(name, "")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            made.process.wait(60)
        made.crash()
    embedded.stop(naming.Home(made.home))
    shutil.rmtree(root)


def launch(installed: Installed) -> None:
    """Asks for a day through the UI's own interface."""
    query = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename
        ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }"""
    key = naming.partition_key(NAME, date.fromisoformat(DAY))
    tags = [{"key": k, "value": v} for k, v in range_tags(NAME, key, key).items()]
    place = {"repositoryLocationName": "bridge", "repositoryName": "__repository__", "jobName": DAILY_JOB}
    parameters = {"selector": place, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    answer = post(installed.port, query, {"p": parameters})
    assert answer["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer


def post(port: int, query: str, variables: dict) -> dict:
    """The answer of Dagster's GraphQL."""
    body = {"query": query, "variables": variables}
    return json.loads(httpx.post(f"http://127.0.0.1:{port}/graphql", json=body, timeout=60).content)


def connected(desk: Desk) -> Workspace:
    """The installation, with a connection to the desk that can be run."""
    workspace = open_workspace()
    connect(workspace, desk, entities=("accounts", "tickets"))
    add_partition(workspace, NAME)
    return workspace


@pytest.mark.long
def test_after_a_crash_of_everything_runs_end_by_themselves_and_the_next_ones_go_on(installed):
    with serving() as desk, figures_of("host-crash") as figures:
        workspace = connected(desk)
        instance = prepare_instance(workspace)
        figures.facts = {"killed": 0, "longest_seconds": 0}
        for _ in range(max(1, RUNS // 100)):
            installed.up()
            with holding(desk) as reached:
                launch(installed)
                launch(installed)
                until(reached.is_set, 300)
                figures.facts["killed"] += installed.crash()
            assert instance.get_runs_count(dg.RunsFilter(statuses=list(STARTED))) == 1
            begin = time.monotonic()
            installed.up()
            until(lambda: not alive_in_name_only(instance), 120)
            seconds = time.monotonic() - begin
            figures.facts["longest_seconds"] = max(figures.facts["longest_seconds"], round(seconds, 1))
            # The second run waited for the place of the first one.
            until(lambda: instance.get_runs_count(dg.RunsFilter(statuses=list(OPEN))) == 0, 300)
            statuses = {run.status for run in instance.get_runs(limit=2)}
            fine = statuses == {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS}
            figures.add([] if fine else [f"the runs ended as {statuses}"])
        if figures.facts["longest_seconds"] > 30:
            figures.wrong.append(f"a run stayed started for {figures.facts['longest_seconds']} s")


@pytest.mark.slow
def test_a_database_that_ends_amid_a_run_comes_back_and_the_connection_goes_on(installed):
    with serving() as desk:
        workspace = connected(desk)
        instance = prepare_instance(workspace)
        installed.up()
        server = embedded.running(workspace.home)
        assert server is not None
        with holding(desk) as reached:
            launch(installed)
            until(reached.is_set, 300)
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: embedded.running(workspace.home) not in (None, server), 60)
        # Whether it was given up or went on: it ends, and the next one has its place.
        until(lambda: instance.get_runs_count(dg.RunsFilter(statuses=list(OPEN))) == 0, 120)
        launch(installed)
        until(lambda: instance.get_runs_count(dg.RunsFilter(statuses=list(OPEN))) == 0, 300)
        assert instance.get_runs(limit=1)[0].status == dg.DagsterRunStatus.SUCCESS


@pytest.mark.slow
def test_an_up_that_was_killed_is_taken_over_by_the_next(installed):
    installed.up()
    killed = installed.process
    killed.kill()
    killed.wait()
    # The webserver of the killed one may answer, too.
    installed.up()
    until(lambda: [each.ppid() for each in daemons(installed.home)] == [installed.process.pid], 120)


@pytest.mark.slow
def test_down_ends_what_a_killed_up_left_behind(installed):
    with serving() as desk:
        connected(desk)
        installed.up()
        with holding(desk) as reached:
            launch(installed)
            until(reached.is_set, 300)
            installed.process.kill()
            installed.process.wait()
            installed.bridge("down")
            assert [each.cmdline() for each in of_home(installed.home)] == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["webserver", "daemon"])
def test_a_code_server_that_ended_is_replaced_and_no_run_fails_meanwhile(installed, role):
    with serving() as desk:
        workspace = connected(desk)
        instance = prepare_instance(workspace)
        # Before the webserver answers, too: it serves without the one that it waited for.
        installed.process = installed.start(installed.port)
        until(lambda: len(code_servers(installed.home, role)) == 1, 120)
        ended = code_servers(installed.home, role)
        ended[0].kill()
        if role == "webserver":
            until(lambda: code_servers(installed.home, role) not in ([], ended), 120)
        until(installed._answers, 120)
        launch(installed)
        until(lambda: instance.get_runs_count(dg.RunsFilter(statuses=list(OPEN))) == 0, 300)
        assert instance.get_runs(limit=1)[0].status == dg.DagsterRunStatus.SUCCESS
        assert installed.process.poll() is None


@pytest.mark.slow
def test_of_two_that_are_started_at_once_one_serves(installed):
    open_workspace()
    both = installed.start(installed.port), installed.start(free_port())
    until(lambda: any(each.poll() is not None for each in both), 120)
    refused, installed.process = sorted(both, key=lambda each: each.poll() is None)
    assert refused.returncode == 1
    until(lambda: len(daemons(installed.home)) == 1, 120)
    assert installed.process.poll() is None


def code_servers(home: Path, role: str) -> list[psutil.Process]:
    """The code servers that the webserver or the daemon of a home has started."""
    parent = processes.facts_of(naming.Home(home), role)
    started = psutil.Process(parent["pid"]).children() if parent else []
    return [each for each in started if each.status() != psutil.STATUS_ZOMBIE]


def daemons(home: Path) -> list[psutil.Process]:
    """Dagster's daemons of a home."""
    return [each for each in of_home(home) if each.name() == "dagster-daemon"]


@contextmanager
def holding(desk: Desk) -> Iterator[threading.Event]:
    """A desk that gives no answer within the block; the event says that somebody waits for the first."""
    reached, over = threading.Event(), threading.Event()
    desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z")]
    desk.records["tickets"] = [ticket(n, f"{DAY}T10:00:00Z") for n in range(1, 4)]

    def hold(_request: object) -> None:
        desk.lock.release()
        reached.set()
        over.wait(600)
        desk.lock.acquire()

    desk.before = hold
    try:
        yield reached
    finally:
        desk.before = lambda request: None
        over.set()


def alive_in_name_only(instance: dg.DagsterInstance) -> bool:
    """Whether a run that the crash ended is still said to be under way."""
    oldest = sorted(instance.get_run_records(), key=lambda record: record.create_timestamp)
    return oldest[-2].dagster_run.status in STARTED
