"""The certificate: all that the source lists or the tables hold is explained; nothing is marked lightly."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from bridge_pipeline import connectors
from bridge_pipeline import settings as configuration
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.database.certificates import coverage
from bridge_pipeline.database.embedded import Server
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.sealing import open_sealer
from bridge_pipeline.database.workspace import Workspace, make_folders
from bridge_pipeline.naming import Home
from bridge_pipeline.steps import certificate as written
from bridge_pipeline.steps import certify as step
from bridge_pipeline.steps import reckon
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.certify import Acceptance, CannotCertify, certify
from bridge_pipeline.steps.listed import list_source
from bridge_pipeline.steps.load import load_window
from bridge_pipeline.steps.verify import verify_folder
from tests.integration import flow
from tests.integration.desk import Answer, Desk, Request, account, serving, ticket, user
from tests.integration.flow import (
    NAME,
    beside_at,
    connect,
    day,
    ended,
    execute,
    land,
    process,
    quarantined,
    rows,
    start,
    table,
)

FIRST, LAST = "2024-03-01", "2024-03-03"


def fill(desk: Desk) -> None:
    """40 tickets over three days, with their accounts and a user."""
    desk.records["accounts"] = [account(1, "2024-01-01T00:00:00Z"), account(2, "2024-01-01T00:00:00Z")]
    desk.records["users"] = [user(1, "2024-01-01T00:00:00Z")]
    desk.records["tickets"] = [
        ticket(n, f"2024-03-0{n % 3 + 1}T10:{n:02d}:00Z", account={"id": n % 2 + 1, "_type": "Account"})
        for n in range(1, 41)
    ]


@pytest.fixture(scope="module")
def extracted(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A database and a home in which all of that is extracted; they are copied, not used."""
    home, name = tmp_path_factory.mktemp("extracted") / "home", f"extracted_{uuid4().hex[:12]}"
    maintenance = Database.of(server.url("postgres")).engine.execution_options(isolation_level="AUTOCOMMIT")
    with maintenance.connect() as connection:
        connection.execute(sa.text(f"create database {name} template template_bridge"))
    database = Database.of(server.url(name))
    settings = configuration.load(home=home)
    make_folders(Home(home))
    workspace = Workspace(settings, Home(home), database, open_sealer(settings, Home(home)))
    with serving() as desk:
        fill(desk)
        connect(workspace, desk)
        process(workspace, day(FIRST, LAST))
    # A database that somebody is connected to cannot be copied.
    database.engine.dispose()
    yield name, home
    with maintenance.connect() as connection:
        connection.execute(sa.text(f"drop database {name} with (force)"))
    maintenance.dispose()


@pytest.fixture
def workspace(
    server: Server, extracted: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """An impatient workspace over copies of them."""
    source, home = extracted
    name = f"test_{uuid4().hex[:12]}"
    maintenance = Database.of(server.url("postgres")).engine.execution_options(isolation_level="AUTOCOMMIT")
    with maintenance.connect() as connection:
        connection.execute(sa.text(f"create database {name} template {source}"))
    shutil.copytree(home, tmp_path / "home")
    database = Database.of(server.url(name))
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")
    monkeypatch.setenv("BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRIDGE_DATABASE_URL", database.libpq())
    monkeypatch.setenv("BRIDGE_DAGSTER_DATABASE", f"{name}_dagster")
    settings = configuration.load()
    yield Workspace(settings, Home(settings.home), database, open_sealer(settings, Home(settings.home)))
    database.engine.dispose()
    with maintenance.connect() as connection:
        for leftover in (name, f"{name}_dagster"):
            connection.execute(sa.text(f"drop database if exists {leftover} with (force)"))
    maintenance.dispose()


@pytest.fixture
def loaded(workspace: Workspace) -> Iterator[Desk]:
    """The desk that all of it was extracted from, serving again."""
    with serving() as desk:
        fill(desk)
        connect(workspace, desk)
        yield desk


def section(certificate, entity="tickets"):
    return next(each for each in certificate.document["entities"] if each["entity"] == entity)


def explained(certificate, entity="tickets"):
    """The explanations that are not 0."""
    found = section(certificate, entity)
    return {key: count for key, count in found["explained"].items() if count}


def named(certificate, explanation, entity="tickets"):
    return {
        each["id"]: each["finding"]
        for each in section(certificate, entity)["named"]
        if each["explanation"] == explanation
    }


def deleted(workspace, entity="tickets"):
    return {key for key, row in table(workspace, entity).items() if row["deleted_at"]}


def audited(workspace, of_day):
    """The ids of a day's current audit file of tickets, and whether they are tombstones."""
    folder = workspace.home.audit / "acme" / NAME / "tickets" / of_day
    with max(folder.glob("*.csv")).open(newline="") as file:
        return {row["id"]: bool(row["deleted_at"]) for row in csv.DictReader(file)}


def without_tolerance(workspace):
    """The same workspace, in which one rejected record blocks its batch."""
    settings = workspace.settings.model_copy(update={"quarantine_minimum": 1, "max_quarantined_share": 0.0})
    return replace(workspace, settings=settings)


def drop(desk: Desk, *numbers: int) -> None:
    desk.records["tickets"] = [
        r for r in desk.records["tickets"] if isinstance(r, bytes) or r["id"] not in numbers
    ]


def test_an_unchanged_source_is_complete_and_nothing_is_asked_one_by_one(workspace, loaded):
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 40}
    assert explained(certificate, "accounts") == {"loaded": 2}
    assert loaded.lookups("tickets") == []
    assert all("filter" not in request.target for request in loaded.requests)
    assert all("select=id,updated_at" in r.target for r in loaded.lists("tickets") if "count" not in r.target)


