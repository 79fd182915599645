"""Processes that work for this one on another core: how they start, what they are told, and how both talk.

A worker is a module's program that answers frames of bytes by frames of bytes. It is told neither where
the database is nor any credential, and its input ends with the process that started it, however that ends.
"""

import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import pyarrow as pa

# What an interpreter may need; everything else in the environment is none of its business. Great Expectations
# reads its own docstrings, which an optimised one leaves out.
_INHERITED = re.compile(r"PATH|LD_LIBRARY_PATH|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON(?!OPTIMIZE)\w*")
_LENGTH = struct.Struct("!Q")
# Room is made for all that is asked of a pipe, however little is in it.
_PIECE = 1_048_576
# Seconds in which one that has closed its pipes ends by itself, with a status that says why.
_TO_END = 5.0


class WorkerEnded(RuntimeError):
    """A worker ended, or was given up, before it had answered."""


class Worker:
    """The program of a module of this package, running; to be ended.

    Args:
        module: its name; it calls `channel`.
        arguments: what it is called with.
        patience: seconds after which one that does not take a question or give an answer is killed. It may
            have been stopped, or its machine have no memory left: it neither answers then nor ends by itself.

    Raises:
        OSError: there is no memory, or no more processes or files are to be had.
    """

    def __init__(self, module: str, *arguments: str, patience: float) -> None:
        # A worker, which imports this too, has no settings.
        from bridge_pipeline.settings import PROJECT_ROOT

        self._patience = patience
        variables = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
        path = [str(PROJECT_ROOT), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(path)
        answers, answering = os.pipe()
        # Nothing is read beyond a frame: what waits of the next is seen in the pipe.
        self.answers = os.fdopen(answers, "rb", buffering=0)
        # What is printed while it starts, by whomever, must not be taken for an answer.
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        # Safe path: the current folder is anybody's.
        command = [sys.executable, "-P", "-m", module, str(answering), *arguments]
        try:
            self.process = subprocess.Popen(
                command, env=variables, stdin=pipe, stdout=null, pass_fds=[answering]
            )
        except OSError:
            self.answers.close()
            raise
        finally:
            os.close(answering)
        assert self.process.stdin is not None
        self.questions = self.process.stdin

    def send(self, *parts: bytes | pa.Buffer) -> None:
        """Sends the parts as one frame.

        Raises:
            WorkerEnded: it does not take them.
        """
        try:
            with self._patiently():
                write_frame(self.questions, *parts)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._ended(error) from error

    def receive(self) -> bytes:
        """The next frame.

        Raises:
            WorkerEnded: there is none.
        """
        try:
            with self._patiently():
                return read_frame(self.answers)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            raise self._ended(error) from error

    @property
    def answering(self) -> bool:
        """Whether a frame has begun to come, or none will any more."""
        waiting = select.poll()
        waiting.register(self.answers, select.POLLIN)
        return bool(waiting.poll(0))

    def end(self) -> None:
        """Ends it; it keeps nothing that a sudden end could damage."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.questions, self.answers):
            # What was not sent is of no use any more.
            with suppress(OSError):
                pipe.close()

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        # Whoever waits for it goes on when it is killed. Where no thread can be had (`RuntimeError`), it is
        # given up at once. One that was ended has closed pipes (`ValueError`).
        patience = threading.Timer(self._patience, self.process.kill)
        patience.daemon = True
        patience.start()
        try:
            yield
        finally:
            patience.cancel()

    def _ended(self, error: Exception) -> WorkerEnded:
        if isinstance(error, EOFError | BrokenPipeError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_TO_END)
        self.process.kill()
        return WorkerEnded(f"it ended with status {self.process.wait()} before it had answered")


def channel() -> tuple[IO[bytes], IO[bytes], list[str]]:
    """What a worker reads from and writes to, and its arguments; for its program."""
    # An interrupt is for the process that asks; this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answering, *arguments = sys.argv[1:]
    return sys.stdin.buffer, os.fdopen(int(answering), "wb"), arguments


def write_frame(pipe: IO[bytes], *parts: bytes | pa.Buffer) -> None:
    """Writes the parts as one frame."""
    pipe.write(_LENGTH.pack(sum(map(len, parts))))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes:
    """The next frame.

    Raises:
        EOFError: there is none, or it is cut.
    """
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return _read(pipe, length)


def _read(pipe: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = pipe.read(min(size, _PIECE))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
