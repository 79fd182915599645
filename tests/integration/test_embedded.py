"""The embedded server starts, lives on, heals and ends, wherever its home is and whoever runs it."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from bridge_pipeline.commands import service
from bridge_pipeline.database import embedded
from bridge_pipeline.database.embedded import DatabaseReplaced, DatabaseUnavailable
from bridge_pipeline.naming import Home

ROOT = os.geteuid() == 0
AWKWARD = [
    "plain",
    "with spaces",
    "quotes ' and \"",
    "dollar $HOME `id` \\",
    "comma,percent%2F",
    "ümlaut",
    "x" * 120,
]


@pytest.fixture
def folder():
    """A folder that another pytest, on starting, does not close for the server's user."""
    path = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    yield path
    for home in {pid_file.parents[2] for pid_file in path.rglob("postmaster.pid")}:
        embedded.stop(Home(home))
    shutil.rmtree(path)


@pytest.fixture
def home(folder):
    return Home(folder / "home")


def query(server, statement, database="postgres"):
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        return connection.execute(statement).fetchone()


def python(code, *arguments, **options):
    """Runs a child of ours as a command would be run: with pipes that must close at its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


START = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from bridge_pipeline.commands import service
from bridge_pipeline.database import embedded
from bridge_pipeline.naming import Home
server = embedded.ensure_running(Home(Path(sys.argv[1])))
print(server.pid)
"""


def test_it_starts_once_and_stops_once(home):
    assert embedded.running(home) is None
    assert embedded.stop(home) is False
    server = embedded.ensure_running(home)
    assert embedded.ensure_running(home) == embedded.running(home) == server
    assert embedded.stop(home) is True
    assert embedded.running(home) is None
    assert embedded.stop(home) is False


def test_it_keeps_what_was_written(home):
    with psycopg.connect(embedded.ensure_running(home).url("postgres")) as connection:
        connection.execute("create table kept as select 7 as n")
    embedded.stop(home)
    assert query(embedded.ensure_running(home), "select n from kept") == (7,)


@pytest.mark.parametrize(
    ("missing", "advice"), [("extra.conf", "Repair what it names"), ("No space left on device", "Make room")]
)
def test_one_that_does_not_start_says_why_and_what_to_do(home, missing, advice):
    embedded.ensure_running(home)
    embedded.stop(home)
    with (home.postgres / "data" / "postgresql.conf").open("a") as file:
        file.write(f"include '{missing}'\n")
    with pytest.raises(embedded.DatabaseUnavailable, match=f"(?s){missing}.*\n{advice}"):
        embedded.ensure_running(home)


@pytest.mark.parametrize("name", AWKWARD)
def test_any_path_will_do(folder, name):
    home = Home(folder / name / "home")
    server = embedded.ensure_running(home)
    assert query(server, "select 1") == (1,)
    psql = [embedded.binary("psql"), server.url("postgres"), "-Atc", "select 2"]
    assert subprocess.run(psql, capture_output=True, text=True, check=True).stdout == "2\n"
    assert embedded.stop(home)
    assert embedded.ensure_running(home).socket_dir == server.socket_dir


@pytest.mark.slow
def test_two_homes_do_not_meet(folder):
    homes = [Home(folder / ("x" * 120) / name) for name in ("one", "two")]
    one, two = (embedded.ensure_running(home) for home in homes)
    assert one.socket_dir != two.socket_dir
    embedded.stop(homes[0])
    assert query(two, "select 1") == (1,)


def test_a_copied_home_does_not_take_the_original_for_its_own(home, folder):
    server = embedded.ensure_running(home)
    copy = Home(folder / "copy")
    (copy.postgres / "data").mkdir(parents=True)
    shutil.copy(home.postgres / "data" / "postmaster.pid", copy.postgres / "data")
    assert embedded.running(copy) is None
    assert embedded.stop(copy) is False
    assert embedded.running(home) == server


