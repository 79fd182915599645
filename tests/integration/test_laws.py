"""The laws of docs/architecture.md, attacked from outside: a desk, the steps, what came of it."""

import dataclasses
import itertools
import json
import subprocess
import sys
import traceback
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.load import load
from tests.integration import flow
from tests.integration.desk import TOKEN, Answer, Desk, Request, account, serving, ticket, user
from tests.integration.flow import (
    NAME,
    arrived,
    connect,
    day,
    digest,
    ended,
    execute,
    files,
    land,
    process,
    quarantined,
    rows,
    start,
    table,
)

FIRST, LAST = date(2024, 3, 1), date(2024, 3, 5)
BIG = 2**63 - 1


def raw(**fields: Any) -> bytes:
    """A record as bytes, sent as it is, also where the desk would not find it by a filter."""
    return json.dumps(fields).encode()


# What a desk may hold: change times around the borders of days, and records of all sorts.
TIMES = {
    11: "2024-02-29T23:59:59Z",
    12: "2024-03-01T00:00:00Z",
    13: "2024-03-01T23:59:59Z",
    14: "2024-03-01T23:59:59.999999Z",
    15: "2024-03-02T00:00:00Z",
    16: "2024-03-02T00:00:00.000000Z",
    17: "2024-03-02T01:59:59+02:00",
    18: "2024-03-02T02:00:00+02:00",
    19: "2024-03-02T23:59:59-03:00",
    20: "2024-03-05T23:59:59Z",
    21: "2024-03-06T00:00:00Z",
    22: "2024-03-05T21:30:00-02:30",
    BIG: "2024-03-04T12:00:00Z",
    2**53 + 1: "2024-03-04T12:00:00.5Z",
}
INSIDE = {str(number) for number in TIMES} - {"11", "21", "22"}
BAD = {
    raw(_type="Ticket", subject="no id", updated_at="2024-03-02T10:00:00Z"): "id_missing",
    raw(id=None, subject="null id", updated_at="2024-03-02T10:00:00Z"): "id_missing",
    raw(id=2**63, subject="id too large", updated_at="2024-03-02T10:00:00Z"): "id_out_of_range",
    raw(id="31", subject="id as text", updated_at="2024-03-02T10:00:00Z"): "id_wrong_type",
    raw(id=32, subject="nul \x00 in it", updated_at="2024-03-02T10:00:00Z"): "nul_character",
    raw(id=33, subject="half \ud83d an emoji", updated_at="2024-03-02T10:00:00Z"): "lone_surrogate",
    raw(id=34, subject="undated", updated_at=None): "change_time_missing",
    raw(id=35, subject="impossible", updated_at="2024-02-30T10:00:00Z"): "time_invalid",
    raw(id=36, subject="without zone", updated_at="2024-03-02T10:00:00"): "time_without_zone",
    raw(id=37, subject="next century", updated_at="2124-03-02T10:00:00Z"): "change_time_in_future",
    b'{"id": 38, "cost": NaN, "updated_at": "2024-03-02T10:00:00Z"}': "not_a_number",
    b'["not", "a", "record"]': "not_an_object",
}


def fill(desk: Desk) -> None:
    """All sorts of records, the bad between the good."""
    good = [
        ticket(number, changed, subject=f"😀 {number}", tags=["ö", "🔥"], cf_large=2**70)
        for number, changed in TIMES.items()
    ]
    bad = list(BAD)
    desk.records["tickets"] = [
        record for pair in itertools.zip_longest(good, bad) for record in pair if record is not None
    ]
    desk.records["accounts"] = [
        account(1, "2024-03-02T00:00:00Z"),
        account(2, "2019-05-05T05:05:05Z"),
        account(3, None, name="undated"),
        account(4, "2024-03-03T10:00:00Z", name="=cmd|'/c calc'!A0"),
    ]


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[date, date]]:
    """The days from first to last cut into windows, in any order, some of them twice."""
    days = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
    cuts = [0, *sorted(draw(st.sets(st.integers(1, len(days) - 1), min_size=1, max_size=2))), len(days)]
    windows = [(days[a], days[b - 1]) for a, b in itertools.pairwise(cuts)]
    return draw(st.permutations(windows))


