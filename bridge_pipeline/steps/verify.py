"""Verifies audit folders from nothing but their files: no network, no database, no key of one's own.

The chain is read first, then every file that it names, then what lies there besides. What a
verification proves, and what only a head or a fingerprint known from elsewhere adds, is in
docs/guarantees.md.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from bridge_pipeline.naming import CHAIN_NAME
from bridge_pipeline.steps.chain import AUDIT
from bridge_pipeline.steps.chainfile import Finding, ReadChain, Removal, Write, read_chain
from bridge_pipeline.steps.manifest import Previous, contradictions

_FOLDER = "a folder"
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: _FOLDER,
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class NotAnAuditFolder(ValueError):
    """There is no folder of that name."""


@dataclass(frozen=True)
class KnownHead:
    """The last entry of a chain, as it is known outside the folder."""

    source: str
    sequence: int
    sha256: str


@dataclass
class ChainResult:
    """What was found in one tenant's folder.

    Attributes:
        entries: how many hold; `sequence` and `sha256` are of the last of them.
        files: how many the chain names.
        keys: fingerprints in the order in which they came into use.
        removals: what was removed on purpose, by whom and why.
        head_checked: where the heads came from that the chain contains, with their entry.
        findings: in the order of the chain.
    """

    folder: str
    tenant: str | None = None
    entries: int = 0
    sequence: int = 0
    sha256: str | None = None
    files: int = 0
    keys: list[str] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    head_checked: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Verification:
    """What was found in an audit folder; `others` lie in no tenant's folder."""

    folder: Path
    chains: list[ChainResult]
    others: list[Finding]

    @property
    def findings(self) -> list[Finding]:
        """All findings, the first one first."""
        return [*(finding for chain in self.chains for finding in chain.findings), *self.others]


def verify_folder(
    folder: Path,
    heads: Mapping[str, Sequence[KnownHead]] | None = None,
    given: Sequence[str] = (),
    key: str | None = None,
    all_tenants: bool | None = None,
) -> Verification:
    """Verifies an audit folder, or that of one tenant; either may be a copy.

    Args:
        heads: what is known outside the folder of the chains that belong into it, by tenant.
        given: SHA-256s of heads; each must be that of an entry of some chain.
        key: fingerprint, or the beginning of one, of a key that must have signed in every chain.
        all_tenants: whether it is the folder of all tenants; by default the folder itself says so.

    Raises:
        NotAnAuditFolder: it is no folder.
    """
    if not folder.is_dir() and not all_tenants:
        raise NotAnAuditFolder(f"there is no folder {folder}")
    known = heads or {}
    places, others = {folder.name: (folder, "")}, []
    if _holds_tenants(folder) if all_tenants is None else all_tenants:
        found_in = os.scandir(folder) if folder.is_dir() else ()
        entries = sorted(found_in, key=lambda entry: entry.name)
        names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)} | set(known)
        places = {name: (folder / name, f"{name}/") for name in sorted(names)}
        others = [_unknown(entry.name, _kind(entry)) for entry in entries if entry.name not in names]
    results, found = [], set()
    for name, (place, prefix) in places.items():
        chain = _Folder(place, name if prefix else None).verify(known.get(name, ()), key)
        result = chain.result
        result.findings = [replace(each, where=prefix + each.where) for each in result.findings]
        results.append(result)
        numbers = {sha256: sequence for sequence, sha256 in chain.chain.shas.items() if sha256 in given}
        result.head_checked += [f"the head given (entry {number})" for number in numbers.values()]
        found |= numbers.keys()
    others += [_absent(sha256, results) for sha256 in given if sha256 not in found]
    return Verification(folder, results, others)


def _holds_tenants(folder: Path) -> bool:
    """Whether it is the folder of all tenants: chains lie one level below it."""
    return any(os.path.lexists(child / CHAIN_NAME) for child in folder.iterdir() if child.is_dir())


def _absent(sha256: str, results: list[ChainResult]) -> Finding:
    ends = ", ".join(f"with entry {each.sequence} of {each.tenant or each.folder}" for each in results)
    why = f"no entry has the SHA-256 {sha256} of the head given; it ends {ends or 'nowhere'}"
    return Finding("cut", CHAIN_NAME, f"{why}: it was cut off at the end, or it is another chain")


