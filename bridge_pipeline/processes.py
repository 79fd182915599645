"""Processes that this installation starts: what they inherit, who they are, and how they end.

The embedded Postgres is not among them; see `database.embedded`.
"""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

from bridge_pipeline.connector_kit.journal import write_durably
from bridge_pipeline.naming import Home

if TYPE_CHECKING:
    from bridge_pipeline.database.workspace import Workspace

# Whatever else stands in the shell's environment may be a secret, and no child needs it.
_INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON\w*|SSL_CERT_\w+|LOG_LEVEL|BRIDGE_\w+|DAGSTER_\w+"
)
# Seconds for those whose parent ended to end by themselves, and for those that are killed to be gone.
_FAMILY_SECONDS = 5.0
_KILLED_SECONDS = 10.0
# Another with each start of the machine.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class AlreadyRunning(RuntimeError):
    """Another process of this home does the same."""


class PortTaken(RuntimeError):
    """Another program listens on the port."""


def child_environment(workspace: "Workspace") -> dict[str, str]:
    """The environment for a child: what it needs to find this home, and no credential of a source."""
    # A child that writes itself down waits for no database.
    from bridge_pipeline.database import registry

    secret = registry.secret_variables(workspace.database.engine)
    inherited = {
        name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name) and name not in secret
    }
    return inherited | {"BRIDGE_HOME": str(workspace.home.root)}


def refuse_taken_port(port: int) -> None:
    """Makes sure that `port` of 127.0.0.1 can be listened on.

    Raises:
        PortTaken: it cannot.
    """
    if not is_free(port):
        raise PortTaken(f"port {port} of 127.0.0.1 is in use; stop what listens there, or choose with --port")


def is_free(port: int) -> bool:
    """Whether nobody listens on `port` of 127.0.0.1."""
    with closing(socket.socket()) as probe:
        # As servers do: a port is not taken because connections of its last owner are fading out.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def recorded(home: Home, role: str, process: int, **facts: Any) -> Iterator[None]:
    """Writes down that `process` plays a role in this home, for as long as the context lasts."""
    _write(home, role, process, **facts)
    try:
        yield
    finally:
        forget(home, role)


def recording(home: Home, role: str, lock: int, command: list[str]) -> list[str]:
    """The command for a child that writes down that it plays a role, and only then becomes `command`.

    So there is none that is not written down, whenever its parent is killed: the child ends where that has
    happened before, and until then nobody else can hold the lock.

    Args:
        lock: descriptor of a locked file, for the child to inherit. Whoever holds the lock may play the role.
    """
    return [sys.executable, "-m", __name__, str(home.root), role, str(os.getpid()), str(lock), *command]


def forget(home: Home, role: str) -> None:
    """Removes what is written down of a role."""
    _record(home, role).unlink(missing_ok=True)


def facts_of(home: Home, role: str) -> dict[str, Any] | None:
    """What is written down of the living process of a role; None if none lives."""
    try:
        record = orjson.loads(_record(home, role).read_bytes())
        return record if lives(record["pid"], record["began"]) else None
    except (OSError, ValueError, KeyError):
        return None


def began(pid: int) -> str:
    """What tells a running process from any other that has its number before or after, however the clock
    of this machine is set meanwhile.

    Raises:
        psutil.NoSuchProcess: none has that number.
    """
    process = psutil.Process(pid)
    if not psutil.LINUX:
        return f"{process.create_time():.2f}"
    # psutil adds the time of the machine's start, which is reckoned from the clock and moves with it.
    try:
        ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
        return f"{_BOOT.read_text().strip()}.{ticks}"
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error


def lives(pid: int, since: str) -> bool:
    """Whether the process that had `pid`, and of which `began` said `since`, still runs."""
    try:
        return began(pid) == since and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop_recorded(home: Home, role: str, seconds: float = 20.0, family: bool = False) -> bool:
    """Ends the process of a role, as `end` does; False if none lived."""
    record = facts_of(home, role)
    if record is None:
        return False
    with suppress(psutil.NoSuchProcess):
        end(psutil.Process(record["pid"]), seconds, family)
    forget(home, role)
    return True


def end(process: psutil.Process, seconds: float = 20.0, family: bool = True) -> None:
    """Ends a process, forcibly after `seconds`, and with its `family` those that it started: code servers
    outlive a webserver that is killed, and runs their code server."""
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = process.children(recursive=True) if family else []
        process.terminate()
    for those, patience in (([process], seconds), (started, _FAMILY_SECONDS)):
        alive = psutil.wait_procs(those, timeout=patience)[1]
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, timeout=_KILLED_SECONDS)


def _record(home: Home, role: str) -> Path:
    return home.work / "processes" / f"{role}.json"


def _write(home: Home, role: str, process: int, **facts: Any) -> None:
    path = _record(home, role)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, orjson.dumps({"pid": process, "began": began(process), **facts}))


def _become(root: str, role: str, parent: str, lock: str, *command: str) -> None:
    """The program of `recording`."""
    try:
        _write(Home(Path(root)), role, os.getpid())
    except OSError:
        # Two daemons would share out the same work; a second webserver finds its port taken, and the first
        # comes back on a full disk all the same.
        if role == "daemon":
            raise
    if os.getppid() != int(parent):
        sys.exit("the process that started this one ended")
    # It is freed by the very call that makes this process the other program.
    os.set_inheritable(int(lock), False)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _become(*sys.argv[1:])