@pytest.mark.slow
def test_what_is_gone_is_looked_up_marked_and_kept_with_its_reason(workspace, loaded):
    drop(loaded, 7, 8)
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 38, "deleted": 2}
    assert named(certificate, "deleted") == {"7": "gone", "8": "gone"}
    assert deleted(workspace) == {"7", "8"}
    found = rows(workspace, "select record_id, reason, certificate from bridge.deletions order by record_id")
    assert found == [{"record_id": n, "reason": "lookup", "certificate": 1} for n in ("7", "8")]
    again = certify(workspace, NAME)
    assert explained(again) == {"loaded": 38, "deleted": 2}
    assert named(again, "deleted") == {}
    assert again.document["previous"] == {"number": 1, "sha256": certificate.sha256}


def test_a_window_never_deletes(workspace, loaded):
    drop(loaded, 7)
    process(workspace, day(FIRST, LAST), ["tickets"])
    assert deleted(workspace) == set()


@pytest.mark.slow
def test_what_reappears_is_restored_though_nothing_of_it_changed(workspace, loaded):
    kept = loaded.records["tickets"]
    drop(loaded, 7)
    certify(workspace, NAME)
    assert deleted(workspace) == {"7"}
    loaded.records["tickets"] = kept
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 40}
    assert deleted(workspace) == set()
    assert audited(workspace, "2024-03-02")["7"] is False
    assert len(rows(workspace, "select * from bridge.deletions")) == 1


@pytest.mark.slow
def test_an_extraction_restores_it_too(workspace, loaded):
    kept = loaded.records["tickets"]
    drop(loaded, 7)
    certify(workspace, NAME)
    loaded.records["tickets"] = kept
    process(workspace, day(FIRST, LAST), ["tickets"])
    assert deleted(workspace) == set()


@pytest.mark.slow
def test_hidden_and_forbidden_records_are_told_apart_from_deleted_ones(workspace, loaded):
    loaded.unlisted, loaded.forbidden = {3, 4}, {5}
    drop(loaded, 6)
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 38, "forbidden": 1, "deleted": 1}
    assert named(certificate, "loaded") == {"3": "hidden", "4": "hidden"}
    assert named(certificate, "forbidden") == {"5": "forbidden"}
    assert deleted(workspace) == {"6"}


@pytest.mark.slow
def test_a_listing_that_hides_most_of_what_lookups_give_deletes_nothing(workspace, loaded):
    loaded.unlisted = set(range(1, 31))
    certificate = certify(workspace, NAME)
    assert explained(certificate) == {"loaded": 40}
    assert deleted(workspace) == set()


@pytest.mark.slow
def test_what_was_never_loaded_is_fetched_once_and_then_explained(workspace, loaded):
    # The filter of an earlier reading hid them, and one is not what it should be.
    loaded.records["tickets"] += [
        ticket(50, "2024-03-02T11:00:00Z"),
        ticket(51, "2024-03-02T12:00:00Z", subject=17),
        ticket(52, None),
    ]
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 41, "quarantined": 2}
    assert table(workspace, "tickets")["50"]["subject"] == "Printer 50 is on fire"
    assert audited(workspace, "2024-03-02")["50"] is False
    assert sorted(quarantined(workspace, "tickets").values()) == ["change_time_missing", "wrong_type"]
    loaded.requests.clear()
    assert explained(certify(workspace, NAME)) == {"loaded": 41, "quarantined": 2}
    # What quarantine holds may have been mended since.
    assert sorted(loaded.lookups("tickets")) == ["51", "52"]


