"""The page journal: whole answers or none, resumed only where that is sound, and without secrets."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge_pipeline import failpoints, redaction
from bridge_pipeline.connector_kit import journal as pages
from bridge_pipeline.connector_kit.journal import Journal, abandon, open_extraction, read_file, write_durably
from bridge_pipeline.redaction import MASK

NOW = datetime(2025, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
URL = "https://desk.example.com/api/v1/tickets.json?token=1-abcdef&page=1"
BODY = b'{"data":[{"id":1},{"id":2}]}\xff\x00'
HOUR = timedelta(hours=1)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


def write(journal, key="s1-p1", body=BODY, records=2):
    return journal.write(key, URL, body, body, records, NOW)[0]


def files(journal):
    return sorted(path.name for path in journal.folder.iterdir())


def test_a_folder_is_made_below_one_that_may_not_be_read(tmp_path, monkeypatch):
    def sync(folder):
        if folder == tmp_path:
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(pages, "sync_folder", sync)
    pages.make_folder(tmp_path / "home" / "journal")
    assert (tmp_path / "home" / "journal").is_dir()


def test_a_folder_that_cannot_be_read_is_none_without_files(tmp_path):
    (tmp_path / "b.key").touch()
    (tmp_path / "a.key").touch()
    (tmp_path / "a.pem").touch()
    assert pages.listed(tmp_path, "*.key") == [tmp_path / "a.key", tmp_path / "b.key"]
    assert pages.listed(tmp_path / "missing", "*.key") == []
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle"):
        pages.listed(tmp_path / "circle", "*.key")


def test_an_answer_is_found_again_as_it_was_written(journal):
    entry = write(journal)
    for reader in (journal, Journal(journal.folder)):
        assert reader.find("s1-p1") == (entry, BODY)
        assert reader.body(0) == BODY
        assert reader.find("s1-p2") is None
    assert (entry.number, entry.records, entry.size, entry.fetched_at) == (0, 2, len(BODY), NOW)
    assert entry.sha256 == entry.original_sha256 == hashlib.sha256(BODY).hexdigest()


def test_answers_are_numbered_in_the_order_of_reading(journal):
    assert [write(journal, key).number for key in ("s1-p1", "s1-p2", "t1-p1")] == [0, 1, 2]
    resumed = Journal(journal.folder)
    assert write(resumed, "s2-p1").number == 3
    assert write(resumed, "s1-p2", b"[1]").number == 1
    assert resumed.body(1) == b"[1]"
    assert len(files(journal)) == 4


def test_records_and_requests_are_counted(journal):
    write(journal, "a", records=2)
    write(journal, "b", records=3)
    assert (journal.records, journal.written) == (5, 2)
    resumed = Journal(journal.folder)
    resumed.find("a")
    write(resumed, "c", records=4)
    assert (resumed.records, resumed.written) == (6, 1)


def test_what_is_taken_over_is_counted_as_records_and_as_no_request(journal):
    write(journal)
    journal.write("s1-p1-kept", "landed:tickets", BODY, BODY, 2, NOW, asked=False)
    assert (journal.records, journal.written) == (4, 1)
    resumed = Journal(journal.folder)
    assert resumed.find("s1-p1-kept")[1] == BODY
    assert (resumed.records, resumed.written) == (2, 0)


@pytest.mark.parametrize("body", [b"", b"[]", BODY * 10_000])
def test_the_command_line_tool_gives_the_body_back(journal, body):
    write(journal, body=body)
    (path,) = journal.folder.iterdir()
    assert read_file(path)[1] == body
    with zstandard.open(path, "rb") as stream:
        assert stream.read() == body
    if tool := shutil.which("zstd"):
        done = subprocess.run([tool, "-d", "-c", path], capture_output=True, check=True)
        assert done.stdout == body


def test_secrets_are_cut_out_of_body_and_url_and_the_original_is_still_known(journal):
    secret = "1-se/cr+et"
    redaction.remember(secret, sent=True)
    body = b'{"data":[{"id":1,"s":"1-se/cr+et 1-se%2Fcr%2Bet"}]}'
    entry, stored = journal.write("k", f"https://h/?token={secret}&x=1", body, body, 1, NOW)
    assert stored == f'{{"data":[{{"id":1,"s":"{MASK} {MASK}"}}]}}'.encode()
    assert entry.url == f"https://h/?token={MASK}&x=1"
    assert entry.original_sha256 == hashlib.sha256(body).hexdigest() != entry.sha256
    (path,) = journal.folder.iterdir()
    assert b"se/cr" not in path.read_bytes() + read_file(path)[1]


def test_what_the_source_was_never_told_is_the_customers_data(journal):
    redaction.remember("the word printer")
    body = b'{"data":[{"id":1,"s":"the word printer"}]}'
    assert journal.write("k", URL, body, body, 1, NOW)[1] is body


def test_a_body_without_secrets_is_not_copied(journal):
    redaction.remember("something-else", sent=True)
    assert journal.write("k", URL, BODY, BODY, 1, NOW)[1] is BODY


# --- Damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a sound journal file."""
    folder = tmp_path_factory.mktemp("sound")
    Journal(folder).write("k", URL, BODY * 3, BODY, 2, NOW)
    return next(folder.iterdir()).read_bytes()


