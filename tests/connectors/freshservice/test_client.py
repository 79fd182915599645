"""Reading Freshservice: nothing lost, nothing asked for twice, and what the API does to its readers."""

import base64
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import orjson
import pytest

from bridge_pipeline.connector_kit.diagnosis import narrowed
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.reckoning import look_up
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.simulator import Answer
from bridge_pipeline.connectors.freshservice import CONNECTOR
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.world import ERASED, LIVE, SPAM, TRASHED, Said
from bridge_pipeline.model import Window
from bridge_pipeline.steps.listed import list_source
from tests.connectors.freshservice.account import (
    ALL,
    ENTITIES,
    KEY,
    Account,
    Held,
    asked,
    balanced,
    extract,
    instant,
    opened,
    serving,
    truth,
)

WINDOW = Window.of_days(date(2025, 1, 20), date(2025, 1, 29))
DETAIL = re.compile(r"/api/v2/tickets/\d+\?")


def details(simulator):
    """The tickets whose own address was asked for so far, in order."""
    return [
        path.split("?")[0].rsplit("/", 1)[1] for path in asked(simulator, "/tickets/") if DETAIL.search(path)
    ]


def live(account, count):
    rows = account.world.rows["tickets"]
    start, end = WINDOW.start.timestamp(), WINDOW.end.timestamp()
    return [row for row in rows if row.state == LIVE and start <= row.updated < end][:count]


# --- Whole -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm():
    with serving(Account(tickets=120)) as simulator:
        yield simulator


@pytest.mark.parametrize("entity", ENTITIES)
def test_all_records_are_read(calm, tmp_path, entity):
    found = extract(calm, entity, tmp_path / "j")
    assert found.rows == truth(calm, entity)
    assert found.rows
    assert balanced(found)
    assert found.proof["sweeps"] == 2


@pytest.mark.parametrize("entity", ["users", "tickets", "comments"])
def test_a_window_is_read(calm, tmp_path, entity):
    found = extract(calm, entity, tmp_path / "j", WINDOW)
    assert found.rows == truth(calm, entity, WINDOW)
    assert found.rows
    assert balanced(found)


@pytest.mark.long
@pytest.mark.parametrize("entity", ["users", "tickets", "comments", "assets"])
@pytest.mark.parametrize("seed", range(6))
def test_all_records_are_read_from_a_hostile_account(tmp_path, entity, seed):
    ways = vars(Behaviour.of(Account(faults="hostile", seed=seed).options))
    behaviour = Behaviour(**ways | {"limits": False, "calm_after": 60, "speaking": True})
    with serving(Account(behaviour, tickets=180, faults="hostile", seed=seed)) as simulator:
        found = None
        while found is None:
            try:
                found = extract(simulator, entity, tmp_path / "j")
            except SourceError as error:
                # A redirect ends a run; the next one resumes its journal.
                if "redirect" not in str(error):
                    raise
        assert found.rows == truth(simulator, entity)
        assert balanced(found)


@pytest.mark.parametrize(
    "behaviour",
    [
        # With more tickets than a page has.
        Behaviour(limits=False, ordered="no"),
        Behaviour(limits=False, ordered="refused"),
        Behaviour(limits=False, since=False),
        Behaviour(limits=False, links=False),
    ],
    ids=["unsorted", "sorting refused", "no beginning", "no links"],
)
def test_an_account_with_other_ways_is_read_whole(tmp_path, behaviour):
    with serving(Account(behaviour, tickets=230)) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        assert balanced(found)


def test_an_unsorted_list_is_read_on_where_a_page_is_of_later_days_alone(tmp_path):
    account = Account(Behaviour(limits=False, ordered="no"), tickets=60)
    with serving(account) as simulator:
        oldest = instant(min(truth(simulator, "tickets").values())).date()
        first = Window.of_days(oldest, oldest)
        found = extract(simulator, "tickets", tmp_path / "j", first, page_size=5)
        assert found.rows == truth(simulator, "tickets", first)


