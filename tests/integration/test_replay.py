"""Replay: what was mended is loaded as if it had never been rejected, and nothing else changes."""

import csv
import dataclasses
import json

import openpyxl
import pytest

from bridge_pipeline import cli, connectors
from bridge_pipeline.connector_kit import fields
from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connectors import helpdesk
from bridge_pipeline.database import registry
from bridge_pipeline.database.ledger import CheckResult
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.findings import Findings, findings_of
from bridge_pipeline.steps.quarantine import NotASha256, Selection, list_quarantined
from bridge_pipeline.steps.replay import RemovedConnection, replay
from bridge_pipeline.steps.report import write_report
from tests.integration import flow
from tests.integration.desk import ticket
from tests.integration.flow import (
    NAME,
    arrived,
    beside_at,
    connect,
    day,
    digest,
    ended,
    execute,
    land,
    process,
    rows,
    start,
    table,
)

DAY, NEXT = "2024-03-01", "2024-03-02"
NOON = f"{DAY}T12:00:00Z"
ALL = Selection(NAME)
LIKES_NONE = Expectation(
    "subject_polite", "quarantine", "Subjects are polite.", "ExpectColumnValuesToNotMatchRegex",
    ("subject",), {"column": "subject", "regex": "damn"},
)  # fmt: skip


@pytest.fixture
def desk(workspace, desk):
    """The desk, connected for tickets alone: no parents are looked up."""
    connect(workspace, desk, entities=("tickets",))
    return desk


def mapping(**readers) -> Connector:
    """The helpdesk's connector with other readers of some columns."""
    streams = tuple(
        dataclasses.replace(stream, fields=tuple(readers.get(field.column, field) for field in stream.fields))
        for stream in helpdesk.CONNECTOR.streams
    )
    return dataclasses.replace(helpdesk.CONNECTOR, streams=streams)


def lenient_time(column: str) -> fields.Field:
    """A time that is taken for UTC where no zone is given: the mended mapping."""

    def read(record):
        value = record.get(column)
        zoned = f"{value}Z" if isinstance(value, str) and "T" in value and value[-1].isdigit() else value
        return fields.microseconds(zoned, f"/{column}")

    return fields.Field(column, read, (column,))


MENDED = mapping(updated_at=lenient_time("updated_at"))


def mend(monkeypatch, connector: Connector = MENDED) -> None:
    monkeypatch.setitem(connectors.all_connectors(), "helpdesk", connector)


def spoilt(number: int, changed: str = "2024-03-01T10:00:00", **more):
    """A ticket whose change time has no zone, as bytes, so that no filter hides it."""
    return json.dumps(ticket(number, changed, **more)).encode()


def audited(workspace, on: str = DAY) -> dict[str, dict[str, str]]:
    """The rows of the current audit file of a day by id."""
    folder = workspace.home.audit / "acme" / NAME / "tickets" / on
    newest = max(folder.glob("*.csv"))
    with newest.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def findings(workspace, on: str) -> Findings:
    record = registry.get(workspace.database.engine, NAME)
    with workspace.database.engine.connect() as connection:
        return findings_of(workspace, connection, record, ["tickets"], day(on).start.date())


def waiting(workspace) -> set[str | None]:
    return {r.record_id for r in list_quarantined(workspace, Selection(NAME, replayed=False))}


def batches(workspace) -> list[dict]:
    return rows(workspace, "select * from bridge.batches where kind = 'replay' order by id")


@pytest.mark.slow
def test_a_mended_mapping_gives_what_a_sound_record_would_have_given(workspace, desk, monkeypatch):
    desk.records["tickets"] = [ticket(1, NOON), spoilt(2), spoilt(3, "2024-03-02T10:00:00"), ticket(4, NOON)]
    process(workspace, day(DAY, NEXT), ["tickets"])
    assert waiting(workspace) == {"2", "3"}
    requests = len(desk.requests)
    mend(monkeypatch)
    (done,) = replay(workspace, ALL)
    assert len(desk.requests) == requests, "a replay asks nobody"
    assert (done.batch.fetched, done.batch.landed, done.accepted) == (2, 2, 2)
    assert (done.load.loaded, done.load.superseded) == (2, 0)
    assert [str(file.day) for file in done.files if file.added] == [DAY, NEXT]
    assert waiting(workspace) == set()
    assert (set(audited(workspace)), set(audited(workspace, NEXT))) == ({"1", "2", "4"}, {"3"})
    assert {r.replay_batch for r in list_quarantined(workspace, Selection(replayed=True))} == {done.batch.id}

    connect(workspace, desk, "afresh", entities=("tickets",))
    process(workspace, day(DAY, NEXT), ["tickets"], "afresh")
    replayed, afresh = digest(workspace), digest(workspace, "afresh")
    assert replayed["tables"] == afresh["tables"]
    again = process(workspace, day(DAY, NEXT), ["tickets"])["tickets"]
    assert not any(file.added for file in again[2]), "the days are as a new extraction finds them"
    assert replay(workspace, ALL) == []


