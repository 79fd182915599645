"""Restore: a backup becomes an installation, on the embedded Postgres or on any other.

Everything is built in one folder inside the home, checked there, and moved into place at the end.
While that folder is there the home opens for nobody else; a restore that was killed is begun anew
by the next, which may remove what is there because the home was empty before. See
docs/decisions/0022.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import structlog

from bridge_pipeline import progress
from bridge_pipeline.connector_kit.journal import listed, refuse_unread, sync_folder, write_durably
from bridge_pipeline.database import dump, embedded, readers, signing
from bridge_pipeline.database.engine import Database, resolve, transaction
from bridge_pipeline.database.keyfile import write_key
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.migrate import head, migrate
from bridge_pipeline.database.sealing import Sealer, open_sealer
from bridge_pipeline.database.workspace import Workspace, make_folders
from bridge_pipeline.failpoints import reach
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps import archive, chain
from bridge_pipeline.steps.backup import DAGSTER_FOLDER, DATA_FOLDER, FACTS
from bridge_pipeline.steps.verify import KnownHead, verify_folder

log = structlog.get_logger(__name__)

_STAGE = "restore"
_MARKER = "restoring.json"
# The folders that a backup fills, and those that a member may lie in besides.
_FILES = ("journal", "landing", "audit", "reports", "expectations", "keys")
_DATABASE = PurePosixPath(DATA_FOLDER).parts[0]
# Moved in this order: what a command would open last of all.
_MOVED = (*_FILES, "heads", "dagster", "logs", "work", "postgres")
# What commands leave in a home that holds nothing yet.
_LOCK = "restore.lock"
_NOTHING = {"logs", "work", "lost+found", _LOCK}
_CHUNK = 2**20


class NotEmpty(ValueError):
    """There is an installation where the backup was to be restored."""


class WrongKey(RuntimeError):
    """The keys at hand do not belong to the backup; the message says which do."""


@dataclass(frozen=True)
class Restored:
    """An installation that was restored.

    Attributes:
        sha256: the fingerprint of the backup, made at `at`.
        logins: the readers that were made again, and whether their passwords are those of before.
        problems: what is not as it should be; it was so when the backup was made, or is to be done
            by hand, as the text says.
    """

    home: Path
    sha256: str
    at: datetime
    files: int
    rows: int
    logins: dict[str, bool]
    problems: list[str] = field(default_factory=list)


def restore(
    settings: Settings,
    backup: Path,
    settle: Callable[[Workspace], None],
    keys: Path | None = None,
    without_keys: bool = False,
    sha256: str | None = None,
) -> Restored:
    """Makes an installation in the home and the database that the settings name; both must be empty.

    Args:
        settle: called with the restored workspace before anybody else can open it, to end what ran
            when the backup was made.
        keys: a folder of keys, for a backup without them.
        without_keys: go on where keys are missing; credentials are to be given anew then, and no
            audit file can be written until the signing key is brought back.
        sha256: the fingerprint that the backup must have.

    Raises:
        NotABackup, BackupDamaged, NewerBackup: about the file; nothing was touched.
        NotEmpty: there is an installation already; it was not touched.
        WrongKey: the keys do not belong to the backup; nothing was restored.
        DatabaseUnavailable, DumpFailed, OSError: it could not be done; nothing is left of it.
    """
    header = archive.header_of(backup)
    _refuse_newer(backup, header)
    home = Home(settings.home)
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(home):
        begun = _begin(settings, home)
        try:
            work = _Restore(settings, home, backup, header, begun)
            done = work.run(settle, keys, without_keys, sha256)
            _put_in_place(home)
        except BaseException:
            _give_up(home)
            raise
        _open(home)
    log.info("restored", backup=str(backup), sha256=done.sha256)
    return done


def _refuse_newer(backup: Path, header: dict[str, Any]) -> None:
    if str(header.get("schema")) > head():
        raise archive.NewerBackup(
            f"{backup} holds a database at version {header.get('schema')}, and this installation knows "
            f"versions up to {head()}: install the Project Bridge that made it, or a newer one"
        )


# --- The home -----------------------------------------------------------------------------------


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    with file_lock(home.root / _LOCK):
        try:
            yield
        finally:
            (home.root / _LOCK).unlink(missing_ok=True)


def _begin(settings: Settings, home: Home) -> list[str]:
    """Makes the home ready; gives the databases that an unfinished restore may have written into.

    Raises:
        NotEmpty: there is an installation in the home; or one in the databases, and an unfinished
            restore in the home. Nothing was touched.
    """
    begun = _begun(home)
    if begun is None:
        _refuse_full(home)
        # From now on the home opens for nobody else.
        home.restoring.mkdir(mode=0o700)
        _mark(home, [])
        reach("restore.begun")
        return []
    if settings.database_url is not None:
        _refuse_strangers(begun, resolve(settings, home), settings.dagster_database)
    _clear(home)
    return begun


def _give_up(home: Home) -> None:
    _clear(home)
    if not _begun(home):
        # No database but our own was touched, so that nothing is left.
        shutil.rmtree(home.restoring)


def _begun(home: Home) -> list[str] | None:
    """The databases that an unfinished restore may have written into; None if there is no such restore."""
    try:
        return orjson.loads((home.restoring / _MARKER).read_bytes())["databases"]
    except FileNotFoundError:
        # Killed before the marker was written.
        return [] if home.restoring.exists() else None


def _mark(home: Home, databases: list[str]) -> None:
    write_durably(home.restoring / _MARKER, orjson.dumps({"databases": databases}))


def _refuse_full(home: Home) -> None:
    found = {path.name for path in home.root.iterdir()} - _NOTHING
    if found:
        raise NotEmpty(
            f"{home.root} is not empty (it holds {', '.join(sorted(found)[:5])}): restore into another "
            "folder with --into, or move this one away"
        )


def _clear(home: Home) -> None:
    """Removes what a restore that did not end has left, but its marker; the home held nothing before it."""
    for place in (Home(home.restoring), home):
        embedded.stop(place)
    for name in _MOVED:
        shutil.rmtree(home.root / name, ignore_errors=True)
    for path in home.restoring.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()


def _put_in_place(home: Home) -> None:
    """Moves what was built into the home, which stays closed."""
    _sync(home.restoring)
    for name in _MOVED:
        source, target = home.restoring / name, home.root / name
        if source.exists():
            shutil.rmtree(target, ignore_errors=True)
            reach("restore.placing")
            source.rename(target)
    sync_folder(home.root)
    make_folders(home)


def _sync(root: Path) -> None:
    """Makes all below a folder durable.

    Raises:
        OSError: some of it could not be written.
    """
    # All at once, instead of file by file while they were written.
    os.sync()
    reach("restore.synced")
    # That tells of no error; each file does.
    for folder, _, names in os.walk(root, onerror=refuse_unread):
        for path in (Path(folder) / name for name in names):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    reach("restore.asking_file")
                    os.fsync(file.fileno())


def _open(home: Home) -> None:
    """Opens the finished home, by one step: from then on no restore takes it for an unfinished one."""
    left = home.work / "restored"
    reach("restore.opening")
    home.restoring.rename(left)
    reach("restore.syncing")
    sync_folder(home.root)
    shutil.rmtree(left)


# --- What is in it ------------------------------------------------------------------------------


class _Restore:
    """One restore into a folder that becomes the home."""

    def __init__(
        self, settings: Settings, home: Home, backup: Path, header: dict[str, Any], begun: list[str]
    ) -> None:
        self._settings = settings
        self._home = home
        self._staged = Home(home.restoring)
        self._backup = backup
        self._header = header
        self._begun = begun
        self._problems: list[str] = []
        self._files = 0

    def run(
        self,
        settle: Callable[[Workspace], None],
        keys: Path | None,
        without_keys: bool,
        sha256: str | None,
    ) -> Restored:
        """Builds everything and checks it; the embedded server is stopped at the end."""
        make_folders(self._staged)
        seal = self._unpack(sha256)
        reach("restore.unpacked")
        facts = orjson.loads((self._staged.root / FACTS).read_bytes())
        self._problems += [f"when the backup was made: {each}" for each in facts["problems"]]
        if keys is not None:
            self._bring_keys(keys)
        sealer = self._sealer(without_keys)
        self._check_signing_keys(facts["signing_keys"], without_keys)
        database = resolve(self._settings, self._staged)
        workspace = Workspace(self._settings, self._staged, database, sealer)
        self._load(workspace, facts)
        logins = self._open_to_readers(workspace, facts["logins"])
        self._write_chains(workspace)
        reach("restore.chains_written")
        settle(workspace)
        reach("restore.settled")
        database.engine.dispose()
        embedded.stop(self._staged)
        shutil.rmtree(self._staged.root / _DATABASE)
        rows = sum(int(found[0]) for found in facts["data"].values())
        at = datetime.fromisoformat(self._header["made_at"])
        return Restored(self._home.root, seal.sha256, at, self._files, rows, logins, self._problems)

    def _unpack(self, sha256: str | None) -> archive.Seal:
        """Unpacks the backup, and lets nobody look at it until every SHA-256 is found to be right."""
        seal = archive.read(self._backup, self._take)
        progress.report(_STAGE, "files", self._files, "files", finished=True)
        if sha256 is not None and seal.sha256 != sha256:
            raise archive.BackupDamaged(
                f"{self._backup} is another backup: its SHA-256 is {seal.sha256}, not {sha256}"
            )
        return seal

    def _take(self, member: archive.Member) -> None:
        top, *rest = PurePosixPath(member.name).parts
        if member.name != FACTS and not (rest and top in (*_FILES, _DATABASE)):
            raise archive.BackupDamaged(f"{self._backup} holds {member.name!r}, which is none of ours")
        path = self._staged.root / member.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            shutil.copyfileobj(member.content, file, _CHUNK)
        os.utime(path, (member.modified, member.modified))
        self._files += top in _FILES
        progress.report(_STAGE, "files", self._files, "files")

    # --- Keys ---

    def _bring_keys(self, folder: Path) -> None:
        for path in listed(folder, "*.key"):
            write_key(self._staged.keys / path.name, path.read_bytes())
        for path in listed(folder / "signing", "*.pem"):
            write_key(self._staged.signing / path.name, path.read_bytes())

    def _sealer(self, without_keys: bool) -> Sealer:
        sealer = open_sealer(self._settings, self._staged)
        header = self._header
        # Older backups name the key of their installation, whatever it had sealed.
        wanted = header["sealing_keys"] if "sealing_keys" in header else [header["sealing_key"]]
        missing = [key for key in wanted if sealer.find(key) is None]
        if missing and not without_keys:
            raise WrongKey(
                f"credentials in {self._backup} are sealed with the key {', '.join(missing)}, and here is "
                f"{sealer.key_id}: give the right one with --keys or BRIDGE_SECRET_KEY, or restore "
                "--without-keys and give the credentials anew with `bridge connections apply`"
            )
        return sealer

    def _check_signing_keys(self, wanted: list[str], without_keys: bool) -> None:
        """Looks whether the chains can go on."""
        missing = set(wanted) - set(signing.key_ids(self._staged))
        if not missing:
            return
        text = (
            f"the audit chains are signed with {', '.join(sorted(missing))}, and that key is not here: bring "
            f"it into {self._home.signing}, or no audit file can be written"
        )
        if not without_keys:
            raise WrongKey(f"{text}. Give the keys with --keys, or restore --without-keys")
        self._problems.append(text)

    # --- Databases ---

    def _load(self, workspace: Workspace, facts: dict[str, Any]) -> None:
        """Loads both databases and compares every row with what the backup says of it."""
        database, dagster = workspace.database, workspace.dagster_database
        names = _refuse_strangers(self._begun, database, dagster.name)
        if self._settings.database_url is not None:
            # What is in them from now on is ours, and the next attempt may replace it.
            _mark(self._home, names)
        # The data comes last: as long as it is not there, the database holds no installation.
        for key, folder, target, scope in (
            ("dagster", DAGSTER_FOLDER, dagster, dump.DAGSTER),
            ("data", DATA_FOLDER, database, dump.DATA),
        ):
            reach("restore.loading")
            dump.load(target, self._parts(self._staged.root / folder, folder))
            reach("restore.loaded")
            with target.engine.connect() as connection:
                found = dump.digests(connection, scope)
            if found != facts[key]:
                wrong = sorted(
                    t for t in found.keys() | facts[key].keys() if found.get(t) != facts[key].get(t)
                )
                raise dump.DumpFailed(f"{', '.join(wrong)} did not come back as they were; nothing was kept")
        dagster.engine.dispose()
        migrate(database.engine)
        reach("restore.migrated")

    def _parts(self, folder: Path, name: str) -> Iterator[bytes]:
        done = 0
        for path in sorted(folder.glob("*.sql")):
            part = path.read_bytes()
            done += len(part)
            yield part
            progress.report(_STAGE, name, done, "bytes")
        progress.report(_STAGE, name, done, "bytes", finished=True)

    def _open_to_readers(self, workspace: Workspace, logins: dict[str, str | None]) -> dict[str, bool]:
        made = {}
        for role, verifier in logins.items():
            try:
                if readers.bring_back(workspace.database, role, verifier):
                    made[role] = verifier is not None
            except readers.RolesNotAllowed as error:
                self._problems.append(str(error))
        with transaction(workspace.database.engine, "restore.readers") as connection:
            readers.grant_readers(connection)
        return made

    # --- Audit ---

    def _write_chains(self, workspace: Workspace) -> None:
        """Writes the chains and their heads from the database, and verifies the whole audit folder."""
        with workspace.database.engine.connect() as connection:
            heads = chain.heads(connection)
        for each in heads:
            chain.export_chain(workspace, each.tenant)
        known = {each.tenant: [KnownHead("the database", each.sequence, each.sha256)] for each in heads}
        found = verify_folder(self._staged.audit, known, all_tenants=True).findings
        self._problems += [f"audit: {each.what}: {each.where}: {each.why}" for each in found[:100]]
        progress.report(_STAGE, "audit", sum(each.sequence for each in heads), "entries", finished=True)


def _refuse_strangers(begun: list[str], database: Database, dagster: str) -> list[str]:
    """The names of both databases, which must be empty or those that `begun` lists."""
    both = (database, database.named(dagster))
    names = [each.libpq(show_secrets=False) for each in both]
    if begun != names:
        for target, scope in zip(both, (dump.DATA, dump.DAGSTER), strict=True):
            _refuse_used(target, scope)
    return names


def _refuse_used(database: Database, scope: dump.Scope) -> None:
    with database.engine.connect() as connection:
        if dump.is_empty(connection, scope):
            return
    raise NotEmpty(
        f"the database {database.libpq(show_secrets=False)} holds an installation: name another one with "
        "BRIDGE_DATABASE_URL and BRIDGE_DAGSTER_DATABASE, or drop it first"
    )