def test_an_account_that_refuses_an_order_that_nobody_asks_for_is_an_error(tmp_path):
    account, refused = Account(tickets=20), []

    def before(request):
        if request.path == "/api/v2/tickets":
            refused.append(request)
            # Who never gives in would ask for ever.
            return Answer(400 if len(refused) < 20 else 404, b'{"errors":[{"field":"order_by"}]}')

    account.before = before
    with serving(account) as simulator, pytest.raises(SourceError, match="HTTP 400"):
        extract(simulator, "tickets", tmp_path / "j")
    assert ["order_by" in each.query for each in refused] == [True, False]


def test_tickets_that_change_while_they_are_read_are_met_again(tmp_path):
    account = Account(tickets=320)
    oldest = sorted(account.world.rows["tickets"], key=lambda row: row.updated)
    touched = iter([row for row in oldest if row.state == LIVE][:30])

    def before(request):
        if request.path == "/api/v2/tickets" and (row := next(touched, None)):
            account.changing.touch(row)

    account.before = before
    with serving(account) as simulator, opened(simulator, settings={"max_sweeps": 40}) as client:
        # Every row behind the touched one moves up a place, which loses one to who counts pages.
        assert listed_ids(client, tmp_path) == set(truth(simulator, "tickets"))


def test_a_ticket_that_lists_show_late_is_found_by_a_later_sweep(tmp_path):
    account = Account(Behaviour(limits=False, late=15), tickets=20)
    with serving(account) as simulator:
        account.changing.create()
        found = extract(simulator, "tickets", tmp_path / "j")
        assert found.rows == truth(simulator, "tickets")
        assert found.proof["sweeps"] == 3


def test_an_account_that_never_rests_is_an_error(tmp_path):
    account = Account(tickets=40)

    def before(request):
        if request.path == "/api/v2/tickets":
            account.changing.create()

    account.before = before
    with serving(account) as simulator, pytest.raises(SourceError, match=r"read 3 times.*still differed"):
        extract(simulator, "tickets", tmp_path / "j", settings={"max_sweeps": 3})


# --- Lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entity", ["tickets", "comments"])
def test_tickets_are_never_listed_without_a_beginning(tmp_path, entity):
    with serving(Account(tickets=20)) as simulator:
        found = extract(simulator, entity, tmp_path / "j")
        lists = asked(simulator, "/tickets?")
        # By now everything is older than the 30 days that the list is cut to without one.
        assert found.rows == truth(simulator, entity)
        assert lists
        assert all("updated_since=" in path for path in lists)


def test_an_empty_day_is_not_believed_before_the_newest_tickets_were_looked_at(tmp_path):
    day = Window.of_days(date(2025, 6, 1), date(2025, 6, 1))
    with serving(Account(tickets=40)) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", day)
        assert found.rows == {}
        assert found.proof["confirmed_empty"] == {"records": len(truth(simulator, "tickets"))}
        assert len(asked(simulator, "order_type=desc")) == 1
        assert balanced(found)


def test_a_filter_that_hides_everything_is_found_out(tmp_path):
    account = Account(tickets=40)

    def before(request):
        if request.query.get("updated_since", "1970") > "2000":
            return Answer(200, b'{"tickets":[]}')

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        assert found.rows


def test_a_list_deeper_than_its_pages_is_an_error(tmp_path):
    account = Account(Behaviour(limits=False, deepest=2), tickets=20, users=300)
    with serving(account) as simulator, pytest.raises(SourceError, match="beyond the 2th page"):
        extract(simulator, "users", tmp_path / "j")


def test_tickets_are_read_beyond_the_deepest_page(tmp_path):
    account = Account(Behaviour(limits=False, deepest=1), tickets=320)
    with serving(account) as simulator, opened(simulator) as client:
        assert listed_ids(client, tmp_path) == set(truth(simulator, "tickets"))


