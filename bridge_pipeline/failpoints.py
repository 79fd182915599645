"""Named points at which a run may be killed, failed or cut off, so that tests can prove that it heals.

Holds the names, and the check that each point passes: one comparison while nobody listens. What
an armed point does is in `database/faults.py`; the campaigns in `tests/torture/` arm them.
`tests/agreement/test_failpoints.py` holds names and code together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Every transaction that writes: its last instruction, and the first one after its commit.
TRANSACTIONS = (
    "accept",
    "accept.audit",
    "announce.digests",
    "announce.failed",
    "announce.report",
    "announce.test",
    "audit",
    "certify",
    "chain.export",
    "chain.rotate",
    "check",
    "deliver.attempt",
    "deliver.claim",
    "deliver.revive",
    "deliver.settle",
    "extract",
    "load",
    "load.undo",
    "parents",
    "purge.begin",
    "purge.end",
    "purge.rows",
    "references",
    "registry.connection",
    "registry.removal",
    "registry.tenant",
    "replay.audit",
    "replay.take",
    "report",
    "restore.readers",
    "secrets.rotate",
    "tenants",
    "tenants.removal",
)

POINTS = (
    # Files: written and not yet durable, durable and not yet in place, in place and perhaps not for long.
    "file.written",
    "file.renaming",
    "folder.syncing",
    "key.begun",
    "key.written",
    "key.renaming",
    "key.syncing",
    # From the source to a batch in the ledger.
    "extract.locked",
    "journal.begun",
    "journal.kept",
    "extract.numbered",
    "extract.validated",
    "extract.unlisted_removed",
    "land.table",
    "land.moved",
    "land.written",
    "land.syncing",
    "extract.batch_listed",
    "quarantine.added",
    "extract.rejected_kept",
    # The verdict.
    "check.judged",
    "check.rows_refused",
    "check.rows_taken_out",
    "check.verdict_kept",
    # The tables; each statement of a load passes `load.statement` before it is executed.
    "load.locked",
    "copy.staged",
    "copy.part",
    "copy.taken",
    "load.statement",
    "load.counted",
    "load.listed",
    "load.checked",
    "load.replayed",
    "parents.fetched",
    # The audit files and their chain.
    "audit.locked",
    "audit.unlisted_removed",
    "audit.filled",
    "audit.exported",
    "audit.manifest_written",
    "audit.syncing",
    "audit.renaming",
    "audit.files_listed",
    "audit.days_listed",
    "chain.signed",
    "chain.appended",
    "chain.opened",
    "chain.cut",
    "chain.line",
    "chain.syncing",
    "chain.head",
    "chain.rotated",
    "signing.forgotten",
    # The certificate.
    "certify.listed",
    "certify.asked",
    "certify.fetched",
    "certify.judged",
    "certify.document",
    "certify.written",
    "certify.marked",
    # A replay from quarantine.
    "replay.claimed",
    "replay.landed",
    "replay.listed",
    # A purge.
    "purge.folder_removed",
    # A backup, and the way back.
    "backup.begun",
    "backup.instant",
    "backup.written",
    "backup.renaming",
    "backup.syncing",
    "restore.begun",
    "restore.unpacked",
    "restore.loading",
    "restore.loaded",
    "restore.migrated",
    "restore.chains_written",
    "restore.settled",
    "restore.synced",
    "restore.asking_file",
    "restore.placing",
    "restore.opening",
    "restore.syncing",
    # What is told.
    "report.workbook",
    "report.written",
    "deliver.sent",
    # Sealed credentials.
    "secrets.key_made",
    "secrets.key_kept",
    "secrets.key_placed",
    *(f"{name}.{moment}" for name in TRANSACTIONS for moment in ("committing", "committed")),
)

Listener = Callable[[str], None]

_listener: Listener | None = None


def reach(point: str) -> None:
    """Passes a point; the listener may end the process here, or raise."""
    if _listener is not None:
        _listener(point)


def listen(to: Listener | None) -> None:
    """Has every point that is passed in this process told to a listener; None ends that."""
    global _listener
    _listener = to


def listener() -> Listener | None:
    """Who is told of the points that this process passes."""
    return _listener


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Has the points of a block told to a listener, in place of the one before."""
    before = _listener
    listen(to)
    try:
        yield
    finally:
        listen(before)
