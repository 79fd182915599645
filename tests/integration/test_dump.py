"""The programs that dump and load a database: what they are told, and what they tell."""

import os
import subprocess
from uuid import uuid4

import pytest

from bridge_pipeline.database import dump
from bridge_pipeline.database.engine import Database

PASSWORD = "hunter2 and %more/of:it@once"


@pytest.fixture
def signed_in(database):
    """The database, by way of a login whose password is no plain word."""
    role = f"dumping_{uuid4().hex[:12]}"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"create role {role} superuser login")
    url = database.url.set(username=role, password=PASSWORD)
    yield Database(url.update_query_dict({"sslpassword": "hunter2 of the key"}))
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"drop role {role}")


def test_no_secret_stands_in_the_list_of_processes(signed_in, empty_database, monkeypatch):
    begun, begin = [], subprocess.Popen

    def recorded(command, **options):
        # What a pipe holds is read once.
        (service,) = options["pass_fds"]
        told = os.read(service, 10_000)
        source, target = os.pipe()
        os.write(target, told)
        os.close(target)
        os.dup2(source, service)
        os.close(source)
        begun.append((command, options["env"]["PGPASSWORD"], told))
        return begin(command, **options)

    monkeypatch.setattr(subprocess, "Popen", recorded)
    empty = Database(signed_in.url.set(database=empty_database.name))
    with dump.snapshot(signed_in) as taken:
        dump.load(empty, dump.dump(signed_in, dump.DATA, taken))
        wanted = dump.digests(taken.connection, dump.DATA)
    with empty.engine.connect() as connection:
        assert dump.digests(connection, dump.DATA) == wanted != {}
    assert [told for _, *told in begun] == [[PASSWORD, b"[bridge]\nsslpassword=hunter2 of the key\n"]] * 2
    assert "hunter2" not in str([command for command, *_ in begun])
    for each in (signed_in, empty):
        each.engine.dispose()


@pytest.mark.parametrize(
    "query",
    [
        {"sslpassword": "hunter2 "},
        {"sslpassword": "hunter2\nhost=elsewhere"},
        {"sslpassword": "hunter2" * 200},
        {"sslpassword": "hunter2", "service": "mine"},
    ],
)
def test_a_secret_that_a_program_would_read_otherwise_is_refused(empty_database, query):
    database = Database(empty_database.url.update_query_dict(query))
    with pytest.raises(dump.DumpFailed, match="sslpassword of BRIDGE_DATABASE_URL cannot be given") as caught:
        dump.load(database, [b"select 1;"])
    assert "hunter2" not in str(caught.value)


def test_texts_are_dumped_whatever_encoding_the_database_gives_its_sessions(empty_database):
    with empty_database.engine.begin() as connection:
        connection.exec_driver_sql(f"alter database {empty_database.name} set client_encoding to 'LATIN1'")
        connection.exec_driver_sql("create schema desk; create table desk.t (m text)")
        connection.exec_driver_sql("insert into desk.t values ('Łódź')")
    with dump.snapshot(empty_database) as taken:
        script = b"".join(dump.dump(empty_database, dump.DATA, taken))
    assert "Łódź".encode() in script


@pytest.mark.parametrize(
    ("table", "lines", "told"),
    [
        ("n int, m text", "1\tMaria Muster\tand more", "BadCopyFileFormat"),
        ("n int, m text", "Maria Muster\tand more", "22P02 .InvalidTextRepresentation"),
        ("n int check (n < 1), m text", "1\tMaria Muster", "CheckViolation"),
        ("n int, m text unique", "1\tMaria Muster\n2\tMaria Muster", "UniqueViolation"),
    ],
)
def test_an_error_quotes_no_row(empty_database, table, lines, told):
    script = f"create table t ({table});\ncopy t from stdin;\n{lines}\n\\.\n"
    with pytest.raises(dump.DumpFailed, match=told) as caught:
        dump.load(empty_database, [script.encode()])
    assert "Maria" not in str(caught.value)
    assert "copy t from stdin" in str(caught.value)