def listed_ids(client, folder):
    (folder / "j").mkdir()
    book = list_source(client, CONNECTOR.stream("tickets"), folder, Journal(folder / "j"), narrow=True)
    try:
        return {entry[0] for entry in book.listed()}
    finally:
        book.close()


def test_ids_are_listed_without_asking_for_a_single_ticket(tmp_path):
    with serving(Account(tickets=60)) as simulator, opened(simulator) as client:
        assert listed_ids(client, tmp_path) == set(truth(simulator, "tickets"))
        assert details(simulator) == []


@pytest.mark.parametrize("name", ["assets", "agents", "conversations"])
def test_what_the_key_may_not_read_is_an_error_and_no_empty_list(tmp_path, name):
    entity = {"agents": "users", "conversations": "comments"}.get(name, name)
    with serving(Account(Behaviour(limits=False, forbidden=frozenset({name})), tickets=30)) as simulator:
        with pytest.raises(SourceError, match="access_denied") as error:
            extract(simulator, entity, tmp_path / "j")
        assert error.value.status == 403
        assert extract(simulator, "accounts", tmp_path / "other").rows


def test_a_refusal_for_the_plan_is_told_from_one_for_the_role():
    def problem(code):
        account = Account(tickets=1)
        account.before = lambda request: Answer(403, b'{"code":"%b","message":"no"}' % code)
        with serving(account) as simulator, opened(simulator) as client, pytest.raises(SourceError) as error:
            client.check(CONNECTOR.stream("assets"))
        return narrowed(error.value.problem, str(error.value), CONNECTOR.plan_words)

    assert (problem(b"require_feature"), problem(b"access_denied")) == ("plan", "scope")


def test_all_workspaces_are_read_where_that_is_asked_for(tmp_path):
    with serving(Account(Behaviour(limits=False, workspaces=2), tickets=30)) as simulator:
        primary = extract(simulator, "tickets", tmp_path / "one")
        every = extract(simulator, "tickets", tmp_path / "all", all_workspaces=True)
        assert every.rows == truth(simulator, "tickets")
        assert set(primary.rows) < set(every.rows)


# --- Details ---------------------------------------------------------------------------------------


def test_each_ticket_has_what_only_its_own_address_gives(calm, tmp_path):
    found = extract(calm, "tickets", tmp_path / "j", WINDOW)
    for raw in found.raw.values():
        assert {"urgency", "tags", "stats", "sla_policy_id"} <= set(orjson.loads(raw))


def test_details_are_asked_for_tickets_of_the_window_only(tmp_path):
    with serving(Account(tickets=120)) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert sorted(details(simulator)) == sorted(truth(simulator, "tickets", WINDOW))
        # What is only listed is not fetched, and says nothing of the fields that records have.
        assert found.counts.fetched == 2 * len(found.rows)
        assert found.proof["listed"] > len(found.rows)


def test_details_are_asked_only_for_tickets_that_are_new_or_newer_than_what_is_held(tmp_path):
    account = Account(tickets=120)
    with serving(account) as simulator:
        first = extract(simulator, "tickets", tmp_path / "first", WINDOW)
        before = len(simulator.requests)
        changed = [row for row in account.world.rows["tickets"] if str(row.id) in first.rows][:3]
        for row in changed:
            account.changing.touch(row, int(WINDOW.end.timestamp()) - 60)
        held = Held(first.raw | {"999999": b"{}"})
        again = extract(simulator, "tickets", tmp_path / "again", WINDOW, landed=held)
        assert again.rows == truth(simulator, "tickets", WINDOW)
        ids = {str(row.id) for row in changed}
        assert set(details(simulator)[len(first.rows) :]) == ids
        assert {key: raw for key, raw in again.raw.items() if key not in ids} == {
            key: raw for key, raw in first.raw.items() if key not in ids
        }
        assert again.proof["details_asked"] == 3
        assert again.proof["details_kept"] == len(first.rows) - 3
        assert again.journal.written == len(simulator.requests) - before
        assert balanced(again)


