"""What every command and run works with: settings, folders, database and key, opened together."""

from dataclasses import dataclass

from bridge_pipeline import settings as configuration
from bridge_pipeline.connector_kit.journal import make_folder
from bridge_pipeline.database import faults
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import Database, resolve
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.migrate import migrate
from bridge_pipeline.database.sealing import Sealer, open_sealer
from bridge_pipeline.database.signing import ensure_signing_key
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings


@dataclass(frozen=True)
class Workspace:
    """An open installation: its database is up and migrated, its folders exist."""

    settings: Settings
    home: Home
    database: Database
    sealer: Sealer

    @property
    def dagster_database(self) -> Database:
        """Where Dagster keeps its own storage."""
        return self.database.named(self.settings.dagster_database)


def open_workspace(settings: Settings | None = None) -> Workspace:
    """Opens the installation that the settings name, and makes what it needs.

    Any number of processes may do so at once, also in an empty home: the first one makes it.

    Raises:
        DatabaseUnavailable: there is no usable database, or the home cannot be written.
        NewerDatabase: the database was migrated by a newer Project Bridge.
        SealingError: the key is not a key.
    """
    settings = settings or configuration.load()
    home = Home(settings.home)
    if home.restoring.exists():
        raise DatabaseUnavailable(
            f"a restore into {home.root} is not finished: wait for it, or run the same `bridge restore` again"
        )
    try:
        make_folders(home)
    except OSError as error:
        raise DatabaseUnavailable(
            f"BRIDGE_HOME, {home.root}, cannot be used: {error.strerror}: {error.filename}"
        ) from error
    with file_lock(home.work / "open.lock"):
        database = resolve(settings, home)
        migrate(database.engine)
    faults.arm_from_environment(home, database)
    ensure_signing_key(home)
    return Workspace(settings, home, database, open_sealer(settings, home))


def make_folders(home: Home) -> None:
    """Makes the folders of a home, for its owner only."""
    state = (home.journal, home.landing, home.audit, home.heads, home.reports)
    for folder in (home.root, *state, home.logs, home.keys, home.signing, home.work, home.dagster):
        if not folder.is_dir():
            make_folder(folder, mode=0o700)
