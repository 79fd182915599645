"""What an older Postgres wrote is brought to the installed one, whole or not at all."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from bridge_pipeline import settings as configuration
from bridge_pipeline.database import dump, embedded, readers, upgrade
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import DATA_DATABASE
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.naming import Home
from tests.conftest import in_memory
from tests.integration import backups
from tests.integration.backups import DAYS
from tests.integration.desk import serving
from tests.integration.flow import NAME, connect, day, digest, process, rows

pytestmark = pytest.mark.long
EVERYTHING = dump.Scope((), inverted=True)
ROLE = readers.role_of("acme")
# Connection -> tenant.
NAMES = {NAME: "acme", "other-helpdesk": "other"}
# What lies beside the database and is no scratch.
FOLDERS = ("audit", "heads", "journal", "keys", "landing")


@pytest.fixture(scope="module", params=["15", "16", "17"])
def filled(request):
    """A home that an older version served while two tenants' desks were read; and what it held."""
    with old_home(request.param) as found:
        if found is None:
            pytest.skip(f"Postgres {request.param} is not on this machine")
        yield request.param, *found


@pytest.fixture
def home(filled):
    _, kept, _ = filled
    with copy(kept) as home:
        yield home


@pytest.fixture
def old(filled):
    version, _, wanted = filled
    return version, wanted


@contextmanager
def old_home(version):
    """A home that nobody serves, and what it held; None where those programs are not on the machine."""
    programs = embedded.programs(version)
    if programs is None:
        yield None
        return
    # Not below pytest's folder: started by root, the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="bridge-upgrade-", dir=in_memory()) as folder, serving() as desk:
        Path(folder).chmod(0o755)
        home = Home(Path(folder) / "home")
        make_data(home, programs)
        with embedded.served_by(home, programs) as server:
            wanted = fill(home, server, desk)
        yield home, wanted


@contextmanager
def copy(kept):
    """A copy of a home, with its owners; its servers end with the block."""
    home = Home(kept.root.with_name(f"copy-{uuid4().hex[:8]}"))
    shutil.copytree(kept.root, home.root, symlinks=True)
    for path in [kept.root, *kept.root.rglob("*")]:
        owner = path.lstat()
        os.chown(home.root / path.relative_to(kept.root), owner.st_uid, owner.st_gid, follow_symlinks=False)
    try:
        yield home
    finally:
        for place in home.root.rglob("postmaster.pid"):
            embedded.stop(Home(place.parents[2]))
        shutil.rmtree(home.root)


def make_data(home, folder):
    # Made and stopped by the new one, so that folders and owner are as they are for a user.
    embedded.ensure_running(home)
    embedded.stop(home)
    data = home.postgres / "data"
    owner = data.stat()
    shutil.rmtree(data)
    data.mkdir(mode=0o700)
    os.chown(data, owner.st_uid, owner.st_gid)
    account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    options = ["--username=postgres", "--encoding=UTF8", "--locale=C", "--auth=trust"]
    command = [folder / "initdb", "--pgdata=.", *options]
    done = subprocess.run(command, capture_output=True, cwd=data, text=True, check=False, **account)
    assert done.returncode == 0, done.stderr


