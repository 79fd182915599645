"""`bridge up`, `bridge down` and `bridge status`: Dagster's UI and daemon, and what is where."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, note, opened, printable, table

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.database.workspace import Workspace
    from bridge_pipeline.naming import Home

_ROLES = ("webserver", "daemon")
# Signals that ask to stop.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_SECONDS = 120.0
# For `up` to end its parts and theirs, one after the other.
_STOP_SECONDS = 60.0
# Between two looks at the embedded database.
_LOOK_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog=examples("`bridge up`", "`bridge up --port 3001 --read-only`"))(up)
    app.command(epilog=examples("`bridge down`"))(down)
    app.command(epilog=examples("`bridge status`", '`psql "$(bridge status --json | jq -r .database_url)"`'))(
        status
    )


# --- up and down ------------------------------------------------------------------------------


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on 127.0.0.1.")] = 3000,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="For analysts: the UI can start nothing.")
    ] = False,
) -> None:
    """Serve Dagster's UI and run its daemon (schedule, backfills, queue) until stopped with Ctrl-C.

    Both listen on this machine only: the UI has no login. What they print is in `logs/dagster.log`.
    """
    from bridge_pipeline import processes

    workspace = opened()
    with ExitStack() as stack:
        lock = _refuse_second(stack, workspace.home)
        for number in _STOPPING:
            # With `nohup` it outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _raise_stopped)
        try:
            # Before all that takes time, so that `bridge down` finds it.
            stack.enter_context(processes.recorded(workspace.home, "up", os.getpid(), port=port))
            code = _serve(stack, _Parts(workspace, port, read_only, lock))
        except _Stopped:
            note("stopping …")
            code = 0
    raise typer.Exit(code)


def _refuse_second(stack: ExitStack, home: "Home") -> int:
    """Locks the home for this `up`; gives the lock's descriptor."""
    from bridge_pipeline import processes
    from bridge_pipeline.database.locks import file_lock

    lock = None
    with suppress(BlockingIOError):
        lock = stack.enter_context(file_lock(home.work / "up.lock", wait=False))
    running = processes.facts_of(home, "up")
    # Where somebody removed the lock's file, the one before holds another.
    if lock is None or running:
        where = _address(running["port"]) if running else "it is about to serve"
        raise processes.AlreadyRunning(f"it runs already: {where}; `bridge down` stops it")
    return lock


def down(json_output: Json = False) -> None:
    """Stop what `bridge up` started, and the embedded database of this home."""
    from bridge_pipeline import processes
    from bridge_pipeline.commands.answers import start_logging
    from bridge_pipeline.database import embedded
    from bridge_pipeline.naming import Home

    home = Home(start_logging().home)
    stopped = ["up"] if processes.stop_recorded(home, "up", _STOP_SECONDS) else []
    # `up` stops its children itself; they are looked for in case it was killed.
    children = (*_ROLES, "simulator")
    stopped += [role for role in children if processes.stop_recorded(home, role, family=True)]
    if embedded.stop(home):
        stopped.append("database")
    text = f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"
    answer({"stopped": stopped}, json_output, lambda console: console.print(text))


@dataclass
class _Child:
    """A running part of `up`, and the last lines it printed."""

    role: str
    process: subprocess.Popen[str]
    last: deque[str] = field(default_factory=lambda: deque(maxlen=15))


class _Stopped(BaseException):
    """The user or the system asks to stop; for nobody in between to catch."""


def _serve(stack: ExitStack, parts: "_Parts") -> int:
    """Runs the parts until one ends (1)."""
    from bridge_pipeline import processes

    workspace = parts.workspace
    # Those of one that was killed: two daemons would share out the same work.
    for role in _ROLES:
        processes.stop_recorded(workspace.home, role)
    processes.refuse_taken_port(parts.port)
    # Dagster takes a second to import.
    from bridge_pipeline.automation.runs import prepare_instance, settle_lost_runs

    settle_lost_runs(workspace, prepare_instance(workspace))
    stack.callback(parts.stop)
    for role in _ROLES:
        parts.start(role)
    return _watch(parts)


def _raise_stopped(_number: int, _frame: object) -> None:
    # One is enough: another must not interrupt the stopping.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


