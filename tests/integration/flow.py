"""The library's flow as tests drive it: connect a desk, process windows, look at what came of it.

Also what runs in processes of their own, which a failpoint may end.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bridge_pipeline import failpoints
from bridge_pipeline.database import faults, registry
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps import purge
from bridge_pipeline.steps.audit import AuditFile, audit_window
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.tables import TableUpdate, bring_up_to_date
from tests.integration.desk import TOKEN, Desk

NAME = "acme-helpdesk"
ENTITIES = ("accounts", "users", "tickets")
# Not compared: whose it is, and when and by which run it came (rule 30).
RUN_FACTS = {"connection", "loaded_at", "batch_id", "fetched_at"}

# What a child is told by its environment.
_INHERITED = ("BRIDGE_", "TORTURE_")

# A server that has imported what is slow, and forks children without threads of the tests.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [__name__, "great_expectations", "bridge_pipeline.steps.dlt_pipeline", "tests.torture.attack"]
)


def connect(
    workspace: Workspace, desk: Desk | str, name: str = NAME, tenant: str = "acme", **changes: Any
) -> ConnectionRecord:
    """Registers a desk, or the address of one, as a connection."""
    base = desk if isinstance(desk, str) else desk.url
    config = {"base_url": base, "allow_private": True}
    record = ConnectionRecord(name, tenant, "helpdesk", config, **{"entities": ENTITIES} | changes)
    box = workspace.sealer.seal(TOKEN, record.tenant, record.name, "api_token")
    registry.put(workspace.database.engine, record, {"api_token": box})
    return record


def day(first: str, last: str | None = None) -> Window:
    """The window of a day, or of all days to `last`."""
    return Window.of_days(date.fromisoformat(first), date.fromisoformat(last or first))


def land(workspace: Workspace, entity: str, window: Window, name: str = NAME) -> Batch:
    """Extracts and checks; gives the batch with its verdict."""
    return check(workspace, extract(workspace, name, entity, window).id).batch


def process(
    workspace: Workspace, window: Window, entities: Iterable[str] = ENTITIES, name: str = NAME
) -> dict[str, tuple[Batch, TableUpdate, list[AuditFile]]]:
    """The whole flow over a window, entity by entity."""
    done = {}
    for entity in entities:
        batch = land(workspace, entity, window, name)
        update = bring_up_to_date(workspace, name, entity, window)
        done[entity] = (batch, update, audit_window(workspace, name, entity, window))
    return done


def rows(workspace: Workspace, statement: str, **values: Any) -> list[dict[str, Any]]:
    """The rows of a query."""
    with workspace.database.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(statement), values).mappings()]


def execute(workspace: Workspace, statement: str, **values: Any) -> None:
    """Executes a statement in a transaction of its own."""
    with workspace.database.engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def table(workspace: Workspace, entity: str, name: str = NAME) -> dict[str, dict[str, Any]]:
    """The rows of a connection in a table of `desk` by id, placeholders included."""
    found = rows(workspace, f"select * from desk.{entity} where connection = :name", name=name)
    return {row["id"]: row for row in found}


def arrived(workspace: Workspace, entity: str, name: str = NAME) -> set[str]:
    """The ids of a table that are no placeholders."""
    return {key for key, row in table(workspace, entity, name).items() if not row["placeholder"]}


def quarantined(workspace: Workspace, entity: str, name: str = NAME) -> dict[bytes, str]:
    """The reasons of quarantined records by their exact bytes."""
    query = "select raw, reason from bridge.quarantine where entity = :entity and connection = :name"
    return {bytes(row["raw"]): row["reason"] for row in rows(workspace, query, entity=entity, name=name)}


def digest(workspace: Workspace, name: str = NAME) -> dict[str, Any]:
    """All that neither a crash nor another order of windows may change (rule 30)."""
    tables = {
        entity: _sorted(rows(workspace, f"select * from desk.{entity} where connection = :name", name=name))
        for entity in (*ENTITIES, "ticket_users")
    }
    rejected = {entity: quarantined(workspace, entity, name) for entity in ENTITIES}
    return {"tables": tables, "quarantine": rejected, "files": files(workspace.home.audit / "acme" / name)}


def _sorted(found: list[dict[str, Any]]) -> list[str]:
    kept = ({key: value for key, value in row.items() if key not in RUN_FACTS} for row in found)
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in kept)


def files(folder: Path) -> dict[str, str]:
    """Every file of an audit folder with its SHA-256; manifests without whose and which run's they are."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".json":
            kept = {key: value for key, value in json.loads(data).items() if key not in ("run", "connection")}
            data = json.dumps(kept, sort_keys=True).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


# --- Beside others ------------------------------------------------------------------------------

