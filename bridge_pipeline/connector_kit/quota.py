"""What a session needs of a quota, and what a connector says of its source's limits.

The quota that all processes share is in `database.quota`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


class HeldBack(RuntimeError):
    """The source asked for longer than a request may wait."""


# Takes the headers of an answer, names in lower case, as soon as they have come.
Answered = Callable[[Mapping[str, str]], None]


class Quota(Protocol):
    """Permission to send requests with one credential."""

    def request(self, path: str, params: Mapping[str, str]) -> AbstractContextManager[Answered | None]:
        """Waits until this request may be sent; the context ends with its answer.

        Its value, if there is one, is called with the answer's headers: they correct the quota.

        Raises:
            HeldBack: the source holds the credential back for longer than a request may wait.
        """
        ...

    def hold(self, seconds: float) -> None:
        """No request of this credential, from whatever process, for that long: `request` waits.

        Where the answer that asked for it named buckets that its request took from as used up, only those
        are held.
        """
        ...


@dataclass(frozen=True)
class Bucket:
    """One limit that a source counts: at most `units` within `seconds`."""

    name: str
    units: int
    seconds: float = 60.0


@dataclass(frozen=True)
class Observed:
    """What an answer's headers say of a bucket: its limit, what is left, and the seconds until it is full.

    The bucket may be one that is not declared; an empty name stands for the last one that `cost` names
    for the request, as where headers tell of the endpoint's own bucket without naming it. `seconds` is
    the length of its window, where neither `Metering.buckets` nor a minute says it.
    """

    bucket: str
    units: int | None = None
    left: int | None = None
    resets_in: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Metering:
    """How a source counts requests, in windows that slide or are fixed: both are kept.

    `buckets` gives the published limits of a connection's config (its plan). `cost` gives the units
    that a request takes from each bucket by name. `observed` reads the limits out of an answer's
    headers, whose names are in lower case. `per_account` says that all who use one account, by its
    address, share its limits, whoever logs in.
    """

    buckets: Callable[[Any], tuple[Bucket, ...]]
    cost: Callable[[str, Mapping[str, str]], Mapping[str, int]]
    observed: Callable[[Mapping[str, str]], tuple[Observed, ...]] = lambda headers: ()
    per_account: bool = False
