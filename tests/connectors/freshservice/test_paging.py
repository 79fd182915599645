"""Where the next page is, decided by what an answer holds and whether it links another."""

from datetime import UTC, datetime, timedelta
from itertools import count, cycle

import pytest

from bridge_pipeline.connector_kit.listing import NeverWhole
from bridge_pipeline.connectors.freshservice.paging import Repeats, Walk, links_on

AT = datetime(2025, 1, 10, tzinfo=UTC)


NUMBERS = count()


def full():
    """The rows of a full page, as no other page has them."""
    return [{"id": next(NUMBERS)} for _ in range(100)]


def seconds(*offsets):
    return [AT + timedelta(seconds=offset) for offset in offsets]


@pytest.mark.parametrize(
    ("rows", "linked", "ended"),
    [
        (100, True, False),
        (30, True, False),
        (0, True, False),
        (30, False, True),
        (0, False, True),
        # A full page may have lost its header on the way.
        (100, False, False),
    ],
)
def test_a_list_ends_with_the_page_that_neither_links_another_nor_is_full(rows, linked, ended):
    walk = Walk()
    walk.take([{}] * rows, [], linked)
    assert walk.ended is ended
    assert walk.params == {"page": str(1 if ended else 2), "per_page": "100"}


def test_empty_pages_are_not_followed_for_ever_whatever_they_link():
    walk = Walk()
    for _ in range(3):
        assert not walk.ended
        walk.take([], [], linked=True)
    assert walk.ended


def test_a_page_of_tickets_begins_a_second_before_the_end_of_the_one_before():
    walk = Walk(AT)
    assert walk.params == {
        "page": "1",
        "per_page": "100",
        "updated_since": "2025-01-10T00:00:00Z",
        "order_by": "updated_at",
        "order_type": "asc",
    }
    walk.take(full(), seconds(0, 7, 60), linked=True)
    assert walk.params["updated_since"] == "2025-01-10T00:00:59Z"
    assert walk.number == 1


def test_a_second_with_more_tickets_than_a_page_is_read_by_numbers():
    walk = Walk(AT)
    walk.take(full(), seconds(0, 0, 1), linked=True)
    assert (walk.since, walk.number) == (AT, 2)
    walk.take(full(), seconds(1, 1, 9), linked=True)
    assert (walk.since, walk.number) == (AT + timedelta(seconds=8), 1)


@pytest.mark.parametrize("marks", [(5, 3), (-5, 3)], ids=["not in order", "before what was asked for"])
def test_an_account_that_does_not_sort_is_read_by_numbers_from_the_beginning(marks):
    walk = Walk(AT)
    walk.take(full(), seconds(0, 90), linked=True)
    walk.take(full(), [walk.since + timedelta(seconds=offset) for offset in marks], linked=True)
    assert not walk.ordered
    assert walk.params == {"page": "1", "per_page": "100", "updated_since": "2025-01-10T00:00:00Z"}
    walk.take(full(), seconds(5, 3), linked=True)
    assert walk.number == 2


@pytest.mark.parametrize(
    ("header", "linked"),
    [
        ('<https://acme.freshservice.com/api/v2/tickets?page=2>; rel="next"', True),
        ("<https://acme.freshservice.com/api/v2/tickets?page=2>; rel=next", True),
        ('<https://acme.freshservice.com/api/v2/tickets?page=1>; rel="prev"', False),
        ("", False),
    ],
)
def test_only_a_link_called_next_is_one(header, linked):
    assert links_on(header) is linked


@pytest.mark.parametrize("since", [None, AT])
@pytest.mark.parametrize("period", [1, 2, 30])
def test_pages_that_come_in_turns_are_an_error_and_others_of_the_same_second_are_none(since, period):
    walk = Walk(since)
    for _ in range(50):
        walk.take(full(), [AT] * 100, linked=True)
    turns = cycle([full() for _ in range(period)])
    for _ in range(period + 9):
        walk.take(next(turns), [AT] * 100, linked=True)
    with pytest.raises(NeverWhole, match="the same records"):
        walk.take(next(turns), [AT] * 100, linked=True)
    assert not walk.ended


def test_a_page_is_known_by_its_ids():
    repeats = Repeats()
    for number in range(10):
        repeats.see([{"id": 7, "updated_at": number}, {"id": 8}][:: -1 if number % 2 else 1])
    with pytest.raises(NeverWhole):
        repeats.see([{"id": 8}, {"id": 7}])


def test_rows_without_ids_are_no_repetition_of_each_other():
    repeats = Repeats()
    for number in range(50):
        repeats.see([{"id": None, "subject": number}, number])


def test_a_second_that_is_read_again_from_the_next_one_is_no_repetition():
    # An imported batch: twenty pages changed in one second, and more in the one after it.
    walk, batch = Walk(AT), [full() for _ in range(20)]
    for second in (0, 1):
        for page in batch:
            walk.take(page, seconds(*[1] * 100), linked=True)
        if second == 0:
            walk.take(full(), seconds(1, 2, *[2] * 98), linked=True)
            assert (walk.since, walk.number) == (AT + timedelta(seconds=1), 1)
    assert not walk.ended


def test_a_list_without_an_end_is_an_error_though_nothing_repeats():
    repeats = Repeats(most=50)
    for _ in range(50):
        repeats.see(full())
    with pytest.raises(NeverWhole, match="50 pages and still more"):
        repeats.see(full())
