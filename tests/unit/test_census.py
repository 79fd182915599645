"""The census on disk counts what a plain set in memory would count."""

import sqlite3
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_pipeline.steps.census import DiskCensus, RejectedRecord, Sighting


@pytest.fixture
def census(tmp_path):
    census = DiskCensus(tmp_path / "census.sqlite")
    yield census
    census.close()


class Counted:
    """The same by plain sets."""

    def __init__(self):
        self.versions, self.inside, self.ever = set(), set(), {}
        self.sweep, self.repeats, self.unseen = 0, 0, 0
        self.swept, self.swept_inside = set(), set()

    def begin_sweep(self):
        self.sweep += 1
        self.swept, self.swept_inside, self.unseen, self.repeats = set(), set(), 0, 0

    def enter(self, page):
        fresh, again = [], 0
        for sighting in page:
            fresh.append((sighting.id, sighting.version) not in self.versions)
            self.versions.add((sighting.id, sighting.version))
            again += sighting.id in self.swept
            self.swept.add(sighting.id)
            self.ever[sighting.id] = self.sweep
            if sighting.inside:
                self.unseen += sighting.id not in self.inside
                self.inside.add(sighting.id)
                self.swept_inside.add(sighting.id)
        if page:
            self.repeats = self.repeats + 1 if again == len(page) else 0
        return fresh

    def numbers(self):
        missed = sum(self.ever[number] < self.sweep for number in self.inside)
        in_window, swept = (
            sum(not number.startswith("sha256:") for number in ids)
            for ids in (self.inside, self.swept_inside)
        )
        return self.unseen, missed, in_window, swept, self.repeats


def numbers(census):
    return census.unseen, census.missed, census.in_window, census.swept_in_window, census.repeats


# The version decides whether a record lies in the window: it holds the change time.
sightings = st.builds(
    lambda number, version: Sighting(number, f"v{version}", version % 3 != 0, number.startswith("sha256:")),
    st.sampled_from(["1", "2", "3", "4", "sha256:5", "sha256:6"]),
    st.integers(0, 4),
)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(st.none() | st.lists(sightings, max_size=4), max_size=14))
def test_any_reading_is_counted_as_by_plain_sets(tmp_path_factory, steps):
    census, plain = DiskCensus(tmp_path_factory.mktemp("census") / "c.sqlite"), Counted()
    for page in (None, *steps):
        if page is None:
            census.begin_sweep()
            plain.begin_sweep()
        else:
            assert entered(census, page) == plain.enter(page)
        assert numbers(census) == plain.numbers()
    census.close()


def entered(census, page):
    """What is new of a page: it is entered again where the census knows its bytes."""
    digest = None if any(sighting.rejected for sighting in page) else repr(page).encode()
    if digest and (known := census.enter_again(digest)):
        assert known == len(page)
        return [False] * known
    return census.enter(page, digest)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.lists(sightings, max_size=3), min_size=4, max_size=4),
)
def test_pages_that_come_again_are_counted_as_by_plain_sets(tmp_path_factory, steps, pages):
    census, plain = DiskCensus(tmp_path_factory.mktemp("census") / "c.sqlite"), Counted()
    for sweep in ([0, 1, 2, 3], steps, steps, [0, 1, 2, 3]):
        census.begin_sweep()
        plain.begin_sweep()
        for number in sweep:
            assert entered(census, pages[number]) == plain.enter(pages[number])
            assert numbers(census) == plain.numbers()
    census.close()


def test_a_page_that_comes_again_is_known_until_another_one_takes_a_version_of_it(census):
    pages = {b"1": [Sighting("1", "a", True), Sighting("2", "a", False)], b"2": [Sighting("2", "a", False)]}
    for digest, page in pages.items():
        census.begin_sweep()
        census.enter(page, digest)
    census.begin_sweep()
    assert [census.enter_again(digest) for digest in (b"1", b"2", b"3")] == [0, 1, 0]


def test_of_a_record_twice_on_a_page_only_the_first_is_new(census):
    census.begin_sweep()
    assert census.enter([Sighting("1", "a", True), Sighting("1", "a", True), Sighting("1", "b", True)]) == [
        True,
        False,
        True,
    ]
    assert numbers(census) == (1, 0, 1, 1, 0)


def test_a_page_with_more_records_than_a_statement_may_have_variables(census):
    census.begin_sweep()
    page = [Sighting(str(number), "a", True) for number in range(70_000)]
    assert all(census.enter(page))
    assert not any(census.enter(page))
    assert (census.in_window, census.repeats) == (70_000, 1)


def record(number, page, position):
    raw, at = b"\x00\xff\xed", datetime(2025, 1, 2, 3, 4, 5, 6, UTC)
    return RejectedRecord(f"{number:064x}", "nul_character", "/s", "é", None, raw, page, position, at)


def test_rejected_records_are_kept_once_with_their_bytes_in_the_order_of_reading(census):
    census.reject([record(3, 2, 0), record(1, 10, 1)])
    census.reject([record(2, 10, 0), record(3, 12, 5)])
    assert list(census.rejected()) == [record(3, 2, 0), record(2, 10, 0), record(1, 10, 1)]


def test_a_census_begins_empty_whatever_a_killed_one_left(tmp_path):
    path = tmp_path / "census.sqlite"
    killed = DiskCensus(path)
    killed.begin_sweep()
    killed.enter([Sighting("1", "a", True)])
    killed.close()
    path.write_bytes(path.read_bytes()[:100])
    census = DiskCensus(path)
    census.begin_sweep()
    assert census.enter([Sighting("1", "a", True)]) == [True]
    census.close()


def test_what_is_seen_is_on_disk_not_in_memory(tmp_path):
    path = tmp_path / "census.sqlite"
    census = DiskCensus(path)
    census.begin_sweep()
    census.enter([Sighting(str(number), "a" * 64, True) for number in range(1000)])
    with sqlite3.connect(path) as reader:
        spooled = "select count(*) from spooled, json_each(cast(ids as text))"
        assert reader.execute(spooled).fetchone() == (1000,)
        # A record that may stand in two places is looked for.
        census.enter([Sighting("999", "a" * 64, True), Sighting("1000", "a" * 64, True)])
        assert reader.execute(spooled).fetchone() == (0,)
        assert reader.execute("select count(*) from seen").fetchone() == (1001,)
    census.close()
