"""Reads a tenant's `chain.jsonl` and says where it is not the chain that was written.

Only the file itself is looked at: whether the files are there that its entries name is
`verify`'s business.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import orjson

from bridge_pipeline.database import signing
from bridge_pipeline.naming import CHAIN_NAME
from bridge_pipeline.steps.chain import BEGIN, FORMAT, PURPOSE, ROTATE

# Longer than any entry; a line is held in memory.
_LONGEST_LINE = 16 * 2**20
_UNFINISHED = "its line break is missing"
_UNINTRODUCED = ", which no entry before it introduces"
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == FORMAT,
    "tenant": lambda value: isinstance(value, str),
    "sequence": lambda value: isinstance(value, int) and value > 0,
    "previous": lambda value: value is None or isinstance(value, str),
    "at": lambda value: datetime.fromisoformat(value).tzinfo is not None,
    "kind": lambda value: isinstance(value, str),
    "files": lambda value: all(_is_path(path) and isinstance(sha, str) for path, sha in value.items()),
    "facts": lambda value: isinstance(value, dict),
    "removed": lambda value: isinstance(value, list) and all(_is_path(path) for path in value),
    "key": lambda value: isinstance(value, str),
    "signature": lambda value: isinstance(value, str),
}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        what: `altered`, `removed`, `inserted`, `reordered`, `cut` (off at the end), or
            `contradicts`: a manifest that does not tell the truth about its file.
        where: path below the folder that was verified, perhaps with the line.
        why: how it shows, in words.
    """

    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Write:
    """One entry that names files: path -> SHA-256."""

    sequence: int
    kind: str
    files: dict[str, str]


@dataclass(frozen=True)
class Removal:
    """One entry that removed files on purpose: the paths with all below them, and what was said of it."""

    sequence: int
    kind: str
    paths: list[str]
    at: str
    facts: dict[str, Any]


@dataclass
class _Line:
    """One line of the file.

    Attributes:
        sequence: the entry that it claims to be; None if it cannot be read as one.
        problem: why it is no entry of this chain; None if it is one.
    """

    number: int
    offset: int
    length: int
    sequence: int | None
    problem: str | None = None

    @property
    def where(self) -> str:
        return f"{CHAIN_NAME} line {self.number}"