@pytest.mark.parametrize("mark", [None, "2024-03-02T12:00:00Z"], ids=["undated", "dated"])
def test_what_was_refused_before_and_is_mended_by_the_source_is_loaded(workspace, loaded, mark):
    loaded.records["tickets"].append(ticket(50, mark, subject=17))
    process(workspace, day(FIRST, LAST), ["tickets"])
    assert len(quarantined(workspace, "tickets")) == 1
    # Its time lies on a day that was read long ago.
    loaded.find("tickets", 50).update(updated_at="2024-03-02T12:00:00Z", subject="mended")
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 41}
    assert table(workspace, "tickets")["50"]["subject"] == "mended"
    assert audited(workspace, "2024-03-02")["50"] is False


def test_what_was_refused_before_and_cannot_be_read_now_is_not_called_quarantined(workspace, loaded):
    loaded.records["tickets"].append(ticket(50, "2024-03-02T12:00:00Z", subject=17))
    process(workspace, day(FIRST, LAST), ["tickets"])

    def hidden_but_for_its_id(request: Request) -> Answer | None:
        if request.id == "50":
            return Answer(500, b"{}")
        if "select=*" in request.target:
            drop(loaded, 50)
        return None

    loaded.before = hidden_but_for_its_id
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"50": "not_loaded"}


@pytest.mark.slow
def test_what_was_refused_before_is_asked_for_again_and_blocks_nothing(workspace, loaded):
    wrong = {"updated_at": "2024-03-02T12:00:00Z", "created_at": "long ago"}
    loaded.records["tickets"] += [ticket(n, None) | wrong for n in range(50, 180)]
    extracted = land(workspace, "tickets", day(FIRST, LAST))
    assert (extracted.verdict, extracted.quarantined) == ("blocked", 130)
    accept_batch(workspace, extracted.id, "Ann Lee", "known")
    load_window(workspace, NAME, "tickets", day(FIRST, LAST))
    for _ in range(2):
        certificate = certify(workspace, NAME, entities=("tickets",))
        assert certificate.verdict == "complete"
        assert explained(certificate) == {"loaded": 40, "quarantined": 130}
        assert section(certificate)["remarks"] == []
    # What is extracted later is not held back either.
    load_window(workspace, NAME, "tickets", day(LAST))
    assert rows(workspace, "select distinct kind from bridge.batches where id > 4") == [{"kind": "lookup"}]


@pytest.mark.parametrize("refused", [{}, {"subject": 17}])
def test_a_source_that_denies_what_it_lists_does_not_say_that_it_is_gone(workspace, loaded, refused):
    if refused:
        loaded.records["tickets"].append(ticket(50, "2024-03-02T12:00:00Z") | refused)
        process(workspace, day(FIRST, LAST), ["tickets"])
    else:
        loaded.records["tickets"].append(ticket(50, "2024-03-02T12:00:00Z"))
    loaded.before = lambda request: Answer(404, b"{}") if request.id else None
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "complete"
    # It is read whole instead.
    assert explained(certificate) == {"loaded": 40, "quarantined": 1} if refused else {"loaded": 41}
    assert rows(workspace, "select id from bridge.batches where kind = 'whole' and entity = 'tickets'")


def test_an_older_version_than_the_table_has_is_told_and_not_called_the_same(workspace, loaded):
    # The source was restored from a backup.
    loaded.find("tickets", 9).update(updated_at="2024-03-01T08:00:00Z", subject="restored")
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"9": "ahead"}
    assert loaded.lookups("tickets") == ["9"]
    assert table(workspace, "tickets")["9"]["subject"] == "Printer 9 is on fire"


def test_a_listing_that_lags_behind_what_lookups_give_is_no_older_version(workspace, loaded):
    real = loaded.find("tickets", 9)
    now = json.dumps({"data": real}).encode()
    loaded.before = lambda request: Answer(200, now) if request.id == "9" else None
    real["updated_at"] = "2024-03-01T08:00:00Z"
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 40}


def test_a_newer_version_that_never_came_is_fetched(workspace, loaded):
    loaded.find("tickets", 9)["updated_at"] = "2024-03-02T23:00:00Z"
    loaded.find("tickets", 9)["subject"] = "changed"
    assert explained(certify(workspace, NAME)) == {"loaded": 40}
    assert table(workspace, "tickets")["9"]["subject"] == "changed"


@pytest.mark.slow
def test_what_stays_unexplained_is_named_and_fails(workspace, loaded):
    loaded.records["tickets"].append(ticket(50, "2024-03-02T11:00:00Z"))

    def broken(request: Request) -> Answer | None:
        return Answer(500, b"{}") if request.id == "50" else None

    loaded.before = broken
    certificate = certify(workspace, NAME)
    # Refused one by one, it comes with the whole listing.
    assert explained(certificate) == {"loaded": 41}

    loaded.records["tickets"].append(ticket(60, "2024-03-02T11:00:00Z"))

    def hidden_when_whole(request: Request) -> Answer | None:
        if request.id == "60":
            return Answer(500, b"{}")
        if "select=*" in request.target:
            drop(loaded, 60)
        return None

    loaded.before = hidden_when_whole
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"60": "not_loaded"}


