"""A `filter` means what the vendor's query language says, or misbehaves as it was told to."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit.simulator import RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from tests.connectors.helpdesk.simulator.reader import (
    TOKEN,
    WINDOW,
    Record,
    ask,
    every,
    ids,
    instant,
    page_of,
)

FROM, UNTIL = datetime(2025, 1, 20, tzinfo=UTC), datetime(2025, 2, 3, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("id = 500007", lambda t: t["id"] == 500_007),
        ("id <> 500007", lambda t: t["id"] != 500_007),
        ("id != 500007 AND id<500020", lambda t: t["id"] != 500_007 and t["id"] < 500_020),
        ("id IN (500003, 500001,7)", lambda t: t["id"] in (500_003, 500_001)),
        ("id NOT IN (500003)", lambda t: t["id"] != 500_003),
        ("status = 'New'", lambda t: t["status"]["name"] == "New"),
        ("status.name = 'New'", lambda t: t["status"]["name"] == "New"),
        ("status = 61", lambda t: t["status"]["id"] == 61),
        ("status.closed = true", lambda t: t["status"]["closed"]),
        ("status IN ('New','Closed')", lambda t: t["status"]["name"] in ("New", "Closed")),
        ("NOT status = 'New'", lambda t: t["status"]["name"] != "New"),
        ("subject CONTAINS 'PAYROLL'", lambda t: "payroll" in t["subject"].lower()),
        ("subject NOT CONTAINS 'payroll'", lambda t: "payroll" not in t["subject"].lower()),
        ("subject contains '🔥'", lambda t: "🔥" in t["subject"]),
        ("subject = 'it''s'", lambda t: False),
        ("resolved_at = null", lambda t: t["resolved_at"] is None),
        ("resolved_at <> NULL", lambda t: t["resolved_at"] is not None),
        ("internal = true", lambda t: t["internal"]),
        ("spent_time >= 300", lambda t: t["spent_time"] >= 300),
        ("sr_loe = 2.5", lambda t: t["sr_loe"] == 2.5),
        ("sr_loe <> 2.5", lambda t: t["sr_loe"] not in (None, 2.5)),
        ("root_cause = 374", lambda t: any(cause["id"] == 374 for cause in t["root_cause"])),
        ("assignee = null", lambda t: t["assignee"] is None),
        (
            "status = 'New' OR status = 'Closed' AND internal = true",
            lambda t: t["status"]["name"] == "New" or (t["status"]["name"] == "Closed" and t["internal"]),
        ),
        (
            "(status = 'New' OR status = 'Closed') AND internal = true",
            lambda t: t["status"]["name"] in ("New", "Closed") and t["internal"],
        ),
        (
            "updated_at >= '2025-01-20T00:00:00Z' AND updated_at < '2025-02-03T14:00:00+02:00'",
            lambda t: FROM <= instant(t["updated_at"]) < UNTIL,
        ),
        ("updated_at>='2025-01-20'", lambda t: instant(t["updated_at"]) >= FROM),
        ("created_at < '2025-01-20T00:00:00'", lambda t: instant(t["created_at"]) < FROM),
        ('{"internal": true}', lambda t: t["internal"]),
        ('{"status": 61, "internal": false}', lambda t: t["status"]["id"] == 61 and not t["internal"]),
        ("{}", lambda t: True),
    ],
)
def test_a_filter_gives_exactly_the_matching_records(
    calm: RunningSimulator, tickets: list[Record], expression: str, holds: Callable[[Record], bool]
) -> None:
    found = every(calm, "tickets", select="id", filter=expression)
    assert ids(found) == [ticket["id"] for ticket in tickets if holds(ticket)]


@pytest.mark.parametrize(
    "expression",
    [
        "status",
        "status =",
        "= 5",
        "status = 'open",
        'status = "open"',
        "status = open",
        "(id = 1",
        "id = 1)",
        "id = 1 id = 2",
        "id IN ()",
        "id IN 5",
        "id NOT 5",
        "id = 5x",
        "no_such_field = 1",
        "updated_at > 'yesterday'",
        "updated_at > 7",
        "{not json}",
        '{"status.name": "New"}',
        '{"status": [1]}',
        "(" * 5_000 + "id = 1" + ")" * 5_000,
        "NOT " * 5_000 + "id = 1",
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(calm: RunningSimulator, expression: str) -> None:
    answer = ask(calm, "/api/v1/tickets.json", filter=expression)
    assert answer.status_code == 400
    assert TOKEN in answer.json()["error"]


COMPARISONS = st.one_of(
    st.tuples(
        st.sampled_from(("id", "spent_time")),
        st.sampled_from(("=", "<>", "<", "<=", ">", ">=")),
        st.integers(),
    ),
    st.tuples(
        st.just("id"),
        st.sampled_from(("=", "<>", "<", "<=", ">", ">=")),
        st.integers(min_value=500_000, max_value=501_501),
    ),
    st.tuples(
        st.just("updated_at"),
        st.sampled_from(("<", "<=", ">", ">=")),
        st.datetimes(datetime(2024, 12, 25), datetime(2025, 3, 5), timezones=st.just(UTC)),
    ),
)
QUERIES = st.recursive(
    COMPARISONS,
    lambda parts: st.one_of(
        st.tuples(st.sampled_from(("AND", "OR")), st.lists(parts, min_size=2, max_size=3)),
        st.tuples(st.just("NOT"), parts),
    ),
    max_leaves=6,
)


def written(query: Any) -> str:
    """A query in the vendor's language."""
    match query:
        case ("AND" | "OR" as word, list(parts)):
            return "(" + f" {word} ".join(written(part) for part in parts) + ")"
        case ("NOT", part):
            return f"NOT ({written(part)})"
        case (field, sign, datetime() as moment):
            return f"{field} {sign} '{moment.isoformat()}'"
        case (field, sign, value):
            return f"{field} {sign} {value}"
    raise AssertionError(query)


