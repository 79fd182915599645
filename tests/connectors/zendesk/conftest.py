"""What the tests of Zendesk share: an account that stands still, and one under a test's own hand."""

from collections.abc import Iterator

import pytest

from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.connectors.zendesk.account import Account, serving


@pytest.fixture(scope="module")
def calm() -> Iterator[RunningSimulator]:
    with serving(Account()) as simulator:
        yield simulator
