"""How the simulated account counts requests, and says so (vendor-apis B.6)."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson

from bridge_pipeline.connector_kit.simulator import Answer

_WINDOW = 60.0
# Of the whole account, of each kind of list, of single tickets (B.6).
_PLANS = {
    "starter": (100, 40, 50),
    "growth": (200, 70, 80),
    "pro": (400, 120, 140),
    "enterprise": (500, 140, 160),
}
_LISTS = ("tickets", "assets", "agents", "requesters")
_REFUSED = {"message": "You have exceeded the limit of requests per minute"}
Headers = tuple[tuple[str, str], ...]


class _Window:
    """A fixed window of 60 seconds that begins with its first request."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used, self._ends = 0, 0.0

    def take(self, units: int) -> bool:
        """Counts a request, refused or not; whether it was within the limit."""
        if time.monotonic() >= self._ends:
            self._used, self._ends = 0, time.monotonic() + _WINDOW
        self._used += units
        return self._used <= self.total

    @property
    def left(self) -> int:
        """Units that are left."""
        return max(0, self.total - self._used)

    @property
    def resets(self) -> int:
        """Seconds until the window ends."""
        return max(1, int(self._ends - time.monotonic()) + 1)


class Limits:
    """The limits of one account.

    Args:
        per_minute: of the whole account; None for the plan's.
        enforced: whether a request over a limit is refused.
    """

    def __init__(self, plan: str, per_minute: int | None, enforced: bool) -> None:
        account, listing, viewing = _PLANS[plan]
        self._account = _Window(per_minute or account)
        self._own = {name: _Window(listing) for name in _LISTS} | {"ticket": _Window(viewing)}
        self._enforced = enforced

    def enter(self, kind: str | None, units: int) -> tuple[Headers, Answer | None]:
        """Counts a request; gives the headers of its answer, and the refusal if it is one too many.

        An endpoint that has a limit of its own shows that one; the account's counts all.
        """
        own = self._own.get(kind or "")
        within = self._account.take(units)
        within &= own.take(units) if own else True
        shown = own or self._account
        headers = (
            ("x-ratelimit-total", str(shown.total)),
            ("x-ratelimit-remaining", str(shown.left)),
            ("x-ratelimit-used-currentrequest", str(units)),
        )
        if within or not self._enforced:
            return headers, None
        waits = max(window.resets for window in (self._account, own) if window)
        return headers, refused(str(waits))


def refused(retry_after: str) -> Answer:
    """429 (B.7); its words for minutes are not recorded."""
    return Answer(429, orjson.dumps(_REFUSED), headers=(("Retry-After", retry_after),))


class Misled:
    """429 whose `Retry-After` is sometimes of no use: nought, negative, no number, a time that is over."""

    def __init__(self) -> None:
        self._times = 0

    def __call__(self, retry_after: str) -> Answer:
        """One refusal."""
        self._times += 1
        over = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
        return refused((retry_after, "0", "-30", "soon", over)[self._times % 5])
