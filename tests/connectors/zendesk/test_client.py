"""The client against the simulated account: what it extracts is the truth, whatever happens in between."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import orjson
import pytest
from pydantic import ValidationError

from bridge_pipeline.connector_kit.connector import Connector, Page
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import PageContent, UnreadableBody
from bridge_pipeline.connector_kit.session import Contradictory, SourceError
from bridge_pipeline.connector_kit.simulator import PROFILES, Answer, FaultProfile, Request
from bridge_pipeline.connectors.zendesk import CONNECTOR, client, paging
from bridge_pipeline.connectors.zendesk.paging import STYLES, Capped
from bridge_pipeline.connectors.zendesk.simulator.dialect import Behaviour
from bridge_pipeline.connectors.zendesk.simulator.world import LIVE, Changes
from bridge_pipeline.model import Window
from tests.connectors.zendesk.account import (
    ALL,
    EMAIL,
    ENTITIES,
    TOKEN,
    Account,
    exports,
    extract,
    opened,
    serving,
    truth,
)

THIRDS = (
    Window.of_days(date(2024, 6, 1), date(2025, 1, 10)),
    Window.of_days(date(2025, 1, 11), date(2025, 1, 31)),
    Window.of_days(date(2025, 2, 1), date(2025, 3, 5)),
)


# --- Whole ----------------------------------------------------------------------------------------


def test_it_is_a_connector_with_five_entities():
    assert isinstance(CONNECTOR, Connector)
    assert CONNECTOR.entities == ENTITIES


@pytest.mark.parametrize(("entity", "ended"), [("tickets", "beyond the window"), ("users", "end of stream")])
def test_an_export_is_read_until_its_order_says_that_the_window_is_over(calm, tmp_path, entity, ended):
    # A user's change time is not what the export is ordered by, so one of the window may come late.
    found = extract(calm, entity, tmp_path, THIRDS[0])
    assert found.proof["ended"] == ended


def test_a_version_that_only_the_system_made_is_in_the_window_of_its_mark(tmp_path):
    account = Account()
    with serving(account) as simulator:
        tickets = account.world.tables["tickets"]
        row = int((tickets.states == LIVE).nonzero()[0][0])
        before = int(tickets.updated[row])
        tickets.touch(row, int(datetime(2025, 3, 20, 12, tzinfo=UTC).timestamp()), system=True)
        found = extract(simulator, "tickets", tmp_path, Window.of_days(date(2025, 3, 20), date(2025, 3, 20)))
    assert found.rows == {str(tickets.ids[row]): "2025-03-20T12:00:00Z"}
    assert tickets.updated[row] == before


@pytest.mark.parametrize("entity", ["tickets", "users"])
def test_records_that_change_while_they_are_read_are_not_lost(tmp_path, monkeypatch, entity):
    monkeypatch.setitem(PROFILES, "moving", FaultProfile(update_every=1, create_every=4, delete_every=6))
    account = Account(faults="moving")
    with serving(account) as simulator:
        found = extract(simulator, entity, tmp_path / "first")
        assert simulator.truth()["clock"] > "2025-03-02"
        # The account comes to rest, and what it did during the reading is in the next window.
        account.changing = Changes(account.world, FaultProfile())
        after = extract(
            simulator, entity, tmp_path / "second", Window.of_days(date(2025, 3, 2), date(2025, 3, 3))
        )
        gone = {*found.gone, *after.gone}
        held = {key: mark for key, mark in (found.rows | after.rows).items() if key not in gone}
        assert held == truth(simulator, entity)


@pytest.mark.parametrize(("entity", "tickets"), [("accounts", 1), ("comments", 14)])
def test_a_killed_reading_is_resumed_at_any_page(tmp_path, entity, tickets):
    account = Account(tickets=tickets, users=10, accounts=30)
    with serving(account) as simulator:
        whole = extract(simulator, entity, tmp_path / "whole")
        assert whole.counts.pages > 2
        for done in range(1, whole.counts.pages + 1):
            folder = tmp_path / str(done)
            extract(simulator, entity, folder, most=done)
            asked = len(simulator.requests)
            found = extract(simulator, entity, folder)
            assert found.rows == whole.rows
            # The pages that were there are not asked for again, but for the one full sweep more.
            assert len(simulator.requests) - asked <= 2 * whole.counts.pages - done
            assert found.proof["sweeps"] == 2


class Lapsing(Account):
    """An account that refuses cursors which it gave before `epoch` was raised."""

    epoch, refusal = 1, 400

    def answer(self, request: Request) -> Answer:
        query = dict(request.query)
        for name in {"cursor", "page[after]"} & set(query):
            query[name], _, given = query[name].partition("~")
            if given != str(self.epoch):
                return Answer(self.refusal, b'{"errors":[{"code":"InvalidPaginationParameter"}]}')
        if "page[size]" in query:
            query["page[size]"] = "2"
        answer = super().answer(replace(request, query=query))
        marked = re.sub(rb'("after_cursor":"[^"]+)', rb"\1~%d" % self.epoch, answer.body)
        return replace(answer, body=marked)


@pytest.mark.parametrize("refusal", [400, 404, 410, 422])
@pytest.mark.parametrize("entity", ["tickets", "users", "groups"])
def test_a_killed_reading_whose_cursor_has_lapsed_is_read_anew(tmp_path, entity, refusal):
    account = Lapsing(tickets=25, users=25)
    account.refusal = refusal
    with serving(account) as simulator:
        whole = extract(simulator, entity, tmp_path / "whole")
        assert whole.counts.pages > 2
        extract(simulator, entity, tmp_path, most=2)
        # It is killed once more in the midst of reading anew.
        for pages in (3, None):
            account.epoch += 1
            found = extract(simulator, entity, tmp_path, most=pages)
        assert found.rows == whole.rows
        assert found.proof["ended"] == whole.proof["ended"]


def test_a_cursor_that_the_source_has_just_given_and_refuses_is_an_error(tmp_path):
    account = Account(tickets=25)
    account.before = lambda request: Answer(400, b"{}") if "cursor" in request.query else None
    with serving(account) as simulator:
        with pytest.raises(SourceError, match="cursor=") as failure:
            extract(simulator, "tickets", tmp_path)
        assert len(simulator.requests) == 2
    assert failure.value.status == 400


# --- What the exports do (vendor-apis C.3) ---------------------------------------------------------


def test_what_is_listed_as_deleted_is_reported_and_never_landed(calm, tmp_path):
    for entity in ("tickets", "accounts"):
        found = extract(calm, entity, tmp_path / entity)
        assert set(found.gone) == set(calm.truth()["deleted"][entity])
        assert found.gone
        assert not set(found.gone) & set(found.rows)


def test_a_second_that_fills_more_than_a_page_comes_whole(calm, tmp_path):
    found = extract(calm, "accounts", tmp_path)
    starts = [
        path.partition("start_time=")[2].partition("&")[0] for path in exports(calm, "organizations.json")
    ]
    assert len(set(starts)) > 2
    assert found.rows == truth(calm, "accounts")


def test_a_second_that_no_page_shows_whole_is_an_error_and_not_the_end(tmp_path):
    account = Account(Behaviour(export_page=2, limits=False, rescued=False))
    with serving(account) as simulator, pytest.raises(SourceError, match="does not get past the second"):
        extract(simulator, "accounts", tmp_path)


def test_a_window_in_the_future_holds_nothing_new(tmp_path):
    # The source's clock runs behind ours.
    account = Account(clock=datetime(2025, 3, 5, tzinfo=UTC))
    with serving(account) as simulator:
        day = datetime.now(UTC).date() + timedelta(days=3)
        found = extract(simulator, "tickets", tmp_path, Window.of_days(day, day))
        assert [line["status"] for line in simulator.requests] == [422, 200]
    assert (found.rows, found.proof["ended"]) == ({}, "start too recent")
    assert datetime.fromisoformat(found.proof["unsettled_from"]) < datetime.now(UTC) - timedelta(minutes=5)


TOO_RECENT = Answer(
    422,
    b'{"error":"InvalidValue","description":"Too recent start_time. Use a start_time older than 5 minutes"}',
)


@pytest.mark.parametrize("window", [None, *THIRDS])
@pytest.mark.parametrize("entity", ["accounts", "tickets"])
def test_a_start_of_long_ago_that_is_refused_as_too_recent_is_an_error(tmp_path, entity, window):
    account = Account(tickets=1)
    account.before = lambda request: TOO_RECENT
    with serving(account) as simulator, pytest.raises(SourceError, match="is long ago") as failure:
        extract(simulator, entity, tmp_path, window)
    assert failure.value.status == 422


def cut_at(end_time: datetime) -> Account:
    """An account whose export of organizations goes on at that time, and refuses to."""
    account = Account(tickets=1)
    page = {
        "organizations": [{"id": 1, "name": "o", "updated_at": "2025-01-02T09:00:00Z"}],
        "count": 1,
        "end_time": int(end_time.timestamp()),
        "next_page": "https://acme.zendesk.com/api/v2/incremental/organizations.json",
        "end_of_stream": False,
    }
    first = Answer(200, orjson.dumps(page))
    account.before = lambda request: first if request.query["start_time"] == "0" else TOO_RECENT
    return account


def test_a_next_page_that_is_refused_as_too_recent_is_the_end(tmp_path):
    ended = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
    with serving(cut_at(ended)) as simulator:
        found = extract(simulator, "accounts", tmp_path)
    assert (set(found.rows), found.proof["ended"]) == ({"1"}, "start too recent")


def test_a_next_page_of_long_ago_that_is_refused_as_too_recent_is_an_error(tmp_path):
    said, account = "2025-01-03T00:00:00Z is long ago", cut_at(datetime(2025, 1, 3, tzinfo=UTC))
    with serving(account) as simulator, pytest.raises(SourceError, match=said):
        extract(simulator, "accounts", tmp_path)


def test_a_cursor_is_never_too_recent(tmp_path):
    account = Account(tickets=25)
    account.before = lambda request: TOO_RECENT if "cursor" in request.query else None
    with serving(account) as simulator, pytest.raises(SourceError, match="Too recent"):
        extract(simulator, "tickets", tmp_path)


def test_a_window_that_reaches_into_the_last_minute_is_not_settled(calm, tmp_path):
    today = datetime.now(UTC).date()
    found = extract(calm, "tickets", tmp_path / "now", Window.of_days(today, today))
    assert datetime.fromisoformat(found.proof["unsettled_from"]) < datetime.now(UTC) - timedelta(seconds=59)
    assert "unsettled_from" not in extract(calm, "tickets", tmp_path / "then", THIRDS[2]).proof


def test_the_last_minute_is_withheld_and_comes_later(tmp_path):
    account = Account(clock=datetime(2025, 3, 2, 12, tzinfo=UTC))
    with serving(account) as simulator:
        row = account.world.tables["tickets"].add(account.world.clock - 30)
        new = str(account.world.tables["tickets"].ids[row])
        assert new not in extract(simulator, "tickets", tmp_path / "early", ALL).rows
        account.world.clock += 60
        assert new in extract(simulator, "tickets", tmp_path / "late", ALL).rows


def test_an_empty_window_is_confirmed_by_the_whole_export(calm, tmp_path):
    found = extract(calm, "tickets", tmp_path, Window.of_days(date(2025, 6, 1), date(2025, 6, 1)))
    assert found.rows == {}
    assert found.proof["confirmed_empty"] == {"records": 10}


def test_a_start_that_is_not_honoured_is_found_out(tmp_path):
    account = Account(tickets=30)
    empty = {"tickets": [], "after_cursor": None, "after_url": None, "end_of_stream": True}
    account.before = lambda request: (
        Answer(200, orjson.dumps(empty)) if request.query.get("start_time", "0") != "0" else None
    )
    with serving(account) as simulator:
        window = Window.of_days(date(2025, 1, 1), date(2025, 3, 1))
        assert extract(simulator, "tickets", tmp_path, window).rows == truth(simulator, "tickets", window)


# --- What goes wrong -------------------------------------------------------------------------------

# What only Zendesk can get wrong; the rest is in tests/conformance.
SPOILT = {
    "no end said": Answer(200, b'{"tickets":[],"after_cursor":"x"}'),
    "null cursor": Answer(200, b'{"tickets":[],"after_cursor":null,"end_of_stream":false}'),
}


def spoil(account, kind, position, times):
    """The `position`-th request (0 first, -1 last of three pages) is spoilt so many times."""
    asked, spoilt = [], []

    def before(request):
        if "include" not in request.query:
            return None
        if request.target not in asked:
            asked.append(request.target)
        at = asked.index(request.target)
        if at == position and len(spoilt) < times:
            spoilt.append(at)
            return SPOILT[kind]
        return None

    account.before = before


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_page_is_asked_for_again(tmp_path, kind, position):
    account = Account(tickets=25)
    spoil(account, kind, position, times=2)
    with serving(account) as simulator:
        assert extract(simulator, "tickets", tmp_path).rows == truth(simulator, "tickets")


@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_page_that_stays_spoilt_is_an_error(tmp_path, kind, position):
    account = Account(tickets=25)
    spoil(account, kind, position, times=99)
    with serving(account) as simulator, pytest.raises(SourceError, match="attempt 3 of 3"):
        extract(simulator, "tickets", tmp_path)


def test_a_page_that_the_gateway_gives_up_is_halved(tmp_path):
    account = Account(Behaviour(limits=False, gateway_rows=300), tickets=900)
    with serving(account) as simulator:
        assert extract(simulator, "tickets", tmp_path).rows == truth(simulator, "tickets")
        sizes = [path.partition("per_page=")[2].partition("&")[0] for path in exports(simulator, "cursor")]
    assert sizes == ["1000"] * 3 + ["500"] * 3 + ["250"] * 4


def test_a_gateway_that_gives_up_every_page_is_an_error(tmp_path):
    account = Account(Behaviour(limits=False, gateway_rows=1), tickets=900)
    with serving(account) as simulator:
        with pytest.raises(SourceError) as failure:
            extract(simulator, "tickets", tmp_path)
        assert len(simulator.requests) == 15
    assert failure.value.status == 504


def test_an_end_time_that_has_not_come_is_an_error_that_names_it(tmp_path):
    account, page = Account(tickets=1), {"ticket_events": [], "end_time": 10**25, "end_of_stream": False}
    account.before = lambda request: Answer(200, json.dumps(page).encode())
    with serving(account) as simulator, pytest.raises(SourceError, match="end_time is 10000000000000"):
        extract(simulator, "comments", tmp_path, THIRDS[0])


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("entity", ["tickets", "users", "groups"])
def test_cursors_that_lead_in_a_circle_are_an_error(tmp_path, entity, length):
    account, asked = Account(tickets=1), list[Request]()

    def around(request: Request) -> Answer:
        asked.append(request)
        cursor = f"c{len(asked) % length}" if length > 1 else f"c{min(len(asked), 3)}"
        body = {entity: [], "meta": {"has_more": True, "after_cursor": cursor}}
        return Answer(200, orjson.dumps(body | {"end_of_stream": False, "after_cursor": cursor}))

    account.before = around
    with serving(account) as simulator:
        kind, said = (Contradictory, "no end of pages") if length > 1 else (SourceError, "after_cursor|again")
        with pytest.raises(kind, match=said):
            extract(simulator, entity, tmp_path)
    assert len(asked) <= length + 5


@pytest.mark.parametrize("entity", ENTITIES)
def test_an_entity_that_may_not_be_read_is_named(tmp_path, entity):
    account = Account(Behaviour(limits=False, forbidden=frozenset({entity})))
    with serving(account) as simulator:
        with pytest.raises(SourceError, match=r"Forbidden.*permissions") as failure:
            extract(simulator, entity, tmp_path / entity)
        assert failure.value.status == 403
        others = [other for other in ENTITIES if other != entity]
        with opened(simulator) as client:
            assert all(client.check(CONNECTOR.stream(other)) for other in others)
            with pytest.raises(SourceError) as failure:
                client.check(CONNECTOR.stream(entity))
    assert failure.value.status == 403


@pytest.mark.parametrize(
    "credential", [{"api_token": "wrong-token"}, {"access_token": "wrong", "api_token": None, "email": None}]
)
def test_a_credential_that_is_not_accepted_is_said_exactly(tmp_path, credential):
    account = Account(token=TOKEN)
    with serving(account) as simulator:
        with pytest.raises(SourceError, match=r"authenticate you.*credential was not accepted") as failure:
            extract(simulator, "tickets", tmp_path, **credential)
        assert len(simulator.requests) == 1
        assert extract(simulator, "tickets", tmp_path / "token").rows
        bearer = {"access_token": TOKEN, "api_token": None, "email": None}
        assert extract(simulator, "tickets", tmp_path / "bearer", **bearer).rows
    assert failure.value.status == 401


OAUTH = {"api_token": None, "email": None, "client_id": "bridge", "client_secret": TOKEN}


@pytest.mark.parametrize("refresh", [{}, {"refresh_token": "first-refresh-token"}])
def test_tokens_that_expire_in_the_middle_are_renewed(tmp_path, refresh):
    account = Account(Behaviour(export_page=10, limits=False, token_life=3), tickets=90, token=TOKEN)
    with serving(account) as simulator:
        assert extract(simulator, "tickets", tmp_path, **OAUTH, **refresh).rows == truth(simulator, "tickets")
        tokens = [line["status"] for line in simulator.requests if line["path"] == "/oauth/tokens"]
        refused = [line for line in simulator.requests if line["status"] == 401]
    assert tokens == [200, 200, 200]
    assert len(refused) == 2


def test_a_client_that_gets_no_token_is_said_exactly(tmp_path):
    account = Account(tickets=5, token="another-secret")
    with serving(account) as simulator, pytest.raises(SourceError, match="invalid_client") as failure:
        extract(simulator, "tickets", tmp_path, **OAUTH)
    assert failure.value.status == 401


def test_no_secret_is_in_an_error_or_journal(tmp_path):
    account = Account(tickets=25)

    def echo(request):
        return Answer(400, orjson.dumps({"error": dict(request.headers) | {"token": TOKEN}}))

    with serving(account) as simulator:
        extract(simulator, "tickets", tmp_path)
        account.before = echo
        with pytest.raises(SourceError) as failure:
            extract(simulator, "users", tmp_path / "users")
    for shown in (TOKEN, "Basic YWRtaW5"):
        assert shown not in str(failure.value)
        assert all(shown.encode() not in path.read_bytes() for path in tmp_path.rglob("*.zst"))


def test_excluded_fields_are_left_out_before_the_journal(tmp_path):
    account = Account(tickets=25)
    with serving(account) as simulator:
        excluded = ("comments.body", "comments.html_body", "comments.plain_body", "users.email")
        found = extract(simulator, "comments", tmp_path, exclude=excluded)
        assert found.rows == truth(simulator, "comments")
    assert b"body" not in found.journal.body(0)


# --- Single records and lists ----------------------------------------------------------------------


def test_single_records_are_given_or_gone(calm, tmp_path):
    held = calm.truth()
    with opened(calm) as client:
        journal = Journal(tmp_path)
        for entity in ("accounts", "users", "groups", "tickets"):
            stream = CONNECTOR.stream(entity)
            known = next(iter(held["entities"][entity]))
            assert str(client.read_one(stream, known, journal).content.records[0]["id"]) == known
            gone = [*held["deleted"][entity], "999999999999"]
            assert client.read_one(stream, gone[0], journal) is None
        with pytest.raises(SourceError, match="no single comments") as failure:
            client.read_one(CONNECTOR.stream("comments"), "1", journal)
    assert failure.value.status == 405


def test_lists_without_cursor_pages_are_read_by_offset(tmp_path):
    account = Account(Behaviour(limits=False, cursor_pages=False))
    with serving(account) as simulator:
        assert extract(simulator, "groups", tmp_path).rows == truth(simulator, "groups")
        # In one answer nothing moves between pages.
        assert len(exports(simulator, "groups")) == 1


class Groups:
    """A list of groups that knows offset pages only (vendor-apis C.2).

    `before` is called with each request, and may change the groups or answer itself.
    """

    def __init__(self, groups: int, before: Callable[[Request], Answer | None] = lambda request: None):
        self.ids = list(range(1, groups + 1))
        self.counted = 0
        self.account = Account(tickets=1)
        self.account.before = lambda request: before(request) or self._page(request)

    def _page(self, request: Request) -> Answer:
        query = request.query
        number, size = int(query.get("page", "1")), int(query.get("per_page", query.get("page[size]", "100")))
        if number > paging.OFFSET_PAGES:
            return Answer(400, b'{"errors":[{"code":"InvalidPaginationDepth"}]}')
        shown = self.ids[(number - 1) * size : number * size]
        more = number * size < len(self.ids)
        body = {
            "groups": [{"id": each, "name": "g", "updated_at": "2025-01-02T09:00:00Z"} for each in shown],
            "count": len(self.ids) + self.counted,
            "next_page": f"https://acme.zendesk.com/api/v2/groups.json?page={number + 1}" if more else None,
            "previous_page": None,
        }
        return Answer(200, orjson.dumps(body))


def page_of(request: Request) -> int:
    return int(request.query.get("page", "1"))


def test_a_group_is_deleted_while_offset_pages_are_read_and_no_other_is_lost(tmp_path):
    deleted = []

    def before(request: Request) -> None:
        if page_of(request) == 2 and not deleted:
            deleted.append(groups.ids.pop(10))

    groups = Groups(150, before)
    with serving(groups.account) as simulator:
        found = extract(simulator, "groups", tmp_path)
    assert set(found.rows) - set(map(str, deleted)) == set(map(str, groups.ids))


@pytest.mark.parametrize("spoilt", [1, 2])
def test_offset_pages_of_one_reading_have_one_size(tmp_path, spoilt):
    def before(request: Request) -> Answer | None:
        size = request.query.get("per_page", request.query.get("page[size]"))
        return Answer(504, b"", "text/plain") if page_of(request) == spoilt and size == "100" else None

    groups = Groups(150, before)
    with serving(groups.account) as simulator:
        found = extract(simulator, "groups", tmp_path)
    assert set(found.rows) == set(map(str, groups.ids))


def test_offset_pages_may_be_as_many_as_can_be_asked_for(tmp_path, monkeypatch):
    for module in (paging, client):
        monkeypatch.setattr(module, "OFFSET_PAGES", 3)
    groups = Groups(300)
    with serving(groups.account) as simulator:
        assert len(extract(simulator, "groups", tmp_path / "all").rows) == 300
        groups.ids.append(301)
        with pytest.raises(SourceError, match="more than 3 pages"):
            extract(simulator, "groups", tmp_path / "more")


@pytest.mark.parametrize("groups", [90, 150])
def test_offset_pages_that_show_fewer_than_the_source_counts_are_an_error(tmp_path, groups):
    short = Groups(groups)
    short.counted = 1
    said = f"counts {groups + 1} and its pages show {groups}"
    with serving(short.account) as simulator, pytest.raises(Contradictory, match=said):
        extract(simulator, "groups", tmp_path)


def test_a_killed_reading_by_offset_is_resumed_at_any_page(tmp_path):
    groups = Groups(250)
    with serving(groups.account) as simulator:
        whole = extract(simulator, "groups", tmp_path / "whole")
        for done in range(1, whole.counts.pages + 1):
            folder = tmp_path / str(done)
            extract(simulator, "groups", folder, most=done)
            assert extract(simulator, "groups", folder).rows == whole.rows


def answer(**envelope):
    return PageContent([], envelope=envelope)


@pytest.mark.parametrize(
    ("entity", "envelope", "sent", "following"),
    [
        ("tickets", {"end_of_stream": True, "after_cursor": "b"}, {"cursor": "a"}, None),
        ("tickets", {"end_of_stream": True, "after_cursor": None}, {"cursor": "a"}, None),
        ("tickets", {"end_of_stream": False, "after_cursor": "b"}, {"cursor": "a"}, {"cursor": "b"}),
        ("accounts", {"end_of_stream": False, "end_time": 8}, {"start_time": "7"}, {"start_time": "8"}),
        ("accounts", {"end_of_stream": True, "end_time": 7}, {"start_time": "7"}, None),
        (
            "groups",
            {"meta": {"has_more": False, "after_cursor": "b"}, "links": {"next": "https://x"}},
            {},
            None,
        ),
        ("groups", {"meta": {"has_more": True, "after_cursor": "b"}}, {}, {"page[after]": "b"}),
        ("groups", {"next_page": None, "count": 3}, {}, None),
        ("groups", {"next_page": "https://elsewhere.example/x?page=9"}, {"page": "2"}, {"page": "3"}),
    ],
)
def test_where_an_answer_leads(entity, envelope, sent, following):
    assert STYLES[entity].following(answer(**envelope), sent) == following


@pytest.mark.parametrize(
    ("entity", "envelope", "sent"),
    [
        ("tickets", {}, {}),
        ("tickets", {"end_of_stream": "false", "after_cursor": "b"}, {}),
        ("tickets", {"end_of_stream": False}, {}),
        ("tickets", {"end_of_stream": False, "after_cursor": "a"}, {"cursor": "a"}),
        ("accounts", {"end_of_stream": False}, {"start_time": "7"}),
        ("accounts", {"end_of_stream": False, "end_time": 7}, {"start_time": "7"}),
        # Milliseconds, other types, and what has not come yet.
        *(
            ("comments", {"end_of_stream": False, "end_time": value}, {"start_time": "7"})
            for value in (1_735_808_400_000, 10**25, 1e300, "1735808400", True, -1, 4_102_444_800)
        ),
        *(
            ("tickets", {"end_of_stream": False, "after_cursor": value}, {})
            for value in (7, "", [], {}, True)
        ),
        *(("groups", {"meta": {"has_more": True, "after_cursor": value}}, {}) for value in (7, "", [], True)),
        ("groups", {}, {}),
        ("groups", {"meta": {"has_more": True, "after_cursor": None}}, {}),
        ("groups", {"next_page": None}, {"page[after]": "a"}),
        *(("groups", {"next_page": value}, {}) for value in (False, True, 2, "", [], {})),
    ],
)
def test_an_answer_that_leads_nowhere_is_unreadable(entity, envelope, sent):
    with pytest.raises(UnreadableBody):
        STYLES[entity].following(answer(**envelope), sent)


def test_offset_pages_end_at_the_cap():
    with pytest.raises(Capped):
        STYLES["groups"].following(answer(next_page="x"), {"page": "100"})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"api_token": TOKEN},
        {"api_token": TOKEN, "email": EMAIL, "access_token": TOKEN},
        {"client_id": "bridge"},
        {"client_secret": TOKEN},
        {"access_token": TOKEN, "refresh_token": TOKEN},
        {"access_token": TOKEN, "base_url": "ftp://acme.example.com"},
        {"access_token": TOKEN, "base_url": "https://u:p@acme.zendesk.com"},
        {"access_token": TOKEN, "plan": "gold"},
    ],
)
def test_a_config_that_cannot_work_is_refused(config):
    with pytest.raises(ValidationError):
        CONNECTOR.config(**{"base_url": "https://acme.zendesk.com"} | config)


def test_a_page_that_is_read_again_counts_as_it_is_now():
    tally, shown = paging.Tally(), []
    for number, records in ((1, 3), (2, 2), (2, 1), (1, 2)):
        tally.enter(number, Page(number, PageContent([{}] * records, total=9), datetime.now(UTC)))
        shown.append(tally.shown)
    assert (shown, tally.count) == ([3, 5, 4, 2], 9)
