"""Addresses of databases, databases that are made where they may be, locks, and the workspace."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from bridge_pipeline import redaction, settings
from bridge_pipeline.database import embedded
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import (
    Database,
    advisory_lock,
    make_engine,
    replace_lost_connections,
    resolve,
)
from bridge_pipeline.database.readers import Login
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.naming import Home


@pytest.mark.parametrize(
    ("address", "libpq"),
    [
        ("postgresql://ann@h:5432/x?host=/run/pg", "postgresql://ann@h:5432/x?host=/run/pg"),
        ("postgres://ann@h", "postgresql://ann@h/bridge"),
        ("postgresql+psycopg2://ann@h/x", "postgresql://ann@h/x"),
        ("postgresql://h/x?user=ann&password=hunter2", "postgresql://ann:hunter2@h/x"),
        ("postgresql://h?dbname=x&sslmode=require", "postgresql://h/x?sslmode=require"),
        (
            "postgresql://ann:p%40ss%2Fword@h/x?sslmode=require",
            "postgresql://ann:p%40ss%2Fword@h/x?sslmode=require",
        ),
        ("postgresql://an%20n:pass%20word@h/a%20b", "postgresql://an%20n:pass%20word@h/a%20b"),
        ("postgresql://h/x?user=ann&password=a&password=b", "postgresql://ann:b@h/x"),
    ],
)
def test_an_address_keeps_its_meaning(address, libpq):
    database = Database.of(address)
    assert database.libpq() == libpq
    assert database.psycopg2() == libpq.replace("postgresql:", "postgresql+psycopg2:")
    assert Database.of(libpq) == database


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ann:hunter2@h/x",
        "postgresql://ann@h/x?password=hunter2",
        "postgresql://ann@h/x?sslkey=/k.pem&sslpassword=hunter2",
        "postgresql://ann@h/x?sslpassword=hunter2&sslpassword=hunter2",
        "postgresql://ann@h/x?oauth_client_secret=hunter2",
        "postgresql://ann@h/x?passwd=hunter2",
    ],
)
def test_a_secret_is_shown_only_when_asked_for(address):
    database = Database.of(address)
    shown = [repr(database), str(database), database.libpq(show_secrets=False), database.psycopg2(False)]
    shown += [database.without_secrets().libpq(), Login("reader", "secret", database).address]
    assert "hunter2" not in "".join(shown)
    assert "hunter2" in database.libpq()
    assert "hunter2" not in redaction.redact_known("it was hunter2")


@pytest.mark.parametrize("address", ["", "nonsense", "mysql://h/x", "postgresql://h:port/x"])
def test_what_is_no_address_is_refused_without_being_shown(address):
    with pytest.raises(DatabaseUnavailable, match="BRIDGE_DATABASE_URL must have the form"):
        Database.of(address)


def test_every_client_takes_the_address(database):
    with psycopg.connect(database.libpq()) as first, psycopg2.connect(database.libpq()) as second:
        cursor = second.cursor()
        cursor.execute("select current_database()")
        assert first.execute("select current_database()").fetchone() == cursor.fetchone() == (database.name,)
    engine = sa.create_engine(database.psycopg2())
    with engine.connect() as connection:
        assert connection.scalar(sa.text("select current_database()")) == database.name
    engine.dispose()


def test_sessions_are_in_utc_whatever_the_database_says(database):
    others = {"timezone": "Asia/Tokyo", "datestyle": "German, DMY", "client_encoding": "LATIN1"}
    with database.engine.connect() as connection:
        for setting, value in others.items():
            connection.execute(sa.text(f"alter database {database.name} set {setting} to '{value}'"))
        connection.commit()
    database.engine.dispose()
    with database.engine.connect() as connection:
        connection.rollback()
        assert connection.scalar(sa.text("show timezone")) == "UTC"
        assert connection.scalar(sa.text("show application_name")) == "bridge"
        moment = datetime(2024, 3, 10, 12, tzinfo=UTC)
        assert connection.scalar(sa.text("select timestamptz '2024-03-10 12:00Z'")) == moment
        assert connection.scalar(sa.text("select 'Łódź'")) == "Łódź"


@pytest.fixture
def limited(database):
    """The address of `database` for a user who may not create databases."""
    role = f"limited_{uuid4().hex[:8]}"
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"create role {role} login nosuperuser nocreatedb"))
    yield database.libpq().replace("postgres@", f"{role}@")
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"drop role {role}"))


def external(url, **more):
    return settings.load(home="/nonexistent", database_url=url, **more)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_connection_that_was_lost_while_it_rested_is_replaced(database, driver):
    engine = sa.create_engine(make_url(database.psycopg2()).set(drivername=f"postgresql+{driver}"))
    replace_lost_connections(engine)
    pid = sa.text("select pg_backend_pid()")
    with engine.connect() as connection:
        first = connection.scalar(pid)
    with engine.connect() as connection:
        assert connection.scalar(pid) == first
    with database.engine.connect() as other:
        other.execute(sa.text("select pg_terminate_backend(:pid, 10000)"), {"pid": first})
    with engine.connect() as connection:
        assert connection.scalar(pid) != first
    engine.dispose()


def test_a_connection_that_rested_long_is_asked_whether_it_is_alive(database, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.database.engine._LONG_REST", 0)
    engine, pings = make_engine(database.libpq()), []
    monkeypatch.setattr(engine.dialect, "do_ping", lambda connection: bool(pings.append(connection)))
    with engine.connect():
        assert not pings, "a new connection is alive"
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection not in pings, "one that does not answer is replaced"
    assert len(pings) == 1
    engine.dispose()


def test_missing_databases_are_made(workspace):
    database = resolve(workspace.settings, workspace.home)
    assert database == workspace.database
    with workspace.dagster_database.engine.connect() as connection:
        assert connection.scalar(sa.text("show server_encoding")) == "UTF8"
    workspace.dagster_database.engine.dispose()


def test_who_may_not_make_databases_is_told_what_to_make(limited):
    with pytest.raises(
        DatabaseUnavailable, match=r"(?s)administrator run:.*create database dagster_x owner limited"
    ):
        resolve(external(limited, dagster_database="dagster_x"), Home(Path("/nonexistent")))


def test_who_may_not_make_databases_can_use_those_that_exist(limited):
    database = resolve(external(limited, dagster_database="template1"), Home(Path("/nonexistent")))
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("select current_user")).startswith("limited_")
    database.engine.dispose()


def test_a_server_that_is_not_there_is_named_without_its_password():
    url = "postgresql://ann:hunter2@127.0.0.1:1/x"
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1/x.*refused") as caught:
        resolve(external(url), Home(Path("/nonexistent")))
    assert "hunter2" not in str(caught.value)


REFUSING = """
create function refuse() returns event_trigger language plpgsql as
    $$ begin raise exception 'could not write a file: No space left on device'; end $$;
