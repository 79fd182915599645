"""Who may read the data besides the pipeline: the analysts' role, and a login for each tenant.

Which rows they see is decided by row policies, on the tables by a migration and on the marts by
`dbt_project/macros/protect.sql`; here are the roles and what they are granted. None of them may
write anything, and the schema `bridge` is closed to them.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import sqlalchemy as sa
import structlog
from psycopg import sql
from sqlalchemy.exc import DBAPIError, ProgrammingError

from bridge_pipeline.database.engine import Database
from bridge_pipeline.naming import BRIDGE_SCHEMA, DESK_SCHEMA, MARTS_SCHEMA, checked_key
from bridge_pipeline.redaction import remember

log = structlog.get_logger(__name__)

ANALYST = "bridge_analyst"
_TENANT = "bridge_tenant_"
# The login can read and nothing else, whatever the defaults of the server are.
_ATTRIBUTES = "login nosuperuser nocreatedb nocreaterole noreplication nobypassrls"
_CREATE = sql.SQL("create role {} " + _ATTRIBUTES + " password {}")
# Only a superuser may say again what a role that exists may not.
_ALTER = sql.SQL("alter role {} login password {}")
_ALTER_MIGHTY = sql.SQL("alter role {} " + _ATTRIBUTES + " password {}")
_MIGHTY = """
select rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls
from pg_roles where rolname = :role
"""
# What was only read stays locked against a rebuild of the marts until the reader's transaction ends.
_PATIENCE = sql.SQL("alter role {} set idle_in_transaction_session_timeout = '5min'")
_PASSWORD_BYTES = 24
_NOT_ALLOWED, _IN_USE = "42501", "2BP01"
# Roles belong to the whole server, where other installations may have theirs, and removed tenants keep
# theirs for other databases. A server is upgraded before its database, which may lack the column as yet.
_OURS = f"""
    select '{_TENANT}' || name from {BRIDGE_SCHEMA}.tenants t where to_jsonb(t) ->> 'removed_at' is null
    union all select '{ANALYST}'
"""
_GRANT = sql.SQL("""
grant usage on schema {desk}, {marts} to {reader};
grant select on all tables in schema {desk}, {marts} to {reader}
""")


class RolesNotAllowed(RuntimeError):
    """The database user of this installation may not make or change a role; the message says what to do."""


@dataclass(frozen=True)
class Login:
    """A role that may sign in; the password is told once and kept nowhere."""

    role: str
    password: str = field(repr=False)
    database: Database

    @property
    def address(self) -> str:
        """The address that psql and BI tools take, password included."""
        url = self.database.without_secrets().url.set(username=self.role, password=self.password)
        return Database(url).libpq()


def role_of(tenant: str) -> str:
    """The role that sees one tenant's rows.

    Raises:
        InvalidKey: that may not be a tenant's name.
    """
    return _TENANT + checked_key("tenant", tenant)


def exists(connection: sa.Connection, role: str) -> bool:
    """Whether the server has the role."""
    query = sa.text("select exists (select from pg_roles where rolname = :role)")
    return bool(connection.scalar(query, {"role": role}))


def make_login(database: Database, role: str) -> Login:
    """Makes a role, or gives it another password, and grants it what readers may read.

    Raises:
        RolesNotAllowed: the database user may not make roles.
    """
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    remember(password)
    with _allowed(database.url.username, role), database.engine.begin() as connection:
        mighty = connection.scalar(sa.text(_MIGHTY), {"role": role})
        statement = _CREATE if mighty is None else _ALTER_MIGHTY if mighty else _ALTER
        connection.exec_driver_sql(_filled(connection, statement, role, password))
        _bound(connection, role)
        _grant(connection, role)
    return Login(role, password, database)


@contextmanager
def _allowed(user: str | None, role: str) -> Iterator[None]:
    """Says what to do where the database user may not make or change a role."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
        raise RolesNotAllowed(
            f"{user} may not make or change the role {role}: give it CREATEROLE, and where somebody else "
            f'made the role, let an administrator run: grant "{role}" to "{user}" with admin option'
        ) from None


def grant_readers(connection: sa.Connection) -> None:
    """Lets this installation's readers read all tables of `desk` and `marts`; their rows, by the policies."""
    query = f"select rolname from pg_roles where rolname in ({_OURS})"
    for role in connection.scalars(sa.text(query)).all():
        _grant(connection, role)


def _grant(connection: sa.Connection, role: str) -> None:
    schemas = {"desk": sql.Identifier(DESK_SCHEMA), "marts": sql.Identifier(MARTS_SCHEMA)}
    statement = _GRANT.format(**schemas, reader=sql.Identifier(role))
    connection.exec_driver_sql(statement.as_string(_driver(connection)))


def verifiers(connection: sa.Connection) -> dict[str, str | None]:
    """The readers of this installation that the server has, each with what it checks the password by.

    That is None where there is no password, and where this user may not see it.
    """
    allowed = connection.scalar(sa.text("select has_table_privilege('pg_authid', 'select')"))
    source = "pg_authid" if allowed else "pg_roles"
    column = "rolpassword" if allowed else "null"
    query = f"select rolname, {column} from {source} where rolname in ({_OURS}) order by rolname"
    return {row[0]: row[1] for row in connection.execute(sa.text(query))}


def bring_back(database: Database, role: str, verifier: str | None) -> bool:
    """Makes a reader of another server again, with the password it had there; False if it is there.

    Raises:
        RolesNotAllowed: the database user may not make roles.
    """
    with database.engine.connect() as connection:
        if exists(connection, role):
            return False
    with _allowed(database.url.username, role), database.engine.begin() as connection:
        statement = _CREATE.format(sql.Identifier(role), sql.Literal(verifier))
        connection.exec_driver_sql(statement.as_string(_driver(connection)))
        _bound(connection, role)
    return True


def drop_login(connection: sa.Connection, role: str) -> None:
    """Removes a role and what it was granted here.

    One that is not there is left alone, and so is one that was granted something in other databases of
    the server, which it may still read.

    Raises:
        RolesNotAllowed: the database user may not remove it.
    """
    if not exists(connection, role):
        return
    name = sql.Identifier(role).as_string(_driver(connection))
    with _allowed(connection.engine.url.username, role):
        # Who made a role may change it, and takes part in it only where that is said.
        connection.exec_driver_sql(f"grant {name} to current_user; drop owned by {name}")
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"drop role {name}")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _IN_USE:
                raise
            connection.exec_driver_sql(f"revoke {name} from current_user")
            log.warning("a login is kept: it reads other databases of the server", login=role)


def _bound(connection: sa.Connection, role: str) -> None:
    """Ends sessions of a reader that leave a transaction open."""
    statement = _PATIENCE.format(sql.Identifier(role))
    connection.exec_driver_sql(statement.as_string(_driver(connection)))


def _filled(connection: sa.Connection, statement: sql.SQL, role: str, password: str) -> str:
    driver = _driver(connection)
    # The server gets what it would store, so that no log of statements holds the password.
    verifier = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return statement.format(sql.Identifier(role), sql.Literal(verifier.decode())).as_string(driver)


def _driver(connection: sa.Connection) -> psycopg.Connection:
    return connection.connection.driver_connection  # type: ignore[return-value]
