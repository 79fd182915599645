"""One process at a time, across machines, for work that is not one transaction itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.workspace import Workspace


@contextmanager
def exclusively(workspace: Workspace, name: str) -> Iterator[None]:
    """Waits until no other process is in a block of that name; freed when a process dies."""
    with workspace.database.engine.begin() as connection:
        advisory_lock(connection, f"exclusive:{name}", long=True)
        yield