# --- L1 complete --------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_record_is_accounted_for_however_days_are_cut_into_windows(workspace, desk):
    fill(desk)
    numbers = itertools.count()

    def run(plan: list[tuple[date, date]]) -> dict[str, Any]:
        name = f"desk-{next(numbers)}"
        connect(workspace, desk, name, entities=("accounts", "tickets"))
        for first, last in plan:
            done = process(workspace, flow.day(str(first), str(last)), ("accounts", "tickets"), name)
            for batch, update, _ in done.values():
                assert batch.fetched == batch.outside + batch.duplicate + batch.quarantined + batch.landed
                (result,) = (result for result in update.loads if result.batch.id == batch.id)
                assert batch.landed == result.loaded + result.unchanged + result.superseded
        assert arrived(workspace, "tickets", name) == INSIDE
        assert quarantined(workspace, "tickets", name) == BAD
        assert arrived(workspace, "accounts", name) == {"1", "2", "3", "4"}
        return digest(workspace, name)

    expected = run([(FIRST, LAST)])
    assert "2024-03-01/v0001.csv" in " ".join(expected["files"])

    @settings(
        max_examples=5,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        plan=plans(),
        filtering=st.sampled_from(["honoured", "ignored", "hiding"]),
        envelope=st.sampled_from(["central", "named", "data", "bare"]),
        page_size=st.sampled_from([4, 7, 50]),
    )
    def equals(plan, filtering, envelope, page_size):
        desk.filtering, desk.envelope, desk.page_size = filtering, envelope, page_size
        desk.hidden = {12, 15, 20, BIG}
        assert run(plan) == expected

    equals()


def test_exact_values_survive(workspace, desk):
    fill(desk)
    process(workspace, day("2024-03-01", "2024-03-05"), ["tickets"])
    row = table(workspace, "tickets")[str(BIG)]
    assert row["subject"] == f"😀 {BIG}"
    assert row["tags"] == ["ö", "🔥"]
    assert row["updated_at"] == datetime(2024, 3, 4, 12, tzinfo=UTC)
    (found,) = rows(
        workspace, f"select custom_fields->>'cf_large' as large from desk.tickets where id = '{BIG}'"
    )
    assert found["large"] == str(2**70)


def test_records_that_move_between_pages_while_they_are_read_are_found(workspace, desk):
    desk.page_size = 3
    desk.records["tickets"] = [ticket(number, "2024-03-01T10:00:00Z") for number in range(1, 13)]

    def shift(request: Request) -> None:
        # The first record is changed and goes to the end: every later record moves up by one.
        if len(desk.lists("tickets")) in (2, 3, 4):
            moved = desk.records["tickets"].pop(0)
            desk.records["tickets"].append(moved | {"updated_at": f"2024-03-01T11:00:0{request.page}Z"})

    desk.before = shift
    process(workspace, day("2024-03-01"), ["tickets"])
    assert arrived(workspace, "tickets") == {str(number) for number in range(1, 13)}
    held = {str(r["id"]): r["updated_at"] for r in desk.records["tickets"]}
    newest = {key: row["updated_at"] for key, row in table(workspace, "tickets").items()}
    assert newest == {key: datetime.fromisoformat(changed) for key, changed in held.items()}


