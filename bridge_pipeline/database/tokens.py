"""Access tokens shared by all processes, runs and connections that use a credential; sealed.

One process at a time renews the token of a credential, under an advisory lock, so that no two
burn the same refresh token. What came back is kept in the transaction that holds the lock.

HTTP leaves a gap: a source may replace a refresh token and die, or we may, before its successor
is kept. That a refresh token was sent is therefore written before it is sent; see
docs/decisions/0015.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.tokens import Kept, Obtain, Token
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.sealing import Box, Sealer, SealingError
from bridge_pipeline.database.tables import access_tokens as t

log = structlog.get_logger(__name__)
_BOXES = ("identity", "access_token", "refresh_token")


class SharedTokens:
    """See `connector_kit.tokens.TokenStore`."""

    def __init__(self, engine: sa.Engine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer

    def find(self, identity: str) -> Token | None:
        with self._engine.connect() as connection:
            token = self._read(connection, self._name(connection, identity)).token
        return None if token is None or token.expired else token

    def renewed(self, identity: str, refused: str | None, obtain: Obtain) -> Token:
        token, row, credential = None, None, ""
        try:
            with self._engine.begin() as connection:
                advisory_lock(connection, f"token:{self._sealer.fingerprint(identity)}", long=True)
                credential = self._name(connection, identity)
                kept = self._read(connection, credential)
                if kept.token and not kept.token.expired and kept.token.access != refused:
                    return kept.token
                token = self._obtained(credential, identity, kept, obtain)
                row = self._row(credential, identity, token)
                connection.execute(_upsert(row))
        except OperationalError:
            if token is None or row is None:
                raise
            # The wait for the source may have outlived the connection. What came back is worth more
            # than the lock that went with it.
            log.warning("keeping a new token over a new connection", credential=credential)
            with self._engine.begin() as another:
                another.execute(_upsert(row))
        return token

    def _name(self, connection: sa.Connection, identity: str) -> str:
        """The row of a credential: its fingerprint, or what that was while another key made fingerprints."""
        fingerprint = self._sealer.fingerprint(identity)
        rows = connection.execute(sa.select(t.c.credential, t.c.identity)).all()
        if fingerprint in (row.credential for row in rows):
            return fingerprint
        for row in rows:
            with suppress(SealingError):
                if _open(self._sealer, row.credential, "identity", row.identity) == identity:
                    return row.credential
        return fingerprint

    def _obtained(self, credential: str, identity: str, kept: Kept, obtain: Obtain) -> Token:
        self._mark_sent(credential, identity)
        try:
            return obtain(kept)
        except SourceError as error:
            # A refusal is an answer, and nothing was replaced.
            if error.status == 401 and kept.unanswered_since is None:
                with self._engine.begin() as connection:
                    connection.execute(sa.update(t).where(t.c.credential == credential).values(sent_at=None))
            raise

    def _read(self, connection: sa.Connection, credential: str) -> Kept:
        left = sa.func.extract("epoch", t.c.expires_at - sa.func.clock_timestamp())
        query = sa.select(t, left.label("left")).where(t.c.credential == credential)
        row = connection.execute(query).one_or_none()
        if row is None:
            return Kept()
        if row.access_token is None:
            return Kept(None, row.sent_at)
        try:
            access, refresh = (
                box and _open(self._sealer, credential, name, box)
                for name, box in (("access_token", row.access_token), ("refresh_token", row.refresh_token))
            )
        except SealingError as error:
            # A process that outlived the rotation of its key may have sealed it: nobody could give it anew.
            log.warning("a kept token cannot be opened; another is asked for", error=str(error))
            return Kept(None, row.sent_at)
        return Kept(Token(access, refresh, None if row.left is None else float(row.left)), row.sent_at)

    def _mark_sent(self, credential: str, identity: str) -> None:
        """Says, durably and before it happens, that a token is being asked for."""
        identity_box = dict(_seal(self._sealer, credential, "identity", identity))
        mark = insert(t).values(credential=credential, identity=identity_box, sent_at=sa.func.now())
        # An earlier mark stays: it is that request whose answer is missing.
        earliest = {"sent_at": sa.func.coalesce(t.c.sent_at, mark.excluded.sent_at)}
        with self._engine.begin() as connection:
            connection.execute(mark.on_conflict_do_update(index_elements=["credential"], set_=earliest))

    def _row(self, credential: str, identity: str, token: Token) -> dict[str, Any]:
        def sealed(name: str, secret: str) -> dict[str, Any]:
            return dict(_seal(self._sealer, credential, name, secret))

        return {
            "credential": credential,
            "identity": sealed("identity", identity),
            "access_token": sealed("access_token", token.access),
            "refresh_token": sealed("refresh_token", token.refresh) if token.refresh else sa.null(),
            "expires_at": _after(token.expires_in),
            "sent_at": None,
            "renewed_at": sa.func.clock_timestamp(),
        }


def reseal(connection: sa.Connection, sealer: Sealer) -> int:
    """Seals all kept tokens anew with the sealer's key; part of `bridge secrets rotate`.

    What cannot be opened is forgotten, as nobody could give it anew: another token is asked for.

    Returns:
        How many boxes were sealed.
    """
    done = 0
    for row in connection.execute(sa.select(t).with_for_update()).all():
        found = {name: getattr(row, name) for name in _BOXES}
        mine = t.c.credential == row.credential
        try:
            boxes = {
                name: _seal(sealer, row.credential, name, _open(sealer, row.credential, name, box))
                for name, box in found.items()
                if box
            }
        except SealingError as error:
            log.warning("a kept token is forgotten", error=str(error))
            connection.execute(sa.delete(t).where(mine))
            continue
        connection.execute(sa.update(t).where(mine).values(boxes))
        done += len(boxes)
    return done


def forget(connection: sa.Connection, sealer: Sealer, secrets: Collection[str]) -> int:
    """Forgets all tokens of credentials that one of `secrets` is part of; how many there were."""
    done = 0
    for row in connection.execute(sa.select(t.c.credential, t.c.identity).with_for_update()).all():
        with suppress(SealingError):
            _, parts = json.loads(_open(sealer, row.credential, "identity", row.identity))
            if not set(secrets).isdisjoint(parts.values()):
                done += connection.execute(sa.delete(t).where(t.c.credential == row.credential)).rowcount
    return done


def _upsert(row: dict[str, Any]) -> sa.Executable:
    statement = insert(t).values(row)
    changed = {name: statement.excluded[name] for name in row if name != "credential"}
    return statement.on_conflict_do_update(index_elements=["credential"], set_=changed)


def _after(seconds: float | None) -> Any:
    if seconds is None:
        return None
    return sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


# Tokens belong to a credential, which may be that of several connections.
def _seal(sealer: Sealer, credential: str, name: str, secret: str) -> Box:
    return sealer.seal(secret, "", credential, name)


def _open(sealer: Sealer, credential: str, name: str, box: Mapping[str, Any]) -> str:
    return sealer.unseal(box, "", credential, name)
