"""Purge: a connection is taken away with its rows, files and credentials, and a record of that stays.

The record is written first, as what is wanted; then one transaction deletes all rows and signs an entry
of the audit chain; then the files go. Killed anywhere, the same command goes on from there, and until
it has, no connection of that name is taken.
"""

import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
import structlog

from bridge_pipeline.connector_kit.journal import refuse_unread, sync_folder
from bridge_pipeline.database import purges, registry, tokens
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.purges import Purge
from bridge_pipeline.database.sealing import SealingError
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.masking import masked_statement
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.naming import BACKUP_LOCK, checked_key
from bridge_pipeline.steps.chain import Draft, append, export_chain

log = structlog.get_logger(__name__)


class ConnectionBusy(RuntimeError):
    """Something is being done with the connection; the message says what to wait for."""


def begin(workspace: Workspace, name: str, by: str, reason: str) -> Purge:
    """Disables a connection and records that it is to be purged; an unfinished or past purge is returned.

    Raises:
        UnknownConnection: there is no such connection, and there was none.
        ConnectionBusy: something is being done with it.
    """
    with transaction(workspace.database.engine, "purge.begin") as connection:
        registry.lock(connection, checked_key("connection", name))
        known = purges.latest(connection, name)
        if known and (known.finished_at is None or not registry.exists(connection, name)):
            return known
        tenant = registry.tenant_of(connection, name)
        _lock(connection, name)
        registry.disable(connection, name)
        return purges.begin(connection, tenant, name, by, reason)


def carry_out(workspace: Workspace, purge: Purge) -> Purge:
    """Removes what is still there of a connection whose purge was begun.

    Raises:
        ConnectionBusy: something is being done with it; nothing is removed then.
    """
    if purge.rows is None:
        purge = _delete_rows(workspace, purge)
    export_chain(workspace, purge.tenant)
    for _, folder in workspace.home.of_connection(purge.tenant, purge.connection, ENTITIES):
        _remove_folder(folder)
    with transaction(workspace.database.engine, "purge.end") as connection:
        return purges.note(connection, purge, finished_at=sa.func.now())


def extent(workspace: Workspace, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """How many rows, by table, and files, by folder, a purge of a connection would remove.

    Raises:
        UnknownConnection: there is no such connection.
    """
    with workspace.database.engine.connect() as connection:
        tenant = registry.tenant_of(connection, name)
        return purges.count_rows(connection, name), _count_files(workspace, tenant, name)


def _delete_rows(workspace: Workspace, purge: Purge) -> Purge:
    name = purge.connection
    with transaction(workspace.database.engine, "purge.rows") as connection:
        _lock(connection, name)
        # A build that read the rows before would bring them back.
        advisory_lock(connection, "exclusive:dbt", long=True)
        files = _count_files(workspace, purge.tenant, name)
        _forget_tokens(workspace, connection, name)
        rows = purges.delete_rows(connection, name)
        purge = purges.note(connection, purge, rows=rows, files=files)
        said = {"by": masked_statement(purge.by), "reason": masked_statement(purge.reason)}
        facts = {"connection": name, **said, "rows": rows, "files": files}
        append(workspace, connection, purge.tenant, [Draft("purge", facts=facts, removed=[name])])
    return purge


def _lock(connection: sa.Connection, name: str) -> None:
    """Takes every lock under which something is done with a connection, and waits for none.

    Raises:
        ConnectionBusy: another holds one of them, or a backup is being made.
    """
    if not advisory_lock(connection, BACKUP_LOCK, wait=False, long=True):
        raise ConnectionBusy(
            f"a backup is being made, and {name} may be in it: wait until it is written, and try again"
        )
    locks = [f"exclusive:run:{name}", f"exclusive:certify:{name}", f"load:{name}", f"report:{name}"]
    locks += [f"{step}:{name}:{entity}" for step in ("extract", "audit") for entity in ENTITIES]
    for lock in locks:
        if not advisory_lock(connection, lock, wait=False, long=True):
            raise ConnectionBusy(
                f"{name} is being worked on by another process ({lock.removeprefix('exclusive:')}): wait "
                "until its run has ended, or end it, and try again"
            )


def _forget_tokens(workspace: Workspace, connection: sa.Connection, name: str) -> None:
    """Forgets access tokens that were given for credentials which only this connection has."""
    records = registry.list_connections(workspace.database.engine, include_removed=True)
    held: dict[bool, set[str]] = {True: set(), False: set()}
    for record in records:
        # Credentials that no key opens gave no token that could be opened either.
        with suppress(SealingError):
            secrets = registry.secrets(workspace.database.engine, workspace.sealer, record.name)
            held[record.name == name] |= set(secrets.values())
    tokens.forget(connection, workspace.sealer, held[True] - held[False])


def _count_files(workspace: Workspace, tenant: str, name: str) -> dict[str, int]:
    counts = Counter[str]()
    for kind, folder in workspace.home.of_connection(tenant, name, ENTITIES):
        # The count is signed.
        counts[kind] += sum(len(files) for _, _, files in os.walk(folder, onerror=refuse_unread))
    return {kind: count for kind, count in counts.items() if count}


def _remove_folder(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    # Someone may have put the files elsewhere and a link here: what it leads to is not ours to remove.
    if folder.is_symlink():
        folder.unlink()
        log.warning("only the link to a folder was removed", folder=str(folder))
    else:
        shutil.rmtree(folder)
    reach("purge.folder_removed")
    sync_folder(folder.parent)
