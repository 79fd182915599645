"""Backup: one file with everything of an installation that cannot be made again.

It is the state of one instant, that of the database's snapshot, whatever runs meanwhile. Files of
landing and audit are copied after the snapshot and only where it lists them: they are never
changed once they are listed, so they are what they were then. The chains are in the database. The
journal is copied whole: what it holds besides is what a killed extraction leaves, and is resumed
or kept as evidence like that. See docs/decisions/0022; the file itself is `archive`'s.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow.parquet as pq
import sqlalchemy as sa
import structlog

from bridge_pipeline import progress
from bridge_pipeline.connector_kit.journal import Journal, listed, sync_folder, write_durably
from bridge_pipeline.database import dump, ledger, readers
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import Database, advisory_lock
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.migrate import head
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.naming import BACKUP_LOCK, BRIDGE_SCHEMA, Home
from bridge_pipeline.steps import archive, chain
from bridge_pipeline.steps.extract import journal_folder, landing_of

log = structlog.get_logger(__name__)

FACTS = "facts.json"
DATA_FOLDER, DAGSTER_FOLDER = "database/data", "database/dagster"
_STAGE = "back up"
_ROWS_AT_A_TIME = 500
_PROBLEMS_KEPT = 1_000
# What stands in place of a file, or of a folder above it: a link, a folder, a file.
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENOTDIR}
# The newest entry that names a file, unless a later one removed it.
_AUDITED = f"""
    with removed as materialized (
        select tenant, sequence, jsonb_array_elements_text(line::jsonb -> 'removed') as path
        from {BRIDGE_SCHEMA}.chain where line::jsonb -> 'removed' <> '[]'
    )
    select distinct on (c.tenant, f.key) c.tenant, f.key as path, f.value as sha256
    from {BRIDGE_SCHEMA}.chain c, jsonb_each_text(c.line::jsonb -> 'files') f
    where not exists (
        select from removed r where r.tenant = c.tenant and r.sequence > c.sequence
            and (f.key = r.path or starts_with(f.key, r.path || '/'))
    )
    order by c.tenant, f.key, c.sequence desc
"""
# Not of access tokens: others are asked for.
_SEALED_WITH = f"""
    select distinct box ->> 'key' as key from (
        select value as box from {BRIDGE_SCHEMA}.connections, jsonb_each(secrets)
        union all
        select address from {BRIDGE_SCHEMA}.reviewers where address is not null
    ) boxes order by key
"""


class BackupRefused(ValueError):
    """The backup cannot be written there; the message says why."""


@dataclass(frozen=True)
class Backup:
    """A backup that was written and read again.

    Attributes:
        sha256: its fingerprint: whoever knows it finds every change.
        size: of the file, in bytes; `content` that of what is in it.
        keys: whether the installation's keys are in it.
        problems: what the ledger lists and was not as listed: the copy is as damaged as the original.
    """

    path: Path
    sha256: str
    at: datetime
    size: int
    content: int
    files: int
    keys: bool
    problems: list[str] = field(default_factory=list)


def backup(workspace: Workspace, target: Path, with_keys: bool = True) -> Backup:
    """Writes a backup, verified and durable, or nothing.

    Args:
        target: the file, which must not exist, or a folder, in which it is named by the time.

    Raises:
        BackupRefused: there is a file of that name, or another process writes it.
        DumpFailed: the database cannot be dumped.
        BackupDamaged: what was written does not read as it was written: the disk loses data.
        OSError: it cannot be written.
    """
    at = datetime.now(UTC)
    path = (target / f"bridge-{at:%Y%m%dT%H%M%SZ}.backup" if target.is_dir() else target).absolute()
    if target.is_dir():
        _remove_drafts(target)
    with _draft(path) as (draft, file):
        copy = _Copy(workspace, at, with_keys)
        reach("backup.begun")
        seal = copy.write(file)
        file.flush()
        os.fsync(file.fileno())
        reach("backup.written")
        progress.report("verify", "backup", seal.size, "bytes")
        if archive.read(draft) != seal:
            raise archive.BackupDamaged(f"{draft} reads otherwise than it was written: check the disk")
        reach("backup.renaming")
        draft.rename(path)
        reach("backup.syncing")
        sync_folder(path.parent)
    progress.report("verify", "backup", seal.size, "bytes", finished=True)
    size = path.stat().st_size
    done = Backup(path, seal.sha256, at, size, seal.size, seal.members, with_keys, copy.problems)
    _remember(workspace.home, done)
    log.info("backup written", path=str(path), sha256=seal.sha256, files=seal.members)
    return done


def last_backup(home: Home) -> dict[str, Any] | None:
    """What is known of the last backup of a home: `path`, `sha256`, `at`, `whole`."""
    try:
        known = orjson.loads(home.last_backup.read_bytes())
        return known | {"at": datetime.fromisoformat(known["at"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(home: Home, done: Backup) -> None:
    known = {"path": str(done.path), "sha256": done.sha256, "at": done.at, "whole": not done.problems}
    write_durably(home.last_backup, orjson.dumps(known))


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The file while it is written, for its owner only; of a killed process it is written over."""
    draft = path.with_name(f".{path.name}.part")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupRefused(f"another process writes {path} just now") from None
        # One that another process has finished since may be the very file that is open here.
        if not _is_at(descriptor, draft):
            raise BackupRefused(_exists(path))
        try:
            if os.path.lexists(path):
                raise BackupRefused(_exists(path))
            os.fchmod(descriptor, 0o600)
            file.truncate()
            yield draft, file
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _exists(path: Path) -> str:
    return f"{path} exists already, and no backup is ever overwritten: choose another name"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_drafts(folder: Path) -> None:
    """Removes what killed processes left in a folder: no later backup has the name of theirs."""
    for draft in folder.glob(".bridge-*.backup.part"):
        with suppress(OSError):
            descriptor = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb"):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()