@pytest.mark.slow
def test_the_equation_of_a_replay_holds_with_records_that_say_the_same(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1), b" " + spoilt(1).replace(b'"id"', b' "id"'), spoilt(2, "never")]
    process(workspace, day(DAY), ["tickets"])
    mend(monkeypatch)
    first, second = replay(workspace, ALL)
    for batch in (first.batch, second.batch):
        assert batch.fetched == batch.outside + batch.duplicate + batch.quarantined + batch.landed
        assert batch.verdict == "passed"
    assert (first.batch.fetched, first.batch.duplicate, first.refused) == (3, 1, {"time_invalid": 1})
    assert (second.batch.fetched, second.load.unchanged) == (1, 1)
    assert waiting(workspace) == {"2"}
    assert arrived(workspace, "tickets") == {"1"}


@pytest.mark.slow
def test_what_is_refused_again_stays_and_says_why(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1, subject=5), spoilt(2)]
    process(workspace, day(DAY), ["tickets"])
    (before,) = list_quarantined(workspace, Selection(ids=("1",)))
    mend(monkeypatch)
    (done,) = replay(workspace, ALL)
    (after,) = list_quarantined(workspace, Selection(ids=("1",)))
    assert done.refused == {"wrong_type": 1}
    assert (before.reason, before.pointer) == ("wrong_type", "/subject")
    assert (after.replayed_at, after.last_batch, after.times_seen) == (None, done.batch.id, before.times_seen)
    (other,) = list_quarantined(workspace, Selection(ids=("2",)))
    assert other.replayed_at is not None


@pytest.mark.slow
def test_the_report_says_what_a_replay_brought_and_why_the_rest_waits_now(workspace, desk, monkeypatch):
    desk.records["tickets"] = [ticket(1, NOON), spoilt(2), spoilt(3, subject="damn printer")]
    process(workspace, day(DAY), ["tickets"])
    mend(monkeypatch, dataclasses.replace(MENDED, expectations={"tickets": (LIKES_NONE,)}))
    replay(workspace, ALL)
    report = write_report(workspace, NAME, day(DAY).start.date())
    assert report.workbook is not None
    (row,) = list(openpyxl.load_workbook(report.workbook).active.values)[1:]
    assert (row[1], row[5]) == ("3", "subject_polite")
    split = "; 1 of them set aside at first and loaded since by replay"
    assert f"1 of them set aside in quarantine, nothing thrown away{split}" in report.markdown
    assert "Refused by a check: Subjects are polite." in report.markdown
    assert "time_without_zone" not in report.html.read_text(), "the reason of then"
    assert f"bridge quarantine list {NAME} --reason subject_polite" in report.markdown

    mend(monkeypatch)
    replay(workspace, ALL)
    mended = write_report(workspace, NAME, day(DAY).start.date())
    assert mended.workbook is None
    assert "bridge quarantine list" not in mended.markdown, "nothing is left to do"
    assert "2 of them set aside at first and loaded since by replay" in mended.markdown
    assert "Loaded since by replay: 2" in mended.markdown
    (part,) = findings(workspace, DAY).parts
    assert [(each.terms["quarantined"], each.holds) for each in part.equations] == [(2, True)]


@pytest.mark.slow
@pytest.mark.parametrize("regex", ["damn", "x"], ids=["again", "no more"])
def test_a_replay_goes_through_the_same_expectations(workspace, desk, monkeypatch, regex):
    polite = dataclasses.replace(helpdesk.CONNECTOR, expectations={"tickets": (LIKES_NONE,)})
    mend(monkeypatch, polite)
    desk.records["tickets"] = [ticket(1, NOON, subject="damn printer"), ticket(2, NOON)]
    process(workspace, day(DAY), ["tickets"])
    (found,) = list_quarantined(workspace, ALL)
    assert (found.reason, found.record_id) == ("subject_polite", "1")
    rule = dataclasses.replace(LIKES_NONE, arguments={"column": "subject", "regex": regex})
    mend(monkeypatch, dataclasses.replace(polite, expectations={"tickets": (rule,)}))
    (done,) = replay(workspace, ALL)
    if regex == "damn":
        assert (done.refused, done.accepted, waiting(workspace)) == ({"subject_polite": 1}, 0, {"1"})
        assert set(audited(workspace)) == {"2"}
    else:
        assert (done.refused, done.accepted, waiting(workspace)) == ({}, 1, set())
        assert audited(workspace)["1"]["subject"] == "damn printer"
    assert done.batch.verdict == "passed"