def true_of(query: Any, ticket: Record) -> bool:
    match query:
        case ("AND", list(parts)):
            return all(true_of(part, ticket) for part in parts)
        case ("OR", list(parts)):
            return any(true_of(part, ticket) for part in parts)
        case ("NOT", part):
            return not true_of(part, ticket)
        case (field, sign, wanted):
            value = instant(ticket[field]) if isinstance(wanted, datetime) else ticket[field]
            return {
                "=": value == wanted,
                "<>": value != wanted,
                "<": value < wanted,
                "<=": value <= wanted,
                ">": value > wanted,
                ">=": value >= wanted,
            }[sign]
    raise AssertionError(query)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=QUERIES)
def test_any_combination_of_conditions_means_what_it_says(
    calm: RunningSimulator, tickets: list[Record], query: Any
) -> None:
    page = page_of(calm, "tickets", select="id", filter=written(query), count="true")
    matching = [ticket["id"] for ticket in tickets if true_of(query, ticket)]
    assert page["count"] == len(matching)
    assert ids(page["data"]) == matching[:100]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60).filter(lambda text: text.strip()))
def test_no_filter_text_brings_the_server_down(calm: RunningSimulator, text: str) -> None:
    assert ask(calm, "/api/v1/accounts.json", filter=text).status_code in (200, 400)


def test_an_unreliable_filter_sends_all_or_hides_some_or_mistakes_offsets() -> None:
    found = {}
    for behaviour in ("faithful", "ignored", "hiding", "local_time"):
        options = SimulatorOptions(tickets=6_000, faults="calm", filter=behaviour, page_size=1_000)
        with serving(options) as simulator:
            found[behaviour] = {t["id"]: t["updated_at"] for t in every(simulator, "tickets", filter=WINDOW)}
    faithful = set(found["faithful"])
    assert len(found["ignored"]) == 6_000
    assert set(found["hiding"]) < faithful
    assert 0.95 < len(found["hiding"]) / len(faithful) < 0.99
    shifted = faithful ^ set(found["local_time"])
    assert shifted
    assert {found["ignored"][identity][-6:] for identity in shifted} == {"+02:00"}
