"""What reviewers see: summaries, the report, a record's history, the quarantine."""

import json
from datetime import date

import pytest

from bridge_pipeline import cli
from bridge_pipeline.database import registry
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.findings import findings_of
from bridge_pipeline.steps.history import UnknownEntity, UnknownRecord, find_record
from bridge_pipeline.steps.quarantine import (
    NotASha256,
    Selection,
    UnknownQuarantined,
    find_quarantined,
    list_quarantined,
)
from bridge_pipeline.steps.report import last_day_read
from bridge_pipeline.steps.summary import NothingExtracted, summarise_connection, summarise_run
from tests.integration.desk import account, ticket, user
from tests.integration.flow import NAME, day, execute, land, process

DAY = "2024-03-01"
NUL = b'{"id":7,"subject":"a\\u0000b \\u001b[31m","updated_at":"2024-03-01T10:00:00Z"}'
MARKUP = "<script>alert('x')</script>"


@pytest.fixture
def filled(desk, workspace):
    desk.records["accounts"] = [account(1, f"{DAY}T01:00:00Z")]
    desk.records["users"] = [user(1, f"{DAY}T01:00:00Z", email=MARKUP)]
    desk.records["tickets"] = [
        ticket(1, f"{DAY}T01:00:00Z"),
        ticket(2, f"{DAY}T02:00:00Z", account={"id": 5, "_type": "Account"}),
        ticket(3, "2024-03-02T01:00:00Z"),
        NUL,
    ]
    process(workspace, day(DAY))
    return workspace


def by_name(summary):
    return {each.entity: each for each in summary.entities}


@pytest.mark.slow
def test_a_summary_accounts_for_every_record(filled):
    summary = summarise_connection(filled, NAME)
    tickets = by_name(summary)["tickets"]
    assert (tickets.loaded, tickets.quarantined, tickets.waiting) == (2, 1, 0)
    assert all(entity.equation_holds for entity in summary.entities)
    assert (tickets.table_rows, tickets.audit_files, tickets.audit_rows) == (2, 1, 2)
    assert by_name(summary)["accounts"].placeholders == 1
    assert [(each.entity, each.reason, each.records) for each in summary.quarantine] == [
        ("tickets", "nul_character", 1)
    ]
    assert {(each.entity, each.name) for each in summary.checks if each.outcome == "warned"} == {
        ("users", "email_shape"),
        ("tickets", "accounts_known"),
        ("tickets", "accounts_exist"),
        # The newest day that was read is years old.
        *((entity, "freshness") for entity in ("accounts", "users", "tickets")),
    }
    assert json.dumps(summary.document(), default=str)


@pytest.mark.slow
def test_a_check_that_could_not_be_judged_is_no_pass_in_the_summary_as_in_the_report(filled):
    summary = summarise_connection(filled, NAME)
    record = registry.get(filled.database.engine, NAME)
    with filled.database.engine.connect() as connection:
        parts = findings_of(filled, connection, record, list(entities_of(record)), date(2024, 3, 1)).parts
    judged = {(part.entity, check.name) for part in parts for check in part.checks}
    unjudged = {(part.entity, check.name) for part in parts for check in part.unjudged} - judged
    assert unjudged
    assert {(c.entity, c.name) for c in summary.checks if c.outcome == "not judged"} == unjudged
    outcomes = summary.outcomes()
    assert outcomes["not judged"] == len(unjudged)
    assert sum(outcomes.values()) == len(judged | unjudged)
    found = summary.document()["checks"]["found"]
    assert {each["outcome"] for each in found} == {"warned"}


