"""OAuth 2 (RFC 6749): tokens that are asked for when needed and renewed when they end.

A token request is the one POST of the kit. It goes to the connection's own origin and nowhere
else, through the same guarded transport as every other request.
"""

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
import orjson
import structlog

from bridge_pipeline.connector_kit.diagnosis import Problem, problem_of
from bridge_pipeline.connector_kit.session import (
    AddressRefused,
    SourceContext,
    SourceError,
    beginning,
    open_http,
    retry_after,
)
from bridge_pipeline.connector_kit.tokens import Kept, Token
from bridge_pipeline.connector_kit.transport import Deadline, NotPublic
from bridge_pipeline.redaction import redact, remember

log = structlog.get_logger("bridge.source")
_AGAIN = {408, 425, 429}
_SHOWN = 300
_CONTENT_TYPES = {"form": "application/x-www-form-urlencoded", "json": "application/json"}


@dataclass(frozen=True)
class OAuth:
    """How one credential gets tokens.

    Attributes:
        path: of the token endpoint, on the connection's own origin.
        client: what every token request holds, such as `client_id` and `client_secret`.
        grant: what the first request holds besides, such as `grant_type` and `password`; None
            where there is only a refresh token.
        refresh_token: one that was given to us; those that replace it are kept in the token store.
        encoding: of the request's body.
    """

    path: str
    client: Mapping[str, str] = field(repr=False)
    grant: Mapping[str, str] | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    encoding: Literal["form", "json"] = "form"


class _Refused(RuntimeError):
    """The source answered that it gives no token for this."""


@dataclass(frozen=True)
class _NoToken:
    reason: str
    status: int | None = None
    wait: float | None = None
    problem: Problem | None = None


