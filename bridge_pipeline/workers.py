"""Processes that work for this one on another core: how they start, what they are told, and how both talk.

A worker is a module's program that answers frames of bytes by frames of bytes. It is told neither where
the database is nor any credential, and its input ends with the process that started it, however that ends.
"""

import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from bridge_pipeline.settings import PROJECT_ROOT

# What an interpreter may need; everything else in the environment is none of its business.
_INHERITED = re.compile(r"PATH|LD_LIBRARY_PATH|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON\w*")
_LENGTH = struct.Struct("!Q")


def start(module: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Starts the program of a module of this package.

    Raises:
        OSError: there is no memory, or no more processes are to be had.
    """
    variables = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    path = [str(PROJECT_ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    # Safe path: the current folder is anybody's.
    command = [sys.executable, "-P", "-m", module, *arguments]
    variables["PYTHONPATH"] = os.pathsep.join(path)
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def channel() -> tuple[IO[bytes], IO[bytes]]:
    """What a worker reads from and writes to; for its program, which calls this first."""
    # An interrupt is for the process that asks; this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not be taken for an answer.
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


@contextmanager
def given_up(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[None]:
    """Kills a worker that is still waited for after so long: who reads from it or writes to it goes on.

    One that was stopped, or whose machine has no memory left, neither answers nor ends by itself.
    """
    patience = threading.Timer(seconds, process.kill)
    patience.daemon = True
    patience.start()
    try:
        yield
    finally:
        patience.cancel()


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
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content
