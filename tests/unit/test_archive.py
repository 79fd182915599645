"""The file of a backup: nothing in it can be altered, cut off or left out unseen."""

import io
import json
import subprocess
import tarfile

import pytest
import zstandard

from bridge_pipeline.steps import archive

CONTENT = {"landing/a": b"", "journal/b": b"x" * 100_000, "audit/ü": bytes(range(256)), "facts.json": b"{}"}
_SEAL_BYTES = 72


def write(path, content=CONTENT):
    with path.open("wb") as file, archive.written(file, {"schema": "0001"}) as writer:
        for name, data in content.items():
            writer.add_bytes(name, data)
        seal = writer.finish()
    return seal


def taken(path):
    found = {}
    seal = archive.read(path, lambda member: found.update({member.name: member.content.read()}))
    return seal, found


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "made.backup"
    write(path)
    return path


def test_what_was_written_is_read(made):
    seal, found = taken(made)
    assert found == CONTENT
    assert seal == write(made)
    assert seal.members == len(CONTENT) + 1
    assert archive.header_of(made)["schema"] == "0001"


def test_plain_tools_open_it(made, tmp_path):
    """Should this program be lost, the data is not."""
    command = f"zstd -dcq {made} | tar -x -C {tmp_path}"
    if subprocess.run(["sh", "-c", "command -v zstd"], capture_output=True, check=False).returncode:
        pytest.skip("zstd is not installed")
    subprocess.run(["sh", "-c", command], check=True)
    assert (tmp_path / "journal" / "b").read_bytes() == CONTENT["journal/b"]


def test_no_member_can_be_altered_left_out_doubled_or_moved(made, tmp_path):
    members, seal = unpacked(made)
    path = tmp_path / "altered.backup"
    assert archive.read(pack(path, members, seal)) == archive.read(made)
    for index, (name, data) in enumerate(members):
        altered = (name, bytes([data[0] ^ 1]) + data[1:] if data else b"x")
        rest = members[:index] + members[index + 1 :]
        for changed in (
            [*members[:index], altered, *members[index + 1 :]],
            rest,
            [*members[:index], members[index], *members[index:]],
            [*rest[: index - 1], members[index], *rest[index - 1 :]] if index else rest,
        ):
            with pytest.raises((archive.BackupDamaged, archive.NotABackup, archive.NewerBackup)):
                archive.read(pack(path, changed, seal))


def test_a_manifest_that_fits_does_not_help_without_its_seal(made, tmp_path):
    _, seal = unpacked(made)
    write(tmp_path / "forged.backup", CONTENT | {"facts.json": b"[]"})
    members, _ = unpacked(tmp_path / "forged.backup")
    with pytest.raises(archive.BackupDamaged, match="seal"):
        archive.read(pack(tmp_path / "forged.backup", members, seal))


def test_no_cut_file_passes_for_a_whole_one(made):
    data = made.read_bytes()
    for length in range(len(data)):
        made.write_bytes(data[:length])
        with pytest.raises((archive.BackupDamaged, archive.NotABackup)):
            archive.read(made)


def test_no_flipped_bit_changes_what_is_read(made):
    data, whole = bytearray(made.read_bytes()), taken(made)
    unseen = []
    for place in range(len(data)):
        data[place] ^= 1
        made.write_bytes(data)
        data[place] ^= 1
        try:
            assert taken(made) == whole
            unseen.append(place)
        except (archive.BackupDamaged, archive.NotABackup, archive.NewerBackup):
            pass
    # A few bits mean nothing to zstd.
    assert len(unseen) < len(data) / 50


def test_another_format_is_that_of_a_newer_bridge(made, monkeypatch):
    monkeypatch.setattr(archive, "FORMAT", 2)
    with pytest.raises(archive.NewerBackup, match="format 1"):
        archive.read(made)


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    file, short = (tmp_path / "made").open("wb"), io.BytesIO(b"short")
    with file, pytest.raises(EOFError, match="a became shorter"), archive.written(file, {}) as writer:
        writer.add("landing/a", 10, short)


@pytest.mark.parametrize("name", ["../evil", "/evil", "landing/../../evil", "landing//evil", "./evil", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(name, tmp_path):
    write(tmp_path / "evil.backup", {name: b"evil"})
    with pytest.raises(archive.BackupDamaged, match="none of ours"):
        archive.read(tmp_path / "evil.backup")


def test_a_link_is_no_member(made, tmp_path):
    members, seal = unpacked(made)
    link = tarfile.TarInfo("landing/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(archive.BackupDamaged, match="no file"):
        archive.read(pack(tmp_path / "link.backup", [members[0], link, *members[1:]], seal))


@pytest.mark.parametrize(
    "header",
    [
        {"mtime": "nan"},
        {"mtime": "inf"},
        {"mtime": "1e300"},
        {"mtime": "-1e300"},
        {"size": "99999999999999999999"},
        {"GNU.sparse.map": "0,x"},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"},
    ],
)
def test_a_member_whose_header_says_what_cannot_be_is_damage(made, tmp_path, header):
    members, seal = unpacked(made)
    odd = tarfile.TarInfo("landing/odd")
    odd.pax_headers = header
    with pytest.raises(archive.BackupDamaged, match=r"odd|altered"):
        archive.read(pack(tmp_path / "odd.backup", [members[0], odd, *members[1:]], seal))


def record(name, value):
    """A pax record, led by its own length."""
    text = f" {name}={value}\n"
    length = next(n for n in range(len(text), len(text) + 9) if n == len(text) + len(str(n)))
    return f"{length}{text}".encode()


def leading(kind, data):
    """A header that says something of the member behind it."""
    info = tarfile.TarInfo("led")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(512, b"\0")


@pytest.mark.parametrize(
    "headers",
    [
        leading(tarfile.XHDTYPE, record("GNU.sparse.map", "1,a")),
        leading(tarfile.XHDTYPE, b"99999999999999999999 a=b\n"),
        leading(tarfile.XHDTYPE, record("comment", "x")) * 2_000,
        leading(tarfile.GNUTYPE_LONGNAME, b"abc\0") * 2_000,
    ],
    ids=["sparse map", "length", "chain of pax headers", "chain of long names"],
)
@pytest.mark.parametrize(("before", "read"), [(0, archive.header_of), (0, archive.read), (1, archive.read)])
def test_headers_that_cannot_be_are_damage_wherever_they_stand(made, tmp_path, headers, before, read):
    members, seal = unpacked(made)
    path = pack(tmp_path / "odd.backup", members[:before], seal)
    first = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())[: before * 1024]
    odd = first + headers + tarfile.TarInfo("header.json").tobuf() + bytes(1024)
    path.write_bytes(zstandard.ZstdCompressor().compress(odd) + seal)
    with pytest.raises(archive.BackupDamaged, match="what cannot be"):
        read(path)


def test_a_member_whose_name_is_no_text_is_damage(made, tmp_path):
    members, seal = unpacked(made)
    odd = tarfile.TarInfo("landing/\udcff")
    with pytest.raises(archive.BackupDamaged, match="altered"):
        archive.read(pack(tmp_path / "odd.backup", [members[0], odd, *members[1:]], seal))


def unpacked(path):
    """The members of a backup, and its seal."""
    data = path.read_bytes()
    tar_bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    assert json.loads(members[0][1])["kind"] == "bridge backup"
    return members, data[-_SEAL_BYTES:]


def pack(path, members, seal):
    """A file that differs from a backup only in what its members are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    path.write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()) + seal)
    return path
