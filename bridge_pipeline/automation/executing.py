"""Which runs of the command line live: the process of each holds a lock on a file of its own in the home.

Neither a host's name nor a process' number would tell: a container that is started again has another name and
the same small numbers, and two that share a database may have one name. Of a run without such a file, which
may be another home's, the lock of its connection tells (`runs`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg

from bridge_pipeline import naming
from bridge_pipeline.connector_kit.journal import listed
from bridge_pipeline.database.locks import file_lock

# Nobody looks at the files while one is made or removed.
_GUARD = ".lock"


@contextmanager
def executing(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Shows that this process executes a run, until the context ends or the process does.

    Where it ends by an error, the run may not be ended: the file stays, as that of a process that died.
    """
    folder = _folder(instance)
    with ExitStack() as held:
        with file_lock(folder / _GUARD):
            held.enter_context(file_lock(folder / run_id))
        yield
        forget(instance, run_id)


def written_down(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that have a file."""
    return [path.name for path in listed(_folder(instance), "*") if path.name != _GUARD]


def is_abandoned(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process of this home executed a run, and has ended."""
    with taken_over(instance, run_id) as abandoned:
        return abandoned


@contextmanager
def taken_over(instance: dg.DagsterInstance, run_id: str) -> Iterator[bool]:
    """Whether a process of this home executed a run, and has ended; nobody else takes it over meanwhile."""
    folder = _folder(instance)
    with ExitStack() as held:
        abandoned = False
        with file_lock(folder / _GUARD), suppress(BlockingIOError):
            # The lock would make it.
            if (folder / run_id).exists():
                held.enter_context(file_lock(folder / run_id, wait=False))
                abandoned = True
        yield abandoned


def forget(instance: dg.DagsterInstance, run_id: str) -> None:
    """Removes the file of a run that has ended."""
    folder = _folder(instance)
    with file_lock(folder / _GUARD):
        (folder / run_id).unlink(missing_ok=True)


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / naming.EXECUTING
