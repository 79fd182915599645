"""The migrations make exactly what `tables` declares, once, whoever else tries."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from bridge_pipeline.database.engine import make_engine
from bridge_pipeline.database.migrate import MIGRATIONS, VERSION_TABLE, NewerDatabase, head, migrate
from bridge_pipeline.database.tables import metadata

SCHEMAS = ("desk", "bridge")
# What Alembic does not compare: checks, and the exact text of keys and defaults.
CONSTRAINTS = """
    select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace::regnamespace::text in ('desk', 'bridge')
    and conname not like 'alembic%'
"""
DEFAULTS = r"""
    select table_schema, table_name, column_name, is_nullable,
        regexp_replace(column_default, '''(\d+)''::bigint', '\1')
    from information_schema.columns
    where table_schema in ('desk', 'bridge') and table_name <> 'alembic_version'
"""


def differences(engine, wanted=metadata):
    def ours(name, kind, parents):
        return name in SCHEMAS if kind == "schema" else name != VERSION_TABLE

    options = {
        "include_schemas": True,
        "include_name": ours,
        "compare_type": True,
        "compare_server_default": True,
        "version_table_schema": "bridge",
    }
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts=options), wanted)


def rows(engine, query):
    with engine.connect() as connection:
        return sorted(connection.execute(sa.text(query)), key=str)


def test_the_migrated_database_is_what_the_tables_declare(database):
    assert differences(database.engine) == []


def test_a_migration_is_told_in_one_line_once_it_is_done(empty_database, caplog):
    engine = empty_database.engine
    caplog.set_level(logging.INFO, "bridge_pipeline.database.migrate")

    def fail(_connection: sa.Connection) -> None:
        raise ConnectionError("the server went away")

    event.listen(engine, "commit", fail)
    with pytest.raises(ConnectionError):
        migrate(engine)
    assert not caplog.messages
    event.remove(engine, "commit", fail)
    for _ in range(2):
        migrate(engine)
    assert caplog.messages == [f"database migrated to version {head()}"]


@pytest.mark.parametrize("query", [CONSTRAINTS, DEFAULTS], ids=["constraints", "defaults"])
def test_constraints_and_defaults_are_the_declared_ones(database, empty_database, query):
    with empty_database.engine.begin() as connection:
        for schema in SCHEMAS:
            connection.execute(sa.schema.CreateSchema(schema))
        metadata.create_all(connection)
    found, declared = (rows(engine, query) for engine in (database.engine, empty_database.engine))
    assert declared
    assert found == declared


@pytest.mark.parametrize(
    "drift",
    [
        "alter table desk.tickets drop column subject",
        "alter table desk.tickets alter column is_closed type text",
        "alter table bridge.loads add column more text",
        "drop index desk.tickets_connection_updated_at_idx",
        "comment on column desk.users.email is 'Something else.'",
        "create table bridge.surplus (id bigint)",
    ],
)
def test_the_comparison_notices_drift(database, drift):
    with database.engine.begin() as connection:
        connection.execute(sa.text(drift))
    assert differences(database.engine) != []


def test_migrating_again_changes_nothing(empty_database):
    migrate(empty_database.engine)
    with empty_database.engine.begin() as connection:
        connection.execute(sa.text("insert into bridge.tenants (name) values ('acme')"))
    migrate(empty_database.engine)
    with empty_database.engine.connect() as connection:
        assert connection.scalars(sa.text("select name from bridge.tenants")).all() == ["acme"]
        assert connection.scalar(sa.text("select to_regnamespace('marts') is not null"))


def test_several_that_migrate_at_once_all_succeed(empty_database):
    engines = [make_engine(empty_database.libpq()) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate, engines))
    assert differences(empty_database.engine) == []
    for engine in engines:
        engine.dispose()


def test_a_migration_that_fails_leaves_nothing(empty_database):
    with empty_database.engine.begin() as connection:
        connection.execute(sa.text("create schema marts"))
    with pytest.raises(sa.exc.ProgrammingError, match="marts"):
        migrate(empty_database.engine)
    with empty_database.engine.connect() as connection:
        assert connection.scalar(sa.text("select to_regnamespace('bridge') is null"))


def test_a_newer_database_is_refused(database):
    with database.engine.begin() as connection:
        connection.execute(sa.text("update bridge.alembic_version set version_num = '9999'"))
    with pytest.raises(NewerDatabase, match=rf"9999.*up to {head()}"):
        migrate(database.engine)


def test_versions_are_one_line_named_like_their_files():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [head()]
    for script in scripts.walk_revisions():
        assert script.module.__file__.startswith(f"{MIGRATIONS}/versions/{script.revision}_")


def test_a_database_that_is_up_to_date_costs_no_import_of_alembic(workspace):
    code = (
        "import sys; from bridge_pipeline import settings; "
        "from bridge_pipeline.database.workspace import open_workspace; "
        "open_workspace(settings.load(_env_file=None)); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
