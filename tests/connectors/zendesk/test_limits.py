"""What Zendesk publishes and says of its limits (vendor-apis C.1, C.9)."""

import pytest

from bridge_pipeline.connector_kit.quota import Observed
from bridge_pipeline.connectors.zendesk import CONNECTOR
from bridge_pipeline.connectors.zendesk.limits import METERING


def config(plan):
    return CONNECTOR.config(base_url="https://acme.zendesk.com", access_token="a-token", plan=plan)


@pytest.mark.parametrize(
    ("plan", "account", "exports"),
    [
        ("essential", 10, 10),
        ("team", 200, 10),
        ("growth", 400, 10),
        ("professional", 400, 10),
        ("enterprise", 700, 10),
        ("enterprise_plus", 2_500, 10),
        ("high_volume", 2_500, 30),
    ],
)
def test_the_limits_of_a_plan(plan, account, exports):
    buckets = {bucket.name: (bucket.units, bucket.seconds) for bucket in METERING.buckets(config(plan))}
    assert buckets == {
        "account": (account, 60),
        "incremental-exports-cursor": (10, 60),
        "incremental-exports": (exports, 60),
        "tickets-index": (100, 60),
        "deleted-tickets-index": (10, 60),
        "search-export": (100, 60),
    }
    assert CONNECTOR.metering is METERING


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/api/v2/incremental/tickets/cursor.json", "incremental-exports-cursor"),
        ("/api/v2/incremental/users/cursor", "incremental-exports-cursor"),
        ("/api/v2/incremental/ticket_events.json", "incremental-exports"),
        ("/api/v2/incremental/organizations.json", "incremental-exports"),
        ("/api/v2/incremental/tickets", "incremental-exports"),
        ("/api/v2/tickets.json", "tickets-index"),
        ("/api/v2/deleted_tickets", "deleted-tickets-index"),
        ("/api/v2/search/export", "search-export"),
        ("/api/v2/tickets/7.json", None),
        ("/api/v2/tickets/7/comments.json", None),
        ("/api/v2/groups.json", None),
    ],
)
def test_what_a_request_costs(path, own):
    assert METERING.cost(path, {"per_page": "1000"}) == {"account": 1} | ({own: 1} if own else {})


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, ()),
        (
            {"x-rate-limit": "700", "x-rate-limit-remaining": "699"},
            (Observed("account", 700, 699, None),),
        ),
        (
            {
                "x-rate-limit": "700",
                "ratelimit-limit": "400",
                "ratelimit-remaining": "7",
                "ratelimit-reset": "31",
                "zendesk-ratelimit-incremental-exports-cursor": "total=20; remaining=19; resets=60",
            },
            (Observed("account", 400, 7, 31), Observed("incremental-exports-cursor", 20, 19, 60)),
        ),
        (
            {
                "rate-limit": "400",
                "rate-limit-remaining": "7",
                "rate-limit-reset": "31",
                "zendesk-rate-limit-tickets-index": "total=100;remaining=99;resets=5",
            },
            (Observed("account", 400, 7, 31), Observed("tickets-index", 100, 99, 5)),
        ),
        ({"ratelimit-limit": "many", "zendesk-ratelimit-x": "soon"}, ()),
    ],
)
def test_what_the_headers_say(headers, said):
    assert METERING.observed(headers) == said
