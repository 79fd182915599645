"""What this process does with memory that it is done with: it returns it, so that a run's peak is that
of its largest step and not of all steps' leftovers.

How much a step holds at a time is its own business.
"""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# `mallopt`'s name for the number of heaps, in malloc.h of glibc.
_M_ARENA_MAX = -8
# New objects between two looks for garbage among them.
_SELDOM = 10_000


def keep_small() -> None:
    """Lets Arrow take its memory where Python does, and all threads theirs from one heap.

    Arrow's own allocator keeps what its threads have let go of, and so do the C library's heaps, of
    which each thread gets one: measured over a run of 100,000 tickets, 120 of 534 MiB, at no cost in
    time. To be called before Arrow is imported, which looks once; what the environment says wins.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # Other C libraries have nothing to set.
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextmanager
def few_collections() -> Iterator[None]:
    """Looks for garbage a fourteenth as often as Python does by itself, from 3.13 on a fifth.

    What a run makes of small objects mostly stays, as modules and plans do, or goes by itself: a small
    day spent a fifteenth of its time on looking. Ten thousand objects more are a few MiB.
    """
    before = gc.get_threshold()
    gc.set_threshold(_SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def give_back() -> None:
    """Returns what is free within the heap to the system; takes some milliseconds.

    What is small and stays keeps the memory around it: without this, 1,000,000 tickets left 55 MiB more
    behind than 100,000.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
