"""What an older Postgres wrote is brought to the installed one, whole or not at all."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from bridge_pipeline import settings as configuration
from bridge_pipeline.database import dump, embedded, readers, upgrade
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import DATA_DATABASE, Database
from bridge_pipeline.database.migrate import migrate
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.naming import Home

pytestmark = pytest.mark.long
EVERYTHING = dump.Scope((), inverted=True)
ROLE = readers.role_of("acme")


@pytest.fixture
def home():
    # Not below pytest's folder: started by root, the server runs as another user.
    root = Path(tempfile.mkdtemp(prefix="bridge-upgrade-"))
    yield Home(root / "home")
    for pid_file in root.rglob("postmaster.pid"):
        embedded.stop(Home(pid_file.parents[2]))
    shutil.rmtree(root)


@pytest.fixture(params=["15", "16", "17"])
def old(request, home):
    """A home whose data an older version wrote, and the digests of it."""
    folder = embedded.programs(request.param)
    if folder is None:
        pytest.skip(f"Postgres {request.param} is not on this machine")
    make_data(home, folder)
    with embedded.served_by(home, folder) as server:
        wanted = fill(server)
    return request.param, wanted


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


def fill(server):
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in (DATA_DATABASE, "bridge_dagster"):
            connection.execute(f"create database {name} encoding 'UTF8' template template0")
    data = Database.of(server.url(DATA_DATABASE))
    migrate(data.engine)
    with psycopg.connect(server.url(DATA_DATABASE)) as connection:
        connection.execute("insert into bridge.tenants (name) values ('acme'), ('other')")
        connection.execute(
            "insert into bridge.connections (name, tenant, connector, config, secrets, entities) "
            "values ('a', 'acme', 'helpdesk', '{}', '{}', '[]'), ('o', 'other', 'helpdesk', '{}', '{}', '[]')"
        )
        connection.execute(
            "insert into desk.accounts (tenant, connection, id, name, batch_id) "
            "select t, left(t, 1), n::text, 'Ünï ' || n, 1 "
            "from generate_series(1, 500) n, unnest(array['acme', 'other']) t"
        )
    readers.make_login(data, ROLE)
    return state(data)


def state(database):
    with database.engine.begin() as connection:
        found = dump.digests(connection, EVERYTHING), readers.verifiers(connection)
    database.engine.dispose()
    return found


def check(home, wanted):
    workspace = open_workspace(configuration.load(home=home.root))
    assert state(workspace.database) == wanted
    with psycopg.connect(workspace.database.libpq()) as connection:
        assert connection.info.server_version // 10_000 == int(embedded.VERSION)
        connection.execute(f"set role {ROLE}")
        query = "select count(*), count(distinct tenant) from desk.accounts"
        assert connection.execute(query).fetchone() == (500, 1)


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


def test_one_that_fails_leaves_the_old_data_in_its_place(old, home, monkeypatch):
    version, wanted = old
    with monkeypatch.context() as broken:
        broken.setattr(dump, "load", lambda *_: None)
        with pytest.raises(dump.DumpFailed, match="nothing was changed"):
            upgrade.upgrade(home)
    assert (home.postgres / "data" / "PG_VERSION").read_text().strip() == version
    assert sorted(path.name for path in home.postgres.iterdir() if path.is_dir()) == ["data", "socket"]
    upgrade.upgrade(home)
    check(home, wanted)


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
    assert sorted(path.name for path in home.postgres.iterdir() if path.is_dir()) == [
        "data",
        f"old-{version}",
        "socket",
    ]


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
