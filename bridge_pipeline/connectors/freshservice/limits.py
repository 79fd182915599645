"""How Freshservice counts requests: per account and minute, and per endpoint (vendor-apis B.2, B.6).

Whether an endpoint's own limit counts calls or units is not published: units are taken, the dearer.
"""

import re
from collections.abc import Mapping

from bridge_pipeline.connector_kit.quota import Bucket, Metering, Observed
from bridge_pipeline.connectors.freshservice.config import FreshserviceConfig

ACCOUNT = "account"
LIST_TICKETS, LIST_ASSETS = "list-tickets", "list-assets"
LIST_AGENTS, LIST_REQUESTERS = "list-agents", "list-requesters"
VIEW_TICKET = "view-ticket"

# Units a minute: of the account, of each kind of list, of single tickets.
PLANS = {
    "starter": (100, 40, 50),
    "growth": (200, 70, 80),
    "pro": (400, 120, 140),
    "enterprise": (500, 140, 160),
}
_PATHS = (
    (re.compile(r"/api/v2/tickets"), LIST_TICKETS),
    (re.compile(r"/api/v2/assets"), LIST_ASSETS),
    (re.compile(r"/api/v2/agents"), LIST_AGENTS),
    (re.compile(r"/api/v2/requesters"), LIST_REQUESTERS),
    (re.compile(r"/api/v2/tickets/\d+"), VIEW_TICKET),
)
_SINGLE = re.compile(r"/api/v2/\w+/\d+")
# Accounts from before September 2020 are counted by the hour, from this on.
_HOURLY = 1_000


def buckets(config: FreshserviceConfig) -> tuple[Bucket, ...]:
    """The published limits of a connection's plan."""
    account, listing, viewing = PLANS[config.plan]
    lists = (LIST_TICKETS, LIST_ASSETS, LIST_AGENTS, LIST_REQUESTERS)
    return (
        Bucket(ACCOUNT, account),
        *(Bucket(name, listing) for name in lists),
        Bucket(VIEW_TICKET, viewing),
    )


def units(path: str, params: Mapping[str, str]) -> int:
    """What a call costs: one, and for each `include` two more on a list, one more on a single record."""
    included = [name for name in params.get("include", "").split(",") if name]
    return 1 + len(included) * (1 if _SINGLE.fullmatch(path) else 2)


def bucket_of(path: str) -> str | None:
    """The endpoint's own limit, where it has one."""
    return next((bucket for pattern, bucket in _PATHS if pattern.fullmatch(path)), None)


def cost(path: str, params: Mapping[str, str]) -> dict[str, int]:
    """The units that a call takes from the account's limit, and from the endpoint's own."""
    own, taken = bucket_of(path), units(path, params)
    return {ACCOUNT: taken} | ({own: taken} if own else {})


def observed(headers: Mapping[str, str]) -> tuple[Observed, ...]:
    """What an answer says of a limit: of the endpoint's own where it has one, unnamed, else of the account's
    (B.6, 1)."""
    total, left = (_number(headers.get(f"x-ratelimit-{name}")) for name in ("total", "remaining"))
    if total is None or total >= _HOURLY:
        return ()
    return (Observed("", total, left),)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


METERING = Metering(buckets, cost, observed, per_account=True)
