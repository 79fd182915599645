"""Expectations as data: whose threshold holds, what a broken file does, and what batches are judged by."""

import dataclasses
import json
import re
import sys
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pytest

from bridge_pipeline import cli
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database.engine import Database
from bridge_pipeline.model.expectation import Expectation, at_most, in_order, in_set, matches, present
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps import check as checking
from bridge_pipeline.steps import gx, gx_worker
from bridge_pipeline.steps import rows as judging
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.check import check, check_newest
from bridge_pipeline.steps.extract import extract, landing_of
from bridge_pipeline.steps.load import BatchBlocked, EquationBroken, load
from bridge_pipeline.steps.references import check_tables
from bridge_pipeline.steps.suites import InvalidExpectations, suite_of
from bridge_pipeline.steps.tables import bring_up_to_date
from tests.integration.desk import Answer, account, ticket, user
from tests.integration.flow import NAME, connect, day, execute, land, process, rows, table

DAY, NOON = day("2024-03-01"), "2024-03-01T12:00:00Z"


@pytest.fixture
def desk(workspace, desk):
    """The desk, connected for tickets alone: no parents are looked up."""
    connect(workspace, desk, entities=("tickets",))
    desk.page_size = 100
    return desk


def write(workspace, text: str):
    path = workspace.home.expectations_of("acme")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def suite(workspace, entity: str = "tickets"):
    record = registry.get(workspace.database.engine, NAME)
    return {each.name: each for each in suite_of(workspace, record, entity)}


def results(workspace, batch) -> dict[str, ledger.CheckResult]:
    with workspace.database.engine.connect() as connection:
        return {result.name: result for result in ledger.checks_of(connection, batch.id)}


def failed(workspace, batch) -> set[str]:
    return {name for name, result in results(workspace, batch).items() if not result.passed}


# --- The tenant's file --------------------------------------------------------------------------


def test_the_file_of_the_documentation_holds_as_it_says(workspace, desk, capsys, monkeypatch):
    text = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    example = re.search(r"```yaml\n(# expectations/acme.yaml\n.*?)```", text, re.DOTALL)
    assert example
    connect(workspace, desk)
    write(workspace, example[1])
    found = suite(workspace)
    assert found["subject_length"].thresholds["max_length"] == 120
    assert found["subject_length"].replaced == {"max_length": 1_000, "owner": "data-quality"}
    assert found["priority_known"].thresholds["values"] == ["Urgent", "High", "Normal", "Low"]
    assert not found["description_length"].enabled
    assert found["quarantined_share"].thresholds == {"max_share": 0.01, "minimum": 50}
    assert suite(workspace, "users")["email_present"].severity == "quarantine"
    assert (found["status_known"].source, found["status_present"].source) == ("connector", "suite")

    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)
    assert cli.execute(["expectations", "list", NAME, "--json"]) == 0
    listed = {(each["entity"], each["name"]): each for each in json.loads(capsys.readouterr().out)}
    assert listed["tickets", "subject_length"]["source"] == "tenant"
    assert listed["tickets", "subject_length"]["sentence"] == "Subjects have at most 120 characters."
    assert listed["tickets", "subject_length"]["set_by"].endswith("expectations/acme.yaml")
    assert listed["tickets", "equation"]["source"] == "suite"
    assert cli.execute(["expectations", "list", NAME]) == 0
    assert "instead of max_length 1000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "should be a valid dictionary"),
        ("expectations: [", "line 1"),
        ("- tickets", "should be a valid dictionary"),
        ("expectation: {}", "Extra inputs"),
        ("expectations: {ticket: {x: {a: 1}}}", "did you mean 'tickets'"),
        ("expectations: {tickets: {subject_lenght: {max_length: 2}}}", "did you mean 'subject_length'"),
        ("expectations: {tickets: {subject_length: {max_lenght: 2}}}", "it has: max_length, allowed_share"),
        ("expectations: {tickets: {subject_length: {max_length: '200'}}}", "valid integer"),
        ("expectations: {tickets: {subject_length: {max_length: -1}}}", "greater than or equal to 1"),
        ("expectations: {tickets: {subject_length: {max_length: true}}}", "cannot be"),
        ("expectations: {tickets: {subject_length: {severity: block}}}", "only quarantine or warn"),
        ("expectations: {tickets: {declared_fields: {severity: quarantine}}}", "only block or warn"),
        ("expectations: {tickets: {subject_length: {allowed_share: 5}}}", "less than or equal to 1"),
        ("expectations: {tickets: {subject_length: {allowed_share: .nan}}}", "finite"),
        ("expectations: {tickets: {subject_length: {enabled: 'no'}}}", "true or false"),
        ("expectations: {tickets: {subject_length: {}}}", "says nothing"),
        ("expectations: {tickets: {status_known: {values: []}}}", "at least 1"),
        ("expectations: {tickets: {status_known: {values: [1, yes]}}}", "valid string"),
        ("expectations: {users: {email_shape: {pattern: '('}}}", "no regular expression"),
        ("expectations: {tickets: {equation: {enabled: false}}}", "cannot be changed"),
        ("expectations: {tickets: {subject_length: {max_length: 1, max_length: 2}}}", "stands twice"),
        ("connections: {other: {tickets: {subject_length: {max_length: 2}}}}", "no connection of the tenant"),
        ("expectations: {users: {nobody_knows: {enabled: false}}}", "no expectation of users"),
    ],
)
def test_a_file_that_is_wrong_in_any_point_is_refused(text, told, workspace):
    connect(workspace, "http://127.0.0.1:9")
    path = write(workspace, text)
    with pytest.raises(InvalidExpectations) as caught:
        suite(workspace)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_wrong_file_leaves_the_batch_unchecked_and_nothing_is_loaded(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON)]
    path = write(workspace, "expectations: {tickets: {subject_length: {max_length: 0}}}")
    batch = extract(workspace, NAME, "tickets", DAY)
    with pytest.raises(InvalidExpectations):
        check(workspace, batch.id)
    with pytest.raises(BatchBlocked, match="materialise its checks"):
        bring_up_to_date(workspace, NAME, "tickets", DAY)
    path.rename(path.with_suffix(".yml"))
    with pytest.raises(InvalidExpectations, match=r"rename it to acme\.yaml"):
        check(workspace, batch.id)
    path.with_suffix(".yml").unlink()
    assert check(workspace, batch.id).batch.verdict == "passed"


