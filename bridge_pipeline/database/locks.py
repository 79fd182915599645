"""Locks between the processes of one machine, as locked files.

What must hold between machines too is locked in the database: see `engine.advisory_lock`.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[int]:
    """Waits until no other process is in a block with the same `path`; freed when a process dies.

    Gives the locked descriptor: a child that inherits it holds the lock as well.

    Raises:
        BlockingIOError: another process is in one; only without `wait`.
        OSError: the file, which is made if it is missing, cannot be opened for writing.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