def test_it_is_set_up_for_the_work(home):
    server = embedded.ensure_running(home)
    wanted = {
        "server_version_num": None,
        "max_connections": "200",
        "shared_buffers": "128MB",
        "fsync": "on",
        "synchronous_commit": "on",
        "TimeZone": "UTC",
        "listen_addresses": "",
        "server_encoding": "UTF8",
    }
    found = {name: query(server, f"show {name}")[0] for name in wanted}
    assert found.pop("server_version_num").startswith("18")
    assert found == {name: value for name, value in wanted.items() if value is not None}
    assert query(server, "select lower('ÄÖ'), 'b' < 'ä', 'B' < 'a'") == ("äö", True, True)


@pytest.mark.slow
def test_only_the_owner_reaches_socket_and_data(home):
    server = embedded.ensure_running(home)
    for path in (server.socket_dir, home.postgres / "data", server.socket_dir / ".s.PGSQL.5432"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE((home.logs / "postgres.log").stat().st_mode) & 0o022 == 0


def test_a_command_ends_although_its_server_lives_on(home):
    done = python(START, home.root, check=True)
    server = embedded.running(home)
    assert server is not None
    assert done.stdout.split() == [str(server.pid)]
    assert os.getsid(server.pid) != os.getsid(0)


def test_processes_that_start_at_once_in_an_empty_home_share_one_server(home):
    command = [sys.executable, "-c", START, str(home.root)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    pids = {child.communicate(timeout=300)[0] for child in children}
    assert {child.returncode for child in children} == {0}
    assert pids == {f"{embedded.ensure_running(home).pid}\n"}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_server_inherits_no_secret(home):
    secrets = {"ACME_TOKEN": "hunter2", "BRIDGE_SECRET_KEY": "hunter2", "PGPASSWORD": "hunter2"}
    python(START, home.root, env=dict(os.environ) | secrets, check=True)
    pid = embedded.ensure_running(home).pid
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hunter2" not in environment
    assert not set(secrets) & {item.partition(b"=")[0].decode() for item in environment.split(b"\0")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGTERM])
def test_it_comes_back_after_it_was_killed(home, number):
    before = embedded.ensure_running(home)
    with psycopg.connect(before.url("postgres")) as connection:
        connection.execute("create table kept as select 7 as n")
    with psycopg.connect(before.url("postgres")):
        # With a client attached, a process of the server outlives the one that is killed.
        os.kill(before.pid, number)
        while embedded.running(home):
            pass
        if number == signal.SIGTERM:
            # The smart shutdown waits for clients.
            assert embedded.stop(home)
        after = embedded.ensure_running(home)
    assert after.pid != before.pid
    assert query(after, "select n from kept") == (7,)


@pytest.mark.slow
@pytest.mark.parametrize("pid", ["1", "{own}", "999999999", "", "not a number"])
def test_a_stale_pid_file_heals(home, pid):
    server = embedded.ensure_running(home)
    lines = (home.postgres / "data" / "postmaster.pid").read_text().splitlines()
    embedded.stop(home)
    lines[0] = pid.format(own=os.getpid())
    (home.postgres / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    server.socket_dir.mkdir(exist_ok=True)
    (server.socket_dir / ".s.PGSQL.5432").touch()
    assert embedded.running(home) is None
    assert embedded.stop(home) is False
    assert query(embedded.ensure_running(home), "select 1") == (1,)


@pytest.mark.parametrize("name", ["home", "x" * 120])
def test_the_server_of_a_removed_home_takes_nothing_from_the_next_one_there(folder, name):
    home = Home(folder / name)
    former = embedded.ensure_running(home)
    shutil.rmtree(home.root)
    server = embedded.ensure_running(home)
    # What it does by itself within a minute, when it looks after its data, and may have done by now.
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(former.pid)
        process.send_signal(signal.SIGQUIT)
        psutil.wait_procs([process], timeout=60)
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert query(server, "select 1") == (1,)


def test_a_server_whose_socket_was_removed_is_named_and_can_be_ended(home):
    server = embedded.ensure_running(home)
    (server.socket_dir / ".s.PGSQL.5432").unlink()
    assert embedded.running(home) is None
    with pytest.raises(DatabaseUnavailable, match=rf"process {server.pid}.*removed: `bridge down`"):
        embedded.ensure_running(home)
    assert embedded.stop(home) is True
    assert query(embedded.ensure_running(home), "select 1") == (1,)


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere all processes have the same numbers for all")
def test_a_server_whose_number_means_another_process_here_is_ended_and_that_one_is_not(home):
    server = embedded.ensure_running(home)
    noted = home.postgres / "data" / "postmaster.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        # As a server in a container notes it, where it has another number than outside.
        noted.write_text(noted.read_text().replace(str(server.pid), str(process.pid), 1))
        assert embedded.stop(home)
        assert process.poll() is None
        process.communicate(b"\n")
    assert embedded.running(home) is None


UNSHARE = ["unshare", *([] if ROOT else ["--user"]), "--fork", "--kill-child", "--pid"]
IN_CONTAINERS = (
    bool(shutil.which("unshare")) and not subprocess.run([*UNSHARE, "true"], check=False).returncode
)
STOP = """
import sys
from pathlib import Path
from bridge_pipeline.database import embedded
from bridge_pipeline.naming import Home
embedded.stop(Home(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not IN_CONTAINERS, reason="this user may make no namespace of processes")
def test_a_server_that_runs_outside_of_a_container_is_not_ended_from_within(home):
    server = embedded.ensure_running(home)
    command = [*UNSHARE, sys.executable, "-c", STOP, str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "runs in another container: stop it there" in done.stderr, done.stderr
    assert embedded.running(home) == server


def test_an_interrupted_creation_is_begun_anew(home):
    draft = home.postgres / "data.new"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("half")
    assert query(embedded.ensure_running(home), "select 1") == (1,)
    assert not draft.exists()


@pytest.mark.slow
def test_a_start_that_fails_shows_the_log_and_what_to_do(home):
    embedded.ensure_running(home)
    embedded.stop(home)
    with (home.postgres / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(DatabaseUnavailable, match=r"(?s)no_such_setting.*Repair what it names"):
        embedded.ensure_running(home)


@pytest.mark.slow
def test_data_of_another_version_is_left_alone(home):
    embedded.ensure_running(home)
    embedded.stop(home)
    (home.postgres / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseUnavailable, match=r"Postgres 17.*bridge upgrade"):
        embedded.ensure_running(home)


def test_a_socket_folder_of_somebody_else_is_refused(folder, monkeypatch):
    home = Home(folder / ("x" * 120))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    server = embedded.ensure_running(home)
    embedded.stop(home)
    assert server.socket_dir.parent == folder
    (folder / "elsewhere").mkdir()
    server.socket_dir.symlink_to(folder / "elsewhere")
    with pytest.raises(DatabaseUnavailable, match="belongs to another user"):
        embedded.ensure_running(home)


as_root = pytest.mark.skipif(not ROOT, reason="changes the user of a process, which only root may")

# Imports first: the interpreter's own files may be readable by root only.
AS_USER = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from bridge_pipeline.commands import service
from bridge_pipeline.database import embedded
from bridge_pipeline.naming import Home
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
home = Home(Path(sys.argv[1]))
try:
    server = embedded.ensure_running(home)
    print(os.stat(f"/proc/{server.pid}").st_uid, oct(home.root.stat().st_mode & 0o777))
    if "stop" in sys.argv:
        print(embedded.stop(home))
except embedded.DatabaseUnavailable as error:
    sys.exit(str(error))
"""


@as_root
def test_an_ordinary_user_runs_it_as_itself(folder):
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    done = python(AS_USER, folder / "home", nobody.pw_uid, nobody.pw_gid, "stop")
    assert done.stderr == ""
    assert done.stdout.split() == [str(nobody.pw_uid), "0o700", "True"]


@pytest.mark.slow
@as_root
def test_root_takes_over_the_server_of_a_user_and_the_user_gets_it_back(folder):
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    arguments = (AS_USER, folder / "home", nobody.pw_uid, nobody.pw_gid)
    python(*arguments, "stop", check=True)
    server = embedded.ensure_running(Home(folder / "home"))
    assert Path(f"/proc/{server.pid}").stat().st_uid == nobody.pw_uid
    assert python(*arguments, "stop").stdout.split() == [str(nobody.pw_uid), "0o700", "True"]


@pytest.mark.slow
@as_root
def test_the_home_of_another_user_is_refused_with_clear_words(home):
    embedded.ensure_running(home)
    home.root.parent.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    done = python(AS_USER, home.root, nobody.pw_uid, nobody.pw_gid)
    assert done.returncode == 1
    assert "run as the user it belongs to" in done.stderr


@as_root
def test_root_lends_it_to_a_user_of_its_own_and_opens_only_the_way(home):
    home.root.parent.chmod(0o700)
    server = embedded.ensure_running(home)
    owner = pwd.getpwnam("pgserver")
    assert Path(f"/proc/{server.pid}").stat().st_uid == owner.pw_uid
    assert (home.postgres / "data").stat().st_uid == owner.pw_uid
    for path in (home.root.parent, home.root, home.postgres):
        assert stat.S_IMODE(path.stat().st_mode) == 0o701
    assert stat.S_IMODE(home.logs.stat().st_mode) == 0o700


@as_root
def test_data_that_root_restored_is_given_back(home):
    embedded.ensure_running(home)
    embedded.stop(home)
    for path in (home.postgres / "data", *(home.postgres / "data").rglob("*")):
        os.chown(path, 0, 0)
    assert query(embedded.ensure_running(home), "select 1") == (1,)


@pytest.mark.slow
@as_root
def test_an_installation_under_a_strict_umask_is_opened_for_the_server(folder):
    package = embedded.binary("postgres").parents[2]
    site = folder / "site"
    (site / package.name).mkdir(parents=True)
    (site / package.name / "__init__.py").touch()
    shutil.copytree(package / "pginstall18", site / package.name / "pginstall18", symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, site / libraries.name, symlinks=True)
    subprocess.run(["chmod", "-R", "go-rwx", folder], check=True)
    done = python(START, folder / "home", env=dict(os.environ) | {"PYTHONPATH": str(site)})
    assert done.stderr == ""
    assert embedded.running(Home(folder / "home"))


def removed(home):
    server = embedded.ensure_running(home)
    shutil.rmtree(home.root)
    # What it does by itself within a minute.
    os.kill(server.pid, signal.SIGQUIT)


def being_restored(home):
    embedded.stop(home)
    home.restoring.mkdir()


def made_anew(home):
    embedded.stop(home)
    # Kept, so that the new one cannot get its number.
    (home.postgres / "data").rename(home.postgres / "former")
    embedded.ensure_running(home)


def made_anew_and_stopped(home):
    made_anew(home)
    embedded.stop(home)


REPLACED = [
    (removed, "is gone"),
    (being_restored, "restore.*not finished"),
    (made_anew, "another than before"),
    (made_anew_and_stopped, "another than before"),
]


@pytest.mark.parametrize(("becoming", "words"), REPLACED)
def test_a_server_that_is_to_go_on_is_never_another(home, becoming, words):
    """`bridge up` would make a removed home again, or wait for ever where nobody listens any more."""
    known = embedded.ensure_running(home)
    database = service._Revived(home, known.socket_dir, known.pid, looked=-1e9)
    becoming(home)
    there = sorted(home.root.glob("*/*"))
    with pytest.raises(DatabaseReplaced, match=words):
        database.look()
    assert sorted(home.root.glob("*/*")) == there


def test_it_is_said_that_a_server_was_started_again_only_if_it_was(home, capsys):
    known = embedded.ensure_running(home)
    database = service._Revived(home, known.socket_dir, known.pid, looked=-1e9)
    database.look()
    # As while it starts or stops: it lives and accepts nobody yet.
    pid_file = home.postgres / "data/postmaster.pid"
    ready = pid_file.read_text()
    pid_file.write_text(ready.replace("ready", "starting"))
    # Written back while the look waits for it.
    with ThreadPoolExecutor(1) as pool:
        database.looked = -1e9
        looking = pool.submit(database.look)
        assert embedded.running(home) is None
        pid_file.write_text(ready)
        looking.result(60)
    assert "started again" not in capsys.readouterr().err
    os.kill(known.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(known.pid)] if psutil.pid_exists(known.pid) else [], timeout=60)
    database.looked = -1e9
    database.look()
    assert embedded.running(home) is not None
    assert "started again" in capsys.readouterr().err
