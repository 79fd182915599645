"""Where the data is: addresses, engines and databases, on the embedded or any other Postgres.

Nothing here knows a table; see `migrate` and `tables`. Locks in the database are taken here,
and only for the length of a transaction: a pooled connection has no session to hold them.
"""

import logging
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

import sqlalchemy as sa
from psycopg.errors import DiskFull
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from bridge_pipeline.database import embedded
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.failpoints import reach
from bridge_pipeline.naming import Home
from bridge_pipeline.redaction import redact, remember
from bridge_pipeline.settings import Settings

DATA_DATABASE = "bridge"
_OLDEST_VERSION = 15
_MAINTENANCE = "postgres"
_DUPLICATE = {"42P04", "23505"}
_NO_PRIVILEGE = "42501"
# Seconds.
_LONG_REST = 30
# Parameters of libpq that are secrets, such as the pass phrase of `sslkey`, and `password` misspelt.
_SECRET = re.compile(r"passw|secret|scram_", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Database:
    """One database on some server; `repr` and `str` never show its secrets."""

    url: URL

    def __repr__(self) -> str:
        return f"Database({self.libpq(show_secrets=False)})"

    @classmethod
    def of(cls, address: str) -> "Database":
        """The database at an address such as `postgresql://user:password@host/name?sslmode=require`.

        Without a name it is `bridge`. Its secrets become known to `redaction`.

        Raises:
            DatabaseUnavailable: that is not the address of a Postgres.
        """
        try:
            url = make_url(address)
        except (ArgumentError, ValueError):
            url = None
        if url is None or url.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
            raise DatabaseUnavailable(
                "BRIDGE_DATABASE_URL must have the form postgresql://user:password@host:5432/name"
            )
        # libpq also takes these from the query, where they would be shown.
        query = {name: _single(name, value) for name, value in url.query.items()}
        user, password = query.pop("user", url.username), query.pop("password", url.password)
        name = query.pop("dbname", url.database) or DATA_DATABASE
        parts = {"username": user, "password": password, "database": name, "query": query}
        database = cls(url.set(drivername="postgresql", **parts))  # type: ignore[arg-type]
        for secret in database.secrets.values():
            remember(secret)
        return database

    @property
    def name(self) -> str:
        """The name of the database on its server."""
        return self.url.database or DATA_DATABASE

    @property
    def secrets(self) -> dict[str, str]:
        """The parameters of its address that are secret, `password` among them."""
        found = {"password": self.url.password, **self.url.query}
        return {name: str(value) for name, value in found.items() if value and _SECRET.search(name)}

    def without_secrets(self) -> "Database":
        """The same database, as others may see its address."""
        u = self.url
        query = {name: value for name, value in u.query.items() if not _SECRET.search(name)}
        # `URL.set` takes a password that is None for one that is to stay.
        return Database(URL.create(u.drivername, u.username, None, u.host, u.port, u.database, query))

    def named(self, name: str) -> "Database":
        """Another database on the same server."""
        return replace(self, url=self.url.set(database=name))

    def libpq(self, show_secrets: bool = True) -> str:
        """The address as psql and libpq take it."""
        return self._rendered("postgresql", show_secrets)

    def psycopg2(self, show_secrets: bool = True) -> str:
        """The address as Dagster's storage takes it."""
        return self._rendered("postgresql+psycopg2", show_secrets)

    @cached_property
    def engine(self) -> sa.Engine:
        """An engine with a pool of its own; made at first use."""
        return make_engine(self.libpq())

    def _rendered(self, driver: str, show_secrets: bool) -> str:
        base = self.url.set(drivername=driver, query={}).render_as_string(hide_password=not show_secrets)
        # SQLAlchemy leaves blanks as they are, which libpq refuses, quoting the password.
        base = base.replace(" ", "%20")
        # Slashes stay readable: the folder of a socket is written as a path.
        shown = {} if show_secrets else dict.fromkeys(self.url.query.keys() & self.secrets, "***")
        query = urlencode(dict(self.url.query) | shown, doseq=True, safe="/*", quote_via=quote)
        return f"{base}?{query}" if query else base


def _single(name: str, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """What libpq takes of a parameter that is repeated: the last; hosts may be several."""
    return value if isinstance(value, str) or name in {"host", "port"} else value[-1]


def make_engine(address: str, application: str = "bridge") -> sa.Engine:
    """An engine for a libpq address: small pool, connections tested before use, sessions in UTC and UTF-8."""
    engine = sa.create_engine(
        make_url(address).set(drivername="postgresql+psycopg"),
        pool_size=2,
        max_overflow=8,
        # An error would quote what was written: records of people.
        hide_parameters=True,
        # A pooler may give each transaction another server, which does not know the statement.
        connect_args={
            "prepare_threshold": None,
            "application_name": application,
            "connect_timeout": 10,
        },
    )
    event.listen(engine, "connect", _settle_session)
    replace_lost_connections(engine)
    return engine


def replace_lost_connections(engine: sa.Engine) -> None:
    """Lets the engine's pool replace connections that were lost while they rested.

    A server that ends one says so, or closes it: what rests has nothing else to say, and to look at
    its socket costs no answer from the server, as the pool's own test does, a third of all that a
    small run asked. Only one that rested long is asked, because what lies in between may have
    forgotten it without a word.
    """

    def rests(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    def look(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        rested = time.monotonic() - record.info.get("rests_since", time.monotonic())
        if _has_something_to_say(connection) or (rested > _LONG_REST and not _answers(engine, connection)):
            raise DisconnectionError("the server closed a connection that rested")

    event.listen(engine, "checkin", rests)
    event.listen(engine, "checkout", look)


def _has_something_to_say(connection: Any) -> bool:
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _answers(engine: sa.Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error:
        return False


def resolve(settings: Settings, home: Home) -> Database:
    """The data database, ready to be migrated, with Dagster's beside it.

    It is the one of BRIDGE_DATABASE_URL, else that of the embedded server, which is started.
    Databases that are missing are created.

    Raises:
        DatabaseUnavailable: there is no server, it is too old, or a database is missing and may
            not be created.
    """
    if settings.database_url is not None:
        database = Database.of(settings.database_url.get_secret_value())
    else:
        database = Database.of(embedded.ensure_running(home).url(DATA_DATABASE))
    names = (database.name, settings.dagster_database)
    try:
        if _look(database, settings.dagster_database):
            return database
        _create_missing(database, names)
    except DBAPIError as error:
        # The database may be missing, or the server, which this one tells.
        _create_missing(database.named(_MAINTENANCE), names, error)
    try:
        _look(database, settings.dagster_database)
    except DBAPIError as error:
        raise _unreachable(database, error) from error
    return database


@contextmanager
def transaction(engine: sa.Engine, name: str) -> Iterator[sa.Connection]:
    """A transaction that writes, with failpoints before and after its commit.

    Args:
        name: one of `failpoints.TRANSACTIONS`.
    """
    with engine.begin() as connection:
        yield connection
        reach(f"{name}.committing")
    reach(f"{name}.committed")


def advisory_lock(
    connection: sa.Connection,
    name: str,
    wait: bool = True,
    on_wait: Callable[[], None] | None = None,
    long: bool = False,
    shared: bool = False,
) -> bool:
    """Takes the lock `name` until the end of the connection's transaction.

    `on_wait` is called once if another holds it; by default a line is logged. `long` is for
    transactions that stay idle while they hold it, which some servers would end. Any number may hold
    a lock `shared`, while nobody holds it alone.

    Returns:
        Whether the lock was taken; False only without `wait`.
    """
    if long:
        connection.execute(sa.text("set local idle_in_transaction_session_timeout = 0"))
    key, kind = sa.func.hashtextextended(name, 0), "_shared" if shared else ""
    if connection.scalar(sa.select(getattr(sa.func, f"pg_try_advisory_xact_lock{kind}")(key))):
        return True
    if not wait:
        return False
    if on_wait is None:
        _log.info("waiting for another process that holds %s", name)
    else:
        on_wait()
    connection.execute(sa.select(getattr(sa.func, f"pg_advisory_xact_lock{kind}")(key)))
    return True


def _settle_session(connection, _record) -> None:
    # As statements: poolers refuse start-up options, but keep track of these. psycopg reads times of no
    # other style.
    before, connection.autocommit = connection.autocommit, True
    connection.execute("set time zone 'UTC'; set datestyle to 'ISO'; set client_encoding to 'UTF8'")
    connection.autocommit = before


def _look(database: Database, dagster: str) -> bool:
    """Whether Dagster's database exists beside this one.

    Raises:
        DBAPIError: this database cannot be reached.
        DatabaseUnavailable: the server is too old, or the database is not in UTF-8.
    """
    query = sa.text(
        "select current_setting('server_version_num')::int / 10000 as version, "
        "pg_encoding_to_char(encoding) as encoding, "
        "exists (select from pg_database where datname = :dagster) as complete "
        "from pg_database where datname = current_database()"
    )
    with database.engine.connect() as connection:
        found = connection.execute(query, {"dagster": dagster}).one()
    if found.version < _OLDEST_VERSION:
        raise DatabaseUnavailable(
            f"the server at {database.libpq(show_secrets=False)} is Postgres {found.version}; "
            f"{_OLDEST_VERSION} or newer is needed"
        )
    if found.encoding != "UTF8":
        raise DatabaseUnavailable(
            f"the database at {database.libpq(show_secrets=False)} is encoded in {found.encoding}; "
            "create one in UTF8"
        )
    return found.complete


def _create_missing(maintenance: Database, names: tuple[str, str], why: DBAPIError | None = None) -> None:
    """Creates those databases that are missing, by way of `maintenance` on the same server.

    `why` is what happened to the attempt to connect to the first of them.
    """
    engine = maintenance.engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            known = set(connection.scalars(sa.text("select datname from pg_database")))
            missing = [name for name in names if name not in known]
            for name in missing:
                _create(connection, name, missing)
    except DBAPIError as error:
        raise _unreachable(maintenance.named(names[0]), why or error) from error
    finally:
        engine.dispose()


def _create(connection: sa.Connection, name: str, missing: list[str]) -> None:
    quoted = connection.dialect.identifier_preparer.quote
    try:
        # From template0 because nobody is ever connected to that one, which would be refused.
        connection.exec_driver_sql(f"create database {quoted(name)} encoding 'UTF8' template template0")
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state in _DUPLICATE:
            return  # Another process was faster.
        if state != _NO_PRIVILEGE:
            raise
        user = connection.engine.url.username or "postgres"
        wanted = [f"create database {quoted(each)} owner {quoted(user)} encoding 'UTF8';" for each in missing]
        raise DatabaseUnavailable(
            f"the user {user!r} may not create databases on this server. Let an administrator run:\n  "
            + "\n  ".join(wanted)
            + "\nor choose other names with BRIDGE_DATABASE_URL and BRIDGE_DAGSTER_DATABASE."
        ) from error


def _unreachable(database: Database, error: DBAPIError) -> DatabaseUnavailable:
    told = redact(str(error.orig)).strip()
    full = isinstance(error.orig, DiskFull) or embedded.NO_SPACE in told
    check = (
        "Check that the server is up and lets this user in: BRIDGE_DATABASE_URL names it; what the embedded "
        "one says is in logs/postgres.log."
    )
    return DatabaseUnavailable(
        f"cannot use the database {database.libpq(show_secrets=False)}: {told}\n"
        f"{embedded.MAKE_ROOM if full else check}"
    )
