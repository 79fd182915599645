"""A database as a stream of SQL, and back: what pg_dump writes of one snapshot, and psql reads.

Also what proves that two databases hold the same rows. Which databases there are and where the
bytes go is decided by the callers.
"""

import os
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import sqlalchemy as sa
from psycopg import errors

from bridge_pipeline.database.embedded import binary
from bridge_pipeline.database.engine import Database
from bridge_pipeline.naming import BRIDGE_SCHEMA, DESK_SCHEMA, MARTS_SCHEMA
from bridge_pipeline.redaction import redact

# In a database that is shared with others, these alone are ours.
DATA_SCHEMAS = (DESK_SCHEMA, BRIDGE_SCHEMA, MARTS_SCHEMA)
_PART_BYTES = 8 * 2**20
# libpq reads no longer ones of a service.
_LONGEST_LINE = 1_000
_TABLES = """
    select quote_ident(nspname) || '.' || quote_ident(relname)
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace
    where relkind in ('r', 'p') and {where} order by 1
"""
_FOREIGN = "nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_'"
# How values are written as text depends on these, which a server or a role may set.
_PLAIN = (
    "set local datestyle = 'ISO, YMD'",
    "set local intervalstyle = 'postgres'",
    "set local bytea_output = 'hex'",
    "set local extra_float_digits = 1",
    "set local time zone 'UTC'",
)

# How psql tells an error of the server.
_NUMBERED = re.compile(r"(?<=:  )[0-9A-Z]{5}$", re.MULTILINE)

# Table -> number of rows, and a sum of their hashes that no order of rows changes.
Digests = dict[str, list[str]]


class DumpFailed(RuntimeError):
    """A program of Postgres did not do its part; the message has its own words."""


@dataclass(frozen=True)
class Snapshot:
    """A state of a database that does not change while the transaction is open."""

    connection: sa.Connection
    name: str


@dataclass(frozen=True)
class Scope:
    """Which part of a database is meant: the schemas listed, or (`inverted`) all but those."""

    schemas: Sequence[str]
    inverted: bool = False

    @property
    def options(self) -> list[str]:
        """The same for pg_dump."""
        option = "--exclude-schema" if self.inverted else "--schema"
        return [f"{option}={schema}" for schema in self.schemas]

    @property
    def condition(self) -> str:
        """The same on `pg_namespace`."""
        if not self.schemas:
            return _FOREIGN
        names = ", ".join(f"'{schema}'" for schema in self.schemas)
        return f"{_FOREIGN} and nspname not in ({names})" if self.inverted else f"nspname in ({names})"


DATA = Scope(DATA_SCHEMAS)
# Dagster's storage may share the database of the data.
DAGSTER = Scope(DATA_SCHEMAS, inverted=True)


@contextmanager
def snapshot(database: Database) -> Iterator[Snapshot]:
    """Holds the state of a database as it is now, for any number of readers."""
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        # It stays open, and mostly idle, for as long as the slowest reader takes.
        connection.exec_driver_sql("set transaction read only")
        connection.exec_driver_sql("set local idle_in_transaction_session_timeout = 0")
        name = connection.scalar(sa.text("select pg_export_snapshot()"))
        yield Snapshot(connection, str(name))


