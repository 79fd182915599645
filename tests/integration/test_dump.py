"""The programs that dump and load a database: what they are told, and what they tell."""

import subprocess
from pathlib import Path
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
        told = Path(options["env"]["PGSERVICEFILE"]).read_text()
        begun.append((command, options["env"]["PGPASSWORD"], told))
        return begin(command, **options)

    monkeypatch.setattr(subprocess, "Popen", recorded)
    empty = Database(signed_in.url.set(database=empty_database.name))
    with dump.snapshot(signed_in) as taken:
        dump.load(empty, dump.dump(signed_in, dump.DATA, taken))
        wanted = dump.digests(taken.connection, dump.DATA)
    with empty.engine.connect() as connection:
        assert dump.digests(connection, dump.DATA) == wanted != {}
    assert [told for _, *told in begun] == [[PASSWORD, "[bridge]\nsslpassword=hunter2 of the key\n"]] * 2
    assert "hunter2" not in str([command for command, *_ in begun])
    for each in (signed_in, empty):
        each.engine.dispose()


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
