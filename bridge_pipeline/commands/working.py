"""What is shown while a run works: progress on stderr, and nothing that libraries print."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from bridge_pipeline import logs, progress
from bridge_pipeline.commands.answers import unheard

_PLAIN_EVERY = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@contextmanager
def shown(title: str) -> Iterator[None]:
    """Shows what the steps within report; what anybody prints within goes to the log."""
    with ExitStack() as stack:
        stderr = stack.enter_context(_captured_output())
        display = _bars(stack, stderr, title) if stderr.isatty() else _Lines(stderr, title)
        stack.enter_context(progress.listening(display))
        yield


class _Totals:
    """Adds up what a stage reports in several goes: parents are extracted after their children."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}

    def of(self, event: progress.Progress) -> int:
        key = (event.stage, event.entity)
        total = self._before.get(key, 0) + event.done
        if event.finished:
            self._before[key] = total
        return total


class _Lines:
    """Plain lines, for a stderr that is no terminal."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._totals = _Totals()
        self._told = time.monotonic()
        self._say(f"{title} …")

    def __call__(self, event: progress.Progress) -> None:
        total = self._totals.of(event)
        now = time.monotonic()
        if event.finished or now - self._told >= _PLAIN_EVERY:
            self._told = now
            end = "" if event.finished else " …"
            self._say(f"{event.stage} {event.entity}: {total:,} {event.unit}{end}")

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class _Bars:
    """One bar per stage and entity. How much there is to do nobody knows before it is done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._totals = _Totals()
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, event: progress.Progress) -> None:
        key = (event.stage, event.entity)
        total = self._totals.of(event)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{event.stage} {event.entity}", total=None, count="")
        count = f"{total:,} {event.unit}"
        # A bar that is full is one whose stage is over, also where nothing was to be done.
        end = max(total, 1) if event.finished else None
        self._bars.update(self._tasks[key], completed=end or total, total=end, count=count)


def _bars(stack: ExitStack, stderr: TextIO, title: str) -> Callable[[progress.Progress], None]:
    console = Console(file=stderr, markup=False, highlight=False, emoji=False)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
    )
    # Not redirected: what is printed belongs to the log, not above the bars.
    bars = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
    stack.enter_context(bars)
    whole = bars.add_task(title, total=None, count="")
    stack.callback(lambda: bars.update(whole, total=1, completed=1))
    stack.enter_context(logs.console(_Above(console), logging.ERROR))
    return _Bars(bars)


class _Above:
    """A stream that prints above the bars."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str, /) -> int:
        self._console.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """What is printed is out at once."""

    def isatty(self) -> bool:
        return self._console.is_terminal


@contextmanager
def _captured_output() -> Iterator[TextIO]:
    """Logs whatever this process and its children print; gives the real stderr.

    On the level of file descriptors, because the children of Dagster and dbt write there. So
    stdout is kept for the answer, and their lines are redacted like any other.
    """
    _flush()
    stdout, stderr = os.dup(1), os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    reader = threading.Thread(target=_log_lines, args=(source,), daemon=True)
    reader.start()
    terminal = unheard(os.dup(stderr), sys.stderr)
    # Requests that are asked again are warned of in the logs; a run shows what it fails of.
    with terminal, logs.console(terminal, logging.ERROR):
        try:
            yield terminal
        finally:
            _flush()
            for saved, descriptor in ((stdout, 1), (stderr, 2)):
                os.dup2(saved, descriptor)
                os.close(saved)
            # A child that lives on keeps the pipe open; its lines are not waited for.
            reader.join(timeout=2)


def _log_lines(source: int) -> None:
    log = structlog.get_logger("bridge.output")
    with os.fdopen(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if text := _COLOUR.sub("", line).rstrip():
                log.info(text)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
