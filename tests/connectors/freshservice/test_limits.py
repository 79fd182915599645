"""What a request costs by what is published, and what answers say of it."""

import pytest

from bridge_pipeline.connector_kit.quota import Observed
from bridge_pipeline.connectors.freshservice import CONNECTOR
from bridge_pipeline.connectors.freshservice.limits import METERING

STATS_AND_TAGS = {"include": "stats,tags"}


def config(**changes):
    values = {"base_url": "https://acme.freshservice.com", "api_key": "k", "allow_private": True}
    return CONNECTOR.config(**values | changes)


@pytest.mark.parametrize(
    ("plan", "account", "listing", "viewing"),
    [
        ("starter", 100, 40, 50),
        ("growth", 200, 70, 80),
        ("pro", 400, 120, 140),
        ("enterprise", 500, 140, 160),
    ],
)
def test_each_plan_has_its_limits(plan, account, listing, viewing):
    found = {bucket.name: (bucket.units, bucket.seconds) for bucket in METERING.buckets(config(plan=plan))}
    lists = {f"list-{name}": (listing, 60) for name in ("tickets", "assets", "agents", "requesters")}
    assert found == lists | {"account": (account, 60), "view-ticket": (viewing, 60)}


@pytest.mark.parametrize(
    ("path", "params", "cost"),
    [
        ("/api/v2/tickets", {}, {"account": 1, "list-tickets": 1}),
        ("/api/v2/tickets", {"include": "stats"}, {"account": 3, "list-tickets": 3}),
        ("/api/v2/tickets/7", {}, {"account": 1, "view-ticket": 1}),
        ("/api/v2/tickets/7", STATS_AND_TAGS, {"account": 3, "view-ticket": 3}),
        ("/api/v2/tickets/7/conversations", {}, {"account": 1}),
        ("/api/v2/assets", {"include": "type_fields"}, {"account": 3, "list-assets": 3}),
        ("/api/v2/assets/7", {"include": "type_fields"}, {"account": 2}),
        ("/api/v2/agents", {}, {"account": 1, "list-agents": 1}),
        ("/api/v2/requesters", {}, {"account": 1, "list-requesters": 1}),
        ("/api/v2/requesters/7", {}, {"account": 1}),
        ("/api/v2/problems", {}, {"account": 1}),
    ],
)
def test_a_call_costs_its_units_from_each_limit_that_counts_it(path, params, cost):
    assert METERING.cost(path, params) == cost


@pytest.mark.parametrize(
    ("total", "remaining", "seen"),
    [
        ("500", "496", (Observed("", 500, 496),)),
        ("140", "139", (Observed("", 140, 139),)),
        # An old account's limit is one of hours.
        ("5000", "4999", ()),
        ("many", "0", ()),
        (None, None, ()),
    ],
)
def test_an_answer_tells_of_the_limit_of_its_endpoint_or_else_of_the_account(total, remaining, seen):
    headers = {"x-ratelimit-total": total, "x-ratelimit-remaining": remaining}
    assert METERING.observed({name: value for name, value in headers.items() if value}) == seen


@pytest.mark.parametrize(
    "address",
    [
        "acme.freshservice.com",
        "ftp://acme.freshservice.com",
        "https://k:X@acme.freshservice.com",
        "https://a.com/?k=1",
    ],
)
def test_an_address_that_is_none_or_holds_a_credential_is_refused(address):
    with pytest.raises(ValueError, match="must"):
        config(base_url=address)


def test_the_path_of_the_api_may_be_given_or_not():
    assert (
        config(base_url="https://acme.freshservice.com/api/v2/").base_url == "https://acme.freshservice.com"
    )