class _Copy:
    """One backup while it is made."""

    def __init__(self, workspace: Workspace, at: datetime, with_keys: bool) -> None:
        self._workspace = workspace
        self._at = at
        self._with_keys = with_keys
        self.problems: list[str] = []

    def write(self, file: IO[bytes]) -> archive.Seal:
        """Writes everything, in an order in which each part finds what the former ones rest on."""
        workspace = self._workspace
        with ExitStack() as stack:
            # Before all other locks: a purge that holds it waits for builds, and for the signing key.
            stack.enter_context(_without_purges(workspace))
            # A build of the models drops what the dump is about to read.
            models = stack.enter_context(ExitStack())
            models.enter_context(exclusively(workspace, "dbt"))
            keys, taken = self._instant(stack)
            reach("backup.instant")
            header = self._header(taken.connection)
            writer = stack.enter_context(archive.written(file, header))
            for name, data in keys.items():
                writer.add_bytes(f"keys/{name}", data)
            facts = self._databases(writer, taken)
            models.close()
            self._listed(writer, taken.connection)
            for folder in (workspace.home.journal, workspace.home.reports, workspace.home.expectations):
                self._tree(writer, folder)
            writer.add_bytes(FACTS, orjson.dumps(facts | {"problems": self.problems}))
            return writer.finish()

    def _instant(self, stack: ExitStack) -> tuple[dict[str, bytes], dump.Snapshot]:
        """The keys and the snapshot, of the same instant: no key is changed between them."""
        workspace = self._workspace
        with workspace.database.engine.connect() as connection:
            advisory_lock(connection, "signing-key", long=True)
            with file_lock(workspace.home.keys / "lock"):
                keys = dict(_keys(workspace.home)) if self._with_keys else {}
                taken = stack.enter_context(dump.snapshot(workspace.database))
        return keys, taken

    def _header(self, connection: sa.Connection) -> dict[str, Any]:
        return {
            "made_at": self._at,
            "schema": head(),
            "postgres": connection.scalar(sa.text("show server_version")),
            "keys": self._with_keys,
            # As the credentials themselves say: a rotation may have ended half-way, or be still to come.
            "sealing_keys": list(connection.scalars(sa.text(_SEALED_WITH))),
        }

    def _databases(self, writer: archive.Writer, taken: dump.Snapshot) -> dict[str, Any]:
        """Dumps both databases; gives what proves later that they came back whole."""
        database, dagster = self._workspace.database, self._workspace.dagster_database
        logins = readers.verifiers(taken.connection)
        if not self._with_keys:
            # With it, a password can be guessed at without asking a server.
            logins = dict.fromkeys(logins)
        signing = sorted({each.key for each in chain.heads(taken.connection)})
        facts: dict[str, Any] = {"logins": logins, "signing_keys": signing}
        facts["data"] = self._database(writer, DATA_FOLDER, database, dump.DATA, taken)
        # Later than the data, it may tell of runs that the ledger does not know yet; those are asked
        # for again, while days that it does not know of would look as if nobody had read them.
        with dump.snapshot(dagster) as later:
            facts["dagster"] = self._database(writer, DAGSTER_FOLDER, dagster, dump.DAGSTER, later)
        return facts

    def _database(
        self,
        writer: archive.Writer,
        folder: str,
        database: Database,
        scope: dump.Scope,
        taken: dump.Snapshot,
    ) -> dump.Digests:
        done = 0
        for number, part in enumerate(dump.dump(database, scope, taken), start=1):
            writer.add_bytes(f"{folder}/{number:06d}.sql", part)
            done += len(part)
            progress.report(_STAGE, folder, done, "bytes")
        found = dump.digests(taken.connection, scope)
        progress.report(_STAGE, folder, done, "bytes", finished=True)
        return found

    # --- Files ---

    def _listed(self, writer: archive.Writer, connection: sa.Connection) -> None:
        """Copies the files that the snapshot lists, and compares them with what it says of them."""
        home, done = self._workspace.home, 0
        for batch in _batches(connection):
            folder = landing_of(self._workspace, batch)
            for file in batch.files:
                self._copy(writer, folder / file["path"], file["sha256"])
                done += 1
            self._look_for_journal(batch)
            progress.report(_STAGE, "landing", done, "files")
        progress.report(_STAGE, "landing", done, "files", finished=True)
        done = 0
        for row in connection.execution_options(yield_per=_ROWS_AT_A_TIME).execute(sa.text(_AUDITED)):
            self._copy(writer, home.audit_tenant(row.tenant) / row.path, row.sha256)
            done += 1
            progress.report(_STAGE, "audit", done, "files")
        progress.report(_STAGE, "audit", done, "files", finished=True)

    def _look_for_journal(self, batch: ledger.Batch) -> None:
        if not batch.pages or batch.kind == "replay":
            return
        place = (batch.tenant, batch.connection, batch.entity, batch.window, batch.kind)
        folder = journal_folder(self._workspace.home, *place) / f"{batch.extraction:04d}"
        if not folder.is_dir():
            self._problem(f"{self._name(folder)} is missing, the journal of batch {batch.id}")
        elif missing := self._landed_from(batch).difference(Journal(folder).numbers):
            text = f"{len(missing)} pages are missing that batch {batch.id} landed records of"
            self._problem(f"{self._name(folder)}: {text}, such as {min(missing)}")

    def _landed_from(self, batch: ledger.Batch) -> set[int]:
        """The pages that the records of a batch stood on, as far as its files can be read."""
        folder, found = landing_of(self._workspace, batch), set[int]()
        for file in batch.files:
            # One that is damaged was told by its SHA-256.
            with suppress(OSError, ValueError, KeyError), pq.ParquetFile(folder / file["path"]) as source:
                for rows in source.iter_batches(columns=["page"]):
                    found.update(rows["page"].unique().to_pylist())
        return found

    def _tree(self, writer: archive.Writer, folder: Path) -> None:
        """Copies the files of a folder: each of them is written whole, or not there yet."""
        done = 0
        for path in self._files(folder):
            # Reports are written anew, and what was not listed may be removed.
            with suppress(FileNotFoundError):
                self._add(writer, path)
                done += 1
                progress.report(_STAGE, folder.name, done, "files")
        progress.report(_STAGE, folder.name, done, "files", finished=True)

    def _files(self, folder: Path) -> Iterator[Path]:
        """The plain files below a folder that are no drafts, in an order that stays."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            path = Path(entry.path)
            if not _is_text(entry.name):
                self._problem(f"{self._name(path)!r} has a name that is no text: it was not copied")
            elif entry.is_dir(follow_symlinks=False):
                yield from self._files(path)
            elif entry.is_symlink():
                # It may lead out of the home, or in a circle.
                self._problem(f"{self._name(path)} is a link: what it leads to was not copied")
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                yield path

    def _copy(self, writer: archive.Writer, path: Path, sha256: str) -> None:
        try:
            if self._add(writer, path) != sha256:
                self._problem(f"{self._name(path)} does not have the SHA-256 that the ledger lists")
        except FileNotFoundError:
            self._problem(f"{self._name(path)} is missing, and the ledger lists it")
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            self._problem(f"{self._name(path)} is no file, and the ledger lists it")

    def _add(self, writer: archive.Writer, path: Path) -> str:
        with open(path, "rb", opener=_plain_file) as file:
            found = os.fstat(file.fileno())
            return writer.add(self._name(path), found.st_size, file, found.st_mtime)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._workspace.home.root).as_posix()

    def _problem(self, text: str) -> None:
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(text)


def _plain_file(name: str, _flags: int) -> int:
    """Opens no link, and waits for no pipe."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_text(name: str) -> bool:
    """Whether a name is written in UTF-8, as all of ours are."""
    return os.fsencode(name).decode(errors="replace") == name


@contextmanager
def _without_purges(workspace: Workspace) -> Iterator[None]:
    """Nothing is purged meanwhile: files of the instant would be gone before they are copied."""
    with workspace.database.engine.connect() as connection:
        advisory_lock(connection, BACKUP_LOCK, long=True, shared=True)
        yield


def _batches(connection: sa.Connection) -> Iterator[ledger.Batch]:
    """All batches, a few at a time."""
    last = 0
    while found := ledger.list_batches(connection, t.batches.c.id > last, limit=_ROWS_AT_A_TIME):
        yield from found
        last = found[-1].id


def _keys(home: Home) -> Iterator[tuple[str, bytes]]:
    for path in sorted([*listed(home.keys, "*.key"), *listed(home.signing, "*.pem")]):
        yield path.relative_to(home.keys).as_posix(), path.read_bytes()
