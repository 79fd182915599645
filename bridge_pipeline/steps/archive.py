"""The file that a backup is: a tar in one zstd frame, whose end proves all that stands before.

    header.json        what it is and which versions made it
    …                  the members, in any number
    manifest.jsonl     name, size and SHA-256 of each of them, in their order

Behind it follows the seal, a frame that zstd skips: the SHA-256 of the manifest, which is the
fingerprint of the whole. A file that was cut does not end with one.

Written and read as a stream: neither needs more memory for more members. What the members mean is
not known here; see `backup` and `restore`.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import orjson
import zstandard

FORMAT = 1
HEADER, MANIFEST = "header.json", "manifest.jsonl"
_KIND = "bridge backup"
_MAGIC = b"\x28\xb5\x2f\xfd"
# A skippable frame of 64 bytes, the SHA-256 in hexadecimal.
_SEAL = (0x184D2A5B).to_bytes(4, "little") + (64).to_bytes(4, "little")
_CHUNK = 2**20
# Far above any line of a manifest and any header: what claims more is none of ours.
_SMALL = 2**24
# What JSON can say, and every system can set.
_LARGEST, _LATEST = 2**63, 2**38
_DAMAGE = (zstandard.ZstdError, tarfile.TarError, EOFError, UnicodeError)
# tarfile's own for a number that is none or too large, and for headers that announce ever more headers.
_IMPOSSIBLE = (ValueError, OverflowError, RecursionError)
_Read = TypeVar("_Read")


class NotABackup(ValueError):
    """The file is something else."""


class BackupDamaged(RuntimeError):
    """The backup is not what was written; the message names the first thing that shows it."""


class NewerBackup(RuntimeError):
    """A newer Project Bridge made the backup."""


@dataclass(frozen=True)
class Seal:
    """What is known of a whole backup; `sha256` is that of its manifest, `size` that of its members."""

    sha256: str
    members: int
    size: int


@dataclass(frozen=True)
class Member:
    """One file of a backup while it is read."""

    name: str
    size: int
    modified: int
    content: IO[bytes]


class Writer:
    """Adds members to a backup that is being written."""

    def __init__(self, stream: IO[bytes], manifest: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._manifest = manifest
        self._members = self._size = 0
        self.seal: Seal | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def add(self, name: str, size: int, content: IO[bytes], modified: float = 0) -> str:
        """Adds exactly `size` bytes of `content`; returns their SHA-256.

        Raises:
            EOFError: there are fewer.
        """
        hashed = _Hashed(content)
        self._put(name, size, hashed, modified)
        found = {"name": name, "size": size, "sha256": hashed.digest.hexdigest()}
        self._manifest.write(orjson.dumps(found) + b"\n")
        self._members += 1
        self._size += size
        return found["sha256"]

    def add_bytes(self, name: str, data: bytes) -> str:
        """Adds a small member; returns its SHA-256."""
        return self.add(name, len(data), io.BytesIO(data))

    def finish(self) -> Seal:
        """Adds the manifest; nothing can be added afterwards."""
        size = self._manifest.tell()
        self._manifest.seek(0)
        hashed = _Hashed(self._manifest)
        self._put(MANIFEST, size, hashed, 0)
        self.seal = Seal(hashed.digest.hexdigest(), self._members, self._size)
        return self.seal

    def _put(self, name: str, size: int, content: Any, modified: float) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(modified)
        try:
            self._tar.addfile(info, content)
        except OSError as error:
            # tarfile's own words for content that ends early have no number.
            if error.errno is None:
                raise EOFError(f"{name} became shorter while it was read") from error
            raise
        _forget(self._tar)


@contextmanager
def written(file: IO[bytes], header: dict[str, Any]) -> Iterator[Writer]:
    """A backup to be written into an open file; the header is its first member."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with TemporaryFile() as manifest, compressor.stream_writer(file, closefd=False) as stream:
        writer = Writer(stream, manifest)  # type: ignore[arg-type]
        with writer:
            writer.add_bytes(HEADER, orjson.dumps({"kind": _KIND, "format": FORMAT} | header))
            yield writer
    if writer.seal is not None:
        file.write(_SEAL + writer.seal.sha256.encode())


def header_of(path: Path) -> dict[str, Any]:
    """The header of a backup; nothing else of it is looked at.

    Raises:
        NotABackup: it is none.
        NewerBackup: this code does not know its format.
        BackupDamaged: it cannot be read.
    """
    with _members(path) as members:
        return _header(path, next(members, None))


def read(path: Path, take: Callable[[Member], None] | None = None) -> Seal:
    """Reads a backup to its end and compares everything with its manifest.

    Args:
        take: gets each member but the header, and reads its content whole. What it took is only to be
            relied on once this returns.

    Raises:
        NotABackup: it is none.
        NewerBackup: this code does not know its format.
        BackupDamaged: it was cut or altered.
    """
    with _members(path) as members, TemporaryFile() as seen:
        _header(path, first := next(members, None))
        assert first is not None
        count, size = 0, 0
        for member in _after(first, members):
            if member.name == MANIFEST:
                digest = _compared(path, member, seen)
                if next(members, None) is not None:
                    raise BackupDamaged(f"{path} goes on behind its manifest")
                return Seal(digest, count, size)
            _check_name(path, member.name)
            digest = _taken(member, take)
            seen.write(orjson.dumps({"name": member.name, "size": member.size, "sha256": digest}) + b"\n")
            count, size = count + 1, size + member.size
    raise BackupDamaged(f"{path} was cut off: it ends after {count} files, before its manifest")