def test_thresholds_of_the_tenant_decide_and_are_recorded_with_the_result(workspace, desk):
    desk.records["tickets"] = [ticket(n, NOON, created_at=None if n < 5 else NOON) for n in range(1, 11)]
    write(
        workspace,
        "expectations: {tickets: {subject_length: {max_length: 20, severity: quarantine},"
        " created_at_present: {allowed_share: 0.4, reason: known}, priority_known: {enabled: false},"
        " status_known: {values: [Old]}}}",
    )
    batch = land(workspace, "tickets", DAY)
    found = results(workspace, batch)
    assert failed(workspace, batch) == {"subject_length", "status_known"}
    assert batch.rejected == 1
    length = found["subject_length"]
    assert (length.unexpected, length.source, length.severity) == (1, "tenant", "quarantine")
    assert length.replaced == {"max_length": 1_000, "severity": "warn"}
    assert length.threshold == {"max_length": 20, "allowed_share": 0.0}
    assert length.description == "Subjects have at most 20 characters."
    assert (found["created_at_present"].unexpected, found["created_at_present"].note) == (4, "known")
    assert (found["priority_known"].judged, found["priority_known"].evaluated) == (False, 0)
    assert "switched off" in found["priority_known"].note
    assert found["status_known"].unexpected == 10


# --- Great Expectations -------------------------------------------------------------------------

NASTY = [
    "",
    " ",
    "a@b.c",
    "a" * 11,
    "é" * 10,
    "\U0001f525" * 10,
    "\U0001f525" * 11,
    "e\u0301" * 6,
    None,
    "x\ny",
]
TIMES = [None, datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC)]