def test_a_held_ticket_that_the_list_shows_otherwise_is_asked_for_again(tmp_path):
    account = Account(tickets=60)
    with serving(account) as simulator:
        first = extract(simulator, "tickets", tmp_path / "first", WINDOW)
        key, raw = next(iter(first.raw.items()))
        other = orjson.dumps(orjson.loads(raw) | {"is_escalated": None})
        again = extract(
            simulator, "tickets", tmp_path / "again", WINDOW, landed=Held(first.raw | {key: other})
        )
        assert details(simulator)[len(first.rows) :] == [key]
        assert again.raw == first.raw


@pytest.mark.parametrize("raw", [b"[]", b"{", b"null", b'{"id":7}'])
def test_what_is_held_and_is_no_ticket_is_asked_for_again(tmp_path, raw):
    with serving(Account(tickets=60)) as simulator:
        held = Held(dict.fromkeys(truth(simulator, "tickets"), raw))
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW, landed=held)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        assert found.proof["details_kept"] == 0


def test_a_ticket_that_is_gone_before_its_details_were_asked_for_is_left_out(tmp_path):
    account = Account(tickets=40)
    rows = live(account, 2)

    def before(request):
        if request.path == f"/api/v2/tickets/{rows[0].id}":
            rows[0].state = ERASED
        if request.path == f"/api/v2/tickets/{rows[1].id}":
            rows[1].state = TRASHED

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j")
        assert found.rows == truth(simulator, "tickets")
        # The one in the trash still answers, and says so.
        assert set(found.gone) == {str(rows[1].id)}
        assert balanced(found)


def test_a_ticket_that_stays_listed_and_is_never_found_is_an_error(tmp_path):
    account = Account(tickets=40)
    lost = live(account, 1)[0]
    account.before = lambda request: Answer(404, b"") if request.path.endswith(f"/{lost.id}") else None
    with serving(account) as simulator, pytest.raises(SourceError, match=f"{lost.id} are listed, and asked"):
        extract(simulator, "tickets", tmp_path / "j")


def test_one_refused_detail_fails_the_extraction_and_the_next_one_takes_up_from_there(tmp_path):
    account = Account(tickets=60)
    lost = live(account, 20)[-1]
    refusing = [True]

    def before(request):
        if request.path.endswith(f"/{lost.id}") and refusing[0]:
            return Answer(403, b'{"code":"access_denied"}')

    account.before = before
    with serving(account) as simulator:
        with pytest.raises(SourceError, match="access_denied"):
            extract(simulator, "tickets", tmp_path / "j", WINDOW)
        refusing[0] = False
        asked_before = details(simulator)
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        again = details(simulator)[len(asked_before) :]
        # What was under way when it failed may be asked for again.
        assert len(set(again) & set(asked_before)) <= 9
        assert balanced(found)


@pytest.mark.parametrize("most", [1, 3, 30, 50])
def test_a_killed_extraction_is_resumed_without_asking_twice(tmp_path, most):
    with serving(Account(tickets=40)) as simulator:
        extract(simulator, "tickets", tmp_path / "j", most=most, lookups_at_once=1)
        found = extract(simulator, "tickets", tmp_path / "j", lookups_at_once=1)
        assert found.rows == truth(simulator, "tickets")
        # One was asked for ahead when it was killed.
        assert len(details(simulator)) <= len(found.rows) + 2
        assert balanced(found)


def test_a_reading_that_a_journal_answers_whole_is_not_believed_before_the_source_was_asked(tmp_path):
    account = Account(tickets=40)
    with serving(account) as simulator:
        extract(simulator, "tickets", tmp_path / "j")
        account.changing.touch(live(account, 1)[0], int(WINDOW.end.timestamp()) - 60)
        assert extract(simulator, "tickets", tmp_path / "j").rows == truth(simulator, "tickets")