def _after(header: Member, others: Iterator[Member]) -> Iterator[Member]:
    """All members, the header among them: it was read and stands in the manifest like any other."""
    header.content.seek(0)
    yield header
    yield from others


def _taken(member: Member, take: Callable[[Member], None] | None) -> str:
    hashed = _Hashed(member.content)
    if take is not None and member.name != HEADER:
        take(Member(member.name, member.size, member.modified, hashed))  # type: ignore[arg-type]
    while hashed.read(_CHUNK):
        pass
    return hashed.digest.hexdigest()


def _compared(path: Path, manifest: Member, seen: IO[bytes]) -> str:
    """Compares what was seen with the manifest; returns the SHA-256 of that."""
    seen.seek(0)
    hashed = _Hashed(manifest.content)
    lines = io.BufferedReader(hashed, _CHUNK)  # type: ignore[arg-type]
    for number, found in enumerate(seen, start=1):
        if lines.readline(_SMALL) != found:
            name = orjson.loads(found)["name"]
            raise BackupDamaged(f"{path}: file {number}, {name}, is not what the manifest says")
    if lines.readline(_SMALL):
        raise BackupDamaged(f"{path}: the manifest names files that are not in it")
    if _seal_of(path) != hashed.digest.hexdigest():
        raise BackupDamaged(f"{path}: the seal at its end does not belong to its manifest")
    return hashed.digest.hexdigest()


def _seal_of(path: Path) -> str | None:
    """The fingerprint that the file ends with; None if it ends otherwise."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < len(_SEAL) + 64:
            return None
        file.seek(-len(_SEAL) - 64, os.SEEK_END)
        end = file.read()
    return end[len(_SEAL) :].decode("ascii", "replace") if end.startswith(_SEAL) else None


def _header(path: Path, member: Member | None) -> dict[str, Any]:
    if member is None or member.name != HEADER:
        raise NotABackup(f"{path} is not a backup of Project Bridge")
    try:
        header = orjson.loads(member.content.read(_SMALL))
        ours, version = header["kind"] == _KIND, header["format"]
    except (ValueError, KeyError, TypeError):
        header, ours, version = {}, False, None
    if not ours:
        raise NotABackup(f"{path} is not a backup of Project Bridge")
    if version != FORMAT:
        raise NewerBackup(f"{path} was made by a newer Project Bridge (format {version}): install that one")
    return header


def _check_name(path: Path, name: str) -> None:
    """No member may ever be written elsewhere than below the folder it is meant for."""
    pure = PurePosixPath(name)
    name.encode()
    if pure.is_absolute() or ".." in pure.parts or str(pure) != name or "\0" in name:
        raise BackupDamaged(f"{path} holds a file with the name {name!r}, which none of ours has")


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise NotABackup(f"{path} is not a backup of Project Bridge")
        if _seal_of(path) is None:
            raise BackupDamaged(f"{path} is no backup, or was cut off: it does not end with a seal")
        file.seek(0)
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as stream:
                yield _listed(stream)  # type: ignore[arg-type]
        except _DAMAGE as error:
            raise BackupDamaged(f"{path} was cut off or altered: {error}") from error


def _listed(stream: IO[bytes]) -> Iterator[Member]:
    # Opening reads the first header.
    with _parsed(partial(tarfile.open, fileobj=stream, mode="r|")) as tar:
        while (info := _parsed(tar.next)) is not None:
            content = tar.extractfile(info) if _is_ours(info) else None
            if content is None:
                raise tarfile.ReadError(f"{info.name!r} is no file that a backup holds")
            if info.name == HEADER and info.size < _SMALL:
                # The one that is read twice.
                content = io.BytesIO(content.read())
            yield Member(info.name, info.size, int(info.mtime), content)
            _forget(tar)
    # At its end zstd compares the checksum of everything.
    while stream.read(_CHUNK):
        pass


def _parsed(read: Callable[[], _Read]) -> _Read:
    """What tarfile makes of a header; one that cannot be is damage like any other."""
    try:
        return read()
    except _IMPOSSIBLE as error:
        raise tarfile.ReadError(f"a header says what cannot be: {error}") from error


def _is_ours(info: tarfile.TarInfo) -> bool:
    """Whether a member is a plain file, of a size and time that can be."""
    return info.isfile() and not info.issparse() and 0 <= info.size < _LARGEST and abs(info.mtime) < _LATEST


def _forget(tar: tarfile.TarFile) -> None:
    """Lets go of the members that were handled: tarfile keeps them all."""
    tar.members = []  # type: ignore[attr-defined]


class _Hashed(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data
