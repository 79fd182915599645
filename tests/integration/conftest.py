"""What the tests of the flow share: an impatient workspace, and a desk connected to it."""

from collections.abc import Iterator

import pytest

from bridge_pipeline.database.workspace import Workspace
from tests.integration.desk import Desk, serving
from tests.integration.flow import connect


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed requests are tried again at once, here and in child processes."""
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")


@pytest.fixture
def workspace(impatient: None, workspace: Workspace) -> Workspace:
    """The workspace of all tests, for an impatient client."""
    return workspace


@pytest.fixture
def desk(workspace: Workspace) -> Iterator[Desk]:
    """An empty desk that serves until the test ends, connected as `acme-helpdesk`."""
    with serving() as desk:
        connect(workspace, desk)
        yield desk
