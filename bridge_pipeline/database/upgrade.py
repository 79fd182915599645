"""A major upgrade of the embedded Postgres: what an older version wrote, brought over by dump and load.

The old data is put aside first, so that nobody writes into it meanwhile, and the new takes its place by
one rename at the end. Killed in between, the home has no database until the upgrade is run again.
The schema of the tables is the business of `migrate`.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from bridge_pipeline import progress
from bridge_pipeline.connector_kit.journal import sync_folder
from bridge_pipeline.database import dump, embedded, readers
from bridge_pipeline.database.embedded import VERSION, DatabaseUnavailable, Server
from bridge_pipeline.database.engine import DATA_DATABASE, Database
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.naming import Home

_ALL = dump.Scope((), inverted=True)
_DATABASES = "select datname from pg_database where not datistemplate and datname <> 'postgres' order by 1"


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did; `before` is None where the data was of the installed version already.

    `rows` counts those of all databases, `kept` names the folder of the old data, if there is one.
    """

    version: str
    before: str | None = None
    rows: int = 0
    kept: list[str] = field(default_factory=list)


def upgrade(home: Home, old_programs: Path | None = None) -> Upgraded:
    """Brings the embedded data of a home to the installed version; wholly, or it stays as it was.

    Args:
        old_programs: the folder with the programs of the version that wrote it; else it is looked for.

    Raises:
        DatabaseUnavailable: there are no such programs, or a server does not start.
        DumpFailed: a table did not come over as it was.
    """
    home.postgres.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file_lock(home.postgres / "upgrade.lock"):
        _clear(_new(home))
        data, old = home.postgres / "data", None
        if not data.exists():
            # Killed before it was finished.
            old = next(reversed(embedded.set_aside(home)), None)
        before = _written_by(data if old is None else old.postgres / "data")
        if before in (None, VERSION) and old is None:
            return Upgraded(VERSION, kept=_kept(home))
        folder = _programs(str(before), old_programs)
        embedded.stop(home)
        old = old or _put_aside(home, str(before))
        try:
            rows = _bring_over(home, old, folder)
        except BaseException:
            if not data.exists():
                (old.postgres / "data").rename(data)
                sync_folder(home.postgres)
                shutil.rmtree(old.root)
            raise
        return Upgraded(VERSION, before, rows, _kept(home))


def discard_old(home: Home) -> list[str]:
    """Removes the data of older versions; returns the folders that are gone."""
    found = _kept(home)
    if found and not (home.postgres / "data").exists():
        raise DatabaseUnavailable("the upgrade is not finished: run `bridge upgrade` again first")
    for path in found:
        shutil.rmtree(path)
    return found


def _kept(home: Home) -> list[str]:
    return [str(each.root) for each in embedded.set_aside(home)]


def _written_by(data: Path) -> str | None:
    try:
        return (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return None


def _programs(version: str, given: Path | None) -> Path:
    if given is not None and embedded.version_of(given) != version:
        raise DatabaseUnavailable(f"{given} does not hold the programs of Postgres {version}")
    found = given or embedded.programs(version)
    if int(version) > int(VERSION) or found is None:
        raise DatabaseUnavailable(
            f"the data was written by Postgres {version}, and its programs are not on this machine: install "
            f"postgresql-{version}, name their folder with --old-programs, or `bridge restore` a backup "
            "into a new home"
        )
    return found


def _put_aside(home: Home, version: str) -> Home:
    old = Home(home.postgres / f"old-{version}")
    # It is there already where an upgrade was killed before the data was in it.
    old.postgres.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home.postgres / "data").rename(old.postgres / "data")
    sync_folder(old.postgres)
    sync_folder(old.root)
    sync_folder(home.postgres)
    return old


def _bring_over(home: Home, old: Home, folder: Path) -> int:
    """Loads everything into a new server and puts its data in place; returns the number of rows."""
    new = _new(home)
    # The server of an upgrade that was killed lives on.
    embedded.stop(old)
    try:
        with embedded.served_by(old, folder) as source:
            rows = _copied(source, embedded.ensure_running(new))
        embedded.stop(new)
        (new.postgres / "data").rename(home.postgres / "data")
        sync_folder(home.postgres)
    finally:
        _clear(new)
    return rows


def _new(home: Home) -> Home:
    """Where the new server works until its data is whole."""
    return Home(home.postgres / "upgrade")


def _clear(new: Home) -> None:
    embedded.stop(new)
    shutil.rmtree(new.root, ignore_errors=True)


def _copied(source: Server, target: Server) -> int:
    rows, maintenance = 0, Database.of(source.url("postgres"))
    with maintenance.engine.connect() as connection:
        names = list(connection.scalars(sa.text(_DATABASES)))
    maintenance.engine.dispose()
    for name in names:
        before, after = Database.of(source.url(name)), Database.of(target.url(name))
        _create(Database.of(target.url("postgres")), name)
        with dump.snapshot(before) as taken:
            dump.load(after, dump.dump(before, _ALL, taken))
            wanted = dump.digests(taken.connection, _ALL)
            with after.engine.begin() as connection:
                if dump.digests(connection, _ALL) != wanted:
                    raise dump.DumpFailed(f"{name} did not come over as it was; nothing was changed")
            if name == DATA_DATABASE:
                _bring_readers(taken.connection, after)
        for database in (before, after):
            database.engine.dispose()
        rows += sum(int(found[0]) for found in wanted.values())
        progress.report("upgrade", name, rows, "rows", finished=True)
    return rows


def _create(maintenance: Database, name: str) -> None:
    engine = maintenance.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        quoted = connection.dialect.identifier_preparer.quote(name)
        connection.exec_driver_sql(f"create database {quoted} encoding 'UTF8' template template0")
    engine.dispose()


def _bring_readers(source: sa.Connection, target: Database) -> None:
    for role, verifier in readers.verifiers(source).items():
        readers.bring_back(target, role, verifier)
    with target.engine.begin() as connection:
        readers.grant_readers(connection)
