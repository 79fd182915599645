"""What a run asks of Dagster's storage where that is Bridge's own (`automation.storage`)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import dagster as dg


@runtime_checkable
class Keeping(Protocol):
    """A storage that can keep its connections open."""

    def kept(self) -> AbstractContextManager[None]:
        """Keeps them open meanwhile."""
        ...


@runtime_checkable
class Gathering(Protocol):
    """An event log that can store events together."""

    def together(self) -> AbstractContextManager[None]:
        """Stores what comes meanwhile as one batch."""
        ...


@contextmanager
def storage_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Lets the instance use its connections again; by itself it opens one for every statement.

    A day of three entities took 900 of them, and they took Postgres longer than all that was asked of it.
    Only for the time of a run: an instance that is forgotten must not keep a connection.
    """
    with ExitStack() as kept:
        for storage in (instance.event_log_storage, instance.run_storage):
            if isinstance(storage, Keeping):
                kept.enter_context(storage.kept())
        yield


@contextmanager
def events_together(instance: dg.DagsterInstance) -> Iterator[None]:
    """Stores the events of what a step yields within as one batch: at the end, or when Dagster tells of
    anything else.

    Only around what is yielded at one go, such as the results of a batch's checks: nobody sees the first
    of them before the last. Around a materialisation and its checks it would hide the one from the others.
    """
    storage = instance.event_log_storage
    with storage.together() if isinstance(storage, Gathering) else nullcontext():
        yield