def found_after(folder, data):
    (folder / "000000.k.json.zst").write_bytes(data)
    return Journal(folder).find("k")


def test_a_file_cut_anywhere_counts_as_absent(tmp_path, sound):
    assert found_after(tmp_path, sound) is not None
    for end in range(len(sound)):
        assert found_after(tmp_path, sound[:end]) is None


def test_a_file_with_any_byte_changed_counts_as_absent_or_is_the_same(tmp_path, sound):
    entry, body = found_after(tmp_path, sound)
    for place in range(len(sound)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(sound)
            damaged[place] ^= flip
            assert found_after(tmp_path, bytes(damaged)) in (None, (entry, body))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_other_file_counts_as_absent(tmp_path, data):
    assert found_after(tmp_path, data) is None


def sealed(head: bytes, frame: bytes) -> bytes:
    head += hashlib.sha256(head).digest()
    return b"\x50\x2a\x4d\x18" + len(head).to_bytes(4, "little") + head + frame


@pytest.mark.parametrize("head", [b"{}", b"[]", b"null", b'{"fetched_at":5}', b'{"fetched_at":"2025-01-01"}'])
def test_a_file_of_another_version_counts_as_absent(tmp_path, head):
    assert found_after(tmp_path, sealed(head, zstandard.compress(b"[]"))) is None


def test_a_frame_that_claims_to_be_huge_is_not_decompressed(tmp_path, sound):
    entry, _ = found_after(tmp_path, sound)
    # A frame header with a size of eight bytes, and one empty last block (RFC 8878, 3.1.1).
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (2**62).to_bytes(8, "little") + b"\x01\0\0"
    assert zstandard.frame_content_size(bomb) == 2**62
    head = orjson.dumps(dataclasses.asdict(entry))
    assert found_after(tmp_path, sealed(head, bomb)) is None


def test_a_damaged_answer_is_asked_for_again_in_its_place(journal):
    write(journal, "a")
    write(journal, "b")
    path = journal.folder / "000000.a.json.zst"
    path.write_bytes(path.read_bytes()[:-1])
    resumed = Journal(journal.folder)
    assert resumed.find("a") is None
    assert write(resumed, "a", b"[]").number == 0
    assert resumed.find("a")[1] == b"[]"
    assert files(journal) == ["000000.a.json.zst", "000001.b.json.zst"]
    assert write(resumed, "c").number == 2


@pytest.mark.parametrize("between", ["nothing", "damaged", "gone", "another"])
def test_the_same_body_again_is_a_file_of_its_own(journal, between):
    """Its compressed form is taken from the first one only where that is what was written."""
    write(journal, "a")
    path = journal.folder / "000000.a.json.zst"
    match between:
        case "damaged":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "gone":
            path.unlink()
        case "another":
            write(journal, "a", b"[]")
    assert write(journal, "b").number == 1
    path.unlink(missing_ok=True)
    assert Journal(journal.folder).find("b")[1] == BODY


def test_an_answer_that_is_not_there_is_an_error(journal):
    with pytest.raises(KeyError, match="holds no answer 7"):
        journal.body(7)


# --- Atomic writes ------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_disk_whole_before_it_has_its_name_and_then_so_is_its_name(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def noting(descriptor):
        told = os.fstat(descriptor)
        synced.append((told.st_ino, told.st_size if path.exists() is False else "named"))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noting)
    write_durably(path, b"new" * 1000)
    assert synced == [(path.stat().st_ino, 3000), (tmp_path.stat().st_ino, "named")]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    program = """
import os, sys
from pathlib import Path
from bridge_pipeline.connector_kit.journal import write_durably
step, path = int(sys.argv[1]), Path(sys.argv[2])
calls = 0
def stop(event, arguments):
    global calls
    if event in ("open", "os.rename") and path.name in str(arguments[0]):
        calls += 1
        if calls > step:
            os._exit(9)
sys.addaudithook(stop)
write_durably(path, b"new" * 1000)
"""
    seen = set()
    for step in range(4):
        path = tmp_path / str(step) / "answer"
        path.parent.mkdir()
        path.write_bytes(b"old")
        code = subprocess.run([sys.executable, "-c", program, str(step), path], check=False).returncode
        assert path.read_bytes() in (b"old", b"new" * 1000)
        seen.add((code, path.read_bytes()[:3]))
    assert {(9, b"old"), (0, b"new")} <= seen


