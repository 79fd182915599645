"""How far a run is: steps report, whoever shows progress listens. No listener, no cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `unit` in one stage of one entity; `finished` when the stage is over."""

    stage: str
    entity: str
    done: int
    unit: str
    finished: bool = False


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("progress", default=None)


def report(stage: str, entity: str, done: int, unit: str, finished: bool = False) -> None:
    """Tells the listener, if there is one."""
    if listener := _listener.get():
        listener(Progress(stage, entity, done, unit, finished))


@contextmanager
def listening(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Hears what the steps of this context report."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
