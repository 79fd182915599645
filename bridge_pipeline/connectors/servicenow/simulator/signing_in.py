"""Who may ask: Basic, bearer tokens, API keys, and the token endpoint `/oauth_token.do` (D.1)."""

import base64
import binascii
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson

from bridge_pipeline.connector_kit.simulator import Answer, Request
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits

_LIFETIME = 1_799
_SHORTEST = 6
_PREFIX = "simulated-access"


@dataclass
class _Issued:
    access: str
    refresh: str
    owner: tuple[str, str]
    ends: float
    uses: int | None

    @property
    def live(self) -> bool:
        return time.monotonic() < self.ends and self.uses != 0


@dataclass
class Doorkeeper:
    """Accepts any well-formed credential, or `only` that one as password, secret, key or token."""

    habits: Habits
    only: str | None = None
    _issued: dict[str, _Issued] = field(default_factory=dict)
    _burnt: set[str] = field(default_factory=set)

    def admits(self, request: Request) -> bool:
        """Whether a request proves itself."""
        if key := request.headers.get("x-sn-apikey"):
            return self._accepts(key)
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            user, colon, password = _decoded(value).partition(":")
            return bool(user and colon) and self._accepts(password, shortest=1)
        return kind.lower() == "bearer" and self._bears(value)

    def revoke_all(self) -> None:
        """Ends all tokens at once, whatever they said of their life."""
        for token in self._issued.values():
            token.ends = 0.0

    def token(self, request: Request) -> Answer:
        """The answer of the token endpoint; refusals as RFC 6749 has them."""
        if request.method != "POST":
            return _json(405, {"error": "invalid_request"})
        if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return _json(400, {"error": "invalid_request", "error_description": "form-encoded only"})
        asked = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        client, secret = asked.get("client_id", ""), asked.get("client_secret", "")
        grant = asked.get("grant_type", "")
        if not client or not secret:
            return _json(401, {"error": "invalid_client", "error_description": "access_denied"})
        if grant == "refresh_token":
            return self._refreshed(client, asked.get("refresh_token", ""))
        proof = asked.get("password", "") if grant == "password" else secret
        if grant not in ("password", "client_credentials"):
            return _json(400, {"error": "unsupported_grant_type"})
        if not self._accepts(proof, shortest=1) or (grant == "password" and not asked.get("username")):
            return _json(401, {"error": "server_error", "error_description": "access_denied"})
        owner = (client, asked.get("username", ""))
        # Asked again within its life, the same token is given.
        live = next((t for t in self._issued.values() if t.owner == owner and t.live), None)
        return self._given(live or self._issue(owner), with_refresh=grant == "password")

    def _refreshed(self, client: str, refresh: str) -> Answer:
        known = next((t for t in self._issued.values() if t.refresh == refresh), None)
        accepted = known is not None or (not refresh.startswith("simulated") and self._accepts(refresh))
        if refresh in self._burnt or not accepted:
            return _json(401, {"error": "server_error", "error_description": "access_denied"})
        if self.habits.rotates:
            self._burnt.add(refresh)
        return self._given(self._issue(known.owner if known else (client, "")), with_refresh=True)

    def _issue(self, owner: tuple[str, str]) -> _Issued:
        number = len(self._issued) + 1
        token = _Issued(
            f"{_PREFIX}-{number:06}",
            f"simulated-refresh-{number:06}",
            owner,
            time.monotonic() + _LIFETIME,
            self.habits.token_uses,
        )
        self._issued[token.access] = token
        return token

    def _given(self, token: _Issued, with_refresh: bool) -> Answer:
        left = int(token.ends - time.monotonic())
        answer: dict[str, Any] = {"scope": "useraccount", "token_type": "Bearer", "expires_in": left}
        if with_refresh:
            answer["refresh_token"] = token.refresh
        return _json(200, answer | {"access_token": token.access})

    def _bears(self, access: str) -> bool:
        if not access.startswith(_PREFIX):
            return self._accepts(access)
        token = self._issued.get(access)
        if token is None or not token.live:
            return False
        if token.uses is not None:
            token.uses -= 1
        return True

    def _accepts(self, secret: str, shortest: int = _SHORTEST) -> bool:
        return secret == self.only if self.only is not None else len(secret) >= shortest


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _json(status: int, answer: dict[str, Any]) -> Answer:
    return Answer(status, orjson.dumps(answer), "application/json;charset=UTF-8")