def fill(home, server, desk):
    """The real flow over some days, with what is due left at nothing; gives what the home holds then."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in (DATA_DATABASE, "bridge_dagster"):
            connection.execute(f"create database {name} encoding 'UTF8' template template0")
    workspace = open_workspace(configuration.load(home=home.root, database_url=server.url(DATA_DATABASE)))
    backups.fill(desk)
    for name, tenant in NAMES.items():
        connect(workspace, desk, name, tenant)
        process(workspace, day(*DAYS), name=name)
    readers.make_login(workspace.database, ROLE)
    assert backups.due(workspace, *DAYS) == []
    return held(workspace)


def held(workspace):
    """Every row, where the sequences stand, the readers, and every file that the tables rest on."""
    sequences = "select schemaname, sequencename, last_value from pg_sequences order by 1, 2"
    with workspace.database.engine.begin() as connection:
        found = dump.digests(connection, EVERYTHING), readers.verifiers(connection)
        found += (connection.exec_driver_sql(sequences).all(),)
    workspace.database.engine.dispose()
    return *found, {name: contents(workspace.home.root / name) for name in FOLDERS}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(home):
    return open_workspace(configuration.load(home=home.root))


def check(home, wanted):
    """All that was there is there, it verifies, and its readers see what is theirs."""
    workspace = opened(home)
    assert held(workspace) == wanted
    assert all(wanted[-1].values()), "every folder holds something to compare"
    assert backups.findings(workspace) == []
    with psycopg.connect(workspace.database.libpq()) as connection:
        assert connection.info.server_version // 10_000 == int(embedded.VERSION)
        connection.execute(f"set role {ROLE}")
        assert connection.execute("select distinct tenant from desk.tickets").fetchall() == [("acme",)]


def check_going_on(home):
    """Nothing is asked for again; what is run again loads nothing, audits nothing and takes no id twice."""
    workspace = opened(home)
    assert backups.due(workspace, *DAYS) == []
    before, audited = digests(workspace), [contents(folder) for folder in (home.audit, home.heads)]
    newest = rows(workspace, "select max(id) as id from bridge.batches")[0]["id"]
    for name in (*NAMES, *NAMES):
        for batch, update, files in process(workspace, day(*DAYS), name=name).values():
            assert batch.id > newest
            assert not any(load.loaded for load in update.loads)
            assert not any(file.added for file in files)
            newest = batch.id
    assert digests(workspace) == before
    assert [contents(folder) for folder in (home.audit, home.heads)] == audited
    assert backups.findings(workspace) == []
    workspace.database.engine.dispose()


def digests(workspace):
    return [digest(workspace, name) for name in NAMES]


def test_everything_comes_over_and_the_old_data_is_kept_until_told(old, home):
    version, wanted = old
    with pytest.raises(DatabaseUnavailable, match=f"Postgres {version}.*bridge upgrade"):
        embedded.ensure_running(home)
    done = upgrade.upgrade(home)
    assert (done.before, done.version) == (version, embedded.VERSION)
    check(home, wanted)
    assert upgrade.upgrade(home) == upgrade.Upgraded(embedded.VERSION, kept=done.kept)
    assert upgrade.discard_old(home) == done.kept
    check(home, wanted)
    assert upgrade.discard_old(home) == []
    check_going_on(home)


def test_one_that_fails_leaves_the_old_data_in_its_place(old, home, monkeypatch):
    version, wanted = old
    with monkeypatch.context() as broken:
        broken.setattr(dump, "load", lambda *_: None)
        with pytest.raises(dump.DumpFailed, match="nothing was changed"):
            upgrade.upgrade(home)
    assert (home.postgres / "data" / "PG_VERSION").read_text().strip() == version
    assert [path.name for path in home.postgres.iterdir() if path.is_dir()] == ["data"]
    upgrade.upgrade(home)
    check(home, wanted)
    check_going_on(home)


def test_one_that_was_killed_is_never_taken_for_an_empty_home(old, home):
    version, wanted = old
    aside = home.postgres / f"old-{version}" / "postgres"
    aside.mkdir(parents=True)
    (home.postgres / "data").rename(aside / "data")
    with pytest.raises(DatabaseUnavailable, match=r"not finished.*bridge upgrade"):
        embedded.ensure_running(home)
    with pytest.raises(DatabaseUnavailable, match="not finished"):
        upgrade.discard_old(home)
    upgrade.upgrade(home)
    check(home, wanted)


def test_the_servers_of_one_that_was_killed_are_ended_first(old, home):
    version, wanted = old
    aside = Home(home.postgres / f"old-{version}")
    aside.postgres.mkdir(parents=True)
    (home.postgres / "data").rename(aside.postgres / "data")
    embedded.ensure_running(Home(home.postgres / "upgrade"))
    with embedded.served_by(aside, embedded.programs(version)):
        upgrade.upgrade(home)
    check(home, wanted)
    told = (aside.logs / "postgres.log").read_text()
    assert "received fast shutdown request" in told
    assert "lock file" not in told, "nothing is taken from under a server that lives"
    folders = sorted(path.name for path in home.postgres.iterdir() if path.is_dir())
    assert folders == ["data", f"old-{version}", embedded.ensure_running(home).socket_dir.name]


def test_one_that_was_killed_before_the_data_was_put_aside_is_begun_anew(old, home):
    version, wanted = old
    (home.postgres / f"old-{version}" / "postgres").mkdir(parents=True)
    upgrade.upgrade(home)
    check(home, wanted)


def test_without_the_old_programs_it_is_said_what_to_do(old, home, monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "programs", lambda _version: None)
    with pytest.raises(DatabaseUnavailable, match="--old-programs"):
        upgrade.upgrade(home)
    with pytest.raises(DatabaseUnavailable, match="does not hold the programs"):
        upgrade.upgrade(home, tmp_path)
    assert (home.postgres / "data").exists()