@dataclass
class _Parts:
    """The running parts of `up`, by their roles."""

    workspace: "Workspace"
    port: int
    read_only: bool
    # Descriptor of the lock of this `up`.
    lock: int
    running: dict[str, _Child] = field(default_factory=dict)

    def start(self, role: str) -> None:
        """Starts a part, in place of the one that runs."""
        from bridge_pipeline import processes
        from bridge_pipeline.settings import PROJECT_ROOT

        home = self.workspace.home
        if role in self.running:
            _stop(self.running[role], home)
        command = _command(role, PROJECT_ROOT / "workspace.yaml", self.port, self.read_only)
        process = subprocess.Popen(
            processes.recording(home, role, self.lock, command),
            pass_fds=[self.lock],
            cwd=PROJECT_ROOT,
            env=processes.child_environment(self.workspace),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for `up`, which then stops them in order.
            start_new_session=True,
        )
        child = self.running[role] = _Child(role, process)
        threading.Thread(target=_keep_lines, args=(self.workspace, child), daemon=True).start()

    def stop(self) -> None:
        """Ends all parts, the last one started first."""
        with ExitStack() as stack:
            for child in self.running.values():
                stack.callback(_stop, child, self.workspace.home)


def _command(role: str, location: Path, port: int, read_only: bool) -> list[str]:
    programs = Path(sys.executable).parent
    if role == "daemon":
        return [str(programs / "dagster-daemon"), "run", "-w", str(location)]
    options = [
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-w",
        str(location),
        *(["--read-only"] if read_only else []),
    ]
    return [str(programs / "dagster-webserver"), *options]


def _keep_lines(workspace: "Workspace", child: _Child) -> None:
    """Writes what a child prints to the log, redacted and rotated like every log."""
    from bridge_pipeline.logs import append
    from bridge_pipeline.redaction import redact

    settings = workspace.settings
    for line in child.process.stdout or ():
        text = redact(line.rstrip("\n"))
        child.last.append(text)
        path = workspace.home.logs / "dagster.log"
        # Where nobody reads on, the child waits for ever to be rid of its next lines.
        with suppress(OSError):
            append(path, f"{child.role}: {text}\n".encode(), settings.log_max_bytes, settings.log_backups)


def _watch(parts: _Parts) -> int:
    deadline = time.monotonic() + _START_SECONDS
    answering = False
    database = _revived(parts.workspace)
    code = _CodeServer(parts)
    while True:
        for child in parts.running.values():
            if child.process.poll() is not None:
                lines = "".join(f"\n  {printable(line)}" for line in child.last)
                note(f"the {child.role} ended with code {child.process.returncode}; its last lines:{lines}")
                return 1
        if not answering and _answers(parts.port):
            answering = True
            note(f"Dagster is at {_address(parts.port)} – stop it with Ctrl-C")
        if not answering and time.monotonic() > deadline:
            note(f"the webserver does not answer after {_START_SECONDS:.0f} s; see logs/dagster.log")
            return 1
        if database is not None:
            database.look()
        code.look()
        time.sleep(0.2)


@dataclass
class _CodeServer:
    """The code server of the webserver, which goes on without it, starts no run and says nothing of it.

    The daemon replaces its own within a minute.
    """

    parts: _Parts
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Starts the webserver again where its code server is gone."""
        import psutil

        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.parts.running["webserver"].process.pid).children()
            there = any(each.status() != psutil.STATUS_ZOMBIE for each in started)
            # It listens only when its code server has answered, or has ended.
            if not there and _answers(self.parts.port):
                note("the webserver's code server had ended, and the webserver is started again")
                self.parts.start("webserver")
        self.looked = time.monotonic()


@dataclass
class _Revived:
    """The embedded server of a home, started again when it went: the daemon would wait for it for ever."""

    home: "Home"
    # Where the parts look for it.
    socket_dir: Path
    pid: int
    told: bool = False
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Starts it where it does not run; what hinders is told once, and tried again.

        Raises:
            DatabaseReplaced: the parts would never find it again.
        """
        from bridge_pipeline.database import embedded

        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return
        try:
            server = embedded.start_again(self.home, self.socket_dir)
            # One that was only about to start or to end is no news.
            if server.pid != self.pid:
                note("the embedded database had ended and was started again; see logs/postgres.log")
            self.pid, self.told = server.pid, False
        except embedded.DatabaseReplaced:
            raise
        except (embedded.DatabaseUnavailable, OSError) as error:
            if not self.told:
                note(f"the embedded database is away, and is tried again: {printable(str(error))}")
            self.told = True
        self.looked = time.monotonic()


def _revived(workspace: "Workspace") -> _Revived | None:
    """What looks after the embedded server; None where the database is the user's own."""
    from bridge_pipeline.database import embedded

    if workspace.settings.database_url is not None:
        return None
    socket_dir = Path(str(workspace.database.url.query["host"]))
    return _Revived(workspace.home, socket_dir, embedded.start_again(workspace.home, socket_dir).pid)


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _stop(child: _Child, home: "Home") -> None:
    import psutil

    from bridge_pipeline import processes

    # One that ended by itself may have given its number away.
    if child.process.poll() is None:
        processes.end(psutil.Process(child.process.pid))
        child.process.wait()
    # Not before: `bridge down` looks for what did not end.
    processes.forget(home, child.role)


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}"