@pytest.mark.slow
def test_records_without_an_id_are_found_by_their_bytes(workspace, loaded):
    loaded.records["tickets"].append(b'{"_type":"Ticket","subject":"nameless","updated_at":null}')
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert section(certificate)["without_id"] == {"in_quarantine": 1, "lost": []}
    assert explained(certificate) == {"loaded": 40, "quarantined": 1}
    page = (workspace.home.audit / certificate.path).with_suffix(".html").read_text()
    assert "Every one of 44 records is accounted for." in page
    assert list(quarantined(workspace, "tickets").values()) == ["id_missing"]


@pytest.mark.slow
def test_a_mass_disappearance_is_held_until_it_is_accepted(workspace, loaded):
    drop(loaded, *range(1, 6))
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "blocked"
    assert set(named(certificate, "unexplained").values()) == {"held"}
    assert deleted(workspace) == set()
    assert rows(workspace, "select * from bridge.deletions") == []
    said = Acceptance("Ann Lee", "ada@example.com of the vendor purged them")
    accepted = certify(workspace, NAME, acceptance=said)
    assert accepted.document["accepted"] == {"by": "Ann Lee", "reason": "a…@… of the vendor purged them"}
    assert accepted.verdict == "complete"
    assert deleted(workspace) == {"1", "2", "3", "4", "5"}
    assert accepted.accepted_by == "Ann Lee"
    (row,) = rows(workspace, "select distinct accepted_by from bridge.deletions")
    assert row == {"accepted_by": "Ann Lee"}


@pytest.mark.slow
def test_days_say_nothing_of_what_changed_on_others(workspace, loaded):
    # 1 and 4 of the day, 3 of the day before, 2 and 5 of the day after.
    drop(loaded, 1, 2, 3)
    for number in (4, 5):
        loaded.find("tickets", number).update(
            subject="changed since", updated_at=f"2024-03-0{number - 2}T23:00:00Z"
        )
    certificate = certify(workspace, NAME, day("2024-03-02"), ("tickets",))
    assert certificate.verdict == "complete"
    assert named(certificate, "deleted") == {"1": "gone"}
    assert {"2", "3", "5"}.isdisjoint(loaded.lookups("tickets"))
    assert deleted(workspace) == {"1"}


@pytest.mark.slow
def test_few_of_few_are_held_and_slices_count_together(workspace, loaded):
    drop(loaded, 3, 6, 9)  # of 13 on that day
    certificate = certify(workspace, NAME, day(FIRST), ("tickets",))
    assert certificate.verdict == "blocked"
    # Of all 40 they are no more than 10 %.
    assert certify(workspace, NAME, entities=("tickets",)).verdict == "complete"
    drop(loaded, 1, 2)
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "blocked"
    assert "2 of 37 tickets (after 3 in the week before)" in written.verdict_words(certificate.document)[1]
    assert deleted(workspace) == {"3", "6", "9"}
    accepted = certify(workspace, NAME, entities=("tickets",), acceptance=Acceptance("Ann Lee", "purged"))
    assert accepted.verdict == "complete"
    # What was accepted does not count against what comes after.
    drop(loaded, 4)
    assert certify(workspace, NAME, entities=("tickets",)).verdict == "complete"


@pytest.mark.slow
def test_what_a_blocked_batch_holds_back_is_not_carried_past_its_check(workspace, loaded):
    strict = without_tolerance(workspace)
    new = [ticket(n, "2024-03-04T10:00:00Z") for n in (50, 51)]
    loaded.records["tickets"] += [*new, ticket(52, "2024-03-04T11:00:00Z", subject=17)]
    loaded.records["tickets"].append(ticket(60, "2024-03-05T10:00:00Z"))
    blocked = land(strict, "tickets", day("2024-03-04"))
    assert blocked.verdict == "blocked"
    process(workspace, day("2024-03-05"), ["tickets"])
    loaded.requests.clear()
    certificate = certify(strict, NAME, entities=("tickets",))
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"50": "blocked", "51": "blocked"}
    # What was refused is no part of what is held back.
    assert loaded.lookups("tickets") == ["52"]
    assert "50" not in table(workspace, "tickets")
    accept_batch(strict, blocked.id, "Ann Lee", "known")
    assert certify(strict, NAME, entities=("tickets",)).verdict == "complete"
    assert "50" in table(workspace, "tickets")


@pytest.mark.slow
def test_a_later_reading_that_passes_holds_nothing_back(workspace, loaded):
    strict = without_tolerance(workspace)
    loaded.records["tickets"] += [
        ticket(50, "2024-03-04T10:00:00Z"),
        ticket(52, "2024-03-04T11:00:00Z", subject=17),
    ]
    assert land(strict, "tickets", day("2024-03-04")).verdict == "blocked"
    loaded.find("tickets", 52)["subject"] = "mended"
    assert land(strict, "tickets", day("2024-03-04")).verdict == "passed"
    certificate = certify(strict, NAME, entities=("tickets",))
    assert certificate.verdict == "complete"
    assert explained(certificate)["awaited"] == 2  # they passed, and are to be loaded yet