@pytest.mark.slow
def test_the_newest_version_wins_by_mark_and_by_the_time_of_its_page(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1, subject="rejected"), spoilt(2, subject="rejected")]
    process(workspace, day(DAY), ["tickets"])
    desk.records["tickets"] = [
        ticket(1, "2024-03-01T11:00:00Z", subject="newer mark"),
        ticket(2, "2024-03-01T10:00:00Z", subject="same mark, read later"),
    ]
    process(workspace, day(DAY), ["tickets"])
    mend(monkeypatch)
    (done,) = replay(workspace, ALL)
    assert (done.load.loaded, done.load.superseded) == (0, 2)
    assert [table(workspace, "tickets")[n]["subject"] for n in "12"] == [
        "newer mark",
        "same mark, read later",
    ]
    assert waiting(workspace) == set(), "they are accounted for: as superseded"
    assert not any(file.added for file in done.files), "the day was read again since"


@pytest.mark.slow
def test_a_record_of_a_day_that_was_never_extracted_is_loaded_without_audit(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1, "2019-07-07T10:00:00"), ticket(2, NOON)]
    process(workspace, day(DAY), ["tickets"])
    mend(monkeypatch)
    (done,) = replay(workspace, ALL)
    assert arrived(workspace, "tickets") == {"1", "2"}
    assert (done.document()["days_without_audit"], done.files) == (["2019-07-07"], ())
    process(workspace, day("2019-07-07"), ["tickets"])
    assert set(audited(workspace, "2019-07-07")) == {"1"}


@pytest.mark.slow
def test_what_is_rejected_again_by_a_later_extraction_is_back_in_quarantine(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1)]
    process(workspace, day(DAY), ["tickets"])
    with monkeypatch.context() as patch:
        mend(patch)
        replay(workspace, ALL)
    process(workspace, day(DAY), ["tickets"])
    (found,) = list_quarantined(workspace, ALL)
    assert (found.replayed_at, found.replay_batch, found.times_seen) == (None, None, 2)


@pytest.mark.slow
def test_only_what_is_selected_is_replayed(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1), spoilt(2), spoilt(3), spoilt(4, "x")]
    process(workspace, day(DAY), ["tickets"])
    connect(workspace, desk, "other-desk", entities=("tickets",))
    process(workspace, day(NEXT), ["tickets"], "other-desk")
    mend(monkeypatch)
    digest = list_quarantined(workspace, Selection(NAME, ids=("2",)))[0].sha256
    assert replay(workspace, Selection("other-desk", reason="nul_character")) == []
    assert replay(workspace, Selection(NAME, day=day(NEXT).start.date())) == []
    for selection in (
        Selection(NAME, ids=("1",)),
        Selection(NAME, digests=(digest[:12],)),
        Selection(NAME, "tickets", "time_without_zone", day(DAY).start.date()),
    ):
        (done,) = replay(workspace, selection)
        assert (done.batch.connection, done.accepted) == (NAME, 1)
    assert arrived(workspace, "tickets") == {"1", "2", "3"}
    assert len(list_quarantined(workspace, Selection("other-desk", replayed=False))) == 4
    with pytest.raises(NotASha256):
        Selection(digests=("%",))


@pytest.mark.slow
def test_what_is_excluded_by_now_is_not_loaded(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1, cf_password="hunter2", cf_kept=1)]
    process(workspace, day(DAY), ["tickets"])
    execute(workspace, """update bridge.connections set exclude = '["tickets.*_password"]'""")
    mend(monkeypatch)
    replay(workspace, ALL)
    fields = table(workspace, "tickets")["1"]["custom_fields"]
    assert "cf_kept" in fields
    assert "cf_password" not in fields


def test_a_removed_connection_takes_no_records(workspace, desk):
    execute(workspace, "update bridge.connections set removed_at = now()")
    with pytest.raises(RemovedConnection):
        replay(workspace, ALL)
    assert replay(workspace, Selection()) == []


@pytest.mark.slow
def test_a_blocked_replay_stays_out_until_it_is_accepted(workspace, desk, monkeypatch):
    desk.records["tickets"] = [spoilt(1)]
    process(workspace, day(DAY), ["tickets"])
    mend(monkeypatch)
    with monkeypatch.context() as patch:
        bad = CheckResult("versions_unique", "block", "", "", False, 1, 1, [])
        patch.setattr("bridge_pipeline.steps.facts._versions_unique", lambda *_: bad)
        (done,) = replay(workspace, ALL)
    assert (done.load, done.batch.verdict, arrived(workspace, "tickets")) == (None, "blocked", set())
    assert waiting(workspace) == {"1"}
    accept_batch(workspace, done.batch.id, "Grace", "looked at it")
    assert arrived(workspace, "tickets") == {"1"}
    assert set(audited(workspace)) == {"1"}
    assert waiting(workspace) == set()