def test_that_there_is_nothing_is_not_believed_at_once(tmp_path):
    account = Account(tickets=1)
    account.before = lambda request: Answer(200, b'{"groups":[]}')
    with serving(account) as simulator:
        assert extract(simulator, "groups", tmp_path / "j").proof["sweeps"] == 2


@pytest.mark.parametrize("at_once", [1, 8])
def test_details_come_the_same_however_many_are_asked_for_at_once(tmp_path, at_once):
    with serving(Account(tickets=40)) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", lookups_at_once=at_once)
        assert found.rows == truth(simulator, "tickets")
        assert sorted(details(simulator)) == sorted(found.rows)


def test_a_detail_of_another_ticket_is_not_taken_for_it(tmp_path):
    account = Account(tickets=40)
    first, second = live(account, 2)
    wrong = orjson.dumps({"ticket": account._records.detail(second, frozenset())})
    account.before = lambda request: Answer(200, wrong) if request.path.endswith(f"/{first.id}") else None
    with (
        serving(account) as simulator,
        pytest.raises(SourceError, match=f"the id {second.id}, not {first.id}"),
    ):
        extract(simulator, "tickets", tmp_path / "j")


def behind(account, row, answers):
    """Lets the first answers for a ticket's details be those of before it was changed just now."""
    old = orjson.dumps({"ticket": account._records.detail(row, frozenset({"stats", "tags"}))})
    account.changing.touch(row, int(WINDOW.end.timestamp()) - 60)
    served = []

    def before(request):
        if request.path == f"/api/v2/tickets/{row.id}" and len(served) < answers:
            served.append(request.path)
            return Answer(200, old)

    account.before = before
    return served


def test_details_that_are_older_than_the_list_are_asked_for_again(tmp_path):
    account = Account(tickets=40)
    row = live(account, 1)[0]
    served = behind(account, row, 2)
    with serving(account) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        assert details(simulator).count(str(row.id)) == len(served) + 1 == 3
        assert (found.proof["sweeps"], found.counts.outside) == (2, 0)
        assert balanced(found)


def test_details_that_stay_older_than_the_list_are_an_error_and_are_not_kept(tmp_path):
    account = Account(tickets=40)
    row = live(account, 1)[0]
    behind(account, row, 3)
    with serving(account) as simulator:
        with pytest.raises(SourceError, match=f"/{row.id}.*the list has shown it as of 2025-01-29T23:59:00Z"):
            extract(simulator, "tickets", tmp_path / "j", WINDOW)
        found = extract(simulator, "tickets", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "tickets", WINDOW)
        assert details(simulator).count(str(row.id)) == 4


# --- Comments --------------------------------------------------------------------------------------


def test_long_conversations_are_read_to_their_end(tmp_path):
    account = Account(tickets=30)
    row = live(account, 1)[0]
    row.said = [Said(number, row.created) for number in range(230)]
    with serving(account) as simulator:
        found = extract(simulator, "comments", tmp_path / "j")
        assert found.rows == truth(simulator, "comments")
        assert {row["ticket_id"] for row in map(orjson.loads, found.raw.values())} >= {row.id}


def talkative(tickets, spoken):
    """An account with one ticket in which so much was said; all but that fits on a page."""
    account = Account(tickets=tickets)
    for each in account.world.rows["tickets"]:
        each.said = each.said[:3]
    row = live(account, 1)[0] if tickets > 1 else account.world.rows["tickets"][0]
    row.said = [Said(number, row.updated) for number in range(spoken)]
    return account, row


def conversations(simulator, row):
    """The pages of a ticket's conversations that were asked for so far."""
    paths = asked(simulator, f"/tickets/{row.id}/conversations")
    return [int(re.search(r"[?&]page=(\d+)", path)[1]) for path in paths]


