"""How a reading is struck by a fault, and what each verdict of `faults` asks of it."""

import re
from pathlib import Path

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.conformance.faultproxy import FaultProxy
from tests.conformance.faults import Fault
from tests.conformance.reading import (
    CONNECTION,
    CountedQuota,
    Subject,
    config_of,
    extract,
    scratch,
    secrets_of,
    truth,
)

_TOLD = re.compile(r"GET http://127\.0\.0\.1:\d+/\S* failed at attempt \d+ of \d+: ")


class Struck:
    """A desk behind a proxy, and how a clean reading of one of its entities goes.

    Args:
        quota: of all that goes through the proxy.
    """

    def __init__(
        self,
        subject: Subject,
        simulator: RunningSimulator,
        proxy: FaultProxy,
        quota: CountedQuota,
        entity: str,
    ) -> None:
        self.subject, self.proxy, self.quota, self.entity = subject, proxy, quota, entity
        self.truth = truth(simulator, entity)
        with scratch() as folder:
            proxy.arm()
            assert extract(subject, proxy.url, entity, folder, quota=quota).rows == self.truth
        self.targets = list(proxy.targets)
        self.places = {"first": 0, "middle": len(self.targets) // 2, "last": len(self.targets) - 1}
        config = subject.connector.config.model_validate(config_of(subject, proxy.url))
        self.secrets = secrets_of(config).values()

    def looks_up(self, place: str) -> bool:
        """Whether the request at that place asks for one listed record."""
        pattern = self.subject.double.looked_up
        return pattern is not None and re.search(pattern, self.targets[self.places[place]]) is not None

    def read(
        self, folder: Path, fault: Fault | None = None, place: str = "first", lasting: bool = False
    ) -> SourceError | None:
        """A reading struck by a fault: its error, or None where the truth arrived."""
        self.proxy.arm(fault and fault.spoil, self.places[place], lasting)
        self.quota.held.clear()
        deadline = fault and fault.deadline
        try:
            found = extract(
                self.subject, self.proxy.url, self.entity, folder, quota=self.quota, read_timeout=deadline
            )
        except SourceError as error:
            return error
        finally:
            # Of all readings: one that failed may have asked ahead, which arrives in the next one.
            assert self.quota.permitted >= self.proxy.asked, "it was asked without a permit"
            if fault and fault.held:
                assert max(self.quota.held, default=0) >= fault.held, "Retry-After was not obeyed"
        assert found.rows == self.truth, "the reading passes for complete and is not the truth"
        return None


def told(struck: Struck, error: SourceError, fault: Fault) -> None:
    """An error says whose it is, what was asked, and how often; and no secret."""
    text = str(error)
    assert text.startswith(f"{CONNECTION}: ")
    # Where answers took too long, some ask for less, and tell that it was of no avail.
    if error.status is not None or (fault.verdict == "passing" and fault.deadline is None):
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


def endless(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    """What never ends is not complete; what it brought is there, and read by another extraction no more."""
    error = struck.read(folder, fault, place, lasting=True)
    assert struck.proxy.spoilt
    # Elsewhere, or of another entity, no page before may have others after it; then the truth has arrived.
    ends = place not in fault.lasts or struck.entity != struck.subject.entity
    assert error is not None or ends, "the reading passes for complete"
    healed(struck, folder / "again")


def healed(struck: Struck, folder: Path) -> None:
    error = struck.read(folder)
    assert error is None, f"a plain reading again must bring the truth: {error}"


_GONE = {"HTTP 404", "HTTP 410"}
_VERDICTS = {"harmless": harmless, "passing": passing, "fatal": fatal, "either": either, "endless": endless}


def strike(struck: Struck, folder: Path, fault: Fault, place: str) -> None:
    """Strikes readings at a place, over journals in `folder`; fails where the verdict is another one."""
    verdict = gone if fault.name in _GONE and struck.looks_up(place) else _VERDICTS[fault.verdict]
    verdict(struck, folder, fault, place)
    assert struck.proxy.strangers == 0, "another origin was asked"
