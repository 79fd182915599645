"""Values made ahead of their use, so that two steps of one stream take two cores."""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from itertools import islice
from threading import current_thread
from typing import Any, TypeVar

Value = TypeVar("Value")


def ahead(values: Iterable[Value]) -> Generator[Value, None, None]:
    """The values, each made by a thread of its own while the one before is used.

    At most two are held at a time. What is raised while one is made is raised here in its turn.
    """
    source, context = iter(values), copy_context()

    def make() -> list[Value]:
        return context.run(lambda: list(islice(source, 1)))

    pool = ThreadPoolExecutor(1)
    following = pool.submit(make)
    try:
        while made := following.result():
            following = pool.submit(make)
            yield from made
    finally:
        leave(pool, [following])


def leave(pool: ThreadPoolExecutor, begun: Iterable[Future[Any]]) -> None:
    """Ends a pool when what it has begun has ended; nothing more is begun.

    Its threads are not joined, which takes a lock of all threads: a generator that nobody closed ends where
    it is collected, and that may be while another thread begins and holds that lock. It may be in one of
    these threads, too, which would wait for itself.
    """
    pool.shutdown(wait=False, cancel_futures=True)
    if current_thread() not in pool._threads:
        wait([each for each in begun if not each.cancelled()])
