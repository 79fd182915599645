"""Whatever befalls an answer: the records arrive, or the reading says clearly that it failed.

Each fault of the table strikes the first, the middle and the last request of a reading: once, and from
there on for ever. A reading that failed leaves nothing that passes for complete, and a plain reading
again, over the same journal, brings the truth. What is counted most is struck by all of them everywhere;
of the other entities each fault strikes one, in turn.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.conformance.faultproxy import proxying
from tests.conformance.faults import EVERY_RUN, FAULTS, PLACES, Fault
from tests.conformance.reading import CountedQuota, Subject
from tests.conformance.striking import Struck, strike


@pytest.fixture(scope="module")
def struck(subject: Subject, simulator: RunningSimulator) -> Iterator[Struck]:
    with proxying(simulator.url) as proxy:
        yield Struck(subject, simulator, proxy, CountedQuota(), subject.entity)


@pytest.fixture(scope="module")
def others(subject: Subject, simulator: RunningSimulator) -> Iterator[list[Struck]]:
    """The entities of the subject whose pages are not counted."""
    with proxying(simulator.url) as proxy:
        names = [name for name in subject.connector.entities if name != subject.entity]
        quota = CountedQuota()
        yield [Struck(subject, simulator, proxy, quota, name) for name in names]


_STRIKING = [
    pytest.param(fault, id=fault.name, marks=() if fault.name in EVERY_RUN else pytest.mark.long)
    for fault in FAULTS
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", _STRIKING)
def test_a_fault_costs_no_record(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    strike(struck, folder, fault, place)


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        pytest.param(
            turn,
            fault,
            id=fault.name,
            marks=pytest.mark.slow if fault.name in EVERY_RUN else pytest.mark.long,
        )
        for turn, fault in enumerate(FAULTS)
    ],
)
def test_a_fault_costs_no_record_of_another_entity(
    others: list[Struck], folder: Path, turn: int, fault: Fault
) -> None:
    place = PLACES[turn % len(PLACES)]
    struck = others[turn // len(PLACES) % len(others)]
    strike(struck, folder, fault, place)


def test_no_fault_has_the_name_of_another() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert set(names) >= EVERY_RUN
    assert len(EVERY_RUN) >= 40
