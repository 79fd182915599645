"""The places of rows on disk: what was put is there, in whatever order, and memory does not grow with it."""

import tracemalloc

import numpy as np
import pytest

from bridge_pipeline.steps import places as module
from bridge_pipeline.steps.places import Places


@pytest.mark.parametrize("at_once", [1, 7, 64, 100_000])
def test_every_row_has_the_place_it_was_given_and_others_none(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    chance = np.random.default_rng(4711)
    expected = np.full(1_000, -1)
    with Places(tmp_path / "places", 1_000) as places:
        for numbers in np.array_split(chance.permutation(1_000)[:700], 9):
            given = chance.integers(0, 1 << 30, len(numbers))
            expected[numbers] = given
            places.put(numbers, given)
        for start in range(0, 1_000, 93):
            asked = np.arange(start, min(start + 93, 1_000))
            assert places.of(asked).tolist() == expected[asked].tolist()
        for start, count in ((0, 1_000), (3, 1), (500, 0), (990, 10)):
            assert places.any(start, count) == bool((expected[start : start + count] >= 0).any())
        assert places.of(np.zeros(0, np.int64)).tolist() == []


def test_a_place_that_was_just_given_is_one_that_a_row_has(tmp_path):
    with Places(tmp_path / "places", 10) as places:
        places.put(np.array([4]), np.array([0]))
        assert places.any(0, 10)


class NearlyFull:
    """A file that takes few bytes at a time, as one on a disk that is nearly full."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        return self._file.write(data[:100])


def test_what_is_written_in_part_is_written_on(tmp_path):
    with Places(tmp_path / "places", 1_000) as places:
        places._file = NearlyFull(places._file)
        places.put(np.arange(1_000), np.arange(1_000))
        assert places.of(np.arange(1_000)).tolist() == list(range(1_000))


def held(folder, rows):
    """The most bytes that were held for the places of so many rows, which come in no order."""
    numbers = np.random.default_rng(4711).permutation(rows).reshape(-1, 1_000)
    with Places(folder / str(rows), rows) as places:
        tracemalloc.start()
        for some in numbers:
            places.put(some, some)
        for start in range(0, rows, 1_000):
            assert places.of(np.arange(start, start + 1_000))[0] == start
        assert places.any(0, rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_four_times_the_rows_take_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 10_000)
    assert held(tmp_path, 400_000) < 1.2 * held(tmp_path, 100_000)
