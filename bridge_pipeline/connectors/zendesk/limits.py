"""How Zendesk counts requests: per account and minute, and per endpoint (vendor-apis C.1, C.9)."""

import re
from collections.abc import Iterator, Mapping

from bridge_pipeline.connector_kit.quota import Bucket, Metering, Observed
from bridge_pipeline.connectors.zendesk.config import ZendeskConfig

ACCOUNT = "account"
EXPORTS, CURSOR_EXPORTS = "incremental-exports", "incremental-exports-cursor"
TICKETS_LIST, DELETED_TICKETS, SEARCH_EXPORT = "tickets-index", "deleted-tickets-index", "search-export"

# Requests a minute of each plan, Suite and Support alike.
PLANS = {
    "essential": 10,
    "team": 200,
    "growth": 400,
    "professional": 400,
    "enterprise": 700,
    "enterprise_plus": 2_500,
    "high_volume": 2_500,
}
# Of the cursor exports 10 are documented and 20 were recorded in headers: those correct it.
_CURSOR_EXPORTS, _EXPORTS, _EXPORTS_HIGH_VOLUME = 10, 10, 30

_PATHS = (
    (re.compile(r"/api/v2/incremental/\w+/cursor(\.json)?"), CURSOR_EXPORTS),
    (re.compile(r"/api/v2/incremental/\w+(\.json)?"), EXPORTS),
    (re.compile(r"/api/v2/tickets(\.json)?"), TICKETS_LIST),
    (re.compile(r"/api/v2/deleted_tickets(\.json)?"), DELETED_TICKETS),
    (re.compile(r"/api/v2/search/export(\.json)?"), SEARCH_EXPORT),
)
_BUCKET_HEADER = re.compile(r"zendesk-rate-?limit-(.+)")
_PART = re.compile(r"(total|remaining|resets?)\s*=\s*(\d+)")
# The account's limit, newest spelling first (vendor-apis C.1).
_ACCOUNT_HEADERS = (
    ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
    ("rate-limit-limit", "rate-limit-remaining", "rate-limit-reset"),
    ("rate-limit", "rate-limit-remaining", "rate-limit-reset"),
    ("x-rate-limit", "x-rate-limit-remaining", "x-rate-limit-reset"),
)


def buckets(config: ZendeskConfig) -> tuple[Bucket, ...]:
    """The published limits of a connection's plan."""
    exports = _EXPORTS_HIGH_VOLUME if config.plan == "high_volume" else _EXPORTS
    return (
        Bucket(ACCOUNT, PLANS[config.plan]),
        Bucket(CURSOR_EXPORTS, _CURSOR_EXPORTS),
        Bucket(EXPORTS, exports),
        Bucket(TICKETS_LIST, 100),
        Bucket(DELETED_TICKETS, 10),
        Bucket(SEARCH_EXPORT, 100),
    )


def cost(path: str, params: Mapping[str, str]) -> dict[str, int]:
    """One unit of the account's limit, and one of the endpoint's own where it has one."""
    own = next((bucket for pattern, bucket in _PATHS if pattern.fullmatch(path)), None)
    return {ACCOUNT: 1} | ({own: 1} if own else {})


def observed(headers: Mapping[str, str]) -> tuple[Observed, ...]:
    """What an answer says of its limits, in either spelling; `reset` are seconds from now."""
    return (*_account(headers), *_endpoints(headers))


def _account(headers: Mapping[str, str]) -> Iterator[Observed]:
    for limit, left, reset in _ACCOUNT_HEADERS:
        if (units := _number(headers.get(limit))) is not None:
            yield Observed(ACCOUNT, units, _number(headers.get(left)), _number(headers.get(reset)))
            return


def _endpoints(headers: Mapping[str, str]) -> Iterator[Observed]:
    for header, value in headers.items():
        if (found := _BUCKET_HEADER.fullmatch(header)) and (parts := dict(_PART.findall(value))):
            resets = parts.get("resets", parts.get("reset"))
            yield Observed(
                found[1], _number(parts.get("total")), _number(parts.get("remaining")), _number(resets)
            )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


METERING = Metering(buckets, cost, observed, per_account=True)
