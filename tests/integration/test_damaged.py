"""Landing files that a disk or a person has changed or removed: nothing is read from them, and all heals."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.audit import AuditFileDamaged, audit_window
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.history import UnknownRecord, find_record
from bridge_pipeline.steps.land import LandingDamaged, is_intact
from bridge_pipeline.steps.load import EquationBroken, load
from bridge_pipeline.steps.verify import verify_folder
from tests.integration.desk import Desk, ticket
from tests.integration.flow import NAME, connect, day, files, land, process, rows, table

DAY = day("2024-03-01")
NOON = "2024-03-01T12:00:00Z"


@pytest.fixture
def desk(workspace: Workspace, desk: Desk) -> Desk:
    """The desk, connected for tickets alone, with three of them."""
    connect(workspace, desk, entities=("tickets",))
    desk.records["tickets"] = [ticket(number, NOON, subject="Printer") for number in (1, 2, 3)]
    return desk


def altered(path: Path) -> None:
    """Other letters in a text: the file can be read, and has the same size."""
    before = path.read_bytes()
    path.write_bytes(before.replace(b"Printer", b"Painter"))
    assert path.read_bytes() != before


def replaced(path: Path) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


DAMAGES = pytest.mark.parametrize("damage", [altered, Path.unlink, replaced])
Damage = Callable[[Path], None]


def file_of(workspace: Workspace, batch: Batch) -> Path:
    (file,) = batch.files
    return landing_of(workspace, batch) / file["path"]


@DAMAGES
def test_what_was_damaged_after_its_checks_is_not_loaded_and_its_days_are_read_again(
    workspace, desk, damage: Damage
):
    batch = land(workspace, "tickets", DAY)
    damage(file_of(workspace, batch))
    for again in (lambda: load(workspace, batch), lambda: accept_batch(workspace, batch.id, "Ann Lee", "hm")):
        with pytest.raises(EquationBroken, match=str(file_of(workspace, batch))):
            again()
        assert table(workspace, "tickets") == {}
    assert rows(workspace, "select verdict from bridge.batches") == [{"verdict": "blocked"}]
    _, update, _ = process(workspace, DAY, ["tickets"])["tickets"]
    assert [result.loaded for result in update.loads] == [3]
    assert {row["subject"] for row in table(workspace, "tickets").values()} == {"Printer"}
    assert certify(workspace, NAME).complete


def test_a_certificate_needs_to_know_what_a_damaged_batch_holds_back(workspace, desk):
    batch = land(workspace, "tickets", DAY)
    file_of(workspace, batch).unlink()
    with pytest.raises(EquationBroken):
        load(workspace, batch)
    with pytest.raises(LandingDamaged, match="extract its days again"):
        certify(workspace, NAME)


@DAMAGES
def test_a_batch_that_cannot_be_compared_with_what_came_later_is_not_loaded(workspace, desk, damage: Damage):
    process(workspace, DAY, ["tickets"])
    # Nothing but its content changes, and back again.
    desk.find("tickets", 1)["subject"] = "Other"
    waiting = land(workspace, "tickets", DAY)
    desk.find("tickets", 1)["subject"] = "Printer"
    later = land(workspace, "tickets", DAY)
    load(workspace, later)
    damage(file_of(workspace, later))
    with pytest.raises(EquationBroken, match=str(file_of(workspace, later))):
        load(workspace, waiting)
    desk.find("tickets", 1)["subject"] = "Newest"
    process(workspace, DAY, ["tickets"])
    subjects = {key: row["subject"] for key, row in table(workspace, "tickets").items()}
    assert subjects == {"1": "Newest", "2": "Printer", "3": "Printer"}


@DAMAGES
def test_no_audit_file_is_made_of_damaged_rows(workspace, desk, damage: Damage):
    process(workspace, DAY, ["tickets"])
    desk.records["tickets"].append(ticket(4, NOON, subject="Printer"))
    batch = land(workspace, "tickets", DAY)
    load(workspace, batch)
    damage(file_of(workspace, batch))
    audit = workspace.home.audit
    before = files(audit)
    with pytest.raises(LandingDamaged, match=str(file_of(workspace, batch))):
        audit_window(workspace, NAME, "tickets", DAY)
    assert files(audit) == before
    _, _, (file,) = process(workspace, DAY, ["tickets"])["tickets"]
    assert (file.rows, file.version) == (4, 2)
    assert "Painter" not in file.path.read_text()


@DAMAGES
def test_no_audit_file_says_what_left_one_that_is_damaged(workspace, desk, damage: Damage):
    _, _, (first,) = process(workspace, DAY, ["tickets"])["tickets"]
    whole = first.path.read_bytes()
    damage(first.path)
    desk.records["tickets"].append(ticket(4, NOON, subject="Printer"))
    with pytest.raises(AuditFileDamaged, match=str(first.path)):
        process(workspace, DAY, ["tickets"])
    assert not first.path.with_name("v0002.csv").exists()
    if first.path.is_dir():
        first.path.rmdir()
    first.path.write_bytes(whole)
    (second,) = audit_window(workspace, NAME, "tickets", DAY)
    assert (second.rows, second.version) == (4, 2)
    assert verify_folder(workspace.home.audit / "acme").findings == []


@DAMAGES
def test_a_day_is_audited_without_a_certificate_s_batch_that_it_shows_by_itself(
    workspace, desk, damage: Damage
):
    process(workspace, DAY, ["tickets"])
    desk.records["tickets"].append(ticket(4, NOON, subject="Printer"))
    assert certify(workspace, NAME).complete
    (found,) = rows(workspace, "select max(batch_id) as id from desk.tickets where not placeholder")
    with workspace.database.engine.connect() as connection:
        certified = ledger.batch(connection, found["id"])
    assert certified.proof["for"] == "certificate"
    damage(file_of(workspace, certified))
    with pytest.raises(LandingDamaged, match=str(file_of(workspace, certified))):
        audit_window(workspace, NAME, "tickets", DAY)
    _, _, (file,) = process(workspace, DAY, ["tickets"])["tickets"]
    assert file.rows == 4
    assert "Painter" not in file.path.read_text()


@DAMAGES
def test_what_a_damaged_file_held_is_not_shown_as_what_the_source_sent(workspace, desk, damage: Damage):
    batch, _, _ = process(workspace, DAY, ["tickets"])["tickets"]
    damage(file_of(workspace, batch))
    found = find_record(workspace, NAME, "tickets", "1")
    assert (found.versions, found.payload) == ((), None)
    assert found.damaged == (str(file_of(workspace, batch)),)
    with pytest.raises(UnknownRecord, match="1 landing files are damaged"):
        find_record(workspace, NAME, "tickets", "999")


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    known, digest = path.stat(), hashlib.sha256(b"one").hexdigest()
    assert is_intact(path, digest)
    with path.open("r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert not is_intact(path, digest)