def dump(database: Database, scope: Scope, taken: Snapshot) -> Iterator[bytes]:
    """The schema and rows of a snapshot as a script for psql, in parts of at most 8 MiB.

    Owners and privileges are left out: they name roles that another server does not have.

    Raises:
        DumpFailed: pg_dump does not read this server, or lost it.
    """
    options = ["--no-owner", "--no-privileges", "--clean", "--if-exists", "--encoding=UTF8"]
    command = [str(binary("pg_dump")), *options, f"--snapshot={taken.name}", *scope.options]
    with _running(command, database, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        while part := running.stdout.read(_PART_BYTES):  # type: ignore[union-attr]
            yield part


def load(database: Database, parts: Iterable[bytes]) -> None:
    """Brings a dump into a database in place of what it holds of that, wholly or not at all.

    Raises:
        DumpFailed: the server refuses something of it.
    """
    # Without the last line psql's transaction ends in nothing, wherever it is cut.
    script = chain([b"begin;\n"], _portable(parts), [b"\ncommit;\n"])
    # The words of errors quote values, and their details rows; statements name the table.
    settings = ["--set=ON_ERROR_STOP=1", "--set=VERBOSITY=sqlstate"]
    options = ["--no-psqlrc", "--quiet", "--echo-errors", *settings, "--output=/dev/null"]
    command = [str(binary("psql")), *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    # A psql that gave up has closed its end; why, it says itself.
    with _running(command, database, **pipes) as running, suppress(BrokenPipeError):
        for part in script:
            running.stdin.write(part)  # type: ignore[union-attr]
        running.stdin.close()  # type: ignore[union-attr]


def _portable(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The dump without the one setting in its head that servers before 17 do not know."""
    rest = iter(parts)
    first = next(rest, b"")
    yield first.replace(b"\nSET transaction_timeout = 0;\n", b"\n", 1)
    yield from rest


def is_empty(connection: sa.Connection, scope: Scope) -> bool:
    """Whether a database holds nothing of the scope."""
    return not _tables(connection, scope)


def digests(connection: sa.Connection, scope: Scope) -> Digests:
    """Rows and contents of every table; equal for equal rows on every server from 15 on."""
    for statement in _PLAIN:
        connection.exec_driver_sql(statement)
    found = {}
    for table in _tables(connection, scope):
        query = (
            f"select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from only {table} t"
        )
        rows, digest = connection.execute(sa.text(query)).one()
        found[table] = [str(rows), str(digest)]
    return found


def _tables(connection: sa.Connection, scope: Scope) -> list[str]:
    return list(connection.scalars(sa.text(_TABLES.format(where=scope.condition))))


# --- Programs of Postgres -----------------------------------------------------------------------


@contextmanager
def _running(command: list[str], database: Database, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program at work on a database; everybody on the machine sees its arguments, and no secret there."""
    command = [*command, f"--dbname={database.without_secrets().libpq()}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    secrets = database.secrets
    if password := secrets.pop("password", None):
        environment["PGPASSWORD"] = password
    with _service(database, secrets) as service:
        if service is not None:
            environment |= {"PGSERVICEFILE": f"/dev/fd/{service}", "PGSERVICE": "bridge"}
        inherited = [] if service is None else [service]
        process = subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            **pipes,  # type: ignore[call-overload]
        )
    with _watched(process, database):
        yield process


@contextmanager
def _service(database: Database, secrets: Mapping[str, str]) -> Iterator[int | None]:
    """A pipe with what libpq reads of a service: the secrets for which it has no variables. None without any.

    Raises:
        DumpFailed: they cannot be told in this way.
    """
    if not secrets:
        yield None
        return
    lines = [f"{name}={value}" for name, value in secrets.items()]
    plain = all(line == line.strip() and line.isprintable() and len(line) <= _LONGEST_LINE for line in lines)
    if not plain or "service" in database.url.query:
        raise DumpFailed(
            f"{', '.join(secrets)} of BRIDGE_DATABASE_URL cannot be given to Postgres' own programs: no "
            f"blanks at its ends, no line breaks, at most {_LONGEST_LINE} characters, no `service` beside it"
        )
    source, target = os.pipe()
    try:
        # It fits into any pipe.
        os.write(target, "\n".join(["[bridge]", *lines, ""]).encode())
        os.close(target)
        yield source
    finally:
        os.close(source)


@contextmanager
def _watched(process: subprocess.Popen[bytes], database: Database) -> Iterator[None]:
    """Collects what a program complains of, and ends it with the block."""
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        code = process.wait()
        reader.join()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with suppress(BrokenPipeError):
                pipe.close()
    if code:
        words = redact(_NUMBERED.sub(_named, b"".join(lines[-100:]).decode(errors="replace").strip()))
        raise DumpFailed(f"{database.libpq(show_secrets=False)}:\n{words}")


def _named(code: re.Match[str]) -> str:
    """The number of an error with its name, such as `22P02 (InvalidTextRepresentation)`."""
    try:
        return f"{code[0]} ({errors.lookup(code[0]).__name__})"
    except KeyError:
        return code[0]
