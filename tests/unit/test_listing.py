"""Listings that move, lie or never end are read whole, or the reading fails saying so."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.listing import Limits, Listing, NeverWhole, Request
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.steps.census import DiskCensus, Sighting

NOW = datetime(2025, 1, 1, tzinfo=UTC)
# Change times are numbers here; the window is [10, 20), the filter lets [8, 22) through.
INSIDE, PADDING, OUTSIDE = 15, 21, 99


@dataclass
class Desk:
    """An API over rows `id -> change time`, listed in the order of `rows`."""

    rows: dict[int, int]
    size: int = 3
    envelope: Callable[[int, int], dict] = lambda page, pages: {}
    turn: Callable[["Desk", Request], None] = lambda desk, request: None
    filter: Callable[[int, int], bool] = lambda number, changed: 8 <= changed < 22
    page: Callable[[int, int], int] = lambda page, pages: page
    requests: list[Request] = field(default_factory=list)
    # What the answer before, and who asked for it, said would be asked for next.
    promised: Request | None = None

    def listed(self, filtered: bool) -> list[int]:
        return [n for n, changed in self.rows.items() if not filtered or self.filter(n, changed)]

    def fetch(self, request: Request) -> tuple[Page, bool]:
        self.requests.append(request)
        if promised := self.promised:
            assert (request.key, request.page, request.filtered) == (
                promised.key,
                promised.page,
                promised.filtered,
            )
        self.turn(self, request)
        listed = self.listed(request.filtered)
        pages = -(-len(listed) // self.size)
        first = (self.page(request.page, pages) - 1) * self.size
        records = [(number, self.rows[number]) for number in listed[first : first + self.size]]
        content = PageContent(records, **self.envelope(request.page, pages))
        self.promised = request.following if records and content.says_more(request.page) else None
        return Page(len(self.requests), content, NOW), True


@dataclass
class Outcome:
    seen: set[int]
    proof: dict
    requests: list[Request]


def read(desk, filtered=True, sweeps=5, confirm_pages=50, pages=200, proven=False, census=None, fetch=None):
    """Reads a desk as an extraction does."""
    census = census or DiskCensus(Path(":memory:"))
    limits = Limits(sweeps, confirm_pages, pages)
    listing = Listing(fetch or desk.fetch, census, limits, filtered, proven)
    seen = set()
    try:
        for page in listing.pages():
            found = page.content.records
            census.enter([Sighting(str(n), f"{n}:{at}", 10 <= at < 20) for n, at in found])
            seen |= {number for number, at in found if 10 <= at < 20}
    finally:
        census.close()
    assert desk.promised is None, "what is asked for ahead is asked for"
    return Outcome(seen, listing.proof, desk.requests)


def desk_of(count, **how):
    return Desk(dict.fromkeys(range(count), INSIDE), **how)


def honest(page, pages):
    return {"more": page < pages, "total_pages": pages}


# --- Sets that stand still ----------------------------------------------------------------------


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7, 31])
@pytest.mark.parametrize("envelope", [lambda *_: {}, honest], ids=["bare", "paged"])
def test_a_quiet_listing_is_read_twice_and_found_whole(count, envelope, filtered):
    outcome = read(desk_of(count, envelope=envelope), filtered)
    assert outcome.seen == set(range(count))
    assert outcome.proof["method"] == "whole listing"
    sweeps = 2 * (-(-count // 3) + 1)
    assert len(outcome.requests) == sweeps + 2


def test_every_request_has_a_key_of_its_own():
    outcome = read(desk_of(31, turn=lambda desk, _: desk.rows.update({len(desk.requests) + 100: OUTSIDE})))
    keys = [request.key for request in outcome.requests]
    assert len(keys) == len(set(keys))


# --- Filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "let_through",
    [
        lambda n, at: True,
        lambda n, at: 8 <= at < 22,
        lambda n, at: 8 <= at < 22 and n % 7,
        lambda n, at: False,
        lambda n, at: at >= 22,
    ],
    ids=["ignored", "faithful", "hiding", "empty", "inverted"],
)
@pytest.mark.parametrize("confirm_pages", [50, 4])
def test_whatever_the_filter_does_the_window_is_read_whole(let_through, confirm_pages):
    rows = {number: (INSIDE, OUTSIDE, PADDING)[number % 3] for number in range(60)}
    outcome = read(Desk(rows, filter=let_through), confirm_pages=confirm_pages)
    assert outcome.seen == {number for number in rows if number % 3 == 0}


def test_a_filter_that_hides_a_record_of_a_long_listing_is_not_used():
    desk = desk_of(300, filter=lambda n, at: n != 5)
    outcome = read(desk, confirm_pages=3)
    assert outcome.seen == set(range(300))
    assert outcome.proof["filter"]["hidden"] == 1
    assert outcome.proof["method"] == "whole listing"


@pytest.mark.parametrize(("proven", "compared"), [(True, 1), (False, 100)])
def test_a_long_listing_with_a_faithful_filter_is_confirmed_with_it(proven, compared):
    rows = {number: INSIDE if number % 10 == 0 else OUTSIDE for number in range(3000)}
    outcome = read(Desk(rows, envelope=honest, size=30), confirm_pages=2, proven=proven)
    assert outcome.seen == set(range(0, 3000, 10))
    assert outcome.proof["method"] == "filtered listing"
    assert compared <= outcome.proof["filter"]["records_compared"] < compared + 10
    unfiltered = sum(not request.filtered for request in outcome.requests)
    assert unfiltered == outcome.proof["filter"]["pages_compared"] == max(2, -(-compared // 3))


@pytest.mark.parametrize(("proven", "unfiltered"), [(True, 2), (False, 20 + 1)])
def test_an_empty_answer_is_believed_only_of_a_filter_that_was_seen_to_work(proven, unfiltered):
    rows = dict.fromkeys(range(60), OUTSIDE)
    outcome = read(Desk(rows), confirm_pages=2, proven=proven)
    assert outcome.seen == set()
    assert sum(not request.filtered and request.key[0] != "t" for request in outcome.requests) == unfiltered


# --- Envelopes that lie, pages that repeat ------------------------------------------------------


@pytest.mark.parametrize(
    "envelope",
    [
        lambda page, pages: {"more": False},
        lambda page, pages: {"more": page <= pages},
        lambda page, pages: {"more": page <= pages + 1},
        lambda page, pages: {"more": True},
        lambda page, pages: {"total_pages": 1},
        lambda page, pages: {"total_pages": 0, "more": False},
        lambda page, pages: {"total_pages": pages + 1},
        lambda page, pages: {"total_pages": 1_000_000},
        lambda page, pages: {"total_pages": pages, "more": None},
        lambda page, pages: {"total_pages": -1},
    ],
)
def test_the_records_decide_where_a_listing_ends_not_its_envelope(envelope):
    outcome = read(desk_of(20, envelope=envelope))
    assert outcome.seen == set(range(20))
    # Not more than three pages beyond the end in each of two sweeps and the tail.
    assert len(outcome.requests) <= 2 * (7 + 3) + 2


@pytest.mark.parametrize(
    "page",
    [
        lambda page, pages: min(page, pages),
        lambda page, pages: (page - 1) % max(pages, 1) + 1,
    ],
    ids=["the last page for ever", "from the beginning again"],
)
@pytest.mark.parametrize("count", [1, 3, 7, 20])
@pytest.mark.parametrize("envelope", [lambda *_: {}, honest], ids=["bare", "paged"])
def test_pages_beyond_the_end_that_repeat_others_end_the_listing(page, envelope, count):
    outcome = read(desk_of(count, page=page, envelope=envelope))
    assert outcome.seen == set(range(count))
    assert len(outcome.requests) <= 2 * (-(-count // 3) + 3) + 2


def test_pages_that_bring_again_what_was_seen_do_not_end_a_listing_at_once():
    assert read(desk_of(20, page=lambda page, pages: max(1, page - 2))).seen == set(range(20))


@pytest.mark.parametrize(
    "envelope", [lambda *_: {"more": True}, lambda *_: {"total_pages": 50}, lambda page, pages: honest(1, 50)]
)
def test_a_server_that_ignores_the_page_and_promises_more_is_never_whole(envelope):
    desk = desk_of(20, page=lambda page, pages: 1, envelope=envelope)
    with pytest.raises(NeverWhole, match="only what was seen before"):
        read(desk)
    assert len(desk.requests) < 20


def test_a_server_that_ignores_the_page_and_gives_all_at_once_is_whole():
    outcome = read(desk_of(20, size=100, page=lambda page, pages: 1))
    assert outcome.seen == set(range(20))


@pytest.mark.parametrize("empty", [2, 3, 7])
def test_an_empty_page_in_the_middle_does_not_end_what_says_it_goes_on(empty):
    desk = desk_of(20, page=lambda page, pages: 99 if page == empty else page - (page > empty))
    desk.envelope = lambda page, pages: {"more": page < pages + 1}
    assert read(desk).seen == set(range(20))


def test_who_promises_more_is_asked_for_it_at_once():
    outcome = read(desk_of(20, envelope=honest))
    followed = [request.key for request in outcome.requests if request.following]
    assert followed[:2] == ["s1-p1", "s1-p2"]


# --- Sets that never end ------------------------------------------------------------------------


@pytest.mark.parametrize("envelope", [lambda *_: {}, lambda *_: {"more": True}])
@pytest.mark.parametrize("changed", [INSIDE, OUTSIDE])
def test_endless_rows_end_the_reading(changed, envelope):
    def grow(desk, request):
        first = len(desk.rows)
        desk.rows |= dict.fromkeys(range(first, first + desk.size), changed)

    desk = desk_of(3, envelope=envelope, turn=grow)
    with pytest.raises(NeverWhole, match="no end: 40 pages"):
        read(desk, filtered=False, pages=40)
    assert len(desk.requests) == 40
    assert desk.promised is None, "what is asked for ahead is asked for"


def test_a_source_that_always_has_something_new_is_never_whole():
    def add_in_front(desk, request):
        if request.page == 1:
            desk.rows = {1000 + len(desk.requests): INSIDE} | desk.rows

    desk = desk_of(10, turn=add_in_front)
    with pytest.raises(NeverWhole, match="read 5 times"):
        read(desk)


def test_records_that_come_while_the_tail_is_read_are_found_beyond_its_pages_too():
    added = []

    def append(desk, request):
        if request.key.startswith("t") and not added:
            added.extend(range(70, 80))
            desk.rows |= dict.fromkeys(added, INSIDE)

    assert read(desk_of(10, turn=append)).seen >= set(range(70, 80))


def test_a_tail_is_where_the_listing_ended_and_not_where_its_pages_came_again():
    def append(desk, request):
        if request.key.startswith("t"):
            desk.rows[77] = INSIDE

    # Behind its last page it begins anew.
    desk = desk_of(20, page=lambda page, pages: (page - 1) % max(pages, 1) + 1, turn=append)
    assert 77 in read(desk).seen


# --- Sets that move -----------------------------------------------------------------------------


def at_request(moves):
    """Applies `moves` (request number -> function of the rows) while a desk is read."""

    def turn(desk, request):
        if move := moves.get(len(desk.requests)):
            desk.rows = move(dict(desk.rows))

    return turn


def dropping(*gone):
    return lambda rows: {number: at for number, at in rows.items() if number not in gone}


@pytest.mark.parametrize("filtered", [True, False])
def test_a_deletion_while_reading_loses_no_other_record(filtered):
    for request in range(1, 12):
        for gone in range(10):
            desk = desk_of(10, turn=at_request({request: dropping(gone)}))
            assert read(desk, filtered).seen >= set(range(10)) - {gone}


@pytest.mark.parametrize("filtered", [True, False])
def test_two_deletions_while_reading_lose_no_other_record(filtered):
    for second in range(2, 9):
        desk = desk_of(10, turn=at_request({2: dropping(0), second: dropping(0, 1, 2)}))
        assert read(desk, filtered).seen >= set(range(3, 10))


def test_a_sweep_that_misses_what_another_saw_proves_nothing_yet():
    # Both sweeps step over record 2: it moves up as they pass by, and nothing unseen comes.
    desk = desk_of(4, size=1, turn=at_request({3: dropping(0), 6: dropping(0, 1)}))
    assert read(desk, filtered=False).seen == {0, 1, 2, 3}


@pytest.mark.parametrize("filtered", [True, False])
def test_records_that_move_to_the_end_or_the_front_are_not_lost(filtered):
    def to_end(number):
        return lambda rows: {n: at for n, at in rows.items() if n != number} | {number: INSIDE}

    def to_front(number):
        return lambda rows: {number: INSIDE} | rows

    for move in (to_end, to_front):
        for request in range(1, 8):
            for number in range(10):
                desk = desk_of(10, turn=at_request({request: move(number)}))
                assert read(desk, filtered).seen == set(range(10))


@st.composite
def schedules(draw):
    """A desk, and up to three changes at any requests of its reading."""
    count = draw(st.integers(0, 14))
    times = st.sampled_from([INSIDE, INSIDE, PADDING, OUTSIDE])
    rows = {number: draw(times) for number in range(count)}
    moves = draw(
        st.lists(
            st.tuples(
                st.integers(1, 25),
                st.sampled_from(["delete", "insert first", "insert last", "touch first", "touch last"]),
                st.integers(0, count),
                times,
            ),
            max_size=3,
        )
    )
    return rows, draw(st.integers(2, 5)), moves, draw(st.booleans()), draw(st.booleans())


def moved(rows, what, number, changed, fresh):
    if what == "delete":
        rows.pop(number, None)
        return rows
    if what.startswith("insert"):
        number = fresh
    elif number not in rows:
        return rows
    rows.pop(number, None)
    return {number: changed} | rows if what.endswith("first") else rows | {number: changed}


@settings(max_examples=400)
@given(schedules())
def test_what_stays_in_the_window_while_it_changes_around_is_read_or_the_reading_fails(case):
    rows, size, moves, filtered, paged = case
    stayed = {number for number, changed in rows.items() if 10 <= changed < 20}

    def turn(desk, request):
        for fresh, (when, what, number, changed) in enumerate(moves, 100):
            if when == len(desk.requests):
                desk.rows = moved(desk.rows, what, number, changed, fresh)
                stayed.intersection_update(desk.rows)
                stayed.difference_update({number} if what.startswith("touch") else ())

    desk = Desk(rows, size, honest if paged else lambda *_: {}, turn)
    try:
        assert read(desk, filtered).seen >= stayed
    except NeverWhole:
        assert len(moves) > 1


def test_busy_desks_are_read_whole_or_the_reading_fails():
    whole = 0
    for seed in range(150):
        dice = random.Random(seed)
        desk = Desk(
            {number: dice.choice([INSIDE, OUTSIDE]) for number in range(150)}, size=10, envelope=honest
        )
        stayed = {number for number, changed in desk.rows.items() if changed == INSIDE}

        def turn(desk, request, dice=dice, stayed=stayed):
            if dice.random() < 0.2:
                what = dice.choice(["delete", "insert first", "insert last", "touch last", "touch first"])
                number = dice.choice(list(desk.rows))
                desk.rows = moved(desk.rows, what, number, OUTSIDE, 1000 + len(desk.requests))
                stayed -= {number} if not what.startswith("insert") else set()

        desk.turn = turn
        try:
            assert read(desk, dice.random() < 0.5).seen >= stayed
            whole += 1
        except NeverWhole:
            continue
    assert whole > 140


# --- Resumed readings ---------------------------------------------------------------------------


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("killed_after", [1, 3, 5, 6, 9, 11])
def test_a_resumed_reading_uses_its_pages_and_sweeps_once_more(killed_after, filtered):
    journal: dict[str, Page] = {}
    desk = desk_of(10)

    def fetch(request):
        if request.key in journal:
            return journal[request.key], False
        page, live = desk.fetch(request)
        journal[request.key] = page
        return page, live

    def dying(request):
        if len(desk.requests) == killed_after:
            raise KeyboardInterrupt
        return fetch(request)

    with pytest.raises(KeyboardInterrupt):
        read(desk, filtered, fetch=dying)
    # What the first process had read has changed, and the second one cannot know.
    desk.rows = {50: INSIDE} | desk.rows
    assert read(desk, filtered, fetch=fetch).seen == {50, *range(10)}
    keys = [request.key for request in desk.requests]
    assert len(keys) == len(set(keys))


def test_sweeps_that_were_resumed_are_none_of_those_that_a_reading_may_take():
    journal: dict[str, Page] = {}

    def add_in_front(desk, request):
        if request.page == 1:
            desk.rows = {1000 + len(desk.requests): INSIDE} | desk.rows

    desk = desk_of(10, turn=add_in_front)

    def fetch(request):
        live = request.key not in journal
        if live:
            journal[request.key] = desk.fetch(request)[0]
        return journal[request.key], live

    with pytest.raises(NeverWhole):
        read(desk, filtered=False, fetch=fetch)
    desk.turn = lambda desk, request: None
    assert read(desk, filtered=False, sweeps=2, fetch=fetch).seen == set(desk.rows)
