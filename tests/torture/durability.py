"""What would survive a power cut: which files and folders were synced since they changed last.

A file or folder that is synced gets a time of change that no clock gives; whatever is written into it, or
made, renamed or removed in it, sets that to the present, whoever does it and by whatever call.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bridge_pipeline import failpoints
from bridge_pipeline.database.workspace import Workspace
from tests.integration.flow import rows

_SYNCED = 1
# Data, proofs and keys.
_KEPT = ("journal", "landing", "audit", "heads", "keys")


def mark(place: int | Path) -> None:
    """Takes a file or folder for synced until it changes."""
    os.utime(place, ns=(_SYNCED, _SYNCED))


def pending(folder: Path) -> set[Path]:
    """What of a folder, itself included, would be lost, or be there still, after a power cut."""
    found = set[Path]()
    for path in [folder, *folder.rglob("*")]:
        # Threads that write beside remove their drafts.
        with suppress(FileNotFoundError):
            found |= {path} if path.lstat().st_mtime_ns != _SYNCED else set()
    return found


class Watch:
    """One process that works, looked at whenever it commits.

    Attributes:
        wrong: what was listed, or used, and not durable yet.
        commits: the transactions that listed something, in order.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.wrong: list[str] = []
        self.commits: list[str] = []
        self._workspace = workspace
        self._home = workspace.home
        self._pending = set[Path]()
        self._listed = set(self._rested_on())
        self._known_keys = self._keys()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything that is there counts as durable; from here on it is looked at."""
        for path in pending(self._home.root):
            mark(path)
        fsync, sync = os.fsync, os.sync

        def fsync_marked(descriptor: int) -> None:
            fsync(descriptor)
            mark(descriptor)

        def sync_marked() -> None:
            for path in pending(self._home.root):
                mark(path)

        os.fsync, os.sync = fsync_marked, sync_marked
        try:
            with failpoints.listening(self._passed):
                yield
        finally:
            os.fsync, os.sync = fsync, sync

    def _passed(self, point: str) -> None:
        name, _, moment = point.rpartition(".")
        if point == "journal.kept":
            self._look(point, pending(self._home.journal))
        elif moment == "committing":
            self._pending = pending(self._home.root)
        elif moment == "committed":
            self._committed(name)

    def _committed(self, name: str) -> None:
        now = set(self._rested_on())
        fresh = now - self._listed
        self._listed = now
        if name == "chain.export":
            fresh |= {each for tenant in self._tenants() for each in self._ends(tenant)}
        keys = self._keys()
        fresh |= keys - self._known_keys
        self._known_keys = keys
        if fresh:
            self.commits.append(name)
        self._look(name, {each for path in fresh for each in self._upwards(path)} & self._pending)

    def left(self) -> list[str]:
        """What is not durable when all is done, of what nobody could make anew."""
        self._look("end", (path for name in _KEPT for path in pending(self._home.root / name)))
        return self.wrong

    def _look(self, when: str, lost: Iterable[Path]) -> None:
        self.wrong += [f"{when}: not durable: {path.relative_to(self._home.root)}" for path in sorted(lost)]

    def _upwards(self, path: Path) -> list[Path]:
        """A file and the folders that it is found by, up to the home."""
        return [path, *(each for each in path.parents if each.is_relative_to(self._home.root))]

    def _rested_on(self) -> Iterator[Path]:
        """The files that the ledger and the chains list now."""
        for row in rows(self._workspace, "select id, tenant, connection, entity, files from bridge.batches"):
            folder = self._home.landing_of(row["tenant"], row["connection"], row["entity"]) / str(row["id"])
            yield from (folder / each["path"] for each in row["files"])
        files = "select tenant, jsonb_object_keys(line::jsonb -> 'files') as path from bridge.chain"
        for row in rows(self._workspace, files):
            yield self._home.audit_tenant(row["tenant"]) / row["path"]
        for row in rows(self._workspace, "select path from bridge.audit_files"):
            yield self._home.audit / row["path"]

    def _tenants(self) -> list[str]:
        return [row["tenant"] for row in rows(self._workspace, "select distinct tenant from bridge.chain")]

    def _ends(self, tenant: str) -> list[Path]:
        return [self._home.chain_of(tenant), self._home.head_of(tenant)]

    def _keys(self) -> set[Path]:
        return {*self._home.keys.glob("*.key"), *self._home.signing.glob("*.pem")}
