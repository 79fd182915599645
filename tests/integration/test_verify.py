"""`bridge audit verify`: whatever is done to an audit folder is found, and named for what it is."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bridge_pipeline import cli
from bridge_pipeline.database import signing
from bridge_pipeline.database.signing import Signer
from bridge_pipeline.steps.chain import PURPOSE, head, rotate_key
from bridge_pipeline.steps.verify import Verification, verify_folder
from tests.integration.desk import serving, ticket
from tests.integration.flow import NAME, connect, day, execute, process

DAYS = f"{NAME}/tickets"
FIRST, SECOND, THIRD = (f"{DAYS}/2024-03-0{number}" for number in (1, 2, 3))


@dataclass
class Copy:
    """A copied folder of tenant `acme`, with what a thief of the key could do to it.

    Its chain: 1 begin; 2-4 a version of each day; 5 the key is changed; 6 a second version of the
    first day, with a record that left and a tombstone; 7 a second version of the third day.
    """

    path: Path
    signer: Signer
    head: str

    @property
    def chain(self) -> Path:
        return self.path / "chain.jsonl"

    @property
    def lines(self) -> list[bytes]:
        return self.chain.read_bytes().splitlines(keepends=True)

    @lines.setter
    def lines(self, lines: list[bytes]) -> None:
        self.chain.write_bytes(b"".join(lines))

    def file(self, path: str) -> Path:
        return self.path / path

    def change_entry(self, number: int, **changes: Any) -> None:
        lines = self.lines
        lines[number - 1] = orjson.dumps(
            orjson.loads(lines[number - 1]) | changes, option=orjson.OPT_SORT_KEYS
        )
        self.lines = [line.rstrip(b"\n") + b"\n" for line in lines]

    def append_entry(self, signer: Signer | None = None, **changes: Any) -> None:
        """Adds an entry that is signed as it should be, unless another signer does it."""
        last = orjson.loads(self.lines[-1])
        digest = hashlib.sha256(self.lines[-1].rstrip(b"\n")).hexdigest()
        plain = {key: value for key, value in last.items() if key not in ("key", "signature")}
        entry = plain | {"sequence": last["sequence"] + 1, "previous": digest, "files": {}} | changes
        line = signing.rendered(signing.sign(signer or self.signer, entry, PURPOSE))
        self.lines = [*self.lines, line + b"\n"]

    def forge_version(
        self, folder: str, version: int, manifest: Callable[[dict], dict], csv: bytes = b""
    ) -> None:
        """Adds a version whose bytes are as signed and whose manifest is what `manifest` makes of one."""
        before = self.file(f"{folder}/v{version - 1:04d}.csv").read_bytes()
        data = csv or before
        told = json.loads(self.file(f"{folder}/v{version - 1:04d}.json").read_bytes())
        digest = hashlib.sha256
        previous = {"version": version - 1, "sha256": digest(before).hexdigest()}
        told |= {"version": version, "previous": previous, "sha256": digest(data).hexdigest()}
        written = {f"v{version:04d}.csv": data, f"v{version:04d}.json": orjson.dumps(manifest(told))}
        for name, content in written.items():
            self.file(f"{folder}/{name}").write_bytes(content)
        files = {f"{folder}/{name}": digest(content).hexdigest() for name, content in written.items()}
        self.append_entry(kind="audit", files=files)


_written: list[tuple[Path, Signer, str]] = []


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A fresh copy of what the flow wrote once."""
    if not _written:
        _written.append(_write(request.getfixturevalue("workspace"), tmp_path_factory.mktemp("written")))
    kept, signer, sha256 = _written[0]
    place = tmp_path_factory.mktemp("copy") / "acme"
    shutil.copytree(kept, place)
    return Copy(place, signer, sha256)