# --- status -----------------------------------------------------------------------------------


def status(
    show_secrets: Annotated[
        bool, typer.Option("--show-secrets", help="Show the database's password.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Say where everything lies, what runs, and how far each connection is.

    Starts and prepares what is missing, so it works in an empty home.
    """
    workspace = opened()
    home = workspace.home
    document = {
        "home": str(home.root),
        "database_url": workspace.database.libpq(show_secrets),
        "journal": str(home.journal),
        "landing": str(home.landing),
        "audit": str(home.audit),
        "reports": str(home.reports),
        "dagster_home": str(home.dagster),
        "logs": str(home.logs),
        "server": _server(workspace),
        "dagster": _dagster(home),
        "connections": _connections(workspace),
        "quota": _quotas(workspace),
        "messages": _messages(workspace),
    }
    answer(document, json_output, lambda console: _show_status(document, console))


def _server(workspace: "Workspace") -> dict[str, Any]:
    from bridge_pipeline.database import embedded

    # The workspace is open, so whichever server it is, it answers.
    if workspace.settings.database_url is not None:
        return {"embedded": False, "running": True, "pid": None}
    server = embedded.running(workspace.home)
    return {"embedded": True, "running": server is not None, "pid": server.pid if server else None}


def _dagster(home: "Home") -> dict[str, Any]:
    from bridge_pipeline import processes

    found = processes.facts_of(home, "up")
    return {"running": found is not None, "url": _address(found["port"]) if found else None}


def _connections(workspace: "Workspace") -> list[dict[str, Any]]:
    from bridge_pipeline.database import ledger, registry
    from bridge_pipeline.steps.due import entities_of

    engine, lag = workspace.database.engine, workspace.settings.settle_lag
    result = []
    with engine.connect() as connection:
        for record in registry.list_connections(engine):
            days = ledger.complete_days(connection, record.name, entities_of(record), lag)
            result.append(
                {
                    "name": record.name,
                    "tenant": record.tenant,
                    "connector": record.connector,
                    "complete_days": len(days),
                    "first_complete_day": min(days, default=None),
                    "last_complete_day": max(days, default=None),
                    "last_run": ledger.last_run(connection, record.name),
                }
            )
    return result


def _quotas(workspace: "Workspace") -> list[dict[str, Any]]:
    from bridge_pipeline.steps.metering import quotas

    return quotas(workspace)


def _messages(workspace: "Workspace") -> dict[str, Any]:
    from bridge_pipeline.database import outbox

    with workspace.database.engine.connect() as connection:
        return outbox.counts(connection) | {"waiting_since": outbox.waiting_since(connection)}


def _show_status(document: dict[str, Any], console: "Console") -> None:
    plain = {key: value for key, value in document.items() if isinstance(value, str)}
    server, dagster = document["server"], document["dagster"]
    kind = f"embedded, process {server['pid']}" if server["embedded"] else "your own"
    console.print(table(["what", "where"], [*plain.items(), ("server", kind), ("dagster", dagster["url"])]))
    columns = ["connection", "tenant", "connector", "complete days", "from", "to", "last run", "at"]
    rows = [
        [
            *(each[key] for key in ("name", "tenant", "connector", "complete_days")),
            each["first_complete_day"],
            each["last_complete_day"],
            *((each["last_run"] or {}).get(key) for key in ("run_id", "at")),
        ]
        for each in document["connections"]
    ]
    console.print(table(columns, rows) if rows else "no connections yet: `bridge connections add --help`")
    if quota := list(_quota_rows(document["quota"])):
        console.print(table(_QUOTA_COLUMNS, quota))
    messages = document["messages"]
    if messages["failed"] or messages["waiting_since"]:
        text = f"{messages['failed']} messages to reviewers were given up, {messages['pending']} wait"
        console.print(f"{text}: see `bridge deliveries list`", style="bold red")


_QUOTA_COLUMNS = ("quota shared by", "bucket", "limit", "in s", "used", "others", "left", "wait s", "waiting")


def _quota_rows(quotas: list[dict[str, Any]]) -> Iterator[list[object]]:
    """A line per bucket that has a limit, or holds something back."""
    for each in quotas:
        for bucket in each["buckets"]:
            if bucket["limit"] is not None or bucket["wait"]:
                names = ("bucket", "limit", "seconds", "used", "others", "left", "wait", "waiting")
                yield [", ".join(each["connections"]), *(bucket[name] for name in names)]