class OAuthCredentials:
    """Bearer tokens for a session: see `connector_kit.session.Credentials`.

    A token is used until it expires by its own word or a request is refused with 401. Threads may
    share one.

    Raises:
        AddressRefused: `base_url` is not https to a public address, without `allow_private`.
        ValueError: there is neither a grant nor a refresh token.
    """

    def __init__(self, context: SourceContext, base_url: str, allow_private: bool, oauth: OAuth) -> None:
        if oauth.grant is None and oauth.refresh_token is None:
            raise ValueError("a token needs a grant or a refresh token")
        self._context = context
        self._oauth = oauth
        self._url = base_url.rstrip("/") + oauth.path
        self._deadline = Deadline()
        self._http = open_http(context, base_url, allow_private, self._deadline)
        known = {**oauth.client, **(oauth.grant or {}), "refresh_token": oauth.refresh_token or ""}
        # By the whole of what a token is asked with: the same password may be that of two users.
        self._identity = json.dumps([self._url, known], sort_keys=True)
        for name in ("client_secret", "password", "refresh_token", "assertion"):
            remember(known.get(name, ""), sent=True)
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._ends = 0.0
        self._failed = False
        self._sent = threading.local()

    def headers(self) -> Mapping[str, str]:
        """`Authorization: Bearer …`, of a token that is not known to have expired.

        Raises:
            SourceError: no token can be had; its status is 401 where the source refuses one.
        """
        with self._lock:
            if self._token is None or time.monotonic() >= self._ends:
                # Expired ones are asked for anew, one by one and not at every request of a run.
                self._take(self._context.tokens.find(self._identity) or self._renewed(None))
            assert self._token is not None
            self._sent.access = self._token.access
            return {"Authorization": f"Bearer {self._token.access}"}

    def renew(self) -> bool:
        """Another token than the one this thread sent last; False where none can be had."""
        with self._lock:
            refused = getattr(self._sent, "access", None)
            if self._failed or refused is None:
                return False
            if self._token is None or self._token.access == refused:
                self._take(self._renewed(refused))
            # Some sources give the same token again for as long as they believe it valid (vendor-apis D.1).
            return self._token is not None and self._token.access != refused

    def close(self) -> None:
        """Closes the connections to the token endpoint."""
        self._http.close()

    def _take(self, token: Token) -> None:
        remember(token.access, sent=True)
        self._token, self._failed = token, False
        self._ends = float("inf") if token.expires_in is None else time.monotonic() + token.expires_in

    def _renewed(self, refused: str | None) -> Token:
        try:
            return self._context.tokens.renewed(self._identity, refused, self._obtain)
        except SourceError:
            self._failed = True
            raise

    def _obtain(self, kept: Kept) -> Token:
        """A new token: by the newest refresh token, and by the grant where that is refused.

        A refresh token that has been replaced is never sent again: a source that sees one twice may
        take all of them back.
        """
        refresh = (kept.token and kept.token.refresh) or self._oauth.refresh_token
        grant = self._oauth.grant
        if refresh is not None:
            try:
                token = self._ask({"grant_type": "refresh_token", "refresh_token": refresh})
                return replace(token, refresh=token.refresh or refresh)
            except _Refused as error:
                if grant is None:
                    raise self._error(f"{error}; {_lost(kept)}") from None
                log.warning("the refresh token was refused; asking anew", reason=str(error))
        assert grant is not None
        try:
            return self._ask(grant)
        except _Refused as error:
            raise self._error(f"{error}; check the credential") from None

    def _ask(self, grant: Mapping[str, str]) -> Token:
        """One token request, tried again where the failure may pass."""
        settings, patience = self._context.settings, self._context.settings.retry_after_budget
        attempt = 1
        while True:
            started = time.monotonic()
            try:
                found = self._post(grant)
            except NotPublic as error:
                message = f"{self._context.connection}: {error}"
                raise AddressRefused(message, problem="private_address") from None
            if isinstance(found, Token):
                return _aged(found, time.monotonic() - started)
            log.warning(
                "token request failed", status=found.status, reason=redact(found.reason), attempt=attempt
            )
            if found.wait is not None and found.wait <= patience:
                self._context.quota.hold(found.wait)
                patience -= found.wait
                time.sleep(found.wait)
                continue
            if attempt >= settings.attempts or found.wait is not None:
                text = f"{found.reason}; giving up at attempt {attempt}"
                raise self._error(text, found.status, found.problem)
            delay = min(settings.backoff_max, settings.backoff_initial * 2 ** (attempt - 1))
            time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            attempt += 1

    def _post(self, grant: Mapping[str, str]) -> "Token | _NoToken":
        """The token, or what went wrong that may go well another time.

        Raises:
            _Refused: the source gives none.
            SourceError: it redirects, or has no such endpoint.
        """
        members = {**self._oauth.client, **grant}
        as_form = self._oauth.encoding == "form"
        content = urlencode(members).encode() if as_form else orjson.dumps(members)
        headers = {"Content-Type": _CONTENT_TYPES[self._oauth.encoding]}
        try:
            self._deadline.begin(self._context.settings.read_timeout)
            with self._http.stream("POST", self._url, content=content, headers=headers) as response:
                body = beginning(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return _NoToken(f"{type(error).__name__}: {error}", problem=problem_of(error))
        answer = _object(body)
        if response.is_success and (token := _token(answer)):
            return token
        reason = f"HTTP {response.status_code}, {_reason(response, answer)}"
        if response.is_success or response.is_server_error or response.status_code in _AGAIN:
            problem = "not_this_api" if response.is_success else None
            return _NoToken(reason, response.status_code, retry_after(response), problem)
        if response.is_redirect or response.status_code == 404:
            raise self._error(
                f"{reason}; there is no token endpoint here: check base_url", response.status_code
            )
        raise _Refused(redact(f"the source gives no token by {members.get('grant_type')}: {reason}"))

    def _error(self, text: str, status: int | None = 401, problem: Problem | None = None) -> SourceError:
        return SourceError(f"{self._context.connection}: POST {redact(self._url)}: {text}", status, problem)


def _aged(token: Token, seconds: float) -> Token:
    """Its time began, at the earliest, when it was asked for."""
    return token if token.expires_in is None else replace(token, expires_in=token.expires_in - seconds)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _token(answer: dict[str, Any]) -> Token | None:
    """The token of an answer (RFC 6749, 5.1); None if there is none, or it is no bearer token."""
    access, refresh = answer.get("access_token"), answer.get("refresh_token")
    if not isinstance(access, str) or not access or not access.isascii() or not access.isprintable():
        return None
    if str(answer.get("token_type", "Bearer")).lower() != "bearer":
        return None
    remember(access, sent=True)
    if not isinstance(refresh, str) or not refresh:
        refresh = None
    else:
        remember(refresh, sent=True)
    try:
        seconds = float(answer["expires_in"])
    except (KeyError, TypeError, ValueError):
        return Token(access, refresh)
    # A token that is good for no time at all would be asked for for ever; 401 tells when it ends.
    return Token(access, refresh, seconds if 0 < seconds < float("inf") else None)


def _reason(response: httpx.Response, answer: dict[str, Any]) -> str:
    """What the answer says (RFC 6749, 5.2), and nothing else of it: it may repeat what was sent."""
    said = [str(answer[key]) for key in ("error", "error_description") if isinstance(answer.get(key), str)]
    otherwise = "no token in the answer" if response.is_success else response.reason_phrase
    return redact(": ".join(said) or otherwise or "no reason given")[:_SHOWN]


def _lost(kept: Kept) -> str:
    if kept.unanswered_since is None:
        return "authorise anew, and give the new refresh token with `bridge connections apply`"
    return (
        f"the refresh token was sent at {kept.unanswered_since:%Y-%m-%d %H:%M:%S} UTC and its answer was "
        "never kept, so the one that replaced it is lost: authorise anew, and give the new refresh token "
        "with `bridge connections apply`"
    )
