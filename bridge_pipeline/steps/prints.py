"""Which ids may have been seen before: 64 bits of each in memory, 40 MB for five million.

None that was seen is missed; of those that are said to have been, who asks has to look for himself.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.int64]


class Fingerprints:
    """Hashes of ids in sorted runs, each more than twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, ids: Sequence[str]) -> list[str]:
        """Adds ids, and gives those of them that may have been added before, each once."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        new = np.sort(hashes)
        known = [number for run in self._runs for number in _shared(run, new)]
        self._keep(new)
        if not known:
            return []
        return list(dict.fromkeys(np.array(ids, object)[np.isin(hashes, known)]))

    def _keep(self, run: Hashes) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            # The stable way merges what is sorted in parts, many times faster than the others.
            run.sort(kind="stable")
        self._runs.append(run)


def _shared(run: Hashes, wanted: Hashes) -> Hashes:
    """Those numbers of two sorted runs that stand in both."""
    places = np.searchsorted(run, wanted)
    within = places < len(run)
    return wanted[within][run[places[within]] == wanted[within]]
