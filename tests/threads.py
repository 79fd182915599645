"""Generators that use threads, ended where no thread can be joined."""

import threading
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any


def ended_while_locked(values: Generator[Any, None, None]) -> None:
    """Ends a generator as a collection of garbage may: in a thread that holds the lock which joining needs.

    Raises:
        AssertionError: it never ends.
    """
    # Python 3.13 has no such lock any more.
    lock: Any = getattr(threading, "_shutdown_locks_lock", nullcontext())

    def end() -> None:
        with lock:
            values.close()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        # Or no other test could begin a thread.
        lock.release()
        raise AssertionError("it waits for a lock that its own thread holds")
