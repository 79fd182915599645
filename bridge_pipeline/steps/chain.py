"""The audit chain: one signed entry for every write to a tenant's audit folder.

Postgres holds what is committed. After the commit `export_chain` brings the tenant's
`chain.jsonl`, one entry a line, and the head that is kept outside the audit folder up to it;
a run that was killed between the two leaves that to the next. See docs/decisions/0009.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
import structlog

from bridge_pipeline.connector_kit.journal import make_folder, sync_folder, write_durably
from bridge_pipeline.database import signing
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach

log = structlog.get_logger(__name__)

FORMAT = 1
PURPOSE = "chain entry"
BEGIN, ROTATE, AUDIT = "begin", "rotate", "audit"
_ROWS_AT_A_TIME = 1_000


class ChainFileAltered(RuntimeError):
    """The chain's file is not a beginning of the committed chain."""


@dataclass(frozen=True)
class Draft:
    """What an entry is to say.

    Attributes:
        kind: what was done: `audit`, `accept`, `certificate`, …
        files: the files that were written, as path below the tenant's audit folder -> SHA-256.
        facts: what else is to be signed, as JSON.
        removed: paths below the tenant's audit folder that were removed on purpose, with all
            that lies below them.
    """

    kind: str
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    removed: Sequence[str] = ()


@dataclass(frozen=True)
class Head:
    """The last entry of a chain. Whoever knows it finds everything that is altered or cut off.

    Attributes:
        sha256: of the entry as it stands in the file, without its line break.
        key: fingerprint of the key that signs the next entry.
    """

    tenant: str
    sequence: int
    sha256: str
    key: str
    at: datetime


@dataclass(frozen=True)
class Rotation:
    """A change of keys: the new one's fingerprint, and the tenants whose chains name it."""

    key: str
    tenants: list[str]


def append(workspace: Workspace, connection: sa.Connection, tenant: str, drafts: Sequence[Draft]) -> None:
    """Adds entries to a tenant's chain in the caller's transaction; the first ever begins it.

    Call it last, when all files are written: it holds the tenant's chain until the transaction
    ends, and one who waits for another lock meanwhile may be waited for. Call `export_chain`
    after the commit.

    Raises:
        SigningError: the key that must sign is not in the home.
    """
    if not drafts:
        return
    advisory_lock(connection, f"chain:{tenant}")
    last = _last(connection, tenant)
    if last is None:
        signer = _first_signer(workspace, connection)
        drafts = [Draft(BEGIN, facts={"public_key": signer.public_key}), *drafts]
        sequence, previous, ends = 0, None, 0
    else:
        signer = signing.signer(workspace.home, last.next_key)
        sequence, previous, ends = last.sequence, last.sha256, last.ends
    rows, at = [], datetime.now(UTC)
    for draft in drafts:
        sequence += 1
        line = _line(signer, tenant, sequence, previous, at, draft)
        previous, ends = hashlib.sha256(line).hexdigest(), ends + len(line) + 1
        if draft.kind == ROTATE:
            signer = signing.signer(workspace.home, signing.fingerprint(draft.facts["public_key"]))
        rows.append(
            {"tenant": tenant, "sequence": sequence, "kind": draft.kind, "line": line.decode(), "at": at}
            | {"sha256": previous, "next_key": signer.key_id, "ends": ends}
        )
    reach("chain.signed")
    connection.execute(t.chain.insert(), rows)
    reach("chain.appended")


def _line(
    signer: signing.Signer, tenant: str, sequence: int, previous: str | None, at: datetime, draft: Draft
) -> bytes:
    entry = {
        "format": FORMAT,
        "tenant": tenant,
        "sequence": sequence,
        "previous": previous,
        "at": at,
        "kind": draft.kind,
        "files": draft.files,
        "facts": draft.facts,
        "removed": list(draft.removed),
    }
    return signing.rendered(signing.sign(signer, entry, PURPOSE))


def _last(connection: sa.Connection, tenant: str) -> sa.Row | None:
    c = t.chain.c
    query = sa.select(t.chain).where(c.tenant == tenant).order_by(c.sequence.desc()).limit(1)
    return connection.execute(query).one_or_none()


def _first_signer(workspace: Workspace, connection: sa.Connection) -> signing.Signer:
    """The key of a new chain: that of the others, which are rotated together, else the home's."""
    # A rotation must not retire the key between this and the commit.
    advisory_lock(connection, "signing-key")
    if others := heads(connection):
        return signing.signer(workspace.home, others[0].key)
    signing.ensure_signing_key(workspace.home)
    return signing.signer(workspace.home, signing.key_ids(workspace.home)[0])


def head(connection: sa.Connection, tenant: str) -> Head | None:
    """The head of a tenant's chain as it is committed; None if nothing was written yet."""
    last = _last(connection, tenant)
    return Head(tenant, last.sequence, last.sha256, last.next_key, last.at) if last else None


