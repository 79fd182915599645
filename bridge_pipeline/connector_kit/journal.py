"""The page journal: every answer of a source, before anything is made of it.

One file per answer, written whole or not at all: a zstd skippable frame with what is
known of the request and its SHA-256, then the compressed body, so that `zstd -d` gives the
body back.
An extraction is one folder of such files; a killed one is resumed from them.
"""

import fnmatch
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import orjson
import structlog
import zstandard

from bridge_pipeline.failpoints import reach
from bridge_pipeline.redaction import redact, redact_bytes

_SKIPPABLE = (0x184D2A50).to_bytes(4, "little")
_DIGEST_SIZE = hashlib.sha256().digest_size
_STATE = "extraction.json"
_FILE = re.compile(r"(?P<number>\d{6,})\.(?P<key>.+)\.json\.zst")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Entry:
    """What the journal knows of one answer; `sha256` and `size` are those of the stored body.

    `original_sha256` differs from `sha256` where a secret or an excluded field was cut out. `headers`
    are those of the answer that its reader wants back, in lower case.
    """

    number: int
    key: str
    url: str
    fetched_at: datetime
    records: int
    size: int
    sha256: str
    original_sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """The answers of one extraction, in one folder.

    `records` counts the records of all answers used so far, `written` those answers that were
    asked of the source now.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = 0
        self.written = 0
        # Of millions of records there are thousands of answers: no paths are kept of them.
        named = (_FILE.fullmatch(path.name) for path in listed(folder, "*.json.zst"))
        self._numbers = {found["key"]: int(found["number"]) for found in named if found}
        self._keys = {number: key for key, number in self._numbers.items()}
        self._next = max(self._keys, default=-1) + 1
        # By SHA-256 of a body that was written: the number of its answer, and the SHA-256 of its frame.
        self._frames: dict[str, tuple[int, bytes]] = {}

    @property
    def numbers(self) -> Collection[int]:
        """Of the stored answers, readable or not."""
        return self._keys.keys()

    def __contains__(self, key: str) -> bool:
        """Whether there is a stored answer to the request `key`, readable or not."""
        return key in self._numbers

    def find(self, key: str) -> tuple[Entry, bytes] | None:
        """The stored answer to the request `key`, or None; a damaged file counts as absent."""
        number = self._numbers.get(key)
        if number is None:
            return None
        path = self._file(number, key)
        try:
            entry, body = read_file(path)
        except (OSError, ValueError, zstandard.ZstdError) as error:
            log.warning("journal file unreadable, asking again", path=str(path), error=str(error))
            return None
        self.records += entry.records
        return entry, body

    def write(
        self,
        key: str,
        url: str,
        body: bytes,
        original: bytes,
        records: int,
        fetched_at: datetime,
        headers: Mapping[str, str] | None = None,
        asked: bool = True,
    ) -> tuple[Entry, bytes]:
        """Stores an answer durably and returns it as stored: without known secrets.

        Args:
            asked: whether it was asked of the source now; records that an earlier extraction brought
                and this one takes over cost no request.

        Raises:
            OSError: it could not be written; nothing of it is visible then.
        """
        number = self._numbers.get(key, self._next)
        self._next = max(self._next, number + 1)
        stored = redact_bytes(body)
        if stored is not body:
            log.warning("the source sent a credential back; it is cut out of the page", page=number, key=key)
        body, digest = stored, hashlib.sha256(stored).hexdigest()
        entry = Entry(
            number=number,
            key=key,
            url=redact(url),
            fetched_at=fetched_at,
            records=records,
            size=len(body),
            sha256=digest,
            original_sha256=digest if original is body else hashlib.sha256(original).hexdigest(),
            headers={name: redact(value) for name, value in (headers or {}).items()},
        )
        known = orjson.dumps(asdict(entry))
        known += hashlib.sha256(known).digest()
        head = _SKIPPABLE + len(known).to_bytes(4, "little") + known
        write_durably(self._file(number, key), head + self._frame(number, digest, body))
        reach("journal.kept")
        self._numbers[key], self._keys[number] = number, key
        self.records += entry.records
        self.written += asked
        return entry, body

    def _frame(self, number: int, digest: str, body: bytes) -> bytes:
        """The compressed body of the answer with that number.

        A listing is read again to see that it is whole, and what was compressed before is there.
        """
        if digest in self._frames:
            before, seal = self._frames[digest]
            with suppress(KeyError, OSError, ValueError):
                frame = _parts(self.path(before).read_bytes())[2]
                if hashlib.sha256(frame).digest() == seal:
                    return frame
        frame = zstandard.ZstdCompressor(level=3).compress(body)
        self._frames[digest] = number, hashlib.sha256(frame).digest()
        return frame

    def headers(self, number: int) -> Mapping[str, str]:
        """The kept headers of the answer with that number.

        Raises:
            KeyError: there is none.
            ValueError: it is damaged.
        """
        return read_file(self.path(number))[0].headers

    def body(self, number: int) -> bytes:
        """The stored body of the answer with that number.

        Raises:
            KeyError: there is none.
            ValueError: it is damaged.
        """
        return read_file(self.path(number))[1]

    def path(self, number: int) -> Path:
        """The file of the answer with that number.

        Raises:
            KeyError: there is none.
        """
        if number not in self._keys:
            raise KeyError(f"{self.folder} holds no answer {number}")
        return self._file(number, self._keys[number])

    def _file(self, number: int, key: str) -> Path:
        return self.folder / f"{number:06d}.{key}.json.zst"


def open_extraction(folder: Path, finished: int, signature: str, max_age: timedelta) -> tuple[int, Journal]:
    """Opens the extraction to resume, or a new one, below the window's folder.

    Args:
        finished: number of the last extraction of this window in the ledger, 0 for none.
        signature: what was asked for and where; an extraction with another one is not resumed.
        max_age: an unfinished extraction older than this is left as evidence.

    Returns:
        The extraction's number (from 1) and its journal.
    """
    _remove_drafts(folder)
    newest = _newest(folder, finished)
    if newest > finished and _resumable(folder / f"{newest:04d}", signature, max_age):
        return newest, Journal(folder / f"{newest:04d}")
    return begin_extraction(folder, finished, signature)


def begin_extraction(folder: Path, finished: int, signature: str) -> tuple[int, Journal]:
    """Opens a new extraction below the window's folder; an unfinished one is left as evidence.

    Arguments and result are those of `open_extraction`.
    """
    _remove_drafts(folder)
    number = _newest(folder, finished) + 1
    extraction = folder / f"{number:04d}"
    make_folder(folder)
    extraction.mkdir()
    sync_folder(folder)
    reach("journal.begun")
    state = {"signature": signature, "started_at": datetime.now(UTC)}
    write_durably(extraction / _STATE, orjson.dumps(state))
    return number, Journal(extraction)


def abandon(folder: Path) -> None:
    """Makes an unfinished extraction one that is not resumed; its answers are left as evidence."""
    (folder / _STATE).unlink(missing_ok=True)
    sync_folder(folder)


def read_file(path: Path) -> tuple[Entry, bytes]:
    """One journal file, verified.

    Raises:
        ValueError: it is not a journal file, or not what was written.
        zstandard.ZstdError: its body cannot be decompressed.
    """
    head, digest, frame = _parts(path.read_bytes())
    if hashlib.sha256(head).digest() != digest:
        raise ValueError("its head does not have the recorded SHA-256")
    known = orjson.loads(head)
    try:
        entry = Entry(**known | {"fetched_at": datetime.fromisoformat(known["fetched_at"])})
    except (KeyError, TypeError):
        raise ValueError("its head is that of another version") from None
    # A damaged frame may claim any size, and it would be allocated.
    if zstandard.frame_content_size(frame) != entry.size:
        raise ValueError("the body does not have the recorded size")
    body = zstandard.ZstdDecompressor().decompress(frame)
    if hashlib.sha256(body).hexdigest() != entry.sha256:
        raise ValueError("the body does not have the recorded SHA-256")
    return entry, body


def _parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """What a journal file consists of: the head, its SHA-256, and the compressed body.

    Raises:
        ValueError: it is not a journal file.
    """
    if data[:4] != _SKIPPABLE:
        raise ValueError("not a journal file")
    end = 8 + int.from_bytes(data[4:8], "little")
    return data[8 : end - _DIGEST_SIZE], data[end - _DIGEST_SIZE : end], data[end:]


def write_durably(path: Path, data: bytes, alone: bool = False) -> None:
    """Writes a file so that after a crash it is there whole or not at all.

    Args:
        alone: nobody else writes this file now, so that a draft beside it is a killed process's and goes.

    Raises:
        OSError: it could not be written.
    """
    for draft in path.parent.glob(f".{path.name}.*.tmp") if alone else ():
        draft.unlink(missing_ok=True)
    with written_durably(path) as file:
        file.write(data)


@contextmanager
def written_durably(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` at the end, whole, durable, or not at all.

    Raises:
        OSError: it could not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            reach("file.written")
            os.fsync(file.fileno())
        reach("file.renaming")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder with that mode, and those above it that are missing, so that it survives a power cut.

    Where it is there already its name is made durable all the same: whoever made it may have been killed
    before that, or may not have come so far yet.

    Raises:
        OSError: it could not be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
    # Who may write into a folder need not be allowed to read it.
    with suppress(PermissionError):
        sync_folder(folder.parent)


def listed(folder: Path, pattern: str) -> list[Path]:
    """What in a folder has a name like `pattern`, in order; nothing where there is no such folder.

    `Path.glob` takes a folder that cannot be read for an empty one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def refuse_unread(error: OSError) -> None:
    """For `os.walk`, which leaves out what it cannot read; a folder that is not there holds nothing.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(error, FileNotFoundError):
        raise error


def sync_folder(folder: Path) -> None:
    """Makes renames and new files in `folder` survive a power cut."""
    reach("folder.syncing")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_drafts(folder: Path) -> None:
    """Removes the unfinished files that killed extractions left; who opens one holds the lock of all."""
    for draft in folder.glob("*/.*.tmp"):
        draft.unlink(missing_ok=True)


def _resumable(folder: Path, signature: str, max_age: timedelta) -> bool:
    try:
        state = orjson.loads((folder / _STATE).read_bytes())
        age = datetime.now(UTC) - datetime.fromisoformat(state["started_at"])
        # A start in the future was written by another clock.
        return state["signature"] == signature and abs(age) < max_age
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _newest(folder: Path, finished: int) -> int:
    numbers = (int(path.name) for path in listed(folder, "[0-9][0-9][0-9][0-9]*") if path.name.isdigit())
    return max([finished, *numbers])
