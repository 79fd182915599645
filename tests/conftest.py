"""What all tests share: a clean environment, and one embedded Postgres for the whole run.

The server is started by the first test that wants it, in whichever worker, and stopped by the
process that ends the run. Each test gets a database of its own, copied from a migrated one.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
import sqlalchemy as sa
import structlog

from bridge_pipeline import logs, redaction
from bridge_pipeline import settings as configuration
from bridge_pipeline.database import embedded
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.migrate import migrate
from bridge_pipeline.database.sealing import open_sealer
from bridge_pipeline.database.workspace import Workspace, make_folders
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings

# Not `BRIDGE_…`, because those are cleaned away. Workers inherit it from the controller.
_SERVER_HOME = "TESTS_SERVER_HOME"
_TEMPLATE = "template_bridge"
_ROOM = 4 * 2**30
# How long an example takes says how much else the machine has to do.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # Not below pytest's own folder: each pytest that starts takes that away from other users.
        os.environ[_SERVER_HOME] = tempfile.mkdtemp(prefix="bridge-tests-", dir=in_memory())


def in_memory() -> str | None:
    """A folder in memory, if the machine has room: each test's database is made and dropped, and every
    one of these waits for the disk."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > _ROOM
    return str(folder) if roomy else None


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        root = Path(os.environ.pop(_SERVER_HOME))
        embedded.stop(Home(root))
        shutil.rmtree(root)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell or `.env` reaches a test."""
    for name in os.environ:
        if name.startswith("BRIDGE_") or name == "LOG_LEVEL":
            monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of one test is masked in another."""
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setattr(redaction, "_sent", set())


@pytest.fixture(scope="session")
def server() -> embedded.Server:
    """The embedded server of this run, with a migrated database to copy from."""
    home = Home(Path(os.environ[_SERVER_HOME]))
    with file_lock(home.root / "tests.lock"):
        server = embedded.ensure_running(home)
        if not (home.root / "template").exists():
            _make_template(server)
            (home.root / "template").touch()
    return server


@pytest.fixture(scope="session")
def _maintenance(server: embedded.Server) -> Iterator[sa.Engine]:
    engine = Database.of(server.url("postgres")).engine.execution_options(isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def empty_database(server: embedded.Server, _maintenance: sa.Engine) -> Iterator[Database]:
    """A new database without any table."""
    yield from _temporary_database(server, _maintenance, "template0")


@pytest.fixture
def database(server: embedded.Server, _maintenance: sa.Engine) -> Iterator[Database]:
    """A new, migrated database."""
    yield from _temporary_database(server, _maintenance, _TEMPLATE)


@pytest.fixture
def workspace(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An open workspace with a home and a database of its own.

    The environment names them, so that `settings.load()` and child processes find the same.
    Dagster's database does not exist until `open_workspace` is called.
    """
    monkeypatch.setenv("BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRIDGE_DATABASE_URL", database.libpq())
    monkeypatch.setenv("BRIDGE_DAGSTER_DATABASE", f"{database.name}_dagster")
    settings = configuration.load()
    home = Home(settings.home)
    make_folders(home)
    return Workspace(settings, home, database, open_sealer(settings, home))


def _make_template(server: embedded.Server) -> None:
    maintenance = Database.of(server.url("postgres"))
    with maintenance.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"create database {_TEMPLATE} template template0"))
    maintenance.engine.dispose()
    template = Database.of(server.url(_TEMPLATE))
    migrate(template.engine)
    # A database that somebody is connected to cannot be copied.
    template.engine.dispose()


def _temporary_database(server: embedded.Server, maintenance: sa.Engine, template: str) -> Iterator[Database]:
    name = f"test_{uuid4().hex[:12]}"
    with maintenance.connect() as connection:
        connection.execute(sa.text(f"create database {name} template {template}"))
    database = Database.of(server.url(name))
    yield database
    database.engine.dispose()
    with maintenance.connect() as connection:
        for leftover in (name, f"{name}_dagster"):
            connection.execute(sa.text(f"drop database if exists {leftover} with (force)"))


@pytest.fixture
def no_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as in a process that nobody has set it up in; as it was afterwards."""
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    handlers, level = root.handlers[:], root.level
    known = structlog.get_config() if structlog.is_configured() else None
    monkeypatch.setattr(logs, "_installed", None)
    structlog.reset_defaults()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(factory)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    if known is not None:
        structlog.configure(**known)
