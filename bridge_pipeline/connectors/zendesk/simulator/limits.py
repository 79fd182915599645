"""How the simulated account counts requests, and says so (vendor-apis C.1, C.9)."""

import time
from collections import deque

from bridge_pipeline.connector_kit.simulator import Answer

MINUTE = 60.0
_ENDPOINTS = {
    "cursor": ("incremental-exports-cursor", 20),
    "time": ("incremental-exports", 10),
    "tickets": ("tickets-index", 100),
    "deleted_tickets": ("deleted-tickets-index", 10),
}
_EXPORTS_REFUSED = "Number of allowed incremental ticket export API requests per minute exceeded"
_REFUSED = "Number of allowed API requests per minute exceeded"
Headers = tuple[tuple[str, str], ...]


class Counter:
    """At most so many requests in any minute; refused ones do not count."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._times: deque[float] = deque()

    def resets(self) -> int:
        """Seconds until the oldest request is a minute old; 0 if there is none."""
        now = time.monotonic()
        while self._times and self._times[0] <= now - MINUTE:
            self._times.popleft()
        return int(self._times[0] + MINUTE - now) + 1 if self._times else 0

    @property
    def left(self) -> int:
        """How many more may come now."""
        self.resets()
        return self.total - len(self._times)

    def enter(self) -> None:
        """Counts one."""
        self._times.append(time.monotonic())


class Limits:
    """The limits of one account: its plan's, and those of endpoints.

    Args:
        per_minute: the plan's.
        enforced: whether a request over a limit is refused; headers are sent either way.
        spelling: `2024` or `2023`, the year whose header names are used.
    """

    def __init__(self, per_minute: int, enforced: bool, spelling: str) -> None:
        self._account = Counter(per_minute)
        self._endpoints = {kind: Counter(total) for kind, (_, total) in _ENDPOINTS.items()}
        self._enforced = enforced
        self._prefix = "ratelimit" if spelling == "2024" else "rate-limit"

    def enter(self, kind: str | None) -> Answer | None:
        """Counts a request to an endpoint of that kind; the refusal if it is one too many."""
        own = self._endpoints.get(kind or "")
        for counter in (self._account, *([own] if own else [])):
            if self._enforced and counter.left <= 0:
                text = _EXPORTS_REFUSED if counter is own else _REFUSED
                return refused(str(counter.resets()), text, self.headers(kind))
        self._account.enter()
        if own:
            own.enter()
        return None

    def headers(self, kind: str | None) -> Headers:
        """What every answer says of the limits that it counts for."""
        account, prefix = self._account, self._prefix
        shown = [
            ("X-Rate-Limit", str(account.total)),
            ("X-Rate-Limit-Remaining", str(max(0, account.left))),
            # Named so in 2024; in 2023 the limit was called `rate-limit`.
            ("ratelimit-limit" if prefix == "ratelimit" else "rate-limit", str(account.total)),
            (f"{prefix}-remaining", str(max(0, account.left))),
            (f"{prefix}-reset", str(account.resets())),
        ]
        if own := self._endpoints.get(kind or ""):
            value = f"total={own.total}; remaining={max(0, own.left)}; resets={own.resets()}"
            shown.append((f"zendesk-{prefix}-{_ENDPOINTS[kind or ''][0]}", value))
        return tuple(shown)


def refused(retry_after: str, text: str = _REFUSED, headers: Headers = ()) -> Answer:
    """429 as plain text (vendor-apis C.9)."""
    return Answer(429, text.encode(), "text/plain; charset=utf-8", (("Retry-After", retry_after), *headers))