@pytest.mark.parametrize("window", [None, WINDOW], ids=["whole", "window"])
def test_what_moves_up_over_the_border_of_two_pages_is_read(tmp_path, window):
    account, row = talkative(40, 230)

    def before(request):
        # Somebody deletes a note on the first page, and the next time brings it back.
        if request.path.endswith(f"/{row.id}/conversations") and request.query["page"] != "1":
            place = int(request.query["page"])
            row.said[place].state = TRASHED if row.said[place].state == ERASED else ERASED

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "comments", tmp_path / "j", window)
        there = truth(simulator, "comments", window) if window else truth(simulator, "comments")
        assert there.items() <= found.rows.items()
        assert balanced(found)


def test_conversations_of_one_page_are_asked_for_once_and_longer_ones_until_nothing_is_unseen(tmp_path):
    account, row = talkative(40, 230)
    gone = []

    def before(request):
        if request.path.endswith(f"/{row.id}/conversations") and request.query["page"] == "2" and not gone:
            gone.append(row.said.pop(10))

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "comments", tmp_path / "j")
        assert set(truth(simulator, "comments")) < set(found.rows)
        assert conversations(simulator, row) == [1, 2, 3] * 3
        others = [each for each in account.world.rows["tickets"] if each.state == LIVE and each is not row]
        assert {tuple(conversations(simulator, each)) for each in others} == {(1,)}
        assert found.proof["sweeps"] == 2


@pytest.mark.parametrize("most", range(2, 12))
def test_long_conversations_are_read_whole_wherever_the_reading_is_killed(tmp_path, most):
    account, row = talkative(2, 230)
    gone = iter((150, 40, 10))

    def before(request):
        if request.path.endswith(f"/{row.id}/conversations") and (place := next(gone, None)):
            row.said.pop(place)

    account.before = before
    with serving(account) as simulator:
        extract(simulator, "comments", tmp_path / "j", most=most)
        before_it_went_on = conversations(simulator, row)
        found = extract(simulator, "comments", tmp_path / "j")
        assert truth(simulator, "comments").items() <= found.rows.items()
        assert balanced(found)
        # The last reading was asked for by one of the two alone.
        last = conversations(simulator, row)[-3:]
        assert last == [1, 2, 3]
        assert len(conversations(simulator, row)) <= len(before_it_went_on) + 9


@pytest.mark.parametrize("kills", [(5,), (5, 9)], ids=["once", "twice"])
def test_a_reading_of_conversations_that_was_killed_half_way_settles_nothing(tmp_path, kills):
    account, row = talkative(1, 5)
    row.state, requests = LIVE, []

    def before(request):
        if request.path.endswith("/conversations"):
            requests.append(request)
            # The first two are deleted, each before the page on which the third would have been: once in the
            # first reading, and once while nobody reads, after the first page of the second one.
            if len(requests) in (3, 7):
                row.said.pop(0)

    account.before = before
    chosen = {"page_size": 1, "lookups_at_once": 1}
    with serving(account) as simulator:
        for most in kills:
            extract(simulator, "comments", tmp_path / "j", most=most, **chosen)
        found = extract(simulator, "comments", tmp_path / "j", **chosen)
        assert truth(simulator, "comments").items() <= found.rows.items()
        assert conversations(simulator, row)[:6] == [1, 2, 3, 4, 5, 1]
        assert balanced(found)


def test_conversations_that_never_rest_are_an_error(tmp_path):
    account, row = talkative(2, 130)

    def before(request):
        if request.path.endswith(f"/{row.id}/conversations"):
            row.said.append(Said(len(row.said), row.updated))

    account.before = before
    with (
        serving(account) as simulator,
        pytest.raises(SourceError, match=f"said in {row.id} was read 3 times"),
    ):
        extract(simulator, "comments", tmp_path / "j", settings={"max_sweeps": 3})


def test_readings_that_were_resumed_are_none_of_those_that_may_be_taken(tmp_path):
    account, row = talkative(1, 130)
    row.state = LIVE

    def before(request):
        if request.path.endswith("/conversations"):
            row.said.append(Said(len(row.said), row.updated))

    account.before = before
    with serving(account) as simulator:
        extract(simulator, "comments", tmp_path / "j", most=4)
        account.before = lambda request: None
        found = extract(simulator, "comments", tmp_path / "j", settings={"max_sweeps": 2})
        assert truth(simulator, "comments").items() <= found.rows.items()


