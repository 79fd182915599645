"""The most memory that a process and all it starts hold at one time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# Seconds between two looks. What was held in between is not missed: the system keeps the highest.
_PAUSE = 0.1
_MIB = 2**20


class Watched:
    """What a family of processes held so far, with what they share counted in each."""

    def __init__(self, pid: int) -> None:
        self._looks: list[tuple[float, float]] = []
        self._pid = pid
        self._seen = {pid}

    def look(self) -> None:
        """Adds up what each of them held at most since the last look."""
        with suppress(psutil.Error):
            parent = psutil.Process(self._pid)
            family = [parent, *parent.children(recursive=True)]
            # Until a new process runs its own program, it is a view of the one that started it.
            held = sum(_held(each) for each in family if each.pid in self._seen)
            self._seen = {each.pid for each in family}
            self._looks.append((time.time(), held / _MIB))

    def peak(self, until: float | None = None) -> float:
        """The most that all of them held at one time, in MiB, until a time (seconds since 1970) or now."""
        return max((held for at, held in self._looks if until is None or at <= until), default=0.0)


@contextmanager
def watched(pid: int) -> Iterator[Watched]:
    """Watches a process and its descendants."""
    found, ended = Watched(pid), threading.Event()

    def look_again() -> None:
        while not ended.wait(_PAUSE):
            found.look()

    watcher = threading.Thread(target=look_again, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def _held(process: psutil.Process) -> int:
    """The most bytes that one held since it was last asked, where the system tells, else those it holds."""
    folder = Path(f"/proc/{process.pid}")
    try:
        status = (folder / "status").read_text().splitlines()
        (highest,) = (line for line in status if line.startswith("VmHWM"))
        # It begins anew with what is held now.
        (folder / "clear_refs").write_text("5")
        return int(highest.split()[1]) * 1_024
    except (OSError, ValueError):
        # It has just ended, or this is no Linux.
        with suppress(psutil.Error):
            return process.memory_info().rss
        return 0
