"""What the campaigns share: a place to attack, and a folder for their figures."""

from collections.abc import Iterator

import pytest

from bridge_pipeline.database.embedded import Server
from tests.torture.attack import Range, shooting_range


@pytest.fixture(scope="module")
def target(server: Server) -> Iterator[Range]:
    """Where the attacks of a module take place."""
    with shooting_range(server) as found:
        yield found
