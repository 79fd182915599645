"""What a session needs of a quota; the one that all processes share is in `database.quota`."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class HeldBack(RuntimeError):
    """The source asked for longer than a request may wait."""


class Quota(Protocol):
    """Permission to send requests with one credential."""

    def request(self) -> AbstractContextManager[None]:
        """Waits until a request may be sent; the context ends with its answer.

        Raises:
            HeldBack: the source holds the credential back for longer than a request may wait.
        """
        ...

    def hold(self, seconds: float) -> None:
        """No request of this credential, from whatever process, for that long: `request` waits."""
        ...


class NoQuota:
    """A quota without a limit, for a single request by hand."""

    def request(self) -> AbstractContextManager[None]:
        return nullcontext()

    def hold(self, seconds: float) -> None:
        time.sleep(seconds)