def test_what_is_said_in_other_tickets_lets_no_ticket_be_read_again(tmp_path):
    account, _ = talkative(8, 130)
    busy = [row for row in account.world.rows["tickets"] if row.state == LIVE]
    for row in busy:
        row.said = [Said(number, row.updated) for number in range(130)]
    turns = iter(busy)

    def before(request):
        # In each reading somebody says something, each time in another ticket.
        if request.path.endswith(f"/{busy[-1].id}/conversations") and (row := next(turns, None)):
            row.said.append(Said(500, row.updated))

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "comments", tmp_path / "j", settings={"max_sweeps": 3})
        assert found.proof["sweeps"] == 2


@pytest.mark.parametrize("period", [1, 2, 7])
@pytest.mark.parametrize(("entity", "address"), [("comments", "/conversations"), ("groups", "/groups")])
def test_pages_that_are_served_for_ever_in_turns_are_an_error(tmp_path, entity, address, period):
    account = Account(Behaviour(limits=False), tickets=2)
    served = []

    def before(request):
        if request.path.endswith(address):
            served.append(request.path)
            assert len(served) < 100, "it is read without an end"
            rows = [{"id": int(request.query["page"]) % period + 1}]
            body = orjson.dumps({"conversations": rows, "groups": rows})
            return Answer(200, body, headers=(("Link", '<https://h/>; rel="next"'),))

    account.before = before
    with serving(account) as simulator, pytest.raises(SourceError, match="bring the same records"):
        extract(simulator, entity, tmp_path / "j")


def test_conversations_of_a_window_are_asked_of_tickets_that_can_have_some(tmp_path):
    account = Account(tickets=60)
    with serving(account) as simulator:
        found = extract(simulator, "comments", tmp_path / "j", WINDOW)
        assert found.rows == truth(simulator, "comments", WINDOW)
        start, end = WINDOW.start.timestamp() - 86_400, WINDOW.end.timestamp() + 86_400
        may = {
            str(row.id)
            for row in account.world.rows["tickets"]
            if row.state == LIVE and row.updated >= start and row.created < end
        }
        assert {path.split("/")[4] for path in asked(simulator, "/conversations")} == may


def test_tickets_whose_conversations_nobody_can_ask_for_are_counted(tmp_path):
    with serving(Account(tickets=120, faults="typical")) as simulator:
        found = extract(simulator, "comments", tmp_path / "j")
        assert found.proof["tickets_without_id"] == 2


class Spoilt(Account):
    """An account whose lists of tickets hold what no text may hold."""

    def answer(self, request):
        answer = super().answer(request)
        if request.path != "/api/v2/tickets":
            return answer
        return replace(answer, body=answer.body.replace(b'"subject":"', b'"subject":"\\u0000'))


@pytest.mark.parametrize("window", [None, WINDOW])
def test_what_was_said_in_tickets_that_cannot_be_accepted_is_read(tmp_path, window):
    with serving(Spoilt(tickets=30)) as simulator:
        assert not extract(simulator, "tickets", tmp_path / "tickets").rows
        found = extract(simulator, "comments", tmp_path / "comments", window)
        assert found.rows == truth(simulator, "comments", window or ALL)
        assert "tickets_without_id" not in found.proof


# --- People ----------------------------------------------------------------------------------------


def test_requesters_and_agents_are_one_space_of_ids(calm, tmp_path):
    found = extract(calm, "users", tmp_path / "j")
    agents = {key for key, raw in found.raw.items() if "email" in orjson.loads(raw)}
    assert 0 < len(agents) < len(found.rows)
    assert found.rows == truth(calm, "users")