# --- Two at once --------------------------------------------------------------------------------


def replay_together(meeting) -> None:
    workspace = open_workspace()
    connectors.all_connectors()["helpdesk"] = MENDED
    with meeting.joined(workspace):
        replay(workspace, ALL)


def spoil(desk) -> None:
    desk.records["tickets"] = [ticket(1, NOON), spoilt(2), spoilt(3, "2024-03-02T10:00:00"), spoilt(4, "x")]


@pytest.mark.slow
def test_two_replays_at_once_take_no_record_twice(workspace, desk):
    spoil(desk)
    process(workspace, day(DAY, NEXT), ["tickets"])
    meeting = flow.Meeting(2, "replay.claimed")
    both = [start(replay_together, meeting) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert meeting.together == 0
    assert arrived(workspace, "tickets") == {"1", "2", "3"}
    assert waiting(workspace) == {"4"}
    counts = "select sum(loaded) as loaded, sum(superseded) as superseded from bridge.loads l join bridge.batches b on b.id = l.batch_id where kind = 'replay'"  # noqa: E501
    assert rows(workspace, counts) == [{"loaded": 2, "superseded": 0}]
    assert len(list((workspace.home.audit / "acme" / NAME / "tickets" / DAY).glob("*.csv"))) == 2


def test_an_extraction_takes_nothing_away_from_a_replay_that_is_under_way(workspace, desk, monkeypatch):
    spoil(desk)
    process(workspace, day(DAY, NEXT), ["tickets"])
    mend(monkeypatch)
    with beside_at("replay.landed", workspace, extract, workspace, NAME, "tickets", day(NEXT)) as others:
        (done,) = replay(workspace, ALL)
    assert others[0].result().landed == 1
    assert done.load.loaded == 2
    assert arrived(workspace, "tickets") == {"1", "2", "3"}


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `bridge quarantine`; gives its exit code and what it printed."""
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.execute(["quarantine", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.slow
def test_the_command_tells_what_changed_and_what_stays(workspace, desk, monkeypatch, command):
    spoil(desk)
    process(workspace, day(DAY, NEXT), ["tickets"])
    land(workspace, "tickets", day(DAY))
    mend(monkeypatch)
    code, out, _ = command("replay", NAME, "--json")
    # The workspace of this test has no log set up, so that log lines stand before the document.
    document = json.loads(out[out.index("{\n") :])
    assert (code, document["accepted"]) == (0, 2)
    assert document["batches"][0]["partitions"] == [f"{NAME}|{DAY}", f"{NAME}|{NEXT}"]
    assert [(r["record_id"], r["reason"]) for r in document["still_rejected"]] == [("4", "time_invalid")]
    code, out, _ = command("replay", "--id", "no such id")
    assert (code, "no such record" in out) == (0, True)
    code, out, _ = command("list", NAME, "--rejected", "--entity", "tickets", "--day", NEXT, "--json")
    assert [record["record_id"] for record in json.loads(out)] == ["4"]
    assert len(json.loads(command("list", NAME, "--replayed", "--json")[1])) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "say which records"),
        (["replay", "--all", "--reason", "x"], "say which records"),
        (["replay", "--entity", "dogs"], "there is no entity 'dogs'"),
        (["list", "--sha"], "No such option"),
        (["replay", "--sha", "zz"], "not the beginning of a SHA-256"),
        (["replay", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_is_wrong_usage(workspace, command, arguments, said):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert said in err


HOSTILE = [
    b'{"id":0,"s":"\x1b]0;owned\x07 \xe2\x80\xae \xf0\x9f\x98\x80"}',
    b'{"id":1,"s":"\xff\x1b[31m\xc0\x80"}',
    b'{"id":0,"s":"' + b"x" * 300_000 + b'"}',
]


@pytest.mark.slow
@pytest.mark.parametrize("raw", HOSTILE, ids=["escapes", "no UTF-8", "large"])
def test_bytes_are_shown_without_steering_the_terminal_and_written_exactly(
    workspace, desk, command, tmp_path, raw
):
    desk.records["tickets"] = [raw]
    process(workspace, day(DAY), ["tickets"])
    (digest,) = [record.sha256 for record in list_quarantined(workspace, ALL)]
    code, out, _ = command("show", digest[:10], "--raw", str(tmp_path / "record"))
    assert code == 0
    assert not any(ord(letter) < 32 and letter != "\n" for letter in out)
    assert "\u202e" not in out
    assert (tmp_path / "record").read_bytes() == raw
    code, _, err = command("show", digest[:10], "--raw", str(tmp_path / "record"))
    assert (code, "exists already" in err) == (2, True)