@pytest.mark.slow
def test_a_hidden_record_is_loaded_only_if_its_newest_version_is(workspace, loaded):
    loaded.unlisted = {29}
    loaded.find("tickets", 29).update(updated_at="2024-03-03T23:00:00Z", subject=17)
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert named(certificate, "quarantined") == {"29": "quarantined"}
    loaded.find("tickets", 29).update(updated_at="2024-03-03T23:30:00Z", subject=18)
    certificate = certify(without_tolerance(workspace), NAME, entities=("tickets",))
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"29": "blocked"}


@pytest.mark.parametrize("listed", ["not at all", "as deleted"])
@pytest.mark.usefixtures("telling")
def test_an_older_version_than_the_table_has_is_not_accounted_for_where_only_its_id_brings_it(
    workspace, loaded, listed
):
    loaded.find("tickets", 29).update(updated_at="2024-03-02T01:00:00Z", subject="restored from a backup")
    alive = json.dumps({"data": loaded.find("tickets", 29)}).encode()
    if listed == "as deleted":
        loaded.find("tickets", 29)["cf_state"] = "deleted"
        loaded.before = lambda request: Answer(200, alive) if request.id == "29" else None
    else:
        loaded.unlisted = {29}
    for _ in range(2):
        certificate = certify(workspace, NAME, entities=("tickets",))
        assert certificate.verdict == "incomplete"
        assert named(certificate, "unexplained") == {"29": "ahead"}
        assert table(workspace, "tickets")["29"]["subject"] != "restored from a backup"


def test_a_change_mark_that_lookups_leave_out_makes_no_older_version(workspace, loaded, monkeypatch):
    helpdesk = connectors.get("helpdesk")
    streams = tuple(replace(stream, listed_mark=lambda record, mark: {}) for stream in helpdesk.streams)
    monkeypatch.setattr(connectors, "get", lambda name: replace(helpdesk, streams=streams))
    loaded.find("tickets", 29)["updated_at"] = "2024-03-02T01:00:00Z"
    loaded.unlisted = {29}
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert named(certificate, "loaded") == {"29": "hidden"}


@pytest.mark.usefixtures("telling")
def test_what_is_listed_as_deleted_and_given_by_its_id_is_loaded_only_if_its_newest_version_is(
    workspace, loaded
):
    changed = loaded.find("tickets", 29) | {"updated_at": "2024-03-03T23:00:00Z", "subject": 17}
    loaded.find("tickets", 29)["cf_state"] = "deleted"
    alive = json.dumps({"data": changed}).encode()
    loaded.before = lambda request: Answer(200, alive) if request.id == "29" else None
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert named(certificate, "quarantined") == {"29": "quarantined"}
    again = json.dumps({"data": changed | {"subject": 18}}).encode()
    loaded.before = lambda request: Answer(200, again) if request.id == "29" else None
    certificate = certify(without_tolerance(workspace), NAME, entities=("tickets",))
    assert named(certificate, "unexplained") == {"29": "blocked"}


def test_an_accepted_lookup_reaches_the_files_of_its_records(workspace, loaded):
    strict = without_tolerance(workspace)
    loaded.records["tickets"] += [
        ticket(50, "2024-03-02T11:00:00Z"),
        ticket(51, "2024-03-02T12:00:00Z", subject=17),
    ]
    certificate = certify(strict, NAME, entities=("tickets",))
    assert named(certificate, "unexplained") == {"50": "blocked"}
    (lookup,) = rows(workspace, "select id from bridge.batches where kind = 'lookup' and verdict = 'blocked'")
    accept_batch(strict, lookup["id"], "Ann Lee", "known")
    assert audited(workspace, "2024-03-02")["50"] is False
    assert verify_folder(workspace.home.audit / "acme").findings == []


def test_what_is_unexplained_is_named_however_much_else_there_is(workspace, loaded, monkeypatch):
    monkeypatch.setattr(reckon, "_NAMED_AT_MOST", 2)
    loaded.unlisted = {1, 2, 3, 40}
    loaded.before = lambda request: Answer(500, b"{}") if request.id == "40" else None
    found = section(certify(workspace, NAME, entities=("tickets",)))
    assert [each["id"] for each in found["named"]] == ["40", "1", "2"]
    assert found["unnamed"] == {"unexplained": 0, "explained": 1}


