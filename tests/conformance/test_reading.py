"""Extracted set = truth: whole, by windows in any order, after a kill at any page, and by single records."""

import itertools
from datetime import date, timedelta

import pytest

from bridge_pipeline.connector_kit.connector import Reading
from bridge_pipeline.connector_kit.journal import Journal, read_file
from bridge_pipeline.connector_kit.reckoning import NOT_OFFERED, id_pages, look_up
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.model import Window
from bridge_pipeline.steps.census import DiskCensus, Sighting
from tests.conformance.faultproxy import proxying
from tests.conformance.faults import instead
from tests.conformance.reading import ALL, FIRST, LAST, CountedQuota, desk, extract, opened, truth


def test_the_desk_is_worth_reading(subject, simulator, folder):
    entity = subject.entity
    assert len(truth(simulator, entity)) >= 7, f"the simulator's truth must list 7 {entity} or more"
    whole = extract(subject, simulator.url, entity, folder)
    assert whole.counts.pages >= 3, (
        "the kit needs pages of three records: see Double.dialect and Double.config"
    )


@pytest.mark.parametrize("window", [None, ALL], ids=["whole", "windowed"])
def test_every_entity_is_read_whole(subject, simulator, folder, window):
    for entity in subject.connector.entities:
        found = extract(subject, simulator.url, entity, folder / entity, window)
        assert found.rows == truth(simulator, entity), f"{entity}: the extracted set is not the truth"
        counts = found.counts
        sorted_out = counts.landed + counts.outside + counts.duplicate + counts.quarantined
        assert (counts.fetched, found.records) == (sorted_out, sorted_out), (
            f"{entity}: records are unaccounted"
        )
        assert found.rejected == []
        assert found.proof, f"{entity}: read must say in `proof` how it knows that nothing is missing"


def test_windows_add_up_to_the_truth(subject, simulator, folder):
    second = FIRST + timedelta(days=1)
    windows = [
        Window.of_days(second, second),
        Window.of_days(date(2020, 1, 1), FIRST),
        Window.of_days(LAST, date(2025, 12, 31)),
    ]
    for entity in subject.connector.entities:
        read = [
            extract(subject, simulator.url, entity, folder / entity / window.label, window)
            for window in windows
        ]
        for window, found in zip(windows, read, strict=True):
            assert found.rows == truth(simulator, entity, window), f"{entity}: {window.label}"
        together = dict(itertools.chain.from_iterable(found.rows.items() for found in read))
        assert together == truth(simulator, entity)


def test_a_reading_killed_after_any_page_goes_on_from_its_journal(subject, simulator, folder):
    entity = subject.entity
    whole = extract(subject, simulator.url, entity, folder / "whole")
    for pages in range(whole.counts.pages + 1):
        place = folder / str(pages)
        killed = extract(subject, simulator.url, entity, place, most=pages)
        before = len(simulator.requests)
        resumed = extract(subject, simulator.url, entity, place)
        assert resumed.rows == truth(simulator, entity), f"killed after page {pages}"
        again = [line["path"] for line in simulator.requests[before:]]
        assert resumed.asked <= len(again)
        # What lies in the journal is not asked for again, but for one more sweep.
        assert resumed.asked <= 2 * whole.asked - killed.asked, f"killed after page {pages}"


def test_every_request_asks_its_quota_first(subject, simulator, folder):
    quota = CountedQuota()
    before = len(simulator.requests)
    for entity in subject.connector.entities:
        extract(subject, simulator.url, entity, folder / entity, quota=quota)
    assert quota.permitted == len(simulator.requests) - before
    assert quota.under_way == 0


def test_a_single_record_is_read_or_known_to_be_gone(subject, folder):
    with desk(subject) as (simulator, dialect), opened(subject, simulator.url) as client:
        for entity in subject.connector.entities:
            stream, place = subject.connector.stream(entity), folder / entity
            asked = list(truth(simulator, entity))[:1]
            for record_id in asked:
                outcome, page = looked_up(client, stream, record_id, place / "before")
                if outcome == "not offered":
                    continue
                assert outcome == "found"
                assert page is not None
                assert stream.fields[0].read(page.content.records[0]) == record_id
                subject.double.delete(dialect, entity, record_id)
                outcome, _ = looked_up(client, stream, record_id, place / "after")
                assert (outcome == "found") == (record_id in truth(simulator, entity))
                assert outcome in ("found", "deleted")


@pytest.mark.parametrize("held", ["{}", '{"error":"Not found"}', "null", '[{"id":1}]', None])
def test_an_answer_that_is_not_the_record_is_never_found(subject, simulator, folder, held):
    """Not even with the status of success: `found` is what says of itself that it is the one asked for."""
    with proxying(simulator.url) as proxy, opened(subject, proxy.url) as client:
        for entity in subject.connector.entities:
            stream = subject.connector.stream(entity)
            (key,) = stream.keys["id"]
            bare = f'{{"{key}":null,"error":"Not found"}}'
            body = bare if held is None else f'{{"{stream.single_names[0]}":{held}}}'
            proxy.arm(instead(200, body.encode()), lasting=True)
            for record_id in list(truth(simulator, entity))[:1]:
                with pytest.raises(SourceError) as error:
                    look_up(client, stream, record_id, Journal(folder))
                assert error.value.status in (200, *NOT_OFFERED)
                assert "Not found" in str(error.value) or error.value.status != 200 or "error" not in body


def looked_up(client, stream, record_id, place):
    """What a lookup by id comes to; an API may have none."""
    place.mkdir(parents=True)
    try:
        outcome, page = look_up(client, stream, record_id, Journal(place))
    except SourceError as error:
        if error.status not in NOT_OFFERED:
            raise
        return "not offered", None
    return outcome.state, page


def test_the_ids_of_a_certificate_are_the_truth(subject, simulator, folder):
    for entity in subject.connector.entities:
        stream, place = subject.connector.stream(entity), folder / entity
        place.mkdir()
        census, listed = DiskCensus(place / "census.sqlite"), set()
        with opened(subject, simulator.url) as client:
            reading = Reading(stream, None, census, Journal(place))
            for page in id_pages(client, reading, {}, narrow=True):
                kept = [
                    r for r in page.content.records if not (stream.state and stream.state(r) == "deleted")
                ]
                ids = [stream.fields[0].read(record) for record in kept]
                census.enter([Sighting(record_id, "1", True) for record_id in ids])
                listed.update(ids)
        census.close()
        assert listed == set(truth(simulator, entity)), f"{entity}: list_ids must name all records there are"


def test_excluded_fields_are_nowhere_in_the_journal(subject, simulator, folder):
    stream = subject.connector.stream(subject.entity)
    column = next(name for name in ("subject", "name") if name in stream.keys)
    key = stream.keys[column][0]
    extract(subject, simulator.url, subject.entity, folder / "with")
    extract(subject, simulator.url, subject.entity, folder / "without", exclude=(f"{subject.entity}.{key}",))
    named = f'"{key}"'.encode()
    kept = {
        name: [read_file(path)[1] for path in (folder / name).rglob("*.zst")] for name in ("with", "without")
    }
    assert any(named in body for body in kept["with"])
    assert kept["without"]
    assert not any(named in body for body in kept["without"]), "leave out what the connection excludes"
