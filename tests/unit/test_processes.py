"""Child processes inherit no credential, and only our own processes are ever stopped."""

import os
import socket
import subprocess
import sys
from contextlib import suppress

import orjson
import psutil
import pytest

from bridge_pipeline import processes
from bridge_pipeline.database import registry
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import PROJECT_ROOT

# A process that runs until it is stopped, or its tests have ended.
RUNNING = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def running():
    with subprocess.Popen(RUNNING, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_children_inherit_settings_and_no_credential(workspace, monkeypatch):
    record = ConnectionRecord("acme", "acme", "helpdesk", {}, ("tickets",))
    registry.put(workspace.database.engine, record, {}, ("ACME_TOKEN", "BRIDGE_ACME_TOKEN"))
    for name in ("ACME_TOKEN", "BRIDGE_ACME_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("BRIDGE_ATTEMPTS", "7")
    environment = processes.child_environment(workspace)
    assert "hidden" not in environment.values()
    assert environment["LC_ALL"] == "C"
    assert environment["BRIDGE_ATTEMPTS"] == "7"
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["BRIDGE_HOME"] == str(workspace.home.root)


def test_a_recorded_process_is_found_until_it_ends(home, running):
    with processes.recorded(home, "daemon", running.pid, port=3000):
        found = processes.facts_of(home, "daemon")
        assert found
        assert (found["pid"], found["port"]) == (running.pid, 3000)
        running.kill()
        running.wait()
        assert processes.facts_of(home, "daemon") is None
    assert processes.facts_of(home, "webserver") is None


def test_a_role_is_played_for_as_long_as_the_context_lasts(home, running):
    with processes.recorded(home, "daemon", running.pid):
        pass
    assert processes.facts_of(home, "daemon") is None


def test_a_child_writes_itself_down_before_it_becomes_its_program(home):
    """Until then it holds the lock of its parent, however that ends."""
    lock = home.work / "lock"
    with file_lock(lock) as held:
        command = processes.recording(home, "daemon", held, RUNNING)
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, pass_fds=[held])
    with process, file_lock(lock):
        found = processes.facts_of(home, "daemon")
        command = psutil.Process(process.pid).cmdline()
        process.kill()
    assert found
    assert found["pid"] == process.pid
    assert command == RUNNING


def test_a_recorded_process_can_be_stopped_by_another(home, running):
    with processes.recorded(home, "daemon", running.pid):
        assert processes.stop_recorded(home, "daemon")
        assert running.wait(60) is not None
        assert not processes.stop_recorded(home, "daemon")


def test_a_process_that_got_the_number_of_an_old_one_is_left_alone(home, running):
    record = home.work / "processes" / "daemon.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(orjson.dumps({"pid": running.pid, "began": "before"}))
    assert not processes.stop_recorded(home, "daemon")
    assert running.poll() is None


def test_a_process_is_known_however_the_clock_is_set(home, running, monkeypatch):
    """psutil reckons when a process began from the time of the last boot, which moves with the clock."""
    with processes.recorded(home, "daemon", running.pid):
        then = psutil.Process(running.pid).create_time()
        booted = psutil.boot_time()
        for reckoned in ("psutil.boot_time", "psutil._psplatform.boot_time"):
            monkeypatch.setattr(reckoned, lambda: booted + 3_600)
        if psutil.LINUX:
            assert psutil.Process(running.pid).create_time() == then + 3_600
        assert processes.facts_of(home, "daemon")


def test_a_taken_port_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(processes.PortTaken, match=str(port)):
            processes.refuse_taken_port(port)
    processes.refuse_taken_port(port)


@pytest.mark.parametrize("family", [True, False])
def test_with_a_process_those_end_that_it_started_where_its_family_is_meant(home, family):
    """A parent that ends and leaves a child behind that does not."""
    child = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        started = psutil.Process(process.pid).children()
        with processes.recorded(home, "daemon", process.pid):
            assert processes.stop_recorded(home, "daemon", **({"family": True} if family else {}))
        assert [each.is_running() for each in started] == [not family]
        for each in started:
            with suppress(psutil.NoSuchProcess):
                each.kill()