create event trigger refusing on login execute function refuse();
"""


def test_of_a_full_disk_it_is_said_to_make_room_there(database):
    with database.engine.begin() as connection:
        connection.exec_driver_sql(REFUSING)
    database.engine.dispose()
    with pytest.raises(DatabaseUnavailable, match=r"(?s)a file: No space left.*\nMake room") as caught:
        resolve(external(database.libpq()), Home(Path("/nonexistent")))
    assert "BRIDGE_DATABASE_URL" not in str(caught.value)


def test_a_lock_is_held_until_the_transaction_ends(database):
    with database.engine.connect() as first, database.engine.connect() as second:
        assert advisory_lock(first, "a", wait=False)
        assert advisory_lock(first, "a", wait=False), "the holder may take it again"
        assert not advisory_lock(second, "a", wait=False)
        assert advisory_lock(second, "b", wait=False)
        first.rollback()
        assert advisory_lock(second, "a", wait=False)


def test_who_has_to_wait_for_a_lock_is_told_and_then_gets_it(database):
    waiting, got = threading.Event(), threading.Event()

    def wait_for_it():
        with database.engine.begin() as connection:
            assert advisory_lock(connection, "a", on_wait=waiting.set)
            got.set()

    with database.engine.connect() as holder:
        advisory_lock(holder, "a")
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert waiting.wait(60)
        assert not got.is_set()
    assert got.wait(60)
    thread.join()


def test_a_long_hold_outlives_the_limit_of_idle_transactions(database):
    with database.engine.connect() as connection:
        connection.execute(
            sa.text(f"alter database {database.name} set idle_in_transaction_session_timeout = '1s'")
        )
        connection.commit()
    database.engine.dispose()
    with database.engine.connect() as connection:
        advisory_lock(connection, "a", long=True)
        assert connection.scalar(sa.text("show idle_in_transaction_session_timeout")) == "0"
        connection.rollback()
        assert connection.scalar(sa.text("show idle_in_transaction_session_timeout")) == "1s"


# Without the developer's `.env`, which the fixtures keep out of this process only.
OPEN = """
from bridge_pipeline import settings
from bridge_pipeline.database.workspace import open_workspace
workspace = open_workspace(settings.load(_env_file=None))
print(workspace.database.libpq(), workspace.sealer.key_id)
"""


@pytest.fixture
def empty_home():
    # Outside of pytest's folder: each pytest that starts closes that for the server's user.
    folder = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    yield Home(folder / "home")
    embedded.stop(Home(folder / "home"))
    shutil.rmtree(folder)


@pytest.mark.slow
def test_processes_that_open_an_empty_home_at_once_find_the_same(empty_home):
    environment = dict(os.environ) | {"BRIDGE_HOME": str(empty_home.root)}
    children = [
        subprocess.Popen([sys.executable, "-c", OPEN], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {child.communicate(timeout=120)[0] for child in children}
    assert {child.returncode for child in children} == {0}
    assert len(answers) == 1
    workspace = open_workspace(settings.load(home=empty_home.root))
    assert answers == {f"{workspace.database.libpq()} {workspace.sealer.key_id}\n"}
    for name in ("journal", "landing", "audit", "reports", "logs", "keys", "work", "dagster"):
        assert stat.S_IMODE((empty_home.root / name).stat().st_mode) == 0o700
    for database in (workspace.database, workspace.dagster_database):
        with database.engine.connect() as connection:
            assert connection.scalar(sa.text("select current_database()")) == database.name
        database.engine.dispose()


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match=r"BRIDGE_HOME, .*file/home"):
        open_workspace(settings.load(home=tmp_path / "file" / "home"))
