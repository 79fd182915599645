"""The most memory that a process and all it starts hold at one time, with what they share counted once.

Shared is what several of them have in memory of the same part of a file, as of a library. That others on
the machine have it too makes it no smaller, as it would in the system's proportional set size (PSS).
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# Seconds between two looks. What was held in between is not missed: the system keeps the highest.
_PAUSE = 0.1
# Seconds between two looks at what is shared, each of which takes 0.03 s of a core for each process.
_SHARED_PAUSE = 2.0
_MIB = 2**20

# A part of a file: device, inode, and where it begins.
_Part = tuple[str, str, str]


class Watched:
    """What a family of processes held so far."""

    def __init__(self, pid: int) -> None:
        self._looks: list[tuple[float, float]] = []
        self._pid = pid
        self._seen = {pid}
        self._twice, self._compared, self._among = 0, 0.0, set[int]()

    def look(self) -> None:
        """Adds up what each of them held at most since the last look."""
        with suppress(psutil.Error):
            processes = [psutil.Process(pid) for pid in family(self._pid)]
            # Until a new process runs its own program, it is a view of the one that started it.
            known = [each for each in processes if each.pid in self._seen]
            held = sum(map(_held, known))
            self._compare({each.pid for each in known})
            self._seen = {each.pid for each in processes}
            self._looks.append((time.time(), (held - self._twice) / _MIB))

    def peak(self, until: float | None = None) -> float:
        """The most that all of them held at one time, in MiB, until a time (seconds since 1970) or now."""
        return max((held for at, held in self._looks if until is None or at <= until), default=0.0)

    def _compare(self, pids: set[int]) -> None:
        """Finds out how many bytes are counted more than once: what several have of the same file."""
        if pids == self._among and time.time() < self._compared + _SHARED_PAUSE:
            return
        found: dict[_Part, list[int]] = defaultdict(list)
        for pid in pids:
            for part, size in _of_files(pid).items():
                found[part].append(size)
        self._twice = sum(sum(sizes) - max(sizes) for sizes in found.values())
        self._among, self._compared = pids, time.time()


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


def family(pid: int) -> list[int]:
    """The ids of a process and its descendants.

    Where the system lists children they are asked for that: to look through all processes there are, ten
    times a second, takes a fifteenth of a core from what is measured.
    """
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        found = psutil.Process(pid).children(recursive=True)
        return [pid, *(each.pid for each in found)]
    children = [int(child) for each in lists for child in each.split()]
    return [pid, *(each for child in children for each in family(child))]


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


def _of_files(pid: int) -> dict[_Part, int]:
    """The bytes that a process has in memory of each part of a file; nothing where the system does not tell.

    What it changed for itself is not the file's any more.
    """
    found: dict[_Part, int] = defaultdict(int)
    part: _Part | None = None
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *rest = line.split()
        if not name.endswith(":"):
            _, start, device, inode, *_ = rest
            part = (device, inode, start) if inode != "0" else None
        elif part and name in ("Rss:", "Anonymous:"):
            found[part] += int(rest[0]) * (1_024 if name == "Rss:" else -1_024)
    return found
