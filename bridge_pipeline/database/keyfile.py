"""Files that hold a key: for their owner only, and after a crash whole or not there."""

import os
from pathlib import Path

from bridge_pipeline.failpoints import reach


def write_key(path: Path, data: bytes) -> None:
    """Writes a new key; the caller holds the lock of its folder.

    Raises:
        OSError: it could not be written.
    """
    # One draft per folder: what a killed process left is overwritten, not kept beside.
    draft = path.parent / "draft.new"
    draft.unlink(missing_ok=True)
    reach("key.begun")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        reach("key.written")
        os.fsync(file.fileno())
    reach("key.renaming")
    draft.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Makes new, renamed and removed files of a folder survive a power cut."""
    reach("key.syncing")
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