def test_a_listing_that_was_interrupted_is_not_evidence_later(workspace, loaded, monkeypatch):
    def interrupted(*arguments, **options):
        list_source(*arguments, **options).close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, "list_source", interrupted)
        with pytest.raises(KeyboardInterrupt):
            certify(workspace, NAME, entities=("tickets",))
    drop(loaded, 29)
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert named(certificate, "deleted") == {"29": "gone"}


def test_a_replayed_record_moves_no_bounds_of_what_was_extracted(workspace, loaded):
    with workspace.database.engine.connect() as connection:
        before = coverage(connection, NAME, "tickets", timedelta())
    process(workspace, day("2024-02-01"), ["tickets"])
    execute(workspace, "update bridge.batches set kind = 'replay' where window_start < '2024-03-01'")
    with workspace.database.engine.connect() as connection:
        assert coverage(connection, NAME, "tickets", timedelta()) == before


def test_an_entity_of_which_nothing_is_left_is_held(workspace, loaded):
    loaded.records["accounts"] = []
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "blocked"
    assert deleted(workspace, "accounts") == set()


@pytest.mark.slow
@pytest.mark.parametrize("status", [404, 403])
def test_lookups_that_deny_what_is_listed_are_not_believed(workspace, loaded, status):
    drop(loaded, 7)
    loaded.before = lambda request: Answer(status, b"{}") if request.id else None
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"7": "silent"}
    assert deleted(workspace) == set()


@pytest.mark.parametrize(
    "body", [b'{"data":{}}', b'{"data":{"error":"Not found"}}', b'{"id":null,"error":"Not found"}']
)
def test_a_lookup_that_is_answered_without_the_record_explains_nothing(workspace, loaded, body):
    drop(loaded, 7)
    loaded.before = lambda request: Answer(200, body) if request.id == "7" else None
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "incomplete"
    assert named(certificate, "unexplained") == {"7": "silent"}
    assert deleted(workspace) == set()


def test_where_there_are_no_lookups_the_whole_listing_decides(workspace, loaded):
    drop(loaded, 7)
    loaded.by_id = False
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert deleted(workspace) == {"7"}
    assert [row["reason"] for row in rows(workspace, "select reason from bridge.deletions")] == ["listing"]


def test_where_there_are_no_lookups_a_listing_of_nothing_decides_once_it_is_accepted(workspace, loaded):
    ids = flow.arrived(workspace, "tickets")
    loaded.records["tickets"].clear()
    loaded.by_id = False
    first = certify(workspace, NAME)
    assert first.verdict == "blocked"
    assert set(named(first, "unexplained").values()) == {"held"}
    assert deleted(workspace) == set()
    acceptance = Acceptance("Ann Lee", "the desk was emptied")
    assert certify(workspace, NAME, acceptance=acceptance).verdict == "complete"
    assert deleted(workspace) == ids


def test_where_there_are_no_lookups_a_listing_of_nothing_decides_of_no_single_record_by_itself(
    workspace, loaded
):
    execute(workspace, "delete from desk.ticket_users where ticket_id <> '7'")
    execute(workspace, "delete from desk.tickets where id <> '7'")
    loaded.records["tickets"].clear()
    loaded.by_id = False
    first = certify(workspace, NAME, entities=("tickets",))
    assert (first.verdict, deleted(workspace)) == ("blocked", set())
    acceptance = Acceptance("Ann Lee", "the desk was emptied")
    assert certify(workspace, NAME, entities=("tickets",), acceptance=acceptance).verdict == "complete"
    assert deleted(workspace) == {"7"}


NOT_EMPTY = {
    "unauthorised": Answer(401, b'{"data": []}'),
    "forbidden": Answer(403, b'{"data": []}'),
    "not found": Answer(404, b'{"data": []}'),
    "login page": Answer(200, b"<html>Please sign in</html>", {"Content-Type": "text/html"}),
    "nothing": Answer(200, b""),
    "an error beside no records": Answer(200, b'{"data": [], "more": false, "error": "backend timeout"}'),
}


@pytest.mark.parametrize("answer", NOT_EMPTY.values(), ids=NOT_EMPTY)
def test_a_listing_that_is_no_listing_is_never_no_records(workspace, loaded, answer):
    loaded.before = lambda request: answer if request.entity == "tickets" else None
    with pytest.raises(SourceError):
        certify(workspace, NAME)
    assert deleted(workspace) == set()
    assert step.newest(workspace, NAME) is None


def test_a_401_in_the_midst_of_lookups_marks_nothing(workspace, loaded):
    drop(loaded, 7, 8)
    loaded.before = lambda request: Answer(401, b"{}") if request.id == "8" else None
    with pytest.raises(SourceError):
        certify(workspace, NAME)
    assert deleted(workspace) == set()