def _write(workspace, place: Path) -> tuple[Path, Signer, str]:
    window = day("2024-03-01", "2024-03-03")
    with serving() as desk:
        connect(workspace, desk, entities=("tickets",))
        desk.records["tickets"] = [
            *(ticket(number, "2024-03-01T12:00:00Z") for number in (1, 2, 3, 4)),
            ticket(5, "2024-03-02T12:00:00Z"),
        ]
        process(workspace, window, ["tickets"])
        rotate_key(workspace)
        desk.records["tickets"][1] = ticket(2, "2024-03-03T12:00:00Z")
        del desk.records["tickets"][2]
        execute(workspace, "update desk.tickets set deleted_at = now() + interval '1 hour' where id = '3'")
        process(workspace, window, ["tickets"])
    with workspace.database.engine.connect() as connection:
        known = head(connection, "acme")
    assert known is not None
    shutil.copytree(workspace.home.audit_tenant("acme"), place / "acme")
    return place / "acme", signing.signer(workspace.home, known.key), known.sha256


def stranger() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def verified(copy: Copy, **options: Any) -> Verification:
    return verify_folder(copy.path, **options)


def test_an_untouched_copy_is_whole(copy):
    found = verified(copy, given=[copy.head], key=copy.signer.key_id)
    assert found.findings == []
    (chain,) = found.chains
    assert (chain.tenant, chain.entries, chain.files, len(chain.keys)) == ("acme", 7, 10, 2)
    assert chain.head_checked == ["the head given (entry 7)"]
    assert verified(copy).chains[0].head_checked == []


# --- What may be done to a folder: what is done, and what must be said first -----------------------


def _edit(path: str, old: bytes, new: bytes) -> Callable[[Copy], Any]:
    def edit(copy: Copy) -> None:
        data = copy.file(path).read_bytes()
        assert old in data
        copy.file(path).write_bytes(data.replace(old, new, 1))

    return edit


def _swap(one: str, other: str) -> Callable[[Copy], Any]:
    def swap(copy: Copy) -> None:
        copy.file(one).rename(copy.path / "x")
        copy.file(other).rename(copy.file(one))
        (copy.path / "x").rename(copy.file(other))

    return swap


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Copy], Any]:
    def rewrite(copy: Copy) -> None:
        copy.lines = change(copy.lines)

    return rewrite


def _forge(change: Callable[[dict], dict], csv: bytes = b"") -> Callable[[Copy], Any]:
    return lambda copy: copy.forge_version(SECOND, 2, change, csv)


def _link(path: str, target: str) -> Callable[[Copy], Any]:
    def link(copy: Copy) -> None:
        copy.file(path).rename(copy.path.parent / "elsewhere")
        copy.file(path).symlink_to(copy.path.parent / target)

    return link


def _resign(copy: Copy) -> None:
    """The whole chain again, signed with a key of one's own, which it begins with."""
    own, previous, lines = stranger(), None, []
    for line in copy.lines:
        entry = {key: value for key, value in orjson.loads(line).items() if key not in ("key", "signature")}
        entry["previous"] = previous
        if entry["kind"] in ("begin", "rotate"):
            entry["facts"] = {"public_key": own.public_key}
        lines.append(signing.rendered(signing.sign(own, entry, PURPOSE)))
        previous = hashlib.sha256(lines[-1]).hexdigest()
    copy.lines = [line + b"\n" for line in lines]


def _resign_entry(number: int) -> Callable[[Copy], Any]:
    def resign(copy: Copy) -> None:
        entry = orjson.loads(copy.lines[number - 1])
        del entry["key"], entry["signature"]
        copy.change_entry(number, **signing.sign(stranger(), entry, PURPOSE))

    return resign


def _old_key_signs(copy: Copy) -> None:
    first = orjson.loads(copy.lines[0])
    copy.change_entry(7, key=first["key"])


def _upper(number: int) -> Callable[[Copy], Any]:
    def change(copy: Copy) -> None:
        signature = orjson.loads(copy.lines[number - 1])["signature"]
        copy.change_entry(number, signature=signature.upper())

    return change


