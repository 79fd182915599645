"""Brings a database to the schema that this code knows.

The steps are in `migrations/versions`, named by their number; Alembic runs them, and is imported
only when there is something to do.
"""

import logging
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.readers import grant_readers
from bridge_pipeline.naming import BRIDGE_SCHEMA

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
# Also of processes that have set up no logs, whose output is not for this.
log = logging.getLogger(__name__)
_UNDEFINED_TABLE = {"42P01", "3F000"}


class NewerDatabase(RuntimeError):
    """The database was migrated by a newer Project Bridge than this one."""


def migrate(engine: sa.Engine) -> None:
    """Brings the database to the newest schema, in one transaction; several may try at once.

    Raises:
        NewerDatabase: it is at a version that this code does not know.
    """
    with engine.connect() as connection:
        if _at_head(connection):
            return
    with engine.begin() as connection:
        advisory_lock(connection, "bridge/migrate", long=True)
        if _at_head(connection):
            return
        _upgrade(connection)
        # Tables that are new have no grants yet.
        grant_readers(connection)
    log.info("database migrated to version %s", head())


def head() -> str:
    """The newest version that this code knows."""
    return max(_versions())


def _versions() -> set[str]:
    return {path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*.py")}


def _at_head(connection: sa.Connection) -> bool:
    query = sa.text(f"select version_num from {BRIDGE_SCHEMA}.{VERSION_TABLE}")
    try:
        with connection.begin_nested():
            current = connection.scalar(query)
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) not in _UNDEFINED_TABLE:
            raise
        return False
    if current is not None and current not in _versions():
        raise NewerDatabase(
            f"the database is at version {current} and this installation knows versions up to {head()}: "
            "install the Project Bridge that migrated it, or a newer one"
        )
    return current == head()


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    # Alembic keeps its own record there, so the schema must exist before the first step.
    connection.execute(sa.text(f"create schema if not exists {BRIDGE_SCHEMA}"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