@pytest.mark.parametrize("becomes", [True, False], ids=["an agent", "a requester"])
def test_who_changes_lists_while_they_are_read_is_not_lost(tmp_path, becomes):
    account = Account(tickets=20)
    person = next(row for row in account.world.rows["people"] if row.agent is not becomes)

    def before(request):
        if request.path == "/api/v2/agents" and person.agent is not becomes:
            person.agent = becomes
            account.changing.touch(person)

    account.before = before
    with serving(account) as simulator:
        found = extract(simulator, "users", tmp_path / "j")
        assert found.rows == truth(simulator, "users")
        assert ("email" in orjson.loads(found.raw[str(person.id)])) is becomes


# --- Single records --------------------------------------------------------------------------------


@pytest.mark.parametrize("entity", [entity for entity in ENTITIES if entity != "comments"])
def test_a_single_record_is_found_and_what_is_gone_is_not(calm, tmp_path, entity):
    (tmp_path / "j").mkdir()
    stream, journal = CONNECTOR.stream(entity), Journal(tmp_path / "j")
    with opened(calm) as client:
        for key in list(truth(calm, entity))[:3]:
            outcome, page = look_up(client, stream, key, journal)
            assert outcome.state == "found"
            assert str(stream.fields[0].read(page.content.records[0])) == key
        assert look_up(client, stream, "999999999", journal)[0].state == "deleted"


@pytest.mark.parametrize("state", [TRASHED, SPAM, ERASED])
def test_a_lookup_says_what_became_of_a_ticket(tmp_path, state):
    account = Account(tickets=20)
    row = live(account, 1)[0]
    row.state = state
    (tmp_path / "j").mkdir()
    with serving(account) as simulator, opened(simulator) as client:
        journal = Journal(tmp_path / "j")
        outcome, page = look_up(client, CONNECTOR.stream("tickets"), str(row.id), journal)
    assert outcome.state == "deleted"
    # What was read is handed on, or the batch would not add up.
    assert (0 if page is None else len(page.content.records)) == journal.records == (state != ERASED)


def test_there_is_no_single_comment(calm, tmp_path):
    with opened(calm) as client, pytest.raises(SourceError) as error:
        client.read_one(CONNECTOR.stream("comments"), "1", Journal(tmp_path))
    assert error.value.status == 405


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_connection_is_tested_with_the_smallest_pages(calm, entity):
    before = len(calm.requests)
    with opened(calm) as client:
        found = client.check(CONNECTOR.stream(entity))
    # The newest ticket may have no conversation; none is so young that a list without a beginning has it.
    assert found or entity == "comments"
    assert 1 <= len(calm.requests) - before <= 2


# --- Secrets and excluded fields -------------------------------------------------------------------


def test_the_key_is_nowhere_in_the_journal_or_in_errors(tmp_path):
    account = Account(tickets=20)
    with serving(account) as simulator:
        extract(simulator, "tickets", tmp_path / "j")
        account.before = lambda request: Answer(500, request.headers["authorization"].encode())
        with pytest.raises(SourceError) as error:
            extract(simulator, "accounts", tmp_path / "k")
    assert "Basic" in str(error.value)
    journal = Journal(tmp_path / "j")
    bodies = b"".join(journal.body(number) for number in range(journal._next))
    for secret in (KEY, base64.b64encode(f"{KEY}:X".encode()).decode()):
        assert secret not in str(error.value)
        assert secret.encode() not in bodies
        for path in Path(tmp_path).rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_excluded_fields_are_in_no_list_and_no_detail(tmp_path):
    with serving(Account(tickets=30)) as simulator:
        found = extract(simulator, "tickets", tmp_path / "j", exclude=("tickets.description*",))
        assert set(found.rows) == set(truth(simulator, "tickets"))
        journal = Journal(tmp_path / "j")
        assert all(b"description" not in journal.body(number) for number in range(journal._next))
        again = extract(
            simulator,
            "tickets",
            tmp_path / "again",
            exclude=("tickets.description*",),
            landed=Held(found.raw),
        )
        assert again.proof["details_asked"] == 0
        assert again.raw == found.raw
