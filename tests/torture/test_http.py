"""Every fault of HTTP befalls a reading of every connector: no record is lost, and no source is pressed.

The table is that of `tests/conformance/faults`, whose first kinds each run of the tests takes; in the full
form each fault strikes the first, the middle and the last request, in the short form one of them.
"""

import pytest

from bridge_pipeline import connectors
from tests.conformance.faultproxy import proxying
from tests.conformance.faults import FAULTS, PLACES, Fault
from tests.conformance.reading import CountedQuota, desk, scratch, subject_of
from tests.conformance.striking import Struck, strike
from tests.torture.figures import FULL, Figures, figures_of


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(connectors.all_connectors()))
def test_no_fault_of_http_costs_a_record(name):
    subject = subject_of(name)
    others = [entity for entity in subject.connector.entities if entity != subject.entity]
    with (
        figures_of("http", name) as figures,
        desk(subject) as (simulator, _),
        proxying(simulator.url) as proxy,
    ):
        quota = CountedQuota()
        struck = Struck(subject, simulator, proxy, quota, subject.entity)
        beside = [Struck(subject, simulator, proxy, quota, entity) for entity in others]
        for turn, fault in enumerate(FAULTS):
            for place in PLACES if FULL else (PLACES[turn % len(PLACES)],):
                befall(figures, struck, fault, place)
            other = beside[turn // len(PLACES) % len(beside)]
            befall(figures, other, fault, PLACES[turn % len(PLACES)])


def befall(figures: Figures, struck: Struck, fault: Fault, place: str) -> None:
    wrong = []
    with scratch() as folder:
        try:
            strike(struck, folder, fault, place)
        except Exception as error:
            told = f"{type(error).__name__}: {error}".split("\n")[0]
            wrong.append(f"{told} ({fault.name}, {place} request for {struck.entity})")
    # Those of the connector's only proxy.
    figures.facts = {"requests": struck.proxy.asked, "spoilt_answers": struck.proxy.all_spoilt}
    figures.add(wrong)