CSV, JSON = f"{FIRST}/v0001.csv", f"{FIRST}/v0001.json"
TAMPERINGS: dict[str, tuple[Callable[[Copy], Any], str, str, str]] = {
    "a cell is changed": (_edit(CSV, b"burns", b"smokes"), "altered", CSV, "entry 2 says"),
    "a row is taken out": (
        lambda c: c.file(CSV).write_bytes(b"".join(c.file(CSV).read_bytes().splitlines(True)[:-1])),
        "altered",
        CSV,
        "SHA-256",
    ),
    "a row is added": (
        lambda c: c.file(CSV).write_bytes(
            c.file(CSV).read_bytes() + c.file(CSV).read_bytes().splitlines(True)[1]
        ),
        "altered",
        CSV,
        "SHA-256",
    ),
    "rows change places": (
        lambda c: c.file(CSV).write_bytes(
            b"".join([(x := c.file(CSV).read_bytes().splitlines(True))[0], *reversed(x[1:])])
        ),
        "altered",
        CSV,
        "SHA-256",
    ),
    "line ends become Windows'": (_edit(CSV, b"\n", b"\r\n"), "altered", CSV, "SHA-256"),
    "a BOM is put before": (
        lambda c: c.file(CSV).write_bytes(b"\xef\xbb\xbf" + c.file(CSV).read_bytes()),
        "altered",
        CSV,
        "SHA-256",
    ),
    "a tombstone loses its mark": (
        lambda c: c.file(f"{FIRST}/v0002.csv").write_bytes(
            c.file(f"{FIRST}/v0002.csv").read_bytes().replace(b'Z"\n', b'"\n')
        ),
        "altered",
        f"{FIRST}/v0002.csv",
        "entry 6",
    ),
    "a file is emptied": (lambda c: c.file(CSV).write_bytes(b""), "altered", CSV, "SHA-256"),
    "a manifest is changed": (_edit(JSON, b'"rows": 4', b'"rows": 3'), "altered", JSON, "entry 2 says"),
    "a manifest is spaced otherwise": (_edit(JSON, b": 4", b":  4"), "altered", JSON, "entry 2 says"),
    "two files are swapped": (
        _swap(CSV, f"{SECOND}/v0001.csv"),
        "altered",
        CSV,
        f"content of {SECOND}/v0001.csv",
    ),
    "two versions are swapped": (_swap(CSV, f"{FIRST}/v0002.csv"), "altered", CSV, "content of"),
    "two manifests are swapped": (_swap(JSON, f"{SECOND}/v0001.json"), "altered", JSON, "content of"),
    "two days are swapped": (_swap(FIRST, SECOND), "altered", CSV, f"content of {SECOND}"),
    "a file is removed": (lambda c: c.file(CSV).unlink(), "removed", CSV, "entry 2 names it"),
    "a manifest is removed": (lambda c: c.file(JSON).unlink(), "removed", JSON, "missing"),
    "the last version is removed": (
        lambda c: c.file(f"{THIRD}/v0002.csv").unlink(),
        "removed",
        f"{THIRD}/v0002.csv",
        "entry 7",
    ),
    "a day is removed": (
        lambda c: shutil.rmtree(c.file(SECOND)),
        "removed",
        f"{SECOND}/v0001.csv",
        "missing",
    ),
    "a connection is removed": (lambda c: shutil.rmtree(c.file(NAME)), "removed", CSV, "missing"),
    "a file is renamed": (
        lambda c: c.file(CSV).rename(c.file(f"{FIRST}/old.csv")),
        "removed",
        CSV,
        f"its content lies in {FIRST}/old.csv",
    ),
    "a name gets capitals": (
        lambda c: c.file(CSV).rename(c.file(f"{FIRST}/V0001.CSV")),
        "removed",
        CSV,
        f"its content lies in {FIRST}/V0001.CSV",
    ),
    "a twin in capitals": (
        lambda c: shutil.copy(c.file(CSV), c.file(f"{FIRST}/V0001.csv")),
        "inserted",
        f"{FIRST}/V0001.csv",
        "only the case of letters",
    ),
    "a file becomes a link": (_link(CSV, "elsewhere"), "altered", CSV, "a symbolic link"),
    "a day becomes a link": (
        _link(SECOND, "elsewhere"),
        "removed",
        f"{SECOND}/v0001.csv",
        f"{SECOND} is a symbolic",
    ),
    "a file becomes a folder": (
        lambda c: (c.file(CSV).unlink(), c.file(CSV).mkdir()),
        "altered",
        CSV,
        "it is a folder",
    ),
    "a file becomes a pipe": (
        lambda c: (c.file(CSV).unlink(), os.mkfifo(c.file(CSV))),
        "altered",
        CSV,
        "a pipe",
    ),
    "a version is slipped in": (
        lambda c: shutil.copy(c.file(CSV), c.file(f"{FIRST}/v0003.csv")),
        "inserted",
        f"{FIRST}/v0003.csv",
        "no entry of the chain names it",
    ),
    "a file beside the chain": (lambda c: c.file("notes.txt").touch(), "inserted", "notes.txt", "no entry"),
    "a hidden file": (lambda c: c.file(f"{DAYS}/.x").touch(), "inserted", f"{DAYS}/.x", "no entry"),
    "a draft of a killed writer": (
        lambda c: c.file(f"{FIRST}/.v0003.csv.77.tmp").touch(),
        "inserted",
        f"{FIRST}/.v0003.csv.77.tmp",
        "no entry",
    ),
    "a link beside": (lambda c: c.file("x").symlink_to("/etc/passwd"), "inserted", "x", "a symbolic link"),
    "a name that is no text": (
        lambda c: Path(os.fsdecode(os.fsencode(c.path) + b"/\xff")).touch(),
        "inserted",
        "\\xff",
        "no entry",
    ),
    "the chain is removed": (lambda c: c.chain.unlink(), "removed", "chain.jsonl", "the chain is missing"),
    "the chain is emptied": (
        lambda c: c.chain.write_bytes(b""),
        "removed",
        "chain.jsonl",
        "the chain is empty",
    ),
    "the chain becomes a link": (
        _link("chain.jsonl", "elsewhere"),
        "altered",
        "chain.jsonl",
        "a symbolic link",
    ),
    "the first entry is removed": (_lines(lambda x: x[1:]), "removed", "line 1", "entry 1 is missing"),
    "an entry is removed": (_lines(lambda x: x[:2] + x[3:]), "removed", "line 3", "entry 3 is missing"),
    "two entries are removed": (_lines(lambda x: x[:1] + x[3:]), "removed", "line 2", "entries 2 to 3 are"),
    "the change of keys is removed": (
        _lines(lambda x: x[:4] + x[5:]),
        "removed",
        "line 5",
        "entry 5 is missing",
    ),
    "entries change places": (
        _lines(lambda x: [x[0], x[2], x[1], *x[3:]]),
        "reordered",
        "line 2",
        "entry 3 stands where entry 2 belongs",
    ),
    "the change of keys moves to the end": (
        _lines(lambda x: [*x[:4], *x[5:], x[4]]),
        "reordered",
        "line 5",
        "entry 6 stands where entry 5 belongs",
    ),
    "all entries are reversed": (_lines(lambda x: x[::-1]), "reordered", "line 1", "stands where entry 1"),
    "an entry stands twice": (
        _lines(lambda x: [*x[:3], *x[2:]]),
        "inserted",
        "line 4",
        "stands there already",
    ),
    "an old entry is put at the end": (
        _lines(lambda x: [*x, x[2]]),
        "inserted",
        "line 8",
        "stands there already",
    ),
    "an entry is changed": (
        lambda c: c.change_entry(3, kind="other"),
        "altered",
        "line 3",
        "entry 3: its signature",
    ),
    "a time is changed": (
        lambda c: c.change_entry(7, at="2030-01-01T00:00:00+00:00"),
        "altered",
        "line 7",
        "entry 7: its signature",
    ),
    "an entry is renumbered": (lambda c: c.change_entry(4, sequence=2), "altered", "line 4", "entry 4"),
    "an entry gets another field": (
        lambda c: c.change_entry(3, note="x"),
        "altered",
        "line 3",
        "cannot be read",
    ),
    "an entry is spaced otherwise": (
        _lines(lambda x: [x[0], x[1].replace(b'":', b'": ', 1), *x[2:]]),
        "altered",
        "line 2",
        "cannot be read",
    ),
    "a key stands twice in an entry": (
        _lines(lambda x: [x[0], x[1].replace(b"{", b'{"at":"x",', 1), *x[2:]]),
        "altered",
        "line 2",
        "cannot be read",
    ),
    "an entry is garbage": (
        _lines(lambda x: [*x[:2], b"\x00\xff\n", *x[3:]]),
        "altered",
        "line 3",
        "entry 3",
    ),
    "a signature is spelt otherwise": (_upper(7), "altered", "line 7", "its signature does not hold"),
    "garbage is put between": (_lines(lambda x: [*x[:2], b"{}\n", *x[2:]]), "inserted", "line 3", "no entry"),
    "a blank line is put between": (
        _lines(lambda x: [*x[:2], b"\n", *x[2:]]),
        "inserted",
        "line 3",
        "no entry",
    ),
    "a blank line is put at the end": (_lines(lambda x: [*x, b"\n"]), "inserted", "line 8", "no entry"),
    "line ends of the chain become Windows'": (
        _lines(lambda x: [line.replace(b"\n", b"\r\n") for line in x]),
        "altered",
        "line 1",
        "cannot be read",
    ),
    "the last line is cut": (
        _lines(lambda x: [*x[:-1], x[-1][:50]]),
        "cut",
        "line 7",
        "line break is missing",
    ),
    "the last line break is cut": (
        _lines(lambda x: [*x[:-1], x[-1][:-1]]),
        "cut",
        "line 7",
        "line break is missing",
    ),
    "an entry is signed with another key": (
        _resign_entry(7),
        "altered",
        "line 7",
        "no entry before it introduces",
    ),
    "an entry within is signed with another key": (
        _resign_entry(3),
        "altered",
        "line 3",
        "entry 3: it is signed",
    ),
    "the replaced key signs": (_old_key_signs, "altered", "line 7", "had been replaced"),
    "a stranger adds an entry": (
        lambda c: c.append_entry(stranger(), kind="audit"),
        "altered",
        "line 8",
        "no entry before it introduces",
    ),
    "the end is cut, files stay": (_lines(lambda x: x[:-1]), "inserted", f"{THIRD}/v0002.csv", "no entry"),
    # Only who has the key can do these; what is signed must agree with itself all the same.
    "a file is named twice": (
        lambda c: c.append_entry(kind="other", files={CSV: "0" * 64}),
        "inserted",
        "entry 8",
        f"names {CSV}, which entry 2 names",
    ),
    "an entry does not follow": (
        lambda c: c.append_entry(previous="0" * 64),
        "altered",
        "line 8",
        "does not follow",
    ),
    "a manifest lies about rows": (_forge(lambda m: m | {"rows": 7}), "contradicts", "v0002.json", "rows 7"),
    "a manifest lies about tombstones": (
        _forge(lambda m: m | {"tombstones": 1}),
        "contradicts",
        "v0002.json",
        "tombstones 1",
    ),
    "a manifest lies about hashes": (
        _forge(lambda m: m | {"rows_sha256": "0" * 64}),
        "contradicts",
        "v0002.json",
        "rows_sha256",
    ),
    "a manifest lies about the file": (
        _forge(lambda m: m | {"sha256": "0" * 64}),
        "contradicts",
        "v0002.json",
        "says sha256",
    ),
    "a manifest lies about columns": (
        _forge(lambda m: m | {"columns": m["columns"][1:]}),
        "contradicts",
        "v0002.json",
        "columns",
    ),
    "a manifest is of another day": (
        _forge(lambda m: m | {"day": "2024-03-09"}),
        "contradicts",
        "v0002.json",
        "day '2024-03-09'",
    ),
    "a manifest is of another tenant": (
        _forge(lambda m: m | {"tenant": "beta"}),
        "contradicts",
        "v0002.json",
        "tenant 'beta'",
    ),
    "a manifest forgets the version before": (
        _forge(lambda m: m | {"previous": None}),
        "contradicts",
        "v0002.json",
        "previous None",
    ),
    "a manifest is none": (_forge(lambda m: {"rows": 1}), "contradicts", "v0002.json", "does not say"),
    "a file without columns": (_forge(lambda m: m, b"x\n1\n"), "contradicts", "v0002.json", "cannot be read"),
}