@pytest.mark.parametrize(
    "expectation",
    [
        present("name", "warn", ""),
        at_most("name", 10, ""),
        in_set("name", ("", "a@b.c"), ""),
        matches("shape", "name", r"^[^@\s]+@(?=b)[^@\s]+$", "warn", ""),
        in_order("created_at", "updated_at", ""),
        present("updated_at", "warn", ""),
    ],
    ids=lambda expectation: expectation.name,
)
def test_what_great_expectations_is_shown_gives_the_results_of_the_values_themselves(expectation):
    size = len(NASTY) * len(TIMES) * len(TIMES)
    data = {
        "name": [NASTY[n % len(NASTY)] for n in range(size)],
        "created_at": [TIMES[n // len(NASTY) % 3] for n in range(size)],
        "updated_at": [TIMES[n // len(NASTY) // 3] for n in range(size)],
    }
    landed = pa.table({"name": pa.array(data["name"], pa.string())} | {
        key: pa.array(data[key], pa.timestamp("us", tz="UTC")) for key in ("created_at", "updated_at")
    })  # fmt: skip
    rules = [judging._rule(each) for each in (expectation, present("name", "warn", ""))]
    shown = pa.concat_tables(
        judging._shown(rules, part.append_column("seq", pa.array(range(len(part)))))
        for part in (landed.slice(0, 7), landed.slice(7, 1), landed.slice(8))
    )
    (_, positions), *_ = judging._failing(rules, shown)()
    raw = pd.DataFrame({"name": pd.Series(data["name"], dtype=object)} | {
        key: pd.to_datetime(pd.Series(data[key]), utc=True) for key in ("created_at", "updated_at")
    })  # fmt: skip
    plain = gx.Question(expectation.name, expectation.kind, expectation.arguments)
    assert positions.tolist() == gx.failing([plain], raw)[expectation.name]
    assert 0 < len(positions) < size


def test_a_kind_that_looks_at_other_rows_is_refused():
    unique = Expectation("unique", "warn", "", "ExpectColumnValuesToBeUnique", ("name",), {"column": "name"})
    with pytest.raises(ValueError, match="unique: rows cannot be judged by ExpectColumnValuesToBeUnique"):
        judging._rule(unique)


def test_rows_judged_in_many_parts_come_to_the_same(workspace, desk, monkeypatch):
    desk.records["tickets"] = [
        ticket(
            n, NOON, subject="Fire" if n % 3 else None, created_at=None if n % 7 else "2024-03-02T00:00:00Z"
        )
        for n in range(1, 251)
    ]
    write(workspace, "expectations: {tickets: {subject_present: {severity: quarantine, allowed_share: 1.0}}}")
    batch = land(workspace, "tickets", DAY)
    asked = tuple(each for each in suite(workspace).values() if each.subject == "rows")
    folder = landing_of(workspace, batch)
    whole = judging.begin(batch, folder, asked)()
    monkeypatch.setattr(judging, "_MOST_BYTES", 1)
    assert judging.begin(batch, folder, asked)() == whole
    assert (whole["subject_present"].unexpected, len(whole["subject_present"].rows)) == (83, 83)
    assert (whole["created_at_before_updated_at"].unexpected, whole["subject_present"].evaluated) == (35, 250)


def test_who_judged_a_large_batch_is_not_kept_beside_its_load(workspace, desk, monkeypatch):
    desk.records["tickets"] = [ticket(number, NOON) for number in (1, 2, 3)]
    batch = land(workspace, "tickets", DAY)
    asked = tuple(each for each in suite(workspace).values() if each.subject == "rows")
    # Another test may have imported it into this very process.
    monkeypatch.delitem(sys.modules, "great_expectations", raising=False)
    for worth, kept in ((3, True), (2, False)):
        monkeypatch.setattr(judging, "_WORTH_A_START", worth)
        judging.begin(batch, landing_of(workspace, batch), asked)()
        assert (gx_worker._started is not None) is kept


# --- Volumes, fields, the equation --------------------------------------------------------------


def test_a_day_with_far_fewer_tickets_than_usual_warns_and_names_itself(workspace, desk):
    mondays = [f"2024-03-{number:02}" for number in (4, 11, 18, 25)] + ["2024-04-01"]
    counts = dict(zip(mondays, (20, 22, 24, 26, 6), strict=True))
    made = [monday for monday, count in counts.items() for _ in range(count)]
    desk.records["tickets"] = [ticket(n, f"{monday}T12:00:00Z") for n, monday in enumerate(made, start=1)]
    batch = land(workspace, "tickets", day("2024-03-04", "2024-04-01"))
    found = results(workspace, batch)
    assert batch.verdict == "passed"
    assert (found["day_volume"].passed, found["day_volume"].evaluated) == (False, 1)
    assert found["day_volume"].examples == [{"day": "2024-04-01", "records": 6, "usual": 23.0}]
    # The first batch has no history of its fields, and its days are not the newest.
    assert not any(found[name].judged for name in ("newest_day_filled", "declared_fields", "other_fields"))


@pytest.mark.slow
def test_an_empty_newest_day_blocks_only_the_first_read_of_the_schedule(workspace, desk):
    write(workspace, "expectations: {tickets: {newest_day_filled: {weekdays: 1}}}")
    now = datetime.now(UTC)
    newest = ledger.newest_settled(now, workspace.settings.settle_lag)
    before = newest - timedelta(weeks=1)
    desk.records["tickets"] = [ticket(n, f"{before}T12:00:00Z") for n in range(1, 41)]
    usual = land(workspace, "tickets", day(str(before)))
    window = day(str(newest))
    by_hand = land(workspace, "tickets", window)
    assert not results(workspace, by_hand)["newest_day_filled"].judged, "its history has another lag"
    earlier = "update bridge.batches set fetched_from = fetched_from - interval '7 days' where id = :id"
    execute(workspace, earlier, id=usual.id)
    execute(workspace, "update bridge.batches set fetched_from = window_end where id = :id", id=by_hand.id)

    first = check(workspace, extract(workspace, NAME, "tickets", window, scheduled=True).id).batch
    assert (first.first_read_of, first.verdict) == (newest, "blocked")
    assert failed(workspace, first) == {"newest_day_filled"}
    with pytest.raises(BatchBlocked):
        bring_up_to_date(workspace, NAME, "tickets", window)
    for again in (True, False):
        later = check(workspace, extract(workspace, NAME, "tickets", window, scheduled=again).id).batch
        found = results(workspace, later)["newest_day_filled"]
        assert (later.verdict, found.passed, found.severity) == ("passed", False, "warn")
    assert check(workspace, first.id).batch.verdict == "blocked"


@pytest.mark.slow
def test_a_declared_field_that_vanished_blocks_until_it_is_accepted(workspace, desk):
    desk.records["tickets"] = [ticket(n, NOON) for n in range(1, 31)]
    process(workspace, DAY, ["tickets"])
    for record in desk.records["tickets"]:
        del record["subject"]
        record |= {"cf_new": "Ada Lovelace", "cf_building": "Other", "updated_at": "2024-03-01T13:00:00Z"}
    batch = land(workspace, "tickets", DAY)
    found = results(workspace, batch)
    assert batch.verdict == "blocked"
    assert [each["field"] for each in found["declared_fields"].examples] == ["/subject"]
    assert {(each["field"], each["change"]) for each in found["other_fields"].examples} >= {
        ("/cf_new", "new"), ("/cf_building", "another type")
    }  # fmt: skip
    assert "Lovelace" not in repr(rows(workspace, "select * from bridge.inventories"))
    with pytest.raises(BatchBlocked):
        bring_up_to_date(workspace, NAME, "tickets", DAY)
    accept_batch(workspace, batch.id, "Ann Lee", "the vendor dropped it")
    assert land(workspace, "tickets", DAY).verdict == "passed"


@pytest.mark.slow
def test_fields_that_the_connection_leaves_out_from_now_on_are_not_missed(workspace, desk):
    extra = {"login_password": "b", "cf_seat": {"login_password": "b", "row": 1}}
    desk.records["tickets"] = [ticket(n, NOON, **extra) for n in range(1, 31)]
    process(workspace, DAY, ["tickets"])
    connect(
        workspace,
        desk,
        entities=("tickets",),
        exclude=("tickets.subject", "tickets.*_password", "users.status"),
    )
    batch = land(workspace, "tickets", DAY)
    assert batch.verdict == "passed"
    assert results(workspace, batch)["other_fields"].examples == []
    for record in desk.records["tickets"]:
        del record["status"]
        record["cf_seat"] = {}
    found = results(workspace, land(workspace, "tickets", DAY))
    assert {each["field"] for each in found["declared_fields"].examples} == {"/status"}
    assert "/cf_seat/row" in [each["field"] for each in found["other_fields"].examples]


@pytest.mark.slow
def test_a_load_that_does_not_add_up_is_undone_recorded_and_blocked(workspace, desk):
    desk.records["tickets"] = [ticket(n, NOON) for n in range(1, 6)]
    batch = land(workspace, "tickets", DAY)
    execute(workspace, "update bridge.batches set outside = outside + 1 where id = :id", id=batch.id)
    with pytest.raises(EquationBroken, match="5 loaded"):
        load(workspace, batch)
    assert table(workspace, "tickets") == {}
    found = results(workspace, batch)["equation_loaded"]
    assert (found.passed, found.stage, found.examples[0]["accounted"]) == (False, "load", batch.fetched + 1)
    # A reviewer may let through what was landed wrongly …
    accept_batch(workspace, batch.id, "Ann Lee", "the count is wrong, the rows are right")
    assert len(table(workspace, "tickets")) == 5
    assert not results(workspace, batch)["equation_loaded"].passed
    # … and never rows that got lost on the way.
    lost = land(workspace, "tickets", DAY)
    execute(workspace, "insert into bridge.rejections values (:id, 0, 'nobody')", id=lost.id)
    with pytest.raises(EquationBroken):
        load(workspace, lost)
    with pytest.raises(EquationBroken):
        accept_batch(workspace, lost.id, "Ann Lee", "never mind")
    better, _, _ = process(workspace, day("2024-03-01", "2024-03-02"), ["tickets"])["tickets"]
    assert better.verdict == "passed"


@pytest.mark.slow
def test_every_term_of_the_equation_is_counted(workspace, desk):
    desk.filtering = "ignored"
    desk.records["tickets"] = [
        *(ticket(n, NOON) for n in range(1, 6)),
        ticket(1, "2024-03-01T09:00:00Z"),
        ticket(7, "2023-01-01T00:00:00Z"),
        b'{"id": null}',
    ]
    process(workspace, DAY, ["tickets"])
    desk.find("tickets", 2)["subject"] = "changed"
    desk.find("tickets", 2)["updated_at"] = "2024-03-01T13:00:00Z"
    _, update, _ = process(workspace, DAY, ["tickets"])["tickets"]
    (result,) = (each for each in update.checks if each.name == "equation_loaded")
    assert (result.passed, result.unexpected) == (True, 0)
    told = result.note
    assert "1 outside" in told
    assert "1 quarantined (parser) + 0 quarantined (checks) + 1 loaded + 4 unchanged + 1 superseded" in told


# --- What stays out, and what heals -------------------------------------------------------------


@pytest.mark.slow
def test_a_blocked_day_stops_a_range_until_it_is_read_better(workspace, desk):
    days = [f"2024-03-0{n}" for n in (1, 2, 3)]
    desk.records["tickets"] = [ticket(n, f"{each}T12:00:00Z") for n, each in enumerate(days, start=1)]
    for each in days:
        batch = land(workspace, "tickets", day(each))
        if each == days[1]:
            execute(workspace, "update bridge.batches set verdict = 'blocked' where id = :id", id=batch.id)
    window = day(days[0], days[2])
    with pytest.raises(BatchBlocked, match="2024-03-02"):
        bring_up_to_date(workspace, NAME, "tickets", window)
    land(workspace, "tickets", day(days[1]))
    bring_up_to_date(workspace, NAME, "tickets", window)
    assert set(table(workspace, "tickets")) == {"1", "2", "3"}


def test_what_a_dead_run_left_unchecked_is_checked_by_the_next(workspace, desk):
    desk.records["tickets"] = [ticket(1, NOON)]
    orphan = extract(workspace, NAME, "tickets", DAY)
    extract(workspace, NAME, "tickets", DAY)
    check_newest(workspace, NAME, "tickets", DAY)
    assert rows(workspace, "select distinct verdict from bridge.batches") == [{"verdict": "passed"}]
    assert results(workspace, orphan)["equation"].passed
    assert len(bring_up_to_date(workspace, NAME, "tickets", DAY).loads) == 2


def test_a_listing_read_without_its_refused_filter_is_a_whole_listing(workspace, desk):
    desk.records["tickets"] = [ticket(n, NOON) for n in range(1, 4)]
    desk.before = lambda request: Answer(400, b'{"error": "bad filter"}') if request.filtered else None
    batch = extract(workspace, NAME, "tickets", DAY)
    assert (batch.proof["method"], batch.proof["filter_refused"]) == ("whole listing", 400)


# --- The tables ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_references_are_told_apart_and_owners_without_address_are_found(workspace, desk):
    connect(workspace, desk)
    desk.records["accounts"] = [account(1, NOON)]
    desk.records["users"] = [user(1, NOON, email=" "), user(2, NOON)]
    desk.records["tickets"] = [
        ticket(1, NOON),
        ticket(2, NOON, account={"id": 5, "_type": "Account"}, customer_user={"id": 2, "_type": "User"}),
    ]
    _, update, _ = process(workspace, DAY)["tickets"]
    found = {each.name: each for each in update.checks}
    assert found["accounts_known"].examples == [{"id": "2", "refers_to": "5"}]
    assert found["accounts_exist"].examples == [{"id": "2", "refers_to": "5"}]
    assert found["requesters_have_email"].examples == [{"id": "1", "user": "1"}]
    assert {name for name, each in found.items() if not each.passed} == {
        "accounts_known", "accounts_exist", "requesters_have_email", "freshness"
    }  # fmt: skip
    assert all(each.severity == "warn" for each in found.values() if each.stage == "tables")
    stored = rows(workspace, "select name from bridge.checks where stage = 'tables' and not passed")
    assert {"accounts_known", "accounts_exist", "requesters_have_email"} <= {row["name"] for row in stored}
    execute(workspace, "delete from bridge.lookups")
    found = {each.name: each for each in check_tables(workspace, NAME, "tickets", DAY)}
    assert (found["accounts_known"].passed, found["accounts_exist"].passed) == (False, True)


@pytest.mark.slow
def test_neither_old_days_nor_lookups_make_a_desk_look_fresh(workspace, desk):
    connect(workspace, desk)
    write(workspace, "expectations: {accounts: {freshness: {max_quiet_hours: 48}}}")
    desk.records["accounts"] = [account(1, NOON)]
    desk.records["tickets"] = [ticket(1, NOON)]
    process(workspace, DAY)

    def fresh(now: datetime, entity: str = "accounts") -> bool:
        (found,) = (e for e in check_tables(workspace, NAME, entity, DAY, now=now) if e.name == "freshness")
        return found.passed

    then, later = datetime(2024, 3, 2, 6, tzinfo=UTC), datetime(2024, 3, 5, tzinfo=UTC)
    assert fresh(then)
    assert not fresh(later)
    desk.records["accounts"].append(account(9, "2024-03-04T22:00:00Z"))
    desk.find("tickets", 1)["account"] = {"id": 9, "_type": "Account"}
    desk.find("tickets", 1)["updated_at"] = "2024-03-01T13:00:00Z"
    process(workspace, DAY, ["tickets"])
    assert "9" in table(workspace, "accounts"), "the account was looked up"
    assert not fresh(later)
    assert not fresh(later, "tickets")
    process(workspace, day("2024-03-04"), ["accounts"])
    assert fresh(later)
    connect(workspace, desk, scheduled=False)
    assert fresh(datetime.now(UTC)), "nobody promised that it is"


# --- Judged ahead ---------------------------------------------------------------------------------


@pytest.fixture
def begun(workspace, desk, monkeypatch):
    """A batch whose rows are being judged by a process beside."""
    desk.records["tickets"] = [
        ticket(number, NOON, subject=None if number == 2 else "x") for number in (1, 2)
    ]
    batch = land(workspace, "tickets", DAY)
    # Another test may have imported it into this very process.
    monkeypatch.delitem(sys.modules, "great_expectations", raising=False)
    gx_worker.start()
    checking.begin(workspace, batch)
    assert checking._begun is not None
    return batch


def judged(workspace, batch):
    return [vars(each) for each in checking.check(workspace, batch.id).results]


def test_what_was_judged_ahead_is_not_judged_again_and_comes_to_the_same(workspace, begun, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(judging, "begin", None)
        ahead = judged(workspace, begun)
    assert [each["unexpected"] for each in ahead if each["name"] == "subject_present"] == [1]
    assert judged(workspace, begun) == ahead


@pytest.mark.slow
def test_expectations_that_changed_since_are_those_that_count(workspace, begun):
    write(workspace, "expectations: {tickets: {subject_present: {severity: quarantine, allowed_share: 1.0}}}")
    assert [each["severity"] for each in judged(workspace, begun) if each["name"] == "subject_present"] == [
        "quarantine"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "replaced"])
def test_a_process_that_ended_before_it_was_asked_is_done_without(workspace, begun, how):
    if how == "killed":
        gx_worker._started.worker.process.kill()
    else:
        # As the next extraction does: this one would give the answer to another question first.
        gx_worker.start()
    assert {each["name"]: each["unexpected"] for each in judged(workspace, begun)}["subject_present"] == 1


@pytest.mark.slow
def test_rows_that_cannot_be_judged_ahead_cost_no_batch(workspace, begun, monkeypatch):
    monkeypatch.setattr(checking, "_begun", None)
    gx_worker.dismiss()
    gx_worker.start()
    nowhere = Database.of(f"postgresql://nobody@/none?host={workspace.home.root}")
    checking.begin(dataclasses.replace(workspace, database=nowhere), begun)
    assert checking._begun is None


def test_a_file_of_expectations_that_is_wrong_stops_the_check_and_not_what_landed(workspace, desk, begun):
    write(workspace, "expectations: {tickets: {no_such_thing: {enabled: false}}}")
    checking.begin(workspace, begun)
    with pytest.raises(InvalidExpectations):
        checking.check(workspace, begun.id)