def test_records_of_days_that_were_never_extracted_are_awaited(workspace, loaded):
    loaded.records["tickets"] += [ticket(60, "2024-02-01T10:00:00Z"), ticket(61, "2024-03-09T10:00:00Z")]
    now = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    loaded.find("tickets", 9)["updated_at"] = now
    certificate = certify(workspace, NAME)
    assert certificate.verdict == "complete"
    assert explained(certificate) == {"loaded": 39, "awaited": 3}


@pytest.mark.slow
def test_a_day_that_was_left_out_between_others_is_noticed(workspace, loaded):
    process(workspace, day("2024-03-05"), ["tickets"])
    loaded.records["tickets"].append(ticket(60, "2024-03-04T10:00:00Z"))
    assert explained(certify(workspace, NAME)) == {"loaded": 41}


@pytest.mark.slow
def test_days_are_judged_alone(workspace, loaded):
    drop(loaded, 6, 7)  # of the first and of the second day
    loaded.records["tickets"].append(ticket(60, "2024-03-01T12:00:00Z"))
    certificate = certify(workspace, NAME, day("2024-03-01"), ("tickets",))
    assert explained(certificate) == {"loaded": 13, "deleted": 1}
    assert deleted(workspace) == {"6"}
    assert [each["entity"] for each in certificate.document["entities"]] == ["tickets"]
    assert certificate.document["command"] == (
        f"bridge certify {NAME} --from 2024-03-01 --to 2024-03-01 --entities tickets"
    )


