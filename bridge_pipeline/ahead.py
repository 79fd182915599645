"""Values made ahead of their use, so that two steps of one stream take two cores."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

Value = TypeVar("Value")


def ahead(values: Iterable[Value]) -> Generator[Value, None, None]:
    """The values, each made by a thread of its own while the one before is used.

    At most two are held at a time. What is raised while one is made is raised here in its turn.
    """
    source, context = iter(values), copy_context()

    def make() -> list[Value]:
        return context.run(lambda: list(islice(source, 1)))

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make)
        while made := following.result():
            following = pool.submit(make)
            yield from made
