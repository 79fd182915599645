"""Which ids may have been seen before: 64 bits of each, the latest in memory and the others on disk.

None that was seen is missed; of those that are said to have been, who asks has to look for himself.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.int64]

# Longer runs lie on disk: 2 MB.
_HELD = 1 << 18


class Fingerprints:
    """Hashes of ids in sorted runs, each more than twice as long as the next.

    Args:
        folder: for scratch files, which have no names and go with their process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: list[Hashes] = []

    def add(self, ids: Sequence[str]) -> list[str]:
        """Adds ids, and gives those of them that may have been added before, each once."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        new = np.sort(hashes)
        known = np.concatenate([new[:0], *(_shared(run, new) for run in self._runs)])
        self._keep(new[~np.isin(new, known)] if len(known) else new)
        if not len(known):
            return []
        return list(dict.fromkeys(np.array(ids, object)[np.isin(hashes, known)]))

    def _keep(self, run: Hashes) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            longer = self._runs.pop()
            count = len(longer) + len(run)
            run = _merged(longer, run) if count <= _HELD else self._written(count, _in_parts(longer, run))
        self._runs.append(run)

    def _written(self, count: int, parts: Iterator[Hashes]) -> Hashes:
        """A run on disk, of so many hashes in sorted parts."""
        with TemporaryFile(dir=self._folder) as file:
            for part in parts:
                file.write(part.data)
            file.flush()
            return np.memmap(file, np.int64, "r", shape=(count,))


def _shared(run: Hashes, wanted: Hashes) -> Hashes:
    """Those numbers of two sorted runs that stand in both."""
    found = [wanted[:0]]
    for part in _parts(run):
        first, end = np.searchsorted(wanted, part[0]), np.searchsorted(wanted, part[-1], side="right")
        among = wanted[first:end]
        found.append(among[part[np.searchsorted(part, among)] == among])
    return np.concatenate(found)


def _merged(longer: Hashes, run: Hashes) -> Hashes:
    both = np.concatenate([longer, run])
    # The stable way merges what is sorted in parts, many times faster than the others.
    both.sort(kind="stable")
    return both


def _in_parts(longer: Hashes, run: Hashes) -> Iterator[Hashes]:
    """Two sorted runs as one, some of the longer one at a time."""
    left = run
    for part in _parts(longer):
        end = np.searchsorted(left, part[-1], side="right")
        yield _merged(part, left[:end])
        left = left[end:]
        _let_go(run)
    yield np.asarray(left)


def _parts(run: Hashes) -> Iterator[Hashes]:
    """A run in parts, each let go of when the next is asked for."""
    for start in range(0, len(run), _HELD):
        yield np.asarray(run[start : start + _HELD])
        _let_go(run)


def _let_go(run: Hashes) -> None:
    """Leaves what was read of a run on disk to the system's cache, which is no process's memory."""
    if isinstance(run, np.memmap):
        run._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