@pytest.mark.slow
def test_placeholders_are_ignored(workspace, loaded):
    loaded.find("tickets", 9)["account"] = {"id": 999, "_type": "Account"}
    loaded.find("tickets", 9)["updated_at"] = "2024-03-03T12:00:00Z"
    process(workspace, day(LAST), ["tickets"])
    assert table(workspace, "accounts")["999"]["placeholder"]
    certificate = certify(workspace, NAME)
    assert explained(certificate, "accounts") == {"loaded": 2}
    assert certificate.verdict == "complete"


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records say in `cf_state` what has become of them."""
    helpdesk = connectors.get("helpdesk")
    streams = tuple(
        replace(stream, state=lambda record: record.get("cf_state")) for stream in helpdesk.streams
    )
    monkeypatch.setattr(connectors, "get", lambda name: replace(helpdesk, streams=streams))


@pytest.mark.slow
@pytest.mark.usefixtures("telling")
def test_archived_records_stay_and_are_called_so(workspace, loaded):
    loaded.find("tickets", 9)["cf_state"] = "archived"
    loaded.unlisted = {9}
    certificate = certify(workspace, NAME)
    assert explained(certificate) == {"loaded": 39, "archived": 1}
    assert deleted(workspace) == set()


CONFIRMING = {
    "gone": (Answer(404, b"{}"), ("deleted", "gone", "lookup")),
    "calls itself deleted": (None, ("deleted", "gone", "lookup")),
    "forbidden": (Answer(403, b"{}"), ("forbidden", "forbidden", None)),
    "cannot be asked for": (Answer(405, b"{}"), ("deleted", "gone", "marked")),
    "no answer": (Answer(500, b"{}"), ("unexplained", "reported", None)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "expected"), CONFIRMING.values(), ids=CONFIRMING)
@pytest.mark.usefixtures("telling")
def test_what_the_source_lists_as_deleted_is_confirmed_by_its_id(workspace, loaded, answer, expected):
    loaded.find("tickets", 9)["cf_state"] = "deleted"
    # What is not offered is offered for no record.
    everywhere = answer is not None and answer.status == 405
    loaded.before = lambda request: answer if request.id == "9" or (everywhere and request.id) else None
    certificate = certify(workspace, NAME, entities=("tickets",))
    explanation, finding, reason = expected
    assert named(certificate, explanation) == {"9": finding}
    assert deleted(workspace) == ({"9"} if reason else set())
    found = rows(workspace, "select reason from bridge.deletions")
    assert [row["reason"] for row in found] == ([reason] if reason else [])
    assert "9" in loaded.lookups("tickets")
    loaded.requests.clear()
    if reason:
        assert explained(certify(workspace, NAME, entities=("tickets",))) == {"loaded": 39, "deleted": 1}
        assert loaded.lookups("tickets") == []


@pytest.mark.usefixtures("telling")
def test_what_the_source_lists_as_deleted_and_gives_by_its_id_is_no_deletion(workspace, loaded):
    alive = json.dumps({"data": loaded.find("tickets", 9)}).encode()
    loaded.find("tickets", 9)["cf_state"] = "deleted"
    loaded.before = lambda request: Answer(200, alive) if request.id == "9" else None
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert named(certificate, "loaded") == {"9": "kept"}
    assert deleted(workspace) == set()


def test_rows_loaded_while_the_source_was_read_are_not_judged(workspace, loaded, monkeypatch):
    def listed_and_then_changed(client, stream, *rest, **options):
        book = list_source(client, stream, *rest, **options)
        if stream.entity.name == "tickets":
            loaded.records["tickets"].append(ticket(60, "2024-03-03T12:00:00Z"))
            process(workspace, day(LAST), ["tickets"])
        return book

    monkeypatch.setattr(step, "list_source", listed_and_then_changed)
    certificate = certify(workspace, NAME)
    assert section(certificate)["findings"] == {"current": 40, "fresh": 1}
    assert loaded.lookups("tickets") == []


def test_what_is_seen_after_a_lookup_found_nothing_is_not_deleted(workspace, loaded, monkeypatch):
    kept = loaded.records["tickets"]
    drop(loaded, 7)

    def back_after_it_was_asked_for(point: str) -> None:
        if point == "certify.asked" and len(loaded.records["tickets"]) < len(kept):
            loaded.records["tickets"] = kept
            process(workspace, day(FIRST, LAST), ["tickets"])

    monkeypatch.setattr(step, "reach", back_after_it_was_asked_for)
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert "7" in loaded.lookups("tickets")
    assert section(certificate)["findings"] == {"current": 39, "fresh": 1}
    assert deleted(workspace) == set()
    assert audited(workspace, "2024-03-02")["7"] is False


def test_the_files_say_what_the_ledger_says(workspace, loaded):
    drop(loaded, 7)
    certificate = certify(workspace, NAME)
    path = workspace.home.audit / certificate.path
    assert path.relative_to(workspace.home.audit).as_posix() == f"acme/{NAME}/certificates/c0001.json"
    document = json.loads(path.read_bytes())
    assert document == certificate.document
    assert document["covers"]["audit_files"] == 9
    assert section(certificate)["batches"]["holds"]
    assert verify_folder(workspace.home.audit / "acme").findings == []
    assert [key for key, gone in audited(workspace, "2024-03-02").items() if gone] == ["7"]
    page = path.with_suffix(".html").read_text()
    assert "Every one of 43 records is accounted for." in page
    for outside in ("http://www", "<script", "src=", "@import"):
        assert outside not in page
    assert "Printer" not in page
    assert "example.com" not in page
    hostile = certificate.document | {"source": "<script>alert(1)</script>"}
    assert "&lt;script&gt;" in written.render(hostile, certificate.sha256)


def test_what_cannot_be_certified_is_said(workspace, loaded):
    with pytest.raises(CannotCertify, match="has no comments"):
        certify(workspace, NAME, entities=("comments",))
    today = datetime.now(UTC).date().isoformat()
    with pytest.raises(CannotCertify, match="not over yet"):
        certify(workspace, NAME, day(today))


KILLED_AT = ("certify.listed=kill@3", "certify.fetched=kill", "certify.written=kill", "certify.marked=kill")


@pytest.mark.long
@pytest.mark.parametrize("point", KILLED_AT)
def test_killed_anywhere_nothing_is_half_marked_and_it_heals(workspace, loaded, point):
    drop(loaded, 7, 8)
    loaded.records["tickets"].append(ticket(60, "2024-03-02T12:00:00Z"))
    assert ended(start(flow.certify_now, failpoint=point)) == -9
    assert deleted(workspace) == set()
    assert step.newest(workspace, NAME) is None
    certificate = certify(workspace, NAME)
    assert certificate.number == 1
    assert explained(certificate) == {"loaded": 39, "deleted": 2}
    assert deleted(workspace) == {"7", "8"}
    # The interrupted certificate may have loaded it; its day's file has it all the same.
    assert "60" in audited(workspace, "2024-03-02")


@pytest.mark.slow
def test_nothing_is_loaded_between_the_last_comparison_and_the_marks(workspace, loaded):
    loaded.records["tickets"].append(ticket(60, "2024-03-04T12:00:00Z"))
    land(workspace, "tickets", day("2024-03-04"))

    def load_and_look():
        load_window(workspace, NAME, "tickets", day("2024-03-04"))
        return step.newest(workspace, NAME)

    with beside_at("certify.judged", workspace, load_and_look) as others:
        certificate = certify(workspace, NAME, entities=("tickets",))
    assert others[0].result() == certificate
    assert (explained(certificate), len(table(workspace, "tickets"))) == ({"loaded": 40, "awaited": 1}, 41)


@pytest.mark.slow
def test_two_at_once_make_two_certificates_one_after_the_other(workspace, loaded):
    drop(loaded, 7)
    meeting = flow.Meeting(2, "certify.listed")
    both = [start(flow.certify_together, meeting) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert meeting.together == 0
    numbers = rows(workspace, "select number, verdict from bridge.certificates order by number")
    assert [(row["number"], row["verdict"]) for row in numbers] == [(1, "complete"), (2, "complete")]
    assert len(rows(workspace, "select * from bridge.deletions")) == 1
