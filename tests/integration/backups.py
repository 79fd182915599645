"""What the tests of backup and restore share: an installation worth one, and a place to restore it to."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
import zstandard

from bridge_pipeline import settings as configuration
from bridge_pipeline.database import dump, registry
from bridge_pipeline.database.embedded import Server
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.due import due_spans
from bridge_pipeline.steps.restore import Restored, restore
from bridge_pipeline.steps.verify import verify_folder
from tests.integration.desk import Desk, account, serving, ticket, user
from tests.integration.flow import NAME, connect, day, process

DAYS = ("2024-03-01", "2024-03-03")


def fill(desk: Desk) -> None:
    """Records of three days, one of which is rejected, and whose texts are no plain ones."""
    desk.records["accounts"] = [account(1, "2024-03-01T10:00:00Z", name="ünïcode \\ 'quoted'")]
    desk.records["users"] = [user(n, f"2024-03-0{n}T10:00:00Z") for n in (1, 2)]
    desk.records["tickets"] = [
        *(ticket(n, f"2024-03-0{1 + n % 3}T10:00:0{n}Z", subject=f"\\. \t{n} 😀") for n in range(9)[1:]),
        b'{"id": null, "updated_at": "2024-03-02T10:00:00Z"}',
    ]


def nothing_to_settle(_workspace: Workspace) -> None:
    """For restores without Dagster."""


@contextmanager
def place(workspace: Workspace, home: Path) -> Iterator[Settings]:
    """The settings of an installation that is not there yet, with databases beside those of the tests."""
    settings = beside(workspace.database, home, f"test_{uuid4().hex[:12]}")
    yield settings
    drop(settings)


def beside(database: Database, home: Path, name: str) -> Settings:
    """The settings of an installation with a database of that name on the same server."""
    url = database.named(name).libpq()
    return configuration.load(home=home, database_url=url, dagster_database=f"{name}_dagster")


def drop(settings: Settings) -> None:
    """Drops both databases of an installation, where they are there."""
    database = databases(settings)
    engine = database.named("postgres").engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for each in (database.name, settings.dagster_database):
            connection.execute(sa.text(f"drop database if exists {each} with (force)"))
    engine.dispose()


@contextmanager
def filled_installation(server: Server, home: Path) -> Iterator[Workspace]:
    """An installation that has seen three days of a desk, which goes on serving."""
    settings = beside(Database.of(server.url("postgres")), home, f"test_{uuid4().hex[:12]}")
    workspace = open_workspace(settings)
    try:
        with serving() as desk:
            connect(workspace, desk)
            fill(desk)
            process(workspace, day(*DAYS))
            yield workspace
    finally:
        workspace.database.engine.dispose()
        drop(settings)


def restored(settings: Settings, path: Path, **options: object) -> tuple[Restored, Workspace]:
    """Restores a backup and opens it."""
    done = restore(settings, path, nothing_to_settle, **options)  # type: ignore[arg-type]
    return done, open_workspace(settings)


def state(workspace: Workspace) -> dict[str, dump.Digests]:
    """Every row of both databases."""
    found = {}
    for database, scope in ((workspace.database, dump.DATA), (workspace.dagster_database, dump.DAGSTER)):
        with database.engine.begin() as connection:
            found[database.name.removeprefix("test_")[12:]] = dump.digests(connection, scope)
        if database is not workspace.database:
            database.engine.dispose()
    return found


def findings(workspace: Workspace) -> list[object]:
    """What a whole verification of the audit folder finds."""
    return list(verify_folder(workspace.home.audit, all_tenants=True).findings)


def due(workspace: Workspace, first: str, last: str) -> list[object]:
    """Which of the days the schedule would ask for."""
    record = registry.get(workspace.database.engine, NAME)
    asked = due_spans(workspace, record, datetime.now(UTC))
    return [span for span in asked if str(span[0]) <= last and str(span[1]) >= first]


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What a backup holds."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        data = BytesIO(stream.read())
    with tarfile.open(fileobj=data) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def restore_elsewhere(path: str, home: str, name: str) -> None:
    """A restore beside the installation of the environment, which may arm a failpoint."""
    workspace = open_workspace()
    restore(beside(workspace.database, Path(home), name), Path(path), nothing_to_settle)


def databases(settings: Settings) -> Database:
    """The data database that settings name."""
    assert settings.database_url is not None
    return Database.of(settings.database_url.get_secret_value())
