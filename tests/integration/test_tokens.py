"""Tokens are kept sealed, renewed by one process at a time, and survive what HTTP lets survive."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.tokens import Token
from bridge_pipeline.database.sealing import Sealer
from bridge_pipeline.database.tokens import SharedTokens, reseal
from tests.integration.flow import beside

IDENTITY = '["https://acme.example.com/oauth_token.do", {"password": "canary-password"}]'


@pytest.fixture
def shared(workspace):
    return lambda: SharedTokens(workspace.database.engine, workspace.sealer)


def giving(number, expires_in=600.0):
    return lambda kept: Token(f"canary-access-{number}", f"canary-refresh-{number}", expires_in)


def stored(workspace):
    with workspace.database.engine.connect() as connection:
        return str(connection.execute(sa.text("select * from bridge.access_tokens")).all())


def test_a_token_is_kept_for_all_and_never_in_clear(workspace, shared):
    shared().renewed(IDENTITY, None, giving(1))
    assert shared().find(IDENTITY) is not None
    found = shared().find(IDENTITY)
    assert (found.access, found.refresh) == ("canary-access-1", "canary-refresh-1")
    assert 590 < found.expires_in <= 600
    assert "canary" not in stored(workspace)
    assert shared().find(IDENTITY + " ") is None


@pytest.mark.parametrize(("refused", "access"), [(None, 1), ("canary-access-0", 1), ("canary-access-1", 2)])
def test_only_the_token_that_was_refused_is_renewed(shared, refused, access):
    shared().renewed(IDENTITY, None, giving(1))
    assert shared().renewed(IDENTITY, refused, giving(2)).access == f"canary-access-{access}"


def test_an_expired_token_is_not_found_but_its_refresh_token_is_used(shared):
    shared().renewed(IDENTITY, None, giving(1, expires_in=0.001))
    assert shared().find(IDENTITY) is None
    seen = []
    shared().renewed(IDENTITY, None, lambda kept: seen.append(kept.token.refresh) or giving(2)(kept))
    assert seen == ["canary-refresh-1"]


def test_many_at_once_burn_a_refresh_token_once(shared):
    shared().renewed(IDENTITY, None, giving(1))
    together, sent = threading.Barrier(6), []

    def obtain(kept):
        sent.append(kept.token.refresh)
        return giving(2)(kept)

    def renew(_):
        together.wait(60)
        return shared().renewed(IDENTITY, "canary-access-1", obtain).access

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(renew, range(6))) == {"canary-access-2"}
    assert sent == ["canary-refresh-1"]


class Died(BaseException):
    """What a killed process is like for the one transaction."""


def test_a_request_whose_answer_was_never_kept_is_known_to_the_next(shared):
    shared().renewed(IDENTITY, None, giving(1))

    def die(kept):
        raise Died

    with pytest.raises(Died):
        shared().renewed(IDENTITY, "canary-access-1", die)
    seen = []

    def refuse(kept):
        seen.append((kept.token.refresh, kept.unanswered_since is not None))
        raise SourceError("refused", 401)

    for _ in range(2):
        with pytest.raises(SourceError):
            shared().renewed(IDENTITY, "canary-access-1", refuse)
    assert seen == [("canary-refresh-1", True)] * 2
    assert shared().renewed(IDENTITY, "canary-access-1", giving(2)).access == "canary-access-2"
    shared().renewed(IDENTITY, "canary-access-2", lambda kept: seen.append(kept) or giving(3)(kept))
    assert seen[-1].unanswered_since is None


def test_a_refusal_leaves_no_doubt(shared):
    def refuse(kept):
        raise SourceError("refused", 401)

    with pytest.raises(SourceError):
        shared().renewed(IDENTITY, None, refuse)
    seen = []
    shared().renewed(IDENTITY, None, lambda kept: seen.append(kept) or giving(1)(kept))
    assert seen[0].unanswered_since is None
    assert seen[0].token is None


def test_what_came_back_is_kept_although_the_connection_was_lost_meanwhile(workspace, shared):
    def obtain(kept):
        with workspace.database.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' "
                    "and pid <> pg_backend_pid() and database = "
                    "(select oid from pg_database where datname = current_database())"
                )
            )
        return giving(1)(kept)

    assert shared().renewed(IDENTITY, None, obtain).access == "canary-access-1"
    assert shared().find(IDENTITY).refresh == "canary-refresh-1"


def test_tokens_are_sealed_anew_with_the_credentials(workspace, shared):
    shared().renewed(IDENTITY, None, giving(1))
    before = stored(workspace)
    with workspace.database.engine.begin() as connection:
        assert reseal(connection, workspace.sealer) == 3
    assert stored(workspace) != before
    assert shared().find(IDENTITY).refresh == "canary-refresh-1"


def test_a_token_that_is_written_beside_a_rotation_of_the_key_is_kept(workspace, shared):
    shared().renewed(IDENTITY, None, giving(1))
    engine = workspace.database.engine

    def resealed():
        with engine.begin() as connection:
            return reseal(connection, workspace.sealer)

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            connection.execute(sa.text("update bridge.access_tokens set refresh_token = null"))
            done = beside(pool, workspace, resealed)
        assert done.result() == 2
    assert shared().find(IDENTITY) == Token("canary-access-1", None, pytest.approx(600, abs=60))


class Renamed(Sealer):
    """A sealer whose fingerprints another key makes."""

    def fingerprint(self, secret):
        return f"other-{super().fingerprint(secret)}"


def test_a_credential_is_found_although_its_fingerprint_is_another_one_now(workspace, shared):
    shared().renewed(IDENTITY, None, giving(1))
    renamed = SharedTokens(workspace.database.engine, Renamed(workspace.sealer.key))
    assert renamed.find(IDENTITY + " ") is None
    assert renamed.find(IDENTITY).access == "canary-access-1"
    seen = []
    renamed.renewed(IDENTITY, "canary-access-1", lambda kept: seen.append(kept.token) or giving(2)(kept))
    assert seen[0].refresh == "canary-refresh-1"
    assert shared().find(IDENTITY).access == "canary-access-2"


def test_what_nobody_can_open_any_more_is_asked_for_anew(workspace, shared):
    # A process that outlived the rotation of its key, which was deleted since, has sealed it.
    former = Sealer(bytes(32), (workspace.sealer.key,))
    name = former.fingerprint(IDENTITY)
    SharedTokens(workspace.database.engine, former).renewed(IDENTITY, None, giving(1))
    assert workspace.sealer.fingerprint(IDENTITY) == name
    assert shared().find(IDENTITY) is None
    assert shared().renewed(IDENTITY, None, giving(2)).access == "canary-access-2"
    assert shared().find(IDENTITY).access == "canary-access-2"