NOT_A_LIST = {
    "unauthorised": Answer(401, b'{"error": "Unauthorized", "data": []}'),
    "forbidden": Answer(403, b'{"data": []}'),
    "not found": Answer(404, b'{"data": []}'),
    "redirect": Answer(302, b"", {"Location": "/login"}),
    "login page": Answer(200, b"<html><body>Please sign in</body></html>", {"Content-Type": "text/html"}),
    "nothing": Answer(200, b""),
    "blank": Answer(200, b"  \n"),
    "null": Answer(200, b"null"),
    "no envelope": Answer(200, b'{"page": 1, "more": false}'),
    "other envelope": Answer(200, b'{"error": null, "items": []}'),
    "cut in a record": Answer(200, b'{"page":1,"more":false,"data":[{"id":1,"upd'),
    "cut behind a record": Answer(200, b'{"page":1,"more":false,"data":[{"id":1}'),
    "cut behind the list": Answer(200, b'{"data":[{"id":1,"updated_at":"2024-03-01T10:00:00Z"}]'),
    "server error": Answer(500, b'{"data": []}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("bad", NOT_A_LIST.values(), ids=NOT_A_LIST)
@pytest.mark.parametrize("page", [1, 2])
def test_what_is_no_list_is_never_read_as_no_records(workspace, desk, bad, page):
    desk.page_size = 2
    desk.records["tickets"] = [ticket(number, "2024-03-01T10:00:00Z") for number in range(1, 5)]
    desk.before = lambda request: bad if request.page == page else None
    with pytest.raises(SourceError, match=NAME):
        extract(workspace, NAME, "tickets", day("2024-03-01"))
    assert rows(workspace, "select id from bridge.batches") == []
    assert not list(workspace.home.landing.rglob("*.parquet"))


def test_a_bad_record_with_an_address_signed_anew_each_time_costs_only_itself(workspace, desk):
    changed = "2024-03-02T10:00:00Z"
    desk.records["tickets"] = [ticket(number, changed) for number in range(1, 6)]

    def sign(request: Request) -> None:
        desk.records["tickets"][0] = ticket(1, changed, subject=12345, url=f"/1?sig={len(desk.requests)}")

    desk.before = sign
    for _ in range(2):
        process(workspace, day("2024-03-02"), ["tickets"])
    assert set(table(workspace, "tickets")) == {"2", "3", "4", "5"}
    kept = quarantined(workspace, "tickets")
    assert set(kept.values()) == {"wrong_type"}
    assert len({json.loads(each)["url"] for each in kept}) == len(kept) >= 2
    assert {json.loads(each)["id"] for each in kept} == {1}


@pytest.mark.slow
def test_reference_entities_are_read_whole_once_and_undated_ones_load(workspace, desk):
    desk.records["accounts"] = [
        account(1, "2024-03-01T10:00:00Z"),
        account(2, "2011-01-01T00:00:00Z"),
        account(3, None),
    ]
    first = process(workspace, day("2024-03-01"), ["accounts"])["accounts"][0]
    assert first.kind == "whole"
    assert arrived(workspace, "accounts") == {"1", "2", "3"}
    desk.records["accounts"] += [account(4, "2011-01-01T00:00:00Z"), account(5, None)]
    again = process(workspace, day("2024-03-02"), ["accounts"])["accounts"][0]
    assert (again.kind, again.outside) == ("window", 3)
    assert arrived(workspace, "accounts") == {"1", "2", "3", "5"}


@pytest.mark.slow
def test_missing_parents_are_fetched_by_id_and_absent_ones_not_asked_for_again_at_once(workspace, desk):
    process(workspace, day("2024-03-01"))
    desk.records["accounts"] = [account(7, "2012-01-01T00:00:00Z")]
    desk.records["users"] = [user(8, "2012-01-01T00:00:00Z")]
    desk.records["tickets"] = [
        ticket(1, "2024-03-02T10:00:00Z", account={"id": 7}, customer_user={"id": 8, "_type": "User"}),
        ticket(2, "2024-03-02T10:00:00Z", account={"id": 99}, user_watchers=[{"id": 98, "_type": "User"}]),
    ]
    _, update, _ = process(workspace, day("2024-03-02"), ["tickets"])["tickets"]
    assert update.placeholders == {"accounts": 1, "users": 2}
    assert table(workspace, "accounts")["7"]["name"] == "Account 7"
    assert table(workspace, "users")["8"]["email"] == "user8@example.com"
    assert {
        key: row["updated_at"] for key, row in table(workspace, "accounts").items() if row["placeholder"]
    } == {"99": None}
    assert (desk.lookups("accounts"), desk.lookups("users")) == (["7", "99"], ["1", "8", "98"])

    process(workspace, day("2024-03-02"), ["tickets"])
    assert (len(desk.lookups("accounts")), len(desk.lookups("users"))) == (2, 3)
    execute(workspace, "update bridge.lookups set looked_up_at = looked_up_at - interval '2 days'")
    desk.records["accounts"].append(account(99, "2012-01-01T00:00:00Z"))
    _, update, _ = process(workspace, day("2024-03-02"), ["tickets"])["tickets"]
    assert desk.lookups("accounts")[2:] == ["99"]
    assert update.placeholders == {"accounts": 0, "users": 2}


@pytest.mark.slow
def test_a_source_without_single_records_leaves_placeholders(workspace, desk):
    desk.by_id = False
    desk.records["tickets"] = [ticket(1, "2024-03-02T10:00:00Z")]
    _, update, _ = process(workspace, day("2024-03-02"), ["tickets"])["tickets"]
    assert arrived(workspace, "tickets") == {"1"}
    assert update.placeholders == {"accounts": 1, "users": 1}


# --- L2 repeatable ------------------------------------------------------------------------------


def test_running_again_on_an_unchanged_source_changes_nothing(workspace, desk):
    fill(desk)
    desk.records["users"] = [user(1, "2024-03-02T10:00:00Z")]
    window = day("2024-03-01", "2024-03-05")
    process(workspace, window)

    def state() -> dict[str, Any]:
        desk_tables = {
            name: rows(workspace, f"select xmin::text, ctid::text, * from desk.{name} order by ctid")
            for name in (*flow.ENTITIES, "ticket_users")
        }
        seen = ("times_seen", "last_seen", "last_batch", "fetched_at")
        quarantine = [
            {key: value for key, value in row.items() if key not in seen}
            for row in rows(workspace, "select * from bridge.quarantine order by sha256")
        ]
        stamped = {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in workspace.home.audit.rglob("v*")}
        return {"tables": desk_tables, "quarantine": quarantine, "files": stamped}

    before = state()
    assert len(before["files"]) == 2 * 3 * 5
    for _ in range(2):
        done = process(workspace, window)
        assert not any(file.added for _, _, written in done.values() for file in written)
    assert state() == before
    assert {row["times_seen"] for row in rows(workspace, "select times_seen from bridge.quarantine")} == {3}


# --- L3 newest wins -----------------------------------------------------------------------------


def test_the_newest_version_wins_in_whatever_order_batches_are_loaded(workspace, desk):
    desk.records["tickets"] = [ticket(1, None)]
    versions = [
        ("2024-03-01T10:00:00Z", "first"),
        ("2024-03-01T12:00:00Z", "newer mark"),
        ("2024-03-01T12:00:00Z", "same mark, fetched later"),
        ("2024-03-01T09:00:00Z", "older mark, fetched last"),
    ]
    batches = []
    for changed, subject in versions:
        desk.records["tickets"][0] |= {"updated_at": changed, "subject": subject}
        batches.append(land(workspace, "tickets", day("2024-03-01")))
    for order in itertools.permutations(batches):
        execute(workspace, "truncate desk.accounts, desk.users, desk.tickets, bridge.loads cascade")
        for batch in order:
            load(workspace, batch)
        row = table(workspace, "tickets")["1"]
        assert row["subject"] == "same mark, fetched later", [batch.id for batch in order]


def test_an_earlier_batch_loaded_late_brings_no_older_version_and_no_older_people(workspace, desk):
    desk.records["tickets"] = [ticket(1, "2024-03-01T10:00:00Z", assignee={"id": 5, "_type": "User"})]
    early = land(workspace, "tickets", day("2024-03-01"))
    desk.records["tickets"] = [ticket(1, "2024-03-02T10:00:00Z", assignee={"id": 6, "_type": "User"})]
    process(workspace, day("2024-03-02"), ["tickets"])
    result = load(workspace, early)
    assert (result.loaded, result.unchanged, result.superseded) == (0, 0, 1)
    linked = rows(workspace, "select user_id, part from desk.ticket_users order by user_id")
    assert [(row["user_id"], row["part"]) for row in linked] == [("1", "requester"), ("6", "assignee")]


# --- L4 atomic ----------------------------------------------------------------------------------

KILLED = ("accounts", "tickets")


def fill_to_be_killed(desk: Desk) -> None:
    """Accounts, one of them missing from the listing, and tickets of two days with a bad one."""
    desk.page_size = 5
    desk.records["accounts"] = [account(n, "2024-03-01T10:00:00Z") for n in range(1, 8)]
    desk.records["tickets"] = [
        *(ticket(n, f"2024-03-0{1 + n % 2}T10:00:00Z", account={"id": n % 12 + 1}) for n in range(1, 16)),
        raw(id=32, subject="nul \x00 in it", updated_at="2024-03-02T10:00:00Z"),
    ]

    def arrive(request: Request) -> None:
        # Account 8 appears when tickets are read, so that only a lookup brings it.
        if request.entity == "tickets" and desk.find("accounts", 8) is None:
            desk.records["accounts"].append(account(8, "2012-01-01T00:00:00Z"))

    desk.before = arrive


@pytest.mark.slow
def test_a_killed_extraction_does_not_ask_again_for_what_is_journalled(workspace, desk):
    fill_to_be_killed(desk)
    days = ("2024-03-01", "2024-03-02", ("tickets",))
    killed = start(flow.process_days, *days, failpoint="journal.kept=kill@3")
    assert ended(killed) == -9
    batch = land(workspace, "tickets", day("2024-03-01", "2024-03-02"))
    filtered = [request.page for request in desk.lists("tickets") if request.filtered]
    assert [filtered.count(page) for page in (1, 2, 3)] == [1, 1, 1]
    # The killed one had kept three; the fourth may have been on its way.
    assert len(desk.lists("tickets")) - batch.requests in (3, 4)
    desk.requests.clear()
    land(workspace, "tickets", day("2024-03-01", "2024-03-02"))
    assert [request.page for request in desk.lists("tickets") if request.filtered] == sorted(set(filtered))


def test_an_extraction_whose_answers_contradict_each_other_is_begun_anew(workspace, desk):
    desk.page_size = 1
    desk.records["tickets"] = [ticket(number, "2024-03-01T10:00:00Z") for number in range(1, 4)]
    page = {"page": 1, "more": True, "data": desk.records["tickets"][:1]}
    same = Answer(200, json.dumps(page).encode())
    desk.before = lambda request: same
    with pytest.raises(SourceError, match="only what was seen before"):
        land(workspace, "tickets", day("2024-03-01"))
    desk.before = lambda request: None
    assert land(workspace, "tickets", day("2024-03-01")).landed == 3


def test_a_journal_that_is_too_old_is_not_resumed(workspace, desk):
    fill_to_be_killed(desk)
    days = ("2024-03-01", "2024-03-02", ("tickets",))
    killed = start(flow.process_days, *days, failpoint="journal.kept=kill@3")
    assert ended(killed) == -9
    impatient = workspace.settings.model_copy(update={"journal_max_age": timedelta(0)})
    batch = land(
        dataclasses.replace(workspace, settings=impatient), "tickets", day("2024-03-01", "2024-03-02")
    )
    # Those of the killed one: three that it kept, and the next.
    assert len(desk.lists("tickets")) - batch.requests in (3, 4)
    assert [request.page for request in desk.lists("tickets") if request.filtered].count(1) == 2


# --- L5 alone -----------------------------------------------------------------------------------


def test_two_runs_of_one_window_at_once_lose_and_double_nothing(workspace, desk):
    fill(desk)
    connect(workspace, desk, "undisturbed", entities=KILLED)
    process(workspace, day("2024-03-01", "2024-03-05"), KILLED, "undisturbed")
    connect(workspace, desk, entities=KILLED)
    meeting = flow.Meeting(2, "extract.locked", "load.locked", "audit.locked")
    both = [start(flow.process_together, meeting, "2024-03-01", "2024-03-05", KILLED) for _ in range(2)]
    # One may stop at what the other has extracted and not yet checked; `run_days` lets it wait.
    codes = sorted(ended(process) or 0 for process in both)
    assert codes in ([0, 0], [0, 1])
    assert meeting.together == 0
    numbers = "select entity, extraction from bridge.batches where connection = :name and kind <> 'lookup'"
    used = [(row["entity"], row["extraction"]) for row in rows(workspace, numbers, name=NAME)]
    assert len(used) == len(set(used)), "two extractions wrote into one journal"
    process(workspace, day("2024-03-01", "2024-03-05"), KILLED)
    assert digest(workspace) == digest(workspace, "undisturbed")


@pytest.mark.slow
def test_two_loads_and_audits_of_one_batch_at_once_double_nothing(workspace, desk):
    fill(desk)
    batch = land(workspace, "tickets", day("2024-03-01", "2024-03-05"))
    meeting = flow.Meeting(3, "load.locked", "audit.locked")
    all_three = [start(flow.load_together, meeting, "tickets", "2024-03-01", "2024-03-05") for _ in range(3)]
    assert [ended(process) for process in all_three] == [0, 0, 0]
    assert meeting.together == 0
    assert arrived(workspace, "tickets") == INSIDE
    (counts,) = rows(
        workspace, "select loaded, unchanged, superseded from bridge.loads where batch_id = :id", id=batch.id
    )
    assert counts == {"loaded": len(INSIDE), "unchanged": 0, "superseded": 0}
    assert sorted(files(workspace.home.audit / "acme" / NAME)) == sorted(
        f"tickets/2024-03-0{n}/v0001.{kind}" for n in range(1, 6) for kind in ("csv", "json")
    )


# --- L7 sealed ----------------------------------------------------------------------------------

PIECES = [TOKEN[n : n + 12].encode() for n in range(len(TOKEN) - 11)]
ECHO = f"https://desk/api/v1/tickets.json?page=1&token={TOKEN}"
ECHOES = {
    "unauthorised": Answer(401, json.dumps({"error": f"Invalid token {TOKEN}"}).encode()),
    "server error": Answer(500, json.dumps({"error": f"while answering {ECHO}", "token": TOKEN}).encode()),
    "garbage": Answer(200, f"<html>{ECHO}</html>".encode()),
    "cut": Answer(200, f'{{"data": [{{"id": 1, "subject": "{TOKEN}'.encode()),
    "redirect": Answer(302, b"", {"Location": f"https://elsewhere/?token={TOKEN}&x=1"}),
    "teapot": Answer(418, f"Authorization: Bearer {TOKEN}".encode()),
}


def leaks(data: bytes) -> list[bytes]:
    """The pieces of the token that stand in `data`."""
    return [piece for piece in PIECES if piece in data]


def places_of_leaks(workspace) -> list[str]:
    """Every file of the home and every table in which a piece of the token stands."""
    found = []
    for path in workspace.home.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".zst":
                data += zstandard.ZstdDecompressor().decompress(
                    data[8 + int.from_bytes(data[4:8], "little") :]
                )
            found += [str(path)] * bool(leaks(data) or leaks(str(path).encode()))
    for entry in rows(
        workspace,
        "select schemaname, tablename from pg_tables where schemaname in ('desk', 'bridge', 'marts')",
    ):
        name = "{schemaname}.{tablename}".format(**entry)
        for row in rows(workspace, f"select t::text as line from {name} t"):
            found += [name] * bool(leaks(row["line"].encode()))
    raws = rows(workspace, "select raw from bridge.quarantine")
    return found + ["quarantine"] * bool(leaks(b"".join(bytes(row["raw"]) for row in raws)))


def test_the_token_is_found_nowhere_though_the_source_sends_it_back(workspace, desk, capfd, caplog):
    caplog.set_level("DEBUG", "bridge")
    hostile = {"subject": f"my token is {TOKEN}", "cf_url": ECHO, "tags": [TOKEN], TOKEN: "as a key"}
    desk.records["tickets"] = [
        ticket(1, "2024-03-01T10:00:00Z", **hostile),
        raw(id=2, subject=f"nul \x00 {TOKEN}", updated_at="2024-03-01T10:00:00Z"),
    ]
    desk.records["users"] = [user(1, "2012-01-01T00:00:00Z", name=TOKEN)]
    process(workspace, day("2024-03-01"))
    assert "[redacted]" in table(workspace, "tickets")["1"]["subject"]
    assert len(quarantined(workspace, "tickets")) == 1
    for echo in ECHOES.values():
        desk.before = lambda request, echo=echo: echo
        with pytest.raises(SourceError) as caught:
            extract(workspace, NAME, "tickets", day("2024-03-02"))
        told = "".join(traceback.format_exception(caught.value))
        assert not leaks((told + repr(caught.value)).encode())
        assert f"{NAME}: GET {desk.url}/api/v1/tickets.json?token=[redacted]" in str(caught.value)
    output = "".join(capfd.readouterr()) + caplog.text
    assert "request failed" in output
    assert not leaks(output.encode())
    assert places_of_leaks(workspace) == []


# --- L9 flat ------------------------------------------------------------------------------------


_LONG_TICKET = (
    b'{"id":%d,"subject":"Printer %d","description":"'
    + b"It burns. " * 60
    + b'","status":{"id":1,"name":"New","closed":false},"priority":{"id":2,"name":"High"},"account":{"id":1},'
    b'"created_at":"2024-02-01T10:00:00Z","updated_at":"2024-03-01T10:%02d:00Z"}'
)


class LongDesk(Desk):
    """A desk of `size` tickets of one day that are made when their page is asked for."""

    size = 0

    def _list(self, request: Request, query: dict[str, str], select: str) -> Answer:
        first = (request.page - 1) * self.page_size + 1
        last = min(self.size, first + self.page_size - 1)
        body = b",".join(_LONG_TICKET % (number, number, number % 60) for number in range(first, last + 1))
        return Answer(200, self._enveloped(request, b"[" + body + b"]", self.size))


def peaks(workspace, size: int, last: str) -> dict[str, float]:
    """The most memory in MiB, up to the end of each step, over so many records in a process of its own.

    Args:
        last: of the window's days; a window that was read before holds a part of what landed then.
    """
    desk = LongDesk(page_size=1_000)
    desk.size = size
    with serving(desk):
        connect(workspace, desk)
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.flow", "2024-03-01", last, "tickets"],
            cwd=PROJECT_ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
    landed, peak = json.loads(done.stdout.splitlines()[-1])
    assert landed == size
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_records(workspace):
    small, large = peaks(workspace, 20_000, "2024-03-01"), peaks(workspace, 60_000, "2024-03-02")
    assert large["audit"] < 600, large
    for step in ("extract", "check", "tables", "audit"):
        assert large[step] < 1.15 * small[step], f"{small} for 20,000 records, {large} for 60,000"