def test_two_processes_that_write_the_same_answer_leave_a_whole_one(tmp_path):
    program = """
import sys
from datetime import datetime, UTC
from pathlib import Path
from bridge_pipeline.connector_kit.journal import Journal
body = sys.argv[2].encode() * 20_000
journal = Journal(Path(sys.argv[1]))
for number in range(60):
    journal.write(f"p{number % 3}", "https://h/", body, body, 1, datetime.now(UTC))
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path, letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        reader = Journal(tmp_path)
        for path in tmp_path.glob("*.json.zst"):
            assert read_file(path)[1] in (b"a" * 20_000, b"b" * 20_000)
        assert reader.find("other") is None
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 3


# --- Resuming -----------------------------------------------------------------------------------


def opened(folder, finished=0, signature="same", max_age=HOUR):
    return open_extraction(folder, finished, signature, max_age)


def test_the_first_extraction_is_number_one_and_a_killed_one_is_resumed(tmp_path):
    window = tmp_path / "tenant" / "window"
    number, journal = opened(window)
    entry = write(journal)
    again, resumed = opened(window)
    assert (number, again) == (1, 1)
    assert resumed.find("s1-p1") == (entry, BODY)


@pytest.mark.parametrize(
    ("finished", "signature", "max_age"),
    [(1, "same", HOUR), (0, "other", HOUR), (0, "same", timedelta(0)), (5, "same", HOUR)],
    ids=["finished", "something else was asked", "too old", "the ledger is ahead"],
)
def test_other_extractions_are_left_as_evidence(tmp_path, finished, signature, max_age):
    _, journal = opened(tmp_path)
    write(journal)
    number, fresh = opened(tmp_path, finished, signature, max_age)
    assert number == max(finished, 1) + 1
    assert fresh.find("s1-p1") is None
    assert journal.find("s1-p1") is not None


@pytest.mark.parametrize(
    "state",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"signature":"same"}',
        b'{"started_at":"2025-01-01T00:00:00+00:00"}',
        b'{"signature":"same","started_at":5}',
        b'{"signature":"same","started_at":"2025-01-01T00:00:00"}',
        b'{"signature":"same","started_at":"soon"}',
        json.dumps({"signature": "same", "started_at": "2124-01-01T00:00:00+00:00"}).encode(),
    ],
)
def test_an_extraction_whose_beginning_is_unknown_is_not_resumed(tmp_path, state):
    opened(tmp_path)
    path = tmp_path / "0001" / "extraction.json"
    path.unlink() if state is None else path.write_bytes(state)
    assert opened(tmp_path)[0] == 2


def test_an_abandoned_extraction_is_not_resumed_even_after_a_power_cut(tmp_path):
    _, journal = opened(tmp_path)
    passed = []
    with failpoints.listening(passed.append):
        abandon(journal.folder)
    assert passed == ["folder.syncing"]
    assert opened(tmp_path)[0] == 2


def test_only_the_newest_extraction_can_be_resumed(tmp_path):
    opened(tmp_path)
    opened(tmp_path, signature="other")
    assert opened(tmp_path, signature="same")[0] == 3
    assert opened(tmp_path, signature="same")[0] == 3


def test_what_else_lies_in_the_folder_is_not_an_extraction(tmp_path):
    (tmp_path / "0009.old").mkdir()
    (tmp_path / "notes").touch()
    assert opened(tmp_path)[0] == 1


def test_what_a_killed_extraction_left_unfinished_is_removed_by_the_next(tmp_path):
    folder = tmp_path / "window"
    number, journal = open_extraction(folder, 0, "same", HOUR)
    write(journal)
    drafts = [folder / "0001" / name for name in (".extraction.json.77.tmp", ".000001.s1-p2.json.zst.77.tmp")]
    for draft in drafts:
        draft.touch()
    assert open_extraction(folder, 0, "same", HOUR)[0] == number
    assert [draft.exists() for draft in drafts] == [False, False]
    assert files(journal) == ["000000.s1-p1.json.zst", "extraction.json"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_draft_is_removed_only_by_one_who_writes_alone(tmp_path, alone):
    draft = tmp_path / ".report.html.77.tmp"
    draft.touch()
    write_durably(tmp_path / "report.html", b"new", alone=alone)
    assert draft.exists() is not alone