_KEPT_WAITING = (
    "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)


def beside(
    threads: Executor, workspace: Workspace, work: Callable[..., Any], *arguments: object
) -> Future[Any]:
    """Begins work in another thread; returns once it waits for a lock of somebody else, or is done."""
    begun = threads.submit(work, *arguments)
    while not begun.done() and not rows(workspace, _KEPT_WAITING):
        pass
    return begun


@contextmanager
def beside_at(
    point: str, workspace: Workspace, work: Callable[..., Any], *arguments: object
) -> Iterator[list[Future[Any]]]:
    """Begins work in another thread where the block first passes a point; see `beside`."""
    passed, begun = threading.Event(), list[Future[Any]]()
    with ThreadPoolExecutor(1) as threads:

        def begin(reached: str) -> None:
            if reached == point and not passed.is_set():
                passed.set()
                begun.append(beside(threads, workspace, work, *arguments))

        with failpoints.listening(begin):
            yield begun


# --- Processes of their own ---------------------------------------------------------------------


def start(work: Callable[..., object], *arguments: object, failpoint: str | None = None) -> BaseProcess:
    """Starts a function of a test module in a process of its own, over the same installation.

    Args:
        failpoint: what `BRIDGE_FAILPOINT` takes, such as `load.counted=kill@2`.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
    if failpoint:
        variables[faults.VARIABLE] = failpoint
        Path(os.environ["BRIDGE_HOME"], faults.ALLOWED).touch()
    process = _PROCESSES.Process(target=_run, args=(variables, work, arguments), daemon=True)
    process.start()
    return process


def ended(process: BaseProcess, seconds: float = 120) -> int | None:
    """Waits for a process; its exit code, negative for the signal that killed it, None if it goes on."""
    process.join(seconds)
    return process.exitcode


def _run(variables: dict[str, str], work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ.update(variables)
    work(*arguments)


def process_days(first: str, last: str, entities: tuple[str, ...], name: str = NAME) -> None:
    """The flow over some days."""
    process(open_workspace(), day(first, last), entities, name)


def certify_now() -> None:
    """A certificate."""
    certify(open_workspace(), NAME)


def purge_now() -> None:
    """A purge of the connection."""
    workspace = open_workspace()
    purge.carry_out(workspace, purge.begin(workspace, NAME, "jo@example.com", "the contract ended"))


# Whether somebody has come to a point of a meeting.
_NOBODY, _THERE, _GONE = range(3)
# Seconds after which nobody is waited for any longer.
_PATIENCE = 60
_WAITING = """
select 1 from pg_stat_activity
where datname = current_database() and pg_blocking_pids(pid) && cast(:own as int[])
"""


class Meeting:
    """Processes that begin at once, and meet at points: the first to pass one stays until another comes.

    So two are there at one time, however long each takes by itself, unless a lock of the first keeps the
    other out: then that one is seen to wait.
    """

    def __init__(self, parties: int, *points: str) -> None:
        self._begin = _PROCESSES.Barrier(parties)
        self._coming = _PROCESSES.Value("i", parties)
        self._points = points
        self._states = _PROCESSES.Array("i", [_NOBODY] * len(points))
        self._together = _PROCESSES.Value("i", 0)

    @property
    def together(self) -> int:
        """How often two were at a point at one time."""
        return self._together.value

    @contextmanager
    def joined(self, workspace: Workspace) -> Iterator[None]:
        """What a process does that takes part."""
        sessions = set[int]()
        sa.event.listen(
            workspace.database.engine, "checkout", lambda session, *_: sessions.add(session.info.backend_pid)
        )
        self._begin.wait(60)
        try:
            with failpoints.listening(functools.partial(self._pass, workspace, sessions)):
                yield
        finally:
            with self._coming:
                self._coming.value -= 1

    def _pass(self, workspace: Workspace, sessions: set[int], point: str) -> None:
        if point not in self._points:
            return
        place = self._points.index(point)
        with self._states:
            before = self._states[place]
            self._states[place] = _THERE if before == _NOBODY else _GONE
        if before == _THERE:
            with self._together:
                self._together.value += 1
        elif before == _NOBODY:
            self._stay(workspace, sessions, place)

    def _stay(self, workspace: Workspace, sessions: set[int], place: int) -> None:
        ends = time.monotonic() + _PATIENCE
        while self._states[place] == _THERE and self._coming.value > 1 and time.monotonic() < ends:
            # Looked for again and again: Postgres tells nobody that a session waits for another's lock.
            if rows(workspace, _WAITING, own=list(sessions)):
                break
            time.sleep(0.02)
        self._states[place] = _GONE


def process_together(meeting: Meeting, first: str, last: str, entities: tuple[str, ...]) -> None:
    """The flow over some days."""
    workspace = open_workspace()
    with meeting.joined(workspace):
        process(workspace, day(first, last), entities)


def load_together(meeting: Meeting, entity: str, first: str, last: str) -> None:
    """Loads and audits what is landed."""
    workspace = open_workspace()
    with meeting.joined(workspace):
        bring_up_to_date(workspace, NAME, entity, day(first, last))
        audit_window(workspace, NAME, entity, day(first, last))


def audit_together(meeting: Meeting, name: str, entity: str, first: str, last: str) -> None:
    """Audits what is landed for a connection."""
    workspace = open_workspace()
    with meeting.joined(workspace):
        audit_window(workspace, name, entity, day(first, last))


def certify_together(meeting: Meeting) -> None:
    """A certificate."""
    workspace = open_workspace()
    with meeting.joined(workspace):
        certify(workspace, NAME)


def main(first: str, last: str, entity: str) -> None:
    """The flow over some days; prints the landed records, and the peak of memory after each step."""
    workspace, window, peaks = open_workspace(), day(first, last), {}
    batch = extract(workspace, NAME, entity, window)
    peaks["extract"] = _peak()
    check(workspace, batch.id)
    peaks["check"] = _peak()
    bring_up_to_date(workspace, NAME, entity, window)
    peaks["tables"] = _peak()
    audit_window(workspace, NAME, entity, window)
    peaks["audit"] = _peak()
    sys.stdout.write(json.dumps([batch.landed, peaks]) + "\n")


def _peak() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Where there is one: Linux lets a new program begin with the peak of the one that started it.
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
