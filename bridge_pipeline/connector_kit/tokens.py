"""Access tokens, and what keeps them for all processes that use a credential.

How tokens are asked for is `oauth`; where they lie is `database.tokens`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Token:
    """An access token and what renews it; `expires_in` counts seconds from now, None is not known."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    expires_in: float | None = None

    @property
    def expired(self) -> bool:
        """Whether it is known to be of no use any more."""
        return self.expires_in is not None and self.expires_in <= 0


@dataclass(frozen=True)
class Kept:
    """What is kept of a credential.

    Of a refresh token that was sent at `unanswered_since` no answer has been kept: the source may
    have replaced it by one that nobody knows.
    """

    token: Token | None = None
    unanswered_since: datetime | None = None


Obtain = Callable[[Kept], Token]


class TokenStore(Protocol):
    """Keeps the tokens of credentials; `identity` names a credential completely and is secret itself."""

    def find(self, identity: str) -> Token | None:
        """The token kept for a credential, as long as it is not expired."""
        ...

    def renewed(self, identity: str, refused: str | None, obtain: Obtain) -> Token:
        """A token other than the `refused` access token: one that was kept meanwhile, or a new one.

        `obtain` is called by one process at a time for a credential, and what it gives is kept.
        """
        ...


class OwnTokens:
    """Keeps tokens in memory, for one process: see `TokenStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Token, float]] = {}

    def find(self, identity: str) -> Token | None:
        token = self._aged(identity)
        return None if token is None or token.expired else token

    def renewed(self, identity: str, refused: str | None, obtain: Obtain) -> Token:
        with self._lock:
            known = self._aged(identity)
            if known and not known.expired and known.access != refused:
                return known
            token = obtain(Kept(known))
            self._kept[identity] = (token, time.monotonic())
            return token

    def _aged(self, identity: str) -> Token | None:
        if identity not in self._kept:
            return None
        token, since = self._kept[identity]
        if token.expires_in is None:
            return token
        return replace(token, expires_in=token.expires_in - (time.monotonic() - since))