class _Folder:
    """The folder of one tenant while it is verified."""

    def __init__(self, root: Path, tenant: str | None) -> None:
        self._root = root
        self._tenant = tenant
        self._present, self._odd = _walk(root)
        self.chain = ReadChain()
        self.result = ChainResult(str(root), tenant)

    def verify(self, heads: Sequence[KnownHead], key: str | None) -> "_Folder":
        """Looks at everything; the result is complete afterwards."""
        self._read(bool(heads))
        chain, result = self.chain, self.result
        result.tenant = chain.tenant or self._tenant
        result.entries, result.sequence = len(chain.shas), chain.last
        result.sha256, result.keys = chain.shas.get(chain.last), list(chain.keys)
        result.removals = chain.removals
        for head in heads if chain.shas else ():
            self._check_head(head)
        if key is not None and not any(each.startswith(key) for each in chain.signers):
            self._find("altered", CHAIN_NAME, f"no entry is signed with the key {key}")
        self._check_files()
        self._check_unknown()
        return self

    def _find(self, what: str, where: str, why: str) -> None:
        self.result.findings.append(Finding(what, where, why))

    def _read(self, expected: bool) -> None:
        if CHAIN_NAME in self._present:
            self.chain = read_chain(self._root / CHAIN_NAME)
            self.result.findings += self.chain.findings
            if self._tenant not in (None, self.chain.tenant or self._tenant):
                self._find("altered", CHAIN_NAME, f"it is the chain of the tenant {self.chain.tenant}")
        elif kind := self._odd.pop(CHAIN_NAME, None):
            self._find("altered", CHAIN_NAME, f"it is {kind}, not a file")
        elif expected or self._present or self._odd or self._tenant is None:
            self._find("removed", CHAIN_NAME, "the chain is missing")

    def _check_head(self, head: KnownHead) -> None:
        found, last = self.chain.shas.get(head.sequence), self.chain.last
        if found == head.sha256:
            self.result.head_checked.append(f"{head.source} (entry {head.sequence})")
        elif found is not None:
            why = f"entry {head.sequence} is not the one that {head.source} holds: it is another chain"
            self._find("altered", CHAIN_NAME, why)
        elif head.sequence > last:
            why = f"it ends with entry {last}, and {head.source} holds entry {head.sequence}"
            self._find("cut", CHAIN_NAME, why)

    # --- Files ---

    def _check_files(self) -> None:
        named = {path: sha for write in self.chain.writes for path, sha in write.files.items()}
        self.result.files = len(named)
        owners: dict[str, list[str]] = {}
        for path, sha256 in named.items():
            owners.setdefault(sha256, []).append(path)
        self._unknown = sorted(self._present - named.keys() - {CHAIN_NAME})
        # Where something is missing, it may have been renamed.
        strays = self._strays() if named.keys() - self._present else {}
        versions: dict[PurePosixPath, Previous] = {}
        for write in self.chain.writes:
            sound = [self._check_file(path, sha, write, owners, strays) for path, sha in write.files.items()]
            if write.kind == AUDIT:
                self._check_audit(write, all(sound), versions)

    def _strays(self) -> dict[str, str]:
        return {_sha256(self._root / path): path for path in self._unknown}

    def _check_file(
        self, path: str, sha256: str, write: Write, owners: dict[str, list[str]], strays: dict[str, str]
    ) -> bool:
        if path not in self._present:
            if path in self._odd:
                self._find("altered", path, f"it is {self._odd[path]}, not a file")
            else:
                self._find("removed", path, self._whereabouts(path, sha256, write, strays))
            return False
        found = _sha256(self._root / path)
        if found == sha256:
            return True
        other = next((each for each in owners.get(found, []) if each != path), None)
        why = f"its SHA-256 is {found}, and entry {write.sequence} says {sha256}"
        self._find("altered", path, f"it holds the content of {other}" if other else why)
        return False

    def _whereabouts(self, path: str, sha256: str, write: Write, strays: dict[str, str]) -> str:
        why = f"entry {write.sequence} names it, and it is missing"
        for folder in map(str, PurePosixPath(path).parents):
            kind = "a file" if folder in self._present else self._odd.get(folder, _FOLDER)
            if kind != _FOLDER:
                return f"{why}: {folder} is {kind}, not a folder"
        return f"{why}; its content lies in {_printable(strays[sha256])}" if sha256 in strays else why

    def _check_audit(self, write: Write, sound: bool, versions: dict[PurePosixPath, Previous]) -> None:
        """Compares an audit file with its manifest and with the version before it."""
        paths = sorted(write.files)
        first = PurePosixPath(paths[0])
        if [str(first.with_suffix(".csv")), str(first.with_suffix(".json"))] != paths:
            why = f"entry {write.sequence} names {', '.join(paths)}, not an audit file and its manifest"
            self._find("contradicts", CHAIN_NAME, why)
            return
        before, sha256 = versions.get(first.parent), write.files[paths[0]]
        if sound:
            tenant = self.chain.tenant or ""
            for why in contradictions(self._root, tenant, paths[0], sha256, before):
                self._find("contradicts", paths[1], why)
        digits = first.stem.removeprefix("v")
        if digits.isdecimal():
            versions[first.parent] = (int(digits), sha256)

    def _check_unknown(self) -> None:
        named = {path.casefold(): path for write in self.chain.writes for path in write.files}
        paths = set(named.values())
        for path in self._unknown:
            twin = named.get(path.casefold())
            hint = f"; only the case of letters tells it from {twin}" if twin else ""
            self._find("inserted", _printable(path), f"no entry of the chain names it{hint}")
        for path, kind in sorted(self._odd.items()):
            if kind != _FOLDER and path not in paths:
                self.result.findings.append(_unknown(path, kind))


def _unknown(path: str, kind: str) -> Finding:
    return Finding("inserted", _printable(path), f"it is {kind} that no entry of a chain names")


def _walk(root: Path) -> tuple[set[str], dict[str, str]]:
    """The files below a folder, and all that is neither a file nor a folder with something in it.

    Links are not followed: what lies behind one is not in the folder.

    Raises:
        OSError: a folder cannot be read.
    """
    present: set[str] = set()
    odd: dict[str, str] = {}
    for path, kind in _entries(root, "") if root.is_dir() and not root.is_symlink() else ():
        if kind == "a file":
            present.add(path)
        else:
            odd[path] = kind
    return present, odd


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, str]]:
    pending = [(str(folder), prefix)]
    while pending:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                kind = _kind(entry)
                if kind == _FOLDER:
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                yield f"{prefix}{entry.name}", kind


def _kind(entry: os.DirEntry) -> str:
    mode = entry.stat(follow_symlinks=False).st_mode
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a device")


def _sha256(path: Path) -> str:
    """The SHA-256 of a file that was found to be a plain one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _printable(path: str) -> str:
    """A path as text, also where its bytes are none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
