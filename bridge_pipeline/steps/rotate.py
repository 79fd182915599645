"""Rotation of the key that seals credentials: a new key, and everything sealed anew with it.

Killed at any point, every credential opens: keys that sealed something are known until somebody
deletes their files.
"""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from bridge_pipeline.database import tables as t
from bridge_pipeline.database import tokens
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.keyfile import sync
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.sealing import (
    KEY_FILE,
    NEXT_KEY_FILE,
    Sealer,
    former_keys,
    make_key,
    read_sealer,
)
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.naming import Home
from bridge_pipeline.steps.tenants import ADDRESS


@dataclass(frozen=True)
class Rotation:
    """The ids of the old and the new key, and how many credentials were sealed anew."""

    former_key: str
    key: str
    resealed: int


class NoNewKey(ValueError):
    """The key comes from the environment, which gives no other one than before."""


def rotate(workspace: Workspace) -> Rotation:
    """Seals all credentials with a new key; one that the environment gives must be there already.

    Raises:
        NoNewKey: the environment gives the same key as before.
        SealingError: a credential cannot be opened; nothing was changed.
    """
    settings, home = workspace.settings, workspace.home
    given = settings.secret_key is not None or settings.secret_key_command is not None
    if given:
        if not workspace.sealer.former:
            raise NoNewKey(
                "the key comes from the environment: put a new one into BRIDGE_SECRET_KEY (or let the "
                "command print it), the old one into BRIDGE_FORMER_SECRET_KEYS, and run this again"
            )
        return _resealed(workspace, workspace.sealer)
    with file_lock(home.keys / "lock"):
        upcoming = home.keys / NEXT_KEY_FILE
        if not upcoming.exists():
            make_key(upcoming)
        reach("secrets.key_made")
        known = read_sealer(settings, home)
        assert known.upcoming is not None
        rotation = _resealed(workspace, Sealer(known.upcoming, (known.key, *known.former)))
        current = home.keys / KEY_FILE
        _next_former(home).hardlink_to(current)
        reach("secrets.key_kept")
        # First the name that the former key keeps, then the one that it gives up.
        sync(home.keys)
        upcoming.replace(current)
        reach("secrets.key_placed")
        sync(home.keys)
    return rotation


def _next_former(home: Home) -> Path:
    """The name for one more former key, behind those that are still there."""
    words = (path.stem.removeprefix("former-") for path in former_keys(home))
    # One that was brought here by hand may be called otherwise.
    numbers = [int(word) for word in words if word.isdecimal()]
    return home.keys / f"former-{max(numbers, default=0) + 1:04d}.key"


def _resealed(workspace: Workspace, sealer: Sealer) -> Rotation:
    with transaction(workspace.database.engine, "secrets.rotate") as connection:
        advisory_lock(connection, "secrets", long=True)
        resealed = _reseal_connections(connection, sealer) + _reseal_reviewers(connection, sealer)
        resealed += tokens.reseal(connection, sealer)
    return Rotation(Sealer(sealer.former[0]).key_id, sealer.key_id, resealed)


def _reseal_connections(connection: sa.Connection, sealer: Sealer) -> int:
    c = t.connections
    done = 0
    for row in connection.execute(sa.select(c.c.tenant, c.c.name, c.c.secrets).with_for_update()).all():
        boxes = {
            name: sealer.seal(sealer.unseal(box, row.tenant, row.name, name), row.tenant, row.name, name)
            for name, box in row.secrets.items()
        }
        connection.execute(c.update().where(c.c.name == row.name).values(secrets=boxes))
        done += len(boxes)
    return done


def _reseal_reviewers(connection: sa.Connection, sealer: Sealer) -> int:
    r = t.reviewers
    query = sa.select(r.c.tenant, r.c.id, r.c.address).where(r.c.address.is_not(None)).with_for_update()
    found = connection.execute(query).all()
    for row in found:
        place = (row.tenant, row.id, ADDRESS)
        box = sealer.seal(sealer.unseal(row.address, *place), *place)
        mine = (r.c.tenant == row.tenant, r.c.id == row.id)
        connection.execute(r.update().where(*mine).values(address=box))
    return len(found)