@pytest.mark.slow
def test_a_batch_that_waits_for_a_reviewer_is_shown_as_waiting(filled):
    batch = land(filled, "tickets", day(DAY))
    execute(filled, "update bridge.batches set verdict = 'blocked' where id = :id", id=batch.id)
    execute(
        filled,
        "update bridge.checks set passed = false where batch_id = :id and name = 'equation'",
        id=batch.id,
    )
    summary = summarise_connection(filled, NAME)
    (blocked,) = summary.blocked
    assert (blocked.batch, blocked.checks) == (batch.id, ("equation",))
    assert by_name(summary)["tickets"].waiting == 2
    assert by_name(summary)["tickets"].equation_holds


def test_what_was_never_extracted_cannot_be_summed_up(workspace, desk):
    with pytest.raises(NothingExtracted):
        summarise_connection(workspace, NAME)
    with pytest.raises(NothingExtracted):
        summarise_run(workspace, "no such run")
    with pytest.raises(NothingExtracted):
        last_day_read(workspace, NAME)


@pytest.mark.slow
def test_a_record_is_shown_with_its_versions_and_their_batches(filled, desk):
    desk.find("tickets", 1)["subject"] = "Put out"
    desk.find("tickets", 1)["updated_at"] = f"{DAY}T05:00:00Z"
    process(filled, day(DAY), ("tickets",))
    found = find_record(filled, NAME, "tickets", "1")
    assert found.row
    assert found.row["subject"] == "Put out"
    assert json.loads(found.payload or "")["subject"] == "Put out"
    assert [version.updated_at.hour for version in found.versions if version.updated_at] == [1, 5]
    assert found.versions[0].batch < found.versions[1].batch


@pytest.mark.slow
def test_a_record_in_quarantine_is_found_by_its_id(filled):
    found = find_record(filled, NAME, "tickets", "7")
    assert (found.row, found.versions) == (None, ())
    assert [each["reason"] for each in found.quarantined] == ["nul_character"]


@pytest.mark.slow
def test_what_nobody_knows_is_said_so(filled):
    with pytest.raises(UnknownRecord):
        find_record(filled, NAME, "tickets", "999")
    with pytest.raises(UnknownEntity, match="accounts, users, groups, tickets"):
        find_record(filled, NAME, "dogs", "1")


@pytest.mark.slow
def test_quarantined_bytes_come_back_exactly(filled):
    (listed,) = list_quarantined(filled, Selection(NAME, reason="nul_character"))
    assert list_quarantined(filled, Selection(NAME, reason="other_reason")) == []
    ((record, raw),) = find_quarantined(filled, listed.sha256[:8])
    assert raw == NUL
    assert (record.pointer, record.record_id, record.size) == ("/subject", "7", len(NUL))
    with pytest.raises(UnknownQuarantined):
        find_quarantined(filled, "ffffffff")
    for prefix in ("%", "xyz"):
        with pytest.raises(NotASha256):
            find_quarantined(filled, prefix)


@pytest.mark.slow
def test_the_commands_answer_with_one_document_and_steer_no_terminal(filled, capsys, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)
    digest = list_quarantined(filled, Selection(NAME))[0].sha256
    for arguments in (
        ["show", NAME, "tickets", "1"],
        ["quarantine", "list", NAME],
        ["quarantine", "show", digest[:8]],
        ["connections", "list"],
        ["connections", "test", NAME],
        ["report", NAME],
        ["status"],
    ):
        assert cli.execute([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert cli.execute(arguments) == 0
        assert "\x1b" not in capsys.readouterr().out


@pytest.mark.slow
def test_accepting_what_is_not_blocked_is_wrong_usage(filled, capsys, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)
    batch = land(filled, "tickets", day(DAY))
    assert cli.execute(["accept", str(batch.id), "--by", "Ann", "--reason", "fine"]) == 2
    assert "only a blocked batch" in capsys.readouterr().err
    execute(filled, "update bridge.batches set verdict = 'blocked' where id = :id", id=batch.id)
    assert cli.execute(["accept", str(batch.id), "--by", "Ann", "--reason", "fine", "--json"]) == 0
    # The workspace of this test has no log set up, so that log lines stand before the document.
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["verdict"] == "accepted"
