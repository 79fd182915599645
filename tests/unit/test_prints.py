"""Fingerprints: none that was seen is missed, and memory does not grow with them."""

import random

import numpy as np
import pytest

from bridge_pipeline.steps import prints as module
from bridge_pipeline.steps.prints import Fingerprints


@pytest.mark.parametrize("held", [7, 64, 100_000])
def test_what_was_added_before_is_told_and_nothing_else(tmp_path, monkeypatch, held):
    monkeypatch.setattr(module, "_HELD", held)
    chosen, prints, seen = random.Random(held), Fingerprints(tmp_path), set[str]()
    for _ in range(100):
        ids = [str(chosen.randrange(4_000)) for _ in range(chosen.randrange(40))]
        told = prints.add(ids)
        assert sorted(told) == sorted(seen.intersection(ids))
        seen.update(ids)


def test_long_runs_lie_on_disk_under_no_name(tmp_path):
    prints = Fingerprints(tmp_path)
    for start in range(0, 1_000_000, 20_000):
        assert prints.add([str(number) for number in range(start, start + 20_000)]) == []
    held = [run for run in prints._runs if not isinstance(run, np.memmap)]
    assert 8 * sum(map(len, held)) <= 4_000_000
    assert sum(map(len, prints._runs)) == 1_000_000
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_of_a_run_on_disk_does_not_stay(tmp_path):
    prints = Fingerprints(tmp_path)
    prints.add([str(number) for number in range(10)])
    for start in range(0, 600_000, 300_000):
        prints.add([str(number) for number in range(start, start + 300_000)])
    assert isinstance(prints._runs[0], np.memmap)
    prints.add([f"new {number}" for number in range(5_000)])
    assert _mapped(600_000 * 8 // 1_024) < 1_000


def _mapped(size: int) -> int:
    """KiB that this process has in memory of files it maps which have no name and at least that size."""
    resident, wanted = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            parts = line.split()
            if "-" in parts[0] and not line[0].isupper():
                wanted = line.rstrip().endswith("(deleted)")
            elif wanted and parts[0] == "Size:":
                wanted = int(parts[1]) >= size
            elif wanted and parts[0] == "Rss:":
                resident += int(parts[1])
    return resident


def test_ids_that_come_again_take_no_more_room(tmp_path):
    prints = Fingerprints(tmp_path)
    for _ in range(3):
        for start in range(0, 1_000, 100):
            prints.add([str(number) for number in range(start, start + 150)])
    assert sum(map(len, prints._runs)) == 1_050