@pytest.mark.parametrize(("tamper", "what", "where", "why"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_what_is_done_to_a_folder_is_named(copy, tamper, what, where, why):
    tamper(copy)
    first = verified(copy).findings[0]
    assert (first.what, where in first.where, why in first.why) == (what, True, True), first


def test_every_single_altered_byte_of_the_chain_is_found(copy):
    data = bytearray(copy.chain.read_bytes())
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 1
        copy.chain.write_bytes(changed)
        assert verified(copy).findings, f"byte {position}"


# --- What only a head or a key from outside shows --------------------------------------------------


def cut_off(copy: Copy) -> None:
    """The last version as if it had never been: its entry and its files."""
    copy.lines = copy.lines[:-1]
    for ending in ("csv", "json"):
        copy.file(f"{THIRD}/v0002.{ending}").unlink()


def test_a_cut_at_the_end_is_found_by_the_head_alone(copy):
    cut_off(copy)
    found = verified(copy)
    assert (found.findings, found.chains[0].head_checked) == ([], [])
    (finding,) = verified(copy, given=[copy.head]).findings
    assert (finding.what, "ends with entry 6" in finding.why) == ("cut", True)


def test_a_head_of_earlier_serves_and_a_strange_one_does_not(copy):
    earlier = hashlib.sha256(copy.lines[4].rstrip(b"\n")).hexdigest()
    found = verified(copy, given=[earlier])
    assert (found.findings, found.chains[0].head_checked) == ([], ["the head given (entry 5)"])
    assert [each.what for each in verified(copy, given=["0" * 64]).findings] == ["cut"]


def test_a_chain_signed_anew_by_another_is_found_by_head_or_key_alone(copy):
    _resign(copy)
    assert verified(copy).findings == []
    assert [each.what for each in verified(copy, given=[copy.head]).findings] == ["cut"]
    (finding,) = verified(copy, key=copy.signer.key_id[:16]).findings
    assert (finding.what, "no entry is signed with the key" in finding.why) == ("altered", True)


def test_folders_of_several_tenants_are_told_apart(copy):
    other = copy.path.parent / "beta"
    shutil.copytree(copy.path, other)
    (copy.path.parent / "loose.csv").touch()
    first, second = verify_folder(copy.path.parent).findings
    assert (first.where, first.why) == ("beta/chain.jsonl", "it is the chain of the tenant acme")
    assert (second.what, second.where) == ("inserted", "loose.csv")


def test_the_command_says_the_first_thing_and_counts_all(copy, capsys):
    assert cli.execute(["audit", "verify", str(copy.path), "--head", copy.head]) == 0
    out = capsys.readouterr().out
    assert "acme: 7 entries, 10 files" in out
    assert "checked against the head given (entry 7)" in out
    assert cli.execute(["audit", "verify", str(copy.path)]) == 0
    assert "head not checked" in capsys.readouterr().out
    copy.file(CSV).unlink()
    copy.file("x").touch()
    assert cli.execute(["audit", "verify", str(copy.path)]) == 1
    out = capsys.readouterr().out
    assert f"FIRST removed: {CSV}" in out
    assert "2 found: 1 removed, 1 inserted" in out
    assert cli.execute(["audit", "verify", str(copy.path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["whole"], document["first"]["what"], document["found"]) == (False, "removed", 2)
    assert document["counts"] == {"removed": 1, "inserted": 1}
    assert document["head_checked"] is False
