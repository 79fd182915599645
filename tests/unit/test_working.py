"""While a run works, stdout stays free for the answer and stderr shows progress only."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import logging, os, subprocess, sys
import structlog
from bridge_pipeline import logs, progress, settings
from bridge_pipeline.commands import working
from bridge_pipeline.naming import Home
from bridge_pipeline.redaction import remember

configuration = settings.load()
logs.configure(configuration, Home(configuration.home))
remember("hunter2-hunter2")
with working.shown("acme"):
    print("printed hunter2-hunter2")
    subprocess.run(["sh", "-c", "echo from a child; echo and its stderr >&2"])
    structlog.get_logger("bridge.source").warning("asked again")
    structlog.get_logger("bridge").error("went wrong")
    progress.report("extract", "tickets", 10, "records")
    progress.report("extract", "tickets", 20, "records", finished=True)
    progress.report("extract", "tickets", 3, "records", finished=True)
print("the answer")
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "BRIDGE_HOME": str(tmp_path / "home"), "TERM": "xterm"}


def logged(home: str) -> list[str]:
    lines = (Path(home) / "logs" / "bridge.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_without_a_terminal_there_are_plain_lines(environment):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "the answer\n"
    first, error, *rest = done.stderr.splitlines()
    assert first == "acme …"
    assert "went wrong" in error
    assert rest == ["extract tickets: 20 records", "extract tickets: 23 records"]
    events = logged(environment["BRIDGE_HOME"])
    assert {"printed [redacted]", "from a child", "and its stderr", "asked again", "went wrong"} <= set(
        events
    )


def test_on_a_terminal_there_are_bars(environment):
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=other_end, text=True
    )
    os.close(other_end)
    shown = b""
    while chunk := _read(terminal):
        shown += chunk
    os.close(terminal)
    assert process.communicate()[0] == "the answer\n"
    assert process.returncode == 0
    text = shown.decode()
    assert "extract tickets" in text
    assert "23 records" in text
    assert "went wrong" in text
    assert "hunter2" not in text
    assert "from a child" not in text


GONE = """
from bridge_pipeline import logs, progress, settings
from bridge_pipeline.commands import working
from bridge_pipeline.commands.answers import note, outlast_readers
from bridge_pipeline.naming import Home
import structlog

configuration = settings.load()
logs.configure(configuration, Home(configuration.home))
outlast_readers()
input()
note("nobody reads this")
with working.shown("acme"):
    structlog.get_logger("bridge").error("nor this")
    progress.report("extract", "tickets", 10, "records")
print("the answer")
"""


@pytest.mark.parametrize("on_terminal", [True, False])
def test_work_goes_on_when_who_read_its_progress_is_gone(environment, on_terminal):
    reader, written = pty.openpty() if on_terminal else os.pipe()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": written, "text": True}
    with subprocess.Popen([sys.executable, "-c", GONE], env=environment, **pipes) as process:
        os.close(written)
        os.close(reader)
        assert process.communicate("\n")[0] == "the answer\n"
    assert process.returncode == 0
    assert "nor this" in logged(environment["BRIDGE_HOME"])


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # So Linux says that the other end is closed.
        return b""
