"""Volumes: compared at the same lag with the same weekday, or not at all."""

from datetime import UTC, date, datetime, timedelta

import pytest

from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.model.window import midnight
from bridge_pipeline.steps import volume

MONDAY = date(2024, 4, 1)
HOURS = timedelta(hours=1)
LIMITS = {"weekdays": 4, "busy": 20}
LAG = 3 * HOURS


def batch(day: date, lag: timedelta) -> Batch:
    start = midnight(day)
    counts = dict.fromkeys(
        ("fetched", "outside", "duplicate", "quarantined", "landed", "requests", "pages", "sweeps"), 0
    )
    read = start + timedelta(days=1) + lag
    return Batch(
        id=9, tenant="acme", connection="acme", entity="tickets", kind="window", window_start=start,
        window_end=start + timedelta(days=1), extraction=1, **counts, proof={}, files=[], excluded=[],
        fetched_from=read, fetched_to=read, run_id=None,
    )  # fmt: skip


def weeks(counts: list[int], lag: timedelta = LAG) -> volume.History:
    """Counts of the Mondays before, the latest first, all taken at a lag."""
    return {MONDAY - timedelta(weeks=n): [(lag, count)] for n, count in enumerate(counts, start=1)}


@pytest.mark.parametrize(
    ("before", "lag", "usual"),
    [
        (weeks([100, 110, 90, 100]), LAG, 100),
        (weeks([100, 110, 90]), LAG, None),
        (weeks([100, 0, 110, 90, 5, 100]), LAG, 95),
        (weeks([100] * 5 + [10] * 7), LAG, 100),
        (weeks([19, 19, 19, 19, 19]), LAG, None),
        (weeks([100] * 4, lag=LAG + 24 * HOURS), LAG, None),
        (weeks([100] * 4, lag=LAG + 11 * HOURS), LAG, 100),
        (weeks([100] * 4), timedelta(days=300), None),
        (weeks([100] * 4, lag=timedelta(days=330)), timedelta(days=300), 100),
        (weeks([100] * 4), HOURS, None),
        ({MONDAY - timedelta(days=n): [(LAG, 100)] for n in range(1, 7)}, LAG, None),
    ],
    ids=["usual", "too few", "robust", "the latest", "not busy", "read later", "near", "long after",
         "both long after", "not settled", "other weekdays"],
)  # fmt: skip
def test_a_day_is_judged_by_its_weekday_at_the_same_lag(before, lag, usual):
    found = volume.judged(batch(MONDAY, lag), {MONDAY: 7}, before, LIMITS, 2 * HOURS)
    assert [(day.rows, day.usual) for day in found] == ([(7, usual)] if usual else [])


@pytest.mark.parametrize("turn", [1, -1])
def test_of_several_counts_of_a_day_the_one_at_the_nearest_lag_counts(turn):
    before = {day: [(LAG, 100), (LAG + 10 * HOURS, 60)][::turn] for day in weeks([0] * 4)}
    (found,) = volume.judged(batch(MONDAY, LAG), {MONDAY: 7}, before, LIMITS, 2 * HOURS)
    assert found.usual == 100


def test_the_newest_settled_day_ends_before_its_lag():
    from bridge_pipeline.database.ledger import newest_settled

    lag = 2 * HOURS
    assert newest_settled(datetime(2024, 4, 2, 2, tzinfo=UTC), lag) == MONDAY
    assert newest_settled(datetime(2024, 4, 2, 1, 59, tzinfo=UTC), lag) == MONDAY - timedelta(days=1)


def test_days_of_the_same_batch_are_counts_of_their_weekday_too():
    days = {MONDAY - timedelta(weeks=week): 100 for week in range(1, 5)} | {MONDAY: 7}
    found = volume.judged(batch(MONDAY, timedelta(days=300)), days, {}, LIMITS, 2 * HOURS)
    assert [(day.rows, day.usual) for day in found] == [(7, 100)]
