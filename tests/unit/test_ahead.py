"""Values that a thread makes ahead of their use: all of them, in order, never more than one too many."""

import gc
import threading
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest

from bridge_pipeline.ahead import ahead
from tests.threads import ended_while_locked

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def test_all_values_come_in_their_order():
    assert list(ahead(range(1_000))) == list(range(1_000))
    assert list(ahead([])) == []
    assert list(ahead([None, False])) == [None, False]


def test_what_making_a_value_raises_is_raised_after_those_before_it():
    def values():
        yield 1
        raise ValueError("of the second")

    made = ahead(values())
    assert next(made) == 1
    with pytest.raises(ValueError, match="of the second"):
        next(made)


def test_whoever_stops_early_has_made_one_value_too_many_at_most():
    source = count()
    made = ahead(source)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    made.close()
    assert next(source) <= 4


def test_values_that_nobody_closed_may_be_collected_while_a_thread_begins():
    made = ahead(count())
    next(made)
    ended_while_locked(made)


def test_values_that_nobody_closed_may_be_collected_by_the_thread_that_makes_them():
    dropped, collected = threading.Event(), threading.Event()

    def values():
        yield 1
        dropped.wait()
        gc.collect()
        collected.set()

    held: list[Any] = [ahead(values())]
    # Only a collection of garbage finds what holds itself.
    held.append(held)
    next(held[0])
    del held
    dropped.set()
    assert collected.wait(60)


def test_values_are_made_in_the_context_of_whoever_uses_them():
    WHO.set("the user")
    assert list(ahead(WHO.get() for _ in range(2))) == ["the user"] * 2
