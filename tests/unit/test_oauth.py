"""Tokens asked of a server that rotates, refuses, stumbles and redirects."""

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from bridge_pipeline import redaction
from bridge_pipeline.connector_kit.oauth import OAuth, OAuthCredentials
from bridge_pipeline.connector_kit.session import AddressRefused, Session, SourceContext, SourceError
from bridge_pipeline.connector_kit.tokens import OwnTokens, Token
from bridge_pipeline.redaction import redact
from bridge_pipeline.settings import Settings

SECRET, PASSWORD, FIRST = "client-secret-canary", "password-canary-77", "refresh-canary-0"
CLIENT = {"client_id": "bridge", "client_secret": SECRET}
BY_PASSWORD = {"grant_type": "password", "username": "me", "password": PASSWORD}


class Held:
    def __init__(self):
        self.holds = []

    @contextlib.contextmanager
    def request(self, path, params):
        yield

    def hold(self, seconds):
        self.holds.append(seconds)


@dataclass
class Issuer:
    """A source with a token endpoint; a refresh token is good once."""

    refresh: str = FIRST
    issued: int = 0
    expires_in: object = 1799
    repeats: bool = False
    instead: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    valid: str = ""

    def token(self, members):
        self.requests.append(members)
        if self.instead:
            return self.instead.pop(0)
        if members.get("client_secret") != SECRET:
            return 401, {"error": "invalid_client", "error_description": f"no {members['client_secret']}"}
        if members["grant_type"] == "refresh_token" and members["refresh_token"] != self.refresh:
            return 401, {"error": "invalid_grant", "error_description": "unknown refresh token"}
        if members["grant_type"] == "password" and members["password"] != PASSWORD:
            return 400, {"error": "invalid_grant"}
        if not (self.repeats and self.issued):
            self.issued += 1
        self.valid, self.refresh = f"access-{self.issued}", f"refresh-canary-{self.issued}"
        return 200, {
            "scope": "useraccount",
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "refresh_token": self.refresh,
            "access_token": self.valid,
        }


@pytest.fixture
def issuer():
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            as_json = self.headers["Content-Type"] == "application/json"
            members = json.loads(body) if as_json else {k: v[0] for k, v in parse_qs(body.decode()).items()}
            assert self.path == "/oauth_token.do"
            self.give(*issuer.token(members))

        def do_GET(self):
            accepted = self.headers["Authorization"] == f"Bearer {issuer.valid}"
            self.give(*((200, [{"id": 1}]) if accepted else (401, {"error": "expired"})))

        def give(self, status, answer, headers=()):
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield issuer
    server.shutdown()
    server.server_close()


@pytest.fixture
def context():
    return SourceContext("acme", Settings(backoff_initial=0), Held(), tokens=OwnTokens())


@pytest.fixture
def credentials(issuer, context):
    def make(**changes):
        oauth = OAuth(**{"path": "/oauth_token.do", "client": CLIENT, "grant": BY_PASSWORD} | changes)
        return OAuthCredentials(context, issuer.url, True, oauth)

    return make


def grants(issuer):
    return [request["grant_type"] for request in issuer.requests]


@pytest.mark.parametrize("encoding", ["form", "json"])
def test_a_token_is_asked_for_once_and_used_by_all_of_the_process(credentials, issuer, encoding):
    first, second = credentials(encoding=encoding), credentials(encoding=encoding)
    assert {first.headers()["Authorization"] for _ in range(3)} == {"Bearer access-1"}
    assert second.headers() == {"Authorization": "Bearer access-1"}
    assert issuer.requests == [{**CLIENT, **BY_PASSWORD}]


def test_a_401_in_the_middle_renews_by_the_refresh_token(credentials, issuer, context):
    held = credentials()
    session = Session(context, issuer.url, {}, True, held)
    assert session.get("/x", {}, json.loads).content == [{"id": 1}]
    issuer.valid = "revoked"
    assert session.get("/x", {}, json.loads).content == [{"id": 1}]
    assert grants(issuer) == ["password", "refresh_token"]
    assert issuer.requests[1]["refresh_token"] == "refresh-canary-1"


def test_of_a_rotated_refresh_token_only_the_newest_is_ever_sent(credentials, issuer):
    held = credentials(grant=None, refresh_token=FIRST)
    for _ in range(3):
        held.headers()
        assert held.renew()
    sent = [request["refresh_token"] for request in issuer.requests]
    assert sent == [FIRST, "refresh-canary-1", "refresh-canary-2", "refresh-canary-3"]


def test_a_token_whose_time_is_over_is_renewed_before_it_is_sent(credentials, issuer):
    issuer.expires_in = 0.000001
    held = credentials()
    assert held.headers() != held.headers()


def test_a_token_that_another_process_has_got_is_used_and_hidden(credentials, issuer, monkeypatch):
    credentials().headers()
    for known in ("_known", "_sent"):
        monkeypatch.setattr(redaction, known, set())
    assert credentials().headers() == {"Authorization": "Bearer access-1"}
    assert issuer.issued == 1
    assert "access-1" not in redact("it was access-1")
    assert b"access-1" not in redaction.redact_bytes(b"it was access-1")


def test_tokens_in_memory_end_when_their_time_is_over():
    kept = OwnTokens()
    kept.renewed("id", None, lambda _: Token("access", expires_in=1e-9))
    assert kept.find("id") is None


