"""Which place each landed row has among those to be written, on disk: there may be more than fit into
memory.

Rows are numbered as they landed, and read in that order; their places are known in another one.
"""

from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

# Places that are held until they are written, and as many that are read at a time: 4 bytes each.
_AT_ONCE = 1 << 18


class Places:
    """The places of rows, by their number; rows without one have -1.

    Args:
        path: of the scratch file, which is made anew.
        rows: how many there are; their numbers are below it, and places below 2^31.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._rows = rows
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = 0
        self._file = path.open("w+b", buffering=0)
        # What is not written reads as zeros.
        self._file.truncate(4 * rows)

    def __enter__(self) -> "Places":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()

    def put(self, numbers: np.ndarray, places: np.ndarray) -> None:
        """Gives rows their places; no row is given two."""
        self._held.append((numbers.astype(np.int32), places.astype(np.int32)))
        self._count += len(numbers)
        if self._count >= _AT_ONCE:
            self._write()

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The places of rows whose numbers lie close together."""
        self._write()
        if not len(numbers):
            return np.zeros(0, np.int32)
        first, last = int(numbers.min()), int(numbers.max())
        return self._read(first, last + 1 - first)[numbers - first] - 1

    def any(self, first: int, count: int) -> bool:
        """Whether one of so many rows, counted from `first`, has a place."""
        self._write()
        starts = range(first, first + count, _AT_ONCE)
        return any(self._read(start, min(_AT_ONCE, first + count - start)).any() for start in starts)

    def _write(self) -> None:
        if not self._count:
            return
        numbers, places = (np.concatenate(each) for each in zip(*self._held, strict=True))
        self._held, self._count = [], 0
        order = np.argsort(numbers, kind="stable")
        numbers, places = numbers[order], places[order]
        blocks = numbers // _AT_ONCE
        borders = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), len(numbers)]
        for start, end in pairwise(borders):
            first, last = int(numbers[start]), int(numbers[end - 1])
            known = self._read(first, last + 1 - first)
            known[numbers[start:end] - first] = places[start:end] + 1
            self._put_back(first, memoryview(known.tobytes()))

    def _put_back(self, first: int, left: memoryview) -> None:
        self._file.seek(4 * first)
        while left:
            # On a disk that is nearly full only a part is written at first.
            left = left[self._file.write(left) :]

    def _read(self, first: int, count: int) -> np.ndarray:
        self._file.seek(4 * first)
        return np.frombuffer(bytearray(self._file.read(4 * count)), np.int32)
