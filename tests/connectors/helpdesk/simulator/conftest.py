"""What the tests of the simulator share: a desk without faults, and its tickets."""

from collections.abc import Iterator

import pytest

from bridge_pipeline.connector_kit.simulator import RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from tests.connectors.helpdesk.simulator.reader import Record, every


@pytest.fixture(scope="module")
def calm() -> Iterator[RunningSimulator]:
    with serving(SimulatorOptions(tickets=1_500, faults="calm")) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def tickets(calm: RunningSimulator) -> list[Record]:
    return every(calm, "tickets", select="*,status.*,priority.name,account.name")
