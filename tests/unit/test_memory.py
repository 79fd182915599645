"""Memory: what the process gives back, and how the benchmarks see what its family holds."""

import gc
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.peaks import Watched
from bridge_pipeline.memory import few_collections

_MIB = 2**20
_FAMILY = f"""
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "held = bytearray(b'x') * (40 * {_MIB}); print(flush=True); input()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
child.stdout.readline()
print(flush=True)
input()
bytearray(b"x") * (60 * {_MIB})
print(flush=True)
input()
child.communicate(b"\\n")
"""


def test_the_peak_of_a_family_is_that_of_all_its_processes_together_however_short_it_was():
    with subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        family = Watched(parent.pid)
        family.look()
        family.look()
        at_rest = family.peak()
        assert 40 < at_rest < 100
        before = time.time()
        parent.stdin.write("\n")
        parent.stdout.readline()
        # By now the 60 MiB are gone again.
        family.look()
        assert at_rest + 55 < family.peak() < at_rest + 100
        highest = family.peak()
        family.look()
        assert family.peak() == highest
        assert family.peak(until=before) == at_rest
        parent.stdin.write("\n")


_READER = """
import mmap, subprocess, sys
with open(sys.argv[1]) as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert pages.find(b"x") < 0
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdin=0)
print(flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell what is shared")
def test_what_the_processes_of_a_family_share_is_counted_once(tmp_path):
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(40 * _MIB))
    alone, pair = peak_of(shared, 1), peak_of(shared, 2)
    # Whoever else on the machine has the file in memory.
    assert 45 < alone < 70
    assert alone + 2 < pair < alone + 20


def peak_of(shared: Path, processes: int) -> float:
    """What so many processes hold, in MiB, that have read the same file; the first starts the other."""
    command = [sys.executable, "-c", _READER, str(shared), *[_READER] * (processes - 1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        for _ in range(processes):
            first.stdout.readline()
        family = Watched(first.pid)
        family.look()
        family.look()
        first.communicate()
    return family.peak()


_HEAPS = """
import ctypes, sys, threading
import bridge_pipeline
import pyarrow

def allocate():
    kept = [bytes(1_000) for _ in range(1_000)]
    barrier.wait()
    barrier.wait()

barrier = threading.Barrier(9)
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
barrier.wait()
print(pyarrow.default_memory_pool().backend_name)
"""


_SCATTERED = """
import psutil
from bridge_pipeline.memory import give_back

held = [bytes(4_000) for _ in range(20_000)]
# One in fifty stays, and keeps the heap from shrinking.
held = held[::50]
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_what_is_free_between_what_stays_is_given_back():
    done = subprocess.run([sys.executable, "-c", _SCATTERED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40 * _MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_arrow_and_all_threads_take_their_memory_from_one_heap(tmp_path):
    command = [sys.executable, "-c", _HEAPS, str(tmp_path / "heaps.xml")]
    environment = {name: value for name, value in os.environ.items() if "ARENA" not in name}
    environment.pop("ARROW_DEFAULT_MEMORY_POOL", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "system\n"
    assert (tmp_path / "heaps.xml").read_text().count("<heap ") == 1


def test_garbage_is_looked_for_seldom_within_and_as_before_afterwards():
    before = gc.get_threshold()
    with pytest.raises(KeyError) as raised, few_collections():
        {}[gc.get_threshold()[0]]
    assert raised.value.args[0] >= 5 * before[0]
    assert gc.get_threshold() == before
