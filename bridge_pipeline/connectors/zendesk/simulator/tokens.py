"""Whom the simulated account believes: API tokens, and OAuth tokens that it gives and lets expire (C.1)."""

import base64
import re
from typing import Any

import orjson

_BASIC = re.compile(r"[^\s@:]+@[^\s@:]+/token:(.+)")
_UNKNOWN = {"error": "Couldn't authenticate you"}
_EXPIRED = {
    "error": "invalid_token",
    "error_description": "The access token provided is expired, revoked or malformed.",
}
_REFUSED = {"error": "invalid_grant", "error_description": "The refresh token is invalid or has been used."}
_NO_CLIENT = {"error": "invalid_client", "error_description": "Client authentication failed."}
_TWO_DAYS = 172_800


class Tokens:
    """The credentials of one account.

    Args:
        only: the one API token, access token or client secret that is accepted; None for any.
        life: requests that a token given here is good for; 0 for any number.
    """

    def __init__(self, only: str | None, life: int) -> None:
        self._only, self._life = only, life
        # How many requests each token that was given has left, and the refresh tokens still unused.
        self._given: dict[str, int] = {}
        self._refreshers: set[str] = set()

    def refuse(self, authorization: str) -> dict[str, Any] | None:
        """Why a request with that header is not believed; None if it is."""
        scheme, _, value = authorization.partition(" ")
        token = value if scheme == "Bearer" else _token_of(value) if scheme == "Basic" else None
        if token in self._given:
            if self._life and not self._given[token]:
                return _EXPIRED
            self._given[token] -= 1
            return None
        return _UNKNOWN if not token or self._only not in (None, token) else None

    def grant(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a token request; a refresh token is good for once."""
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:
            return 400, {"error": "invalid_request"}
        if not asked.get("client_id") or self._only not in (None, asked.get("client_secret")):
            return 401, _NO_CLIENT
        match asked.get("grant_type"):
            case "refresh_token":
                refresh = str(asked.get("refresh_token"))
                if self._refreshers and refresh not in self._refreshers:
                    return 400, _REFUSED
                self._refreshers.discard(refresh)
                return 200, self._new(rotating=True)
            case "client_credentials":
                return 200, self._new(rotating=False)
        return 400, {"error": "unsupported_grant_type"}

    def _new(self, rotating: bool) -> dict[str, Any]:
        access = f"given-access-token-{len(self._given)}"
        self._given[access] = self._life
        answer = {"access_token": access, "token_type": "bearer", "scope": "read", "expires_in": _TWO_DAYS}
        if not rotating:
            return answer
        refresh = f"given-refresh-token-{len(self._given)}"
        self._refreshers.add(refresh)
        return answer | {"refresh_token": refresh, "refresh_token_expires_in": 30 * _TWO_DAYS}


def _token_of(basic: str) -> str | None:
    try:
        found = _BASIC.fullmatch(base64.b64decode(basic, validate=True).decode())
    except ValueError:
        return None
    return found[1] if found else None