def test_a_refresh_token_is_kept_where_no_other_comes_with_the_new_token(credentials, issuer):
    held = credentials(grant=None, refresh_token=FIRST)
    held.headers()
    issuer.instead = [(200, {"access_token": "another-token", "token_type": "Bearer"})]
    assert held.renew()
    held.headers()
    assert held.renew()
    sent = [request["refresh_token"] for request in issuer.requests]
    assert sent == [FIRST, "refresh-canary-1", "refresh-canary-1"]


def test_who_got_no_token_once_may_get_another_later(credentials, issuer):
    held = credentials()
    issuer.instead = [(400, {"error": "temporarily_unavailable"})]
    with pytest.raises(SourceError):
        held.headers()
    held.headers()
    assert held.renew()


def test_a_wait_that_is_longer_than_allowed_is_not_waited_for(credentials, issuer, context, monkeypatch):
    issuer.instead = [(429, {"error": "slow_down"}, [("Retry-After", "86400")])]
    slept: list[float] = []
    monkeypatch.setattr("bridge_pipeline.connector_kit.oauth.time.sleep", slept.append)
    with pytest.raises(SourceError, match="giving up at attempt 1"):
        credentials().headers()
    assert (len(issuer.requests), slept, context.quota.holds) == (1, [], [])


@pytest.mark.parametrize("expires_in", [None, "never", 0, -5])
def test_a_token_that_does_not_say_its_time_is_used_until_401(credentials, issuer, expires_in):
    issuer.expires_in = expires_in
    held = credentials()
    assert held.headers() == held.headers()


def test_a_refused_refresh_token_falls_back_to_the_grant(credentials, issuer):
    held = credentials()
    held.headers()
    issuer.refresh = "another"
    assert held.renew()
    assert grants(issuer) == ["password", "refresh_token", "password"]


def test_the_same_token_given_again_is_no_renewal(credentials, issuer):
    issuer.repeats = True
    held = credentials(grant={"grant_type": "client_credentials"})
    held.headers()
    assert not held.renew()


def test_what_another_thread_has_renewed_is_not_asked_for_again(credentials, issuer):
    held = credentials()
    held.headers()
    other = threading.Thread(target=lambda: (held.headers(), held.renew()))
    other.start()
    other.join()
    assert held.renew()
    assert issuer.issued == 2


def test_a_refusal_is_exact_and_not_repeated(credentials, issuer, context):
    held = credentials(grant=None, refresh_token="refresh-canary-stale")
    session = Session(context, issuer.url, {}, True, held)
    with pytest.raises(SourceError) as caught:
        session.get("/x", {}, json.loads)
    assert caught.value.status == 401
    assert "invalid_grant: unknown refresh token" in str(caught.value)
    assert "authorise anew" in str(caught.value)
    assert len(issuer.requests) == 1


def test_no_secret_is_in_an_error_or_known_to_be_shown(credentials, issuer):
    held = credentials(client={"client_id": "bridge", "client_secret": "wrong-canary-secret"})
    with pytest.raises(SourceError) as caught:
        held.headers()
    assert "canary" not in str(caught.value)
    assert "canary" not in redact(f"{PASSWORD} {json.dumps({'x': 'wrong-canary-secret'})}")
    fine = credentials()
    fine.headers()
    assert "canary" not in redact(f"{SECRET} {issuer.refresh}")
    assert "access-1" not in redact("access-1")
    assert "canary" not in repr((fine._oauth, fine._token))


@pytest.mark.parametrize(
    "answer",
    [
        (503, b"<html>"),
        (200, b""),
        (200, b"<html>hibernating</html>"),
        (200, b'{"access_token": "x", "expi'),
        (200, {"access_token": 7}),
        (200, {"access_token": "mac-token", "token_type": "mac"}),
        (429, b"slow down"),
    ],
)
def test_what_may_pass_is_asked_again(credentials, issuer, answer):
    issuer.instead = [answer, answer]
    assert credentials().headers() == {"Authorization": "Bearer access-1"}
    issuer.instead = [answer] * 3
    with pytest.raises(SourceError, match="giving up at attempt 3"):
        credentials(client={**CLIENT, "client_id": "other"}).headers()


def test_a_named_wait_holds_all_requests(credentials, issuer, context):
    issuer.instead = [(429, b"", [("Retry-After", "1")])]
    assert credentials().headers()
    assert context.quota.holds == [1.0]


@pytest.mark.parametrize(
    ("status", "headers"), [(302, [("Location", "https://elsewhere.example/oauth_token.do")]), (404, [])]
)
def test_an_endpoint_that_moved_is_never_followed(credentials, issuer, status, headers):
    issuer.instead = [(status, b"", headers)]
    with pytest.raises(SourceError, match="no token endpoint here"):
        credentials().headers()
    assert len(issuer.requests) == 1


def test_a_private_address_must_be_allowed(issuer, context):
    with pytest.raises(AddressRefused, match="plain http"):
        OAuthCredentials(context, issuer.url, False, OAuth("/oauth_token.do", CLIENT, BY_PASSWORD))


def test_a_token_is_there_before_units_are_taken_for_the_request_that_needs_it(issuer, credentials):
    """Else their lease could end while the token is asked for, once and again."""
    order = []

    class Noting(Held):
        @contextlib.contextmanager
        def request(self, path, params):
            order.append(len(issuer.requests))
            yield

    context = SourceContext("acme", Settings(backoff_initial=0), Noting(), tokens=OwnTokens())
    session = Session(context, issuer.url, {}, True, credentials())
    session.get("/", {}, json.loads)
    session.close()
    assert order == [1]
