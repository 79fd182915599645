"""What the tests of runs share: a desk connected to an open installation with Dagster's database."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from bridge_pipeline.automation.runs import STORAGE_VARIABLE
from bridge_pipeline.database.workspace import Workspace, open_workspace
from tests.integration.desk import Desk, serving
from tests.integration.flow import connect


@pytest.fixture
def installation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace, opened as commands and runs open it."""
    # Set by what is tested; so they are taken back afterwards.
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv(STORAGE_VARIABLE, "")
    return open_workspace()


@pytest.fixture
def desk(installation: Workspace) -> Iterator[Desk]:
    """An empty desk that serves until the test ends, connected as `acme-helpdesk`."""
    with serving() as desk:
        connect(installation, desk)
        yield desk


@pytest.fixture
def plain(installation: Workspace, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance of the installation's database with Dagster's own storage."""
    folder = tmp_path / "plain"
    folder.mkdir()
    storage = {"postgres": {"postgres_url": installation.dagster_database.psycopg2()}}
    (folder / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    with dg.DagsterInstance.from_config(str(folder)) as plain:
        yield plain