@dataclass
class ReadChain:
    """What the sound entries of a chain say, and what is wrong with the others.

    Attributes:
        shas: SHA-256 of each sound entry, by its number.
        writes: what the entries wrote and none removed, in the order of the chain.
        removals: the entries that removed something.
        keys: public keys by fingerprint, in the order in which they came into use.
        signers: fingerprints of the keys that signed an entry.
    """

    tenant: str | None = None
    shas: dict[int, str] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    signers: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    _paths: dict[str, int] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The number of the last sound entry, 0 for none."""
        return max(self.shas, default=0)

    def find(self, what: str, where: str, why: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(what, where, why))

    def problem(self, entry: dict[str, Any]) -> str | None:
        """Why an entry is none of this chain, given those before it; None if it is one."""
        sequence, key = entry["sequence"], entry["key"]
        first = sequence == 1 and entry["kind"] == BEGIN and not self.keys
        if not first and key not in self.keys:
            return f"it is signed with the key {key[:16]}{_UNINTRODUCED}"
        if not first and key != next(reversed(self.keys)):
            return f"it is signed with the key {key[:16]}, which had been replaced"
        if entry["kind"] == BEGIN and not first:
            return "it begins the chain a second time"
        introduced = str(entry["facts"].get("public_key"))
        try:
            signing.verify(entry, introduced if first else self.keys[key], PURPOSE)
            if entry["kind"] == ROTATE:
                signing.fingerprint(introduced)
        except ValueError as error:
            return str(error)
        if sequence in self.shas:
            return f"entry {sequence} stands there already"
        if self.shas.get(sequence - 1, entry["previous"]) != entry["previous"]:
            return f"it does not follow the entry {sequence - 1} that stands there"
        if self.tenant not in (None, entry["tenant"]):
            return f"it is of the chain of {entry['tenant']}"
        return None

    def take(self, entry: dict[str, Any], sha256: str) -> None:
        """Takes in what a sound entry says."""
        sequence = entry["sequence"]
        self.tenant = entry["tenant"]
        self.shas[sequence] = sha256
        self.signers.add(entry["key"])
        if entry["kind"] in (BEGIN, ROTATE):
            public = str(entry["facts"]["public_key"])
            self.keys[signing.fingerprint(public)] = public
        for removed in entry["removed"]:
            self._forget(removed)
        if entry["removed"]:
            removal = Removal(sequence, entry["kind"], entry["removed"], entry["at"], entry["facts"])
            self.removals.append(removal)
        for path in entry["files"]:
            if path in self._paths:
                where = f"{CHAIN_NAME} entry {sequence}"
                self.find("inserted", where, f"it names {path}, which entry {self._paths[path]} names")
            self._paths[path] = sequence
        if entry["files"]:
            self.writes.append(Write(sequence, entry["kind"], entry["files"]))

    def _forget(self, removed: str) -> None:
        def stays(path: str) -> bool:
            return not PurePosixPath(path).is_relative_to(removed)

        self._paths = {path: sequence for path, sequence in self._paths.items() if stays(path)}
        kept = (
            Write(each.sequence, each.kind, {path: sha for path, sha in each.files.items() if stays(path)})
            for each in self.writes
        )
        self.writes = [each for each in kept if each.files]


def read_chain(path: Path) -> ReadChain:
    """Reads a chain's file. Its lines are judged in the order that they claim to have.

    Raises:
        OSError: it cannot be read.
    """
    chain = ReadChain()
    with path.open("rb") as file:
        lines = _lines(file)
        if not lines:
            chain.find("removed", CHAIN_NAME, "the chain is empty")
        # Lines may have been put into another order; keys come into use in the order of the chain.
        claimed = [(line.sequence, line.number, line) for line in lines if line.sequence is not None]
        for _, _, line in sorted(claimed, key=lambda each: each[:2]):
            _judge(chain, line, file)
    _compare_order(chain, lines)
    return chain


def _lines(file: BinaryIO) -> list[_Line]:
    lines: list[_Line] = []
    offset = 0
    while data := file.readline(_LONGEST_LINE):
        content = data.removesuffix(b"\n")
        entry = _entry(content)
        problem = None if entry else "it cannot be read as an entry"
        if len(data) == len(content):
            problem = _UNFINISHED
        sequence = entry["sequence"] if entry else None
        lines.append(_Line(len(lines) + 1, offset, len(content), sequence, problem))
        offset += len(data)
    return lines


def _entry(content: bytes) -> dict[str, Any] | None:
    """What a line says; None unless it is written exactly as entries are."""
    try:
        entry = orjson.loads(content)
        sound = set(entry) == set(_FIELDS) and all(check(entry[name]) for name, check in _FIELDS.items())
        return entry if sound and signing.rendered(entry) == content else None
    except (ValueError, TypeError, AttributeError):
        return None


def _is_path(path: object) -> bool:
    """Whether a path stays below the folder and has one spelling."""
    if not isinstance(path, str) or "\0" in path:
        return False
    return str(PurePosixPath(path)) == path and not path.startswith("/") and ".." not in path.split("/")


def _judge(chain: ReadChain, line: _Line, file: BinaryIO) -> None:
    file.seek(line.offset)
    content = file.read(line.length)
    entry = _entry(content)
    assert entry is not None
    problem = chain.problem(entry)
    if problem is None:
        chain.take(entry, hashlib.sha256(content).hexdigest())
    line.problem = problem or line.problem


def _compare_order(chain: ReadChain, lines: list[_Line]) -> None:
    """Walks the lines as they stand, and says where they leave the order of the chain."""
    places = {line.sequence: line.number for line in lines if line.problem is None}
    following = _following(lines)
    expected, seen = 1, set()
    for line in lines:
        if line.problem is not None or line.sequence is None:
            seen.update(_name_unsound(chain, line, expected, following[line.number]))
        else:
            comes_later = places.get(expected, 0) > line.number
            if line.sequence > expected:
                chain.find(*_leap(line, expected, comes_later))
            seen.add(line.sequence)
            # Entries that are missing are named once; one that comes later is still to be met.
            expected = expected if comes_later else max(expected, line.sequence)
        while expected in seen:
            expected += 1


def _following(lines: list[_Line]) -> dict[int, int | None]:
    """For each line the number of the next sound entry behind it."""
    following, sequence = {}, None
    for line in reversed(lines):
        following[line.number] = sequence
        sequence = line.sequence if line.problem is None else sequence
    return following


def _name_unsound(chain: ReadChain, line: _Line, expected: int, following: int | None) -> Iterable[int]:
    """Says what became of a line that is no entry of the chain; returns the entries it stands for."""
    claimed = line.sequence or 0
    # Behind it goes on what stood there before; at the end, only what it claims to be can tell.
    beside = 0 < claimed < expected or line.length == 0 if following is None else following <= expected
    if beside:
        chain.find("inserted", line.where, f"it is no entry of this chain: {line.problem}")
        return ()
    if claimed > expected and line.problem is not None and line.problem.endswith(_UNINTRODUCED):
        # The entry that brought its key is among those that are missing.
        chain.find(*_leap(line, expected, comes_later=False))
        expected, first = claimed, expected
    else:
        first = expected
    what = "cut" if line.problem == _UNFINISHED and following is None else "altered"
    chain.find(what, line.where, f"entry {expected}: {line.problem}")
    return range(first, expected + 1)


def _leap(line: _Line, expected: int, comes_later: bool) -> tuple[str, str, str]:
    if comes_later:
        return "reordered", line.where, f"entry {line.sequence} stands where entry {expected} belongs"
    last = (line.sequence or 0) - 1
    missing = f"entry {expected} is" if last == expected else f"entries {expected} to {last} are"
    return "removed", line.where, f"{missing} missing before entry {line.sequence}"
