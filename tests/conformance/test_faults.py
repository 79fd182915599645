"""Whatever befalls an answer: the records arrive, or the reading says clearly that it failed.

Each fault of the table strikes the first, the middle and the last request of a reading: once, and from
there on for ever. A reading that failed leaves nothing that passes for complete, and a plain reading
again, over the same journal, brings the truth. What is counted most is struck by all of them everywhere;
of the other entities each fault strikes one, in turn.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.conformance.faultproxy import FaultProxy, proxying
from tests.conformance.faults import EVERY_RUN, FAULTS, PLACES, Fault
from tests.conformance.reading import CONNECTION, Subject, config_of, extract, scratch, secrets_of, truth

_TOLD = re.compile(r"GET http://127\.0\.0\.1:\d+/\S* failed at attempt \d+ of \d+: ")


class Struck:
    """A desk behind a proxy, and how a clean reading of one of its entities goes."""

    def __init__(self, subject: Subject, simulator: RunningSimulator, proxy: FaultProxy, entity: str) -> None:
        self.subject, self.proxy, self.entity = subject, proxy, entity
        self.truth = truth(simulator, entity)
        with scratch() as folder:
            proxy.arm()
            assert extract(subject, proxy.url, entity, folder).rows == self.truth
        self.targets = list(proxy.targets)
        self.places = {"first": 0, "middle": len(self.targets) // 2, "last": len(self.targets) - 1}
        config = subject.connector.config.model_validate(config_of(subject, proxy.url))
        self.secrets = secrets_of(config).values()

    def looks_up(self, place: str) -> bool:
        """Whether the request at that place asks for one listed record."""
        pattern = self.subject.double.looked_up
        return pattern is not None and re.search(pattern, self.targets[self.places[place]]) is not None

    def read(self, folder: Path, fault: Fault | None = None, place: str = "first", lasting: bool = False):
        """A reading struck by a fault: its error, or None where the truth arrived."""
        self.proxy.arm(fault and fault.spoil, self.places[place], lasting)
        try:
            found = extract(self.subject, self.proxy.url, self.entity, folder)
        except SourceError as error:
            return error
        assert found.rows == self.truth, "the reading passes for complete and is not the truth"
        return None


@pytest.fixture(scope="module")
def struck(subject: Subject, simulator: RunningSimulator) -> Iterator[Struck]:
    with proxying(simulator.url) as proxy:
        yield Struck(subject, simulator, proxy, subject.entity)


@pytest.fixture(scope="module")
def others(subject: Subject, simulator: RunningSimulator) -> Iterator[list[Struck]]:
    """The entities of the subject whose pages are not counted."""
    with proxying(simulator.url) as proxy:
        names = [name for name in subject.connector.entities if name != subject.entity]
        yield [Struck(subject, simulator, proxy, name) for name in names]


def told(struck: Struck, error: SourceError, fault: Fault) -> None:
    """An error says whose it is, what was asked, and how often; and no secret."""
    text = str(error)
    assert text.startswith(f"{CONNECTION}: ")
    if fault.verdict == "passing" or error.status is not None:
        assert _TOLD.search(text), text
    assert not any(secret in text for secret in struck.secrets)


def harmless(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    error = struck.read(folder, fault, place, lasting=True)
    assert error is None, f"such answers are as good as any: {error}"
    assert struck.proxy.spoilt


def passing(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    error = struck.read(folder, fault, place, lasting=True)
    assert error is not None, "the records arrived although no answer could be read"
    told(struck, error, fault)
    error = struck.read(folder, fault)
    assert struck.proxy.spoilt == 1
    assert error is None, f"one such answer must not end a reading, nor what failed before: {error}"


def fatal(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    error = struck.read(folder, fault, place)
    assert error is not None, "the records arrived although the API refused"
    assert len(struck.proxy.targets) == struck.places[place] + 1, "what is refused is not asked again"
    told(struck, error, fault)
    healed(struck, folder)


def gone(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    """A listed record that is not found is looked for again, and not given up while it is listed."""
    error = struck.read(folder, fault, place)
    assert error is None, f"one record that is not found must not end a reading: {error}"
    error = struck.read(folder / "lasting", fault, place, lasting=True)
    assert error is not None, "the reading passes for complete although a listed record was never read"
    told(struck, error, fault)


def either(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    for lasting in (False, *([True] if place in fault.lasts else [])):
        error = struck.read(folder / str(lasting), fault, place, lasting)
        assert struck.proxy.spoilt
        if error is not None:
            told(struck, error, fault)
            healed(struck, folder / str(lasting))


def healed(struck: Struck, folder: Path) -> None:
    error = struck.read(folder)
    assert error is None, f"a plain reading again must bring the truth: {error}"


_STRIKING = [
    pytest.param(fault, id=fault.name, marks=() if fault.name in EVERY_RUN else pytest.mark.long)
    for fault in FAULTS
]
_GONE = {"HTTP 404", "HTTP 410"}
_VERDICTS = {"harmless": harmless, "passing": passing, "fatal": fatal, "either": either}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", _STRIKING)
def test_a_fault_costs_no_record(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    verdict = gone if fault.name in _GONE and struck.looks_up(place) else _VERDICTS[fault.verdict]
    verdict(struck, folder, fault, place)
    assert struck.proxy.strangers == 0, "another origin was asked"


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
    verdict = gone if fault.name in _GONE and struck.looks_up(place) else _VERDICTS[fault.verdict]
    verdict(struck, folder, fault, place)
    assert struck.proxy.strangers == 0, "another origin was asked"


def test_no_fault_has_the_name_of_another() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert set(names) >= EVERY_RUN
    assert len(EVERY_RUN) >= 40
