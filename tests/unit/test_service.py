"""What `bridge up` does for its parts, whatever becomes of their surroundings."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from bridge_pipeline import processes
from bridge_pipeline.commands import service
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.naming import Home


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_what_a_part_prints_is_read_on_where_no_log_can_be_written(workspace, tmp_path):
    """As on a full disk; more than a pipe holds, so a part that nobody listens to would wait for ever."""
    home = Home(tmp_path / "full")
    home.root.mkdir()
    home.logs.write_text("a file where the folder should be")
    printing = [sys.executable, "-c", "for n in range(5000): print(n, 'x' * 100)"]
    with subprocess.Popen(printing, stdout=subprocess.PIPE, text=True) as process:
        child = service._Child("daemon", process)
        service._keep_lines(replace(workspace, home=home), child)
        assert process.wait(60) == 0
    assert [line.split()[0] for line in child.last] == [str(n) for n in range(4985, 5000)]


UP = """
import sys
from bridge_pipeline.automation import runs
from bridge_pipeline.cli import app

def about_to_serve(workspace):
    print("about to serve", flush=True)
    sys.stdin.read()

runs.prepare_instance = about_to_serve
app(["up", "--port", sys.argv[1]])
"""


def test_one_that_is_only_about_to_serve_is_found_and_stopped(workspace):
    program = [sys.executable, "-c", UP, str(free_port())]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "about to serve\n"
        found = processes.stop_recorded(workspace.home, "up")
        process.communicate()
    assert found
    assert process.returncode == 0


@pytest.mark.skipif(not psutil.LINUX, reason="which signals a process ignores is asked of Linux")
@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_under_nohup_it_outlives_its_terminal(workspace, inherited):
    program = [sys.executable, "-c", UP, str(free_port())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    hung_up = partial(signal.signal, signal.SIGHUP, inherited)
    with subprocess.Popen(program, preexec_fn=hung_up, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "about to serve\n"
        told = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(re.search(r"SigIgn:\s(\w+)", told)[1], 16)
        processes.stop_recorded(workspace.home, "up")
        process.communicate()
    assert bool(ignored >> signal.SIGHUP - 1 & 1) == (inherited == signal.SIG_IGN)


def test_one_that_runs_without_holding_the_lock_is_not_doubled(tmp_path):
    """Somebody removed the lock's file, which lies among what may be deleted."""
    home = Home(tmp_path)
    refused = pytest.raises(processes.AlreadyRunning, match="3007")
    with processes.recorded(home, "up", os.getpid(), port=3007), refused, ExitStack() as stack:
        service._refuse_second(stack, home)
    with ExitStack() as stack:
        service._refuse_second(stack, home)


KILLED = """
import os, signal, subprocess, sys
from bridge_pipeline.automation import runs
from bridge_pipeline.cli import app
from bridge_pipeline.commands import service

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

def prepared(workspace):
    subprocess.Popen = Popen

runs.prepare_instance, runs.settle_lost_runs = prepared, lambda *_: None
service._ROLES, service._command = ("daemon",), lambda *_: sys.argv[2:]
app(["up", "--port", sys.argv[1]])
"""


def test_no_daemon_runs_that_is_not_written_down(workspace):
    """The next `bridge up` would run a second one beside it, and `bridge down` would not find it."""
    home = workspace.home
    daemon = [sys.executable, "-c", f"import signal; signal.pause()  # of {home.root}"]
    subprocess.run([sys.executable, "-c", KILLED, str(free_port()), *daemon], check=False)
    # By then what the killed one began is a daemon, or has ended.
    with file_lock(home.work / "up.lock"):
        running = list(processes_of(daemon))
        found = processes.facts_of(home, "daemon")
    for each in running:
        each.kill()
    assert [each.pid for each in running] == ([found["pid"]] if found else [])


def processes_of(command: list[str]) -> Iterator[psutil.Process]:
    """Those that run a command."""
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.cmdline() == command:
                yield each