def heads(connection: sa.Connection) -> list[Head]:
    """The heads of all chains, by tenant."""
    tenants = connection.scalars(sa.select(t.chain.c.tenant).distinct().order_by(t.chain.c.tenant)).all()
    return [found for tenant in tenants if (found := head(connection, tenant))]


def rotate_key(workspace: Workspace) -> Rotation:
    """Makes a new key; an entry of every chain, signed by the old one, names it.

    Killed at any point, each chain has a key that the home holds. All other private keys are removed,
    those of a rotation that was killed among them.

    Raises:
        SigningError: the key that must sign is not in the home.
        ChainFileAltered: the key is changed, but a chain's file could not be brought up to it.
    """
    with transaction(workspace.database.engine, "chain.rotate") as connection:
        advisory_lock(connection, "signing-key")
        replaced = signing.key_ids(workspace.home)
        made = signing.make_signing_key(workspace.home)
        tenants = [each.tenant for each in heads(connection)]
        for tenant in tenants:
            draft = Draft(ROTATE, facts={"public_key": made.public_key, "fingerprint": made.key_id})
            append(workspace, connection, tenant, [draft])
            reach("chain.rotated")
        if not tenants:
            # Behind the lock, a chain that begins takes any key that is there.
            _forget(workspace, replaced)
    _forget(workspace, replaced)
    for tenant in tenants:
        export_chain(workspace, tenant)
    return Rotation(made.key_id, tenants)


def _forget(workspace: Workspace, key_ids: Sequence[str]) -> None:
    for key_id in key_ids:
        signing.forget(workspace.home, key_id)


# --- The file -----------------------------------------------------------------------------------


def export_chain(workspace: Workspace, tenant: str) -> None:
    """Brings the tenant's chain file and kept head up to the committed chain.

    Raises:
        ChainFileAltered: the file holds something else than a beginning of it; it is left as it is.
    """
    path = workspace.home.chain_of(tenant)
    with transaction(workspace.database.engine, "chain.export") as connection:
        # What is committed is read behind the lock: another may just have written it.
        advisory_lock(connection, f"chain-file:{tenant}")
        last = _last(connection, tenant)
        if last is None:
            return
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        reach("chain.opened")
        with open(descriptor, "r+b") as file:
            sequence, size = _whole(connection, tenant, path, file)
            if (sequence, size) != (last.sequence, file.seek(0, os.SEEK_END)):
                file.truncate(size)
                reach("chain.cut")
                file.seek(size)
                _write_missing(connection, tenant, sequence, file)
        sync_folder(path.parent)
        reach("chain.head")
        _keep_head(workspace, tenant, last.line)


def _whole(connection: sa.Connection, tenant: str, path: Path, file: BinaryIO) -> tuple[int, int]:
    """How many entries the file holds whole, and where they end.

    Raises:
        ChainFileAltered: the last of them, or what follows it, is not what is committed.
    """
    c = t.chain.c
    size = file.seek(0, os.SEEK_END)
    chain = sa.select(t.chain).where(c.tenant == tenant)
    held = chain.where(c.ends <= size).order_by(c.sequence.desc()).limit(1)
    row = connection.execute(held).one_or_none()
    sequence, end = (row.sequence, row.ends) if row else (0, 0)
    expected = row.line.encode() + b"\n" if row else b""
    file.seek(end - len(expected))
    same = file.read(len(expected)) == expected
    following = connection.execute(chain.where(c.sequence == sequence + 1)).one_or_none()
    # A line that a killed process did not finish is the beginning of the next one.
    started = following is not None and following.line.encode().startswith(file.read(size - end))
    if not same or (size > end and not started):
        raise ChainFileAltered(
            f"{path} is not what was committed, near entry {sequence}: run `bridge audit verify`, keep the "
            "file as evidence, move it away, and run again: it is written anew from the database"
        )
    return sequence, end


def _write_missing(connection: sa.Connection, tenant: str, sequence: int, file: BinaryIO) -> None:
    c = t.chain.c
    query = sa.select(c.line).where(c.tenant == tenant, c.sequence > sequence).order_by(c.sequence)
    for line in connection.scalars(query.execution_options(yield_per=_ROWS_AT_A_TIME)):
        file.write(line.encode() + b"\n")
        reach("chain.line")
    file.flush()
    reach("chain.syncing")
    os.fsync(file.fileno())


def _keep_head(workspace: Workspace, tenant: str, line: str) -> None:
    """Keeps the last entry, which is signed, outside the audit folder."""
    path = workspace.home.head_of(tenant)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    data = line.encode() + b"\n"
    if not path.exists() or path.read_bytes() != data:
        write_durably(path, data, alone=True)
