"""The double behaves as the vendor does (vendor-apis C and F, ZD-1 to ZD-12), by plain requests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest

from bridge_pipeline.connector_kit.simulator import PROFILES, FaultProfile, SimulatorOptions
from bridge_pipeline.connectors.zendesk.simulator import run
from bridge_pipeline.connectors.zendesk.simulator import serving as served
from bridge_pipeline.connectors.zendesk.simulator.dialect import Behaviour
from bridge_pipeline.connectors.zendesk.simulator.limits import Counter
from bridge_pipeline.connectors.zendesk.simulator.world import LIVE, SCRUBBED, Changes
from tests.connectors.zendesk.account import Account, serving

CLOCK = datetime(2025, 3, 2, tzinfo=UTC)


class Asking:
    """A plain client that proves itself by a bearer token."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(
            base_url=url, trust_env=False, headers={"Authorization": "Bearer any-token"}
        )
        self.url = url

    def answer(self, path: str, **query: Any) -> httpx.Response:
        return self._http.get(f"/api/v2/{path}", params={k.replace("__", "["): v for k, v in query.items()})

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        answer = self.answer(path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def follow(self, url: str) -> dict[str, Any]:
        return self._http.get(url).json()


@contextmanager
def asking(account: Account) -> Iterator[Asking]:
    with serving(account) as simulator:
        yield Asking(simulator.url)


@pytest.fixture(scope="module")
def desk(calm):
    return Asking(calm.url)


# --- Exports ---------------------------------------------------------------------------------------


def test_a_cursor_export_is_ordered_by_generated_timestamp_and_has_a_cursor_at_its_end(desk):
    page, tickets = desk.get("incremental/tickets/cursor.json", start_time=0), []
    while True:
        tickets += page["tickets"]
        if page["end_of_stream"]:
            break
        page = desk.follow(page["after_url"])
    marks = [(ticket["generated_timestamp"], ticket["id"]) for ticket in tickets]
    assert marks == sorted(marks)
    assert len(set(marks)) == 300
    stale = [
        t for t in tickets if datetime.fromisoformat(t["updated_at"]).timestamp() < t["generated_timestamp"]
    ]
    assert len(stale) > 50
    polled = desk.get("incremental/tickets/cursor.json", cursor=page["after_cursor"])
    assert (polled["tickets"], polled["end_of_stream"]) == ([], True)
    assert (polled["after_cursor"], polled["after_url"]) == (None, None)


def test_what_is_deleted_is_in_the_export_and_nowhere_else(desk, calm):
    gone = calm.truth()["deleted"]
    page = desk.get("incremental/tickets/cursor", start_time=0, per_page=1_000)
    while not page["end_of_stream"]:
        more = desk.follow(page["after_url"])
        page = more | {"tickets": page["tickets"] + more["tickets"]}
    deleted = [ticket for ticket in page["tickets"] if ticket["status"] == "deleted"]
    assert {str(ticket["id"]) for ticket in deleted} == set(gone["tickets"])
    scrubbed = [ticket for ticket in deleted if ticket["subject"] == "SCRUBBED"]
    assert scrubbed
    assert all(t["description"] == "X" and not t["tags"] and not t["custom_fields"] for t in scrubbed)
    assert desk.answer(f"tickets/{deleted[0]['id']}.json").status_code == 404
    kept = desk.get("incremental/tickets/cursor", start_time=0, exclude_deleted="true")
    assert all(ticket["status"] != "deleted" for ticket in kept["tickets"])


def test_a_deleted_user_is_inactive_and_still_there(desk, calm):
    users = {user["id"]: user for user in everyone(desk)}
    inactive = [user for user in users.values() if not user["active"]]
    assert inactive
    assert all(user["email"] is None and "permanently_deleted" in user for user in inactive)
    assert all("permanently_deleted" not in user for user in users.values() if user["active"])
    assert desk.get(f"users/{inactive[0]['id']}.json")["user"] == inactive[0]


def everyone(desk):
    page = desk.get("incremental/users/cursor.json", start_time=0)
    yield from page["users"]
    while not page["end_of_stream"]:
        page = desk.follow(page["after_url"])
        yield from page["users"]


def test_time_pages_end_in_their_last_second_and_extend_a_single_one(desk, calm):
    page, kinds, seen = {"end_of_stream": False, "end_time": 0}, set(), []
    while not page["end_of_stream"]:
        page = desk.get("incremental/organizations.json", start_time=page["end_time"], per_page=2)
        seconds = [second(org["updated_at"]) for org in page["organizations"]]
        seen += [org["id"] for org in page["organizations"]]
        single = len(set(seconds)) == 1
        assert page["end_time"] == seconds[-1] + single
        assert page["count"] == len(seconds)
        assert len(seconds) <= 2 or single
        kinds.add((single, len(seconds) > 2))
    assert {(False, False), (True, True)} <= kinds
    assert len(seen) > len(set(seen)) == 30


def test_a_second_that_is_not_rescued_comes_for_ever():
    account = Account(Behaviour(rescued=False, limits=False))
    seconds, counts = np.unique(account.world.tables["accounts"].updated, return_counts=True)
    burst = int(seconds[counts.argmax()])
    with asking(account) as desk:
        pages = [desk.get("incremental/organizations", start_time=burst, per_page=2) for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0]["end_time"] == burst


def second(text):
    return int(datetime.fromisoformat(text).timestamp())


def test_a_start_within_the_last_minute_is_refused_and_the_last_minute_withheld():
    account = Account(clock=CLOCK)
    account.world.tables["tickets"].add(account.world.clock - 30)
    with asking(account) as desk:
        answer = desk.answer("incremental/tickets/cursor", start_time=account.world.clock - 59)
        assert (answer.status_code, answer.json()["error"]) == (422, "InvalidValue")
        page = desk.get("incremental/tickets/cursor", start_time=account.world.clock - 61)
        assert (page["tickets"], page["end_of_stream"]) == ([], True)
        account.world.clock += 60
        assert (
            len(desk.get("incremental/tickets/cursor", start_time=account.world.clock - 121)["tickets"]) == 1
        )


def test_comments_are_in_the_event_stream_only_if_they_are_asked_for(desk, calm):
    plain = desk.get("incremental/ticket_events.json", start_time=0)["ticket_events"]
    full = desk.get("incremental/ticket_events.json", start_time=0, include="comment_events")["ticket_events"]
    held = calm.truth()["entities"]["tickets"]
    first = next(number for number, event in enumerate(full) if str(event["ticket_id"]) in held)
    (comment,) = [child for child in full[first]["child_events"] if child["event_type"] == "Comment"]
    (mention,) = [child for child in plain[first]["child_events"] if child["event_type"] == "Comment"]
    assert "body" not in mention
    single = desk.get(f"tickets/{full[first]['ticket_id']}/comments.json")["comments"]
    assert comment in [each | {"event_type": "Comment"} for each in single]


# --- Lists -----------------------------------------------------------------------------------------


def test_cursor_pages_link_beyond_the_last_one(desk):
    page = desk.get("users.json", **{"page[size]": 50})
    assert page["meta"]["has_more"]
    last = desk.follow(page["links"]["next"])
    assert last["meta"]["has_more"] is False
    assert last["links"]["next"]
    beyond = desk.follow(last["links"]["next"])
    assert beyond == {
        "users": [],
        "meta": {"has_more": False, "after_cursor": None, "before_cursor": None},
        "links": {"prev": None, "next": None},
    }


def test_the_style_of_a_list_follows_the_request(desk):
    page = desk.get("users.json", per_page=50)
    assert set(page) == {"users", "count", "next_page", "previous_page"}
    assert page["count"] == 56
    assert desk.follow(page["next_page"])["next_page"] is None
    answer = desk.answer("users.json", per_page=1, page=101)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "query", "status", "body"),
    [
        ("tickets/999999.json", {}, 404, {"error": "RecordNotFound", "description": "Not found"}),
        ("nothing.json", {}, 404, None),
        ("users.json", {"page[after]": "???"}, 400, None),
        ("incremental/users/cursor.json", {"cursor": "???"}, 400, None),
        ("incremental/users/cursor.json", {"start_time": "soon"}, 422, None),
    ],
)
def test_errors(desk, path, query, status, body):
    answer = desk.answer(path, **query)
    assert answer.status_code == status
    assert body is None or answer.json() == body


def test_credentials_are_well_formed_or_refused(calm):
    for headers, auth in (({}, None), ({}, ("someone", "password")), ({"Authorization": "Bearer"}, None)):
        answer = httpx.get(f"{calm.url}/api/v2/users.json", headers=headers, auth=auth, trust_env=False)
        assert (answer.status_code, answer.json()) == (401, {"error": "Couldn't authenticate you"})
    basic = httpx.get(f"{calm.url}/api/v2/users.json", auth=("a@example.com/token", "t"), trust_env=False)
    assert basic.status_code == 200


# --- Limits, changes, faults -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "limit", "bucket"),
    [
        ("2024", "ratelimit-limit", "zendesk-ratelimit-incremental-exports"),
        ("2023", "rate-limit", "zendesk-rate-limit-incremental-exports"),
    ],
)
def test_a_request_over_the_limit_is_refused_in_plain_text(spelling, limit, bucket):
    with asking(Account(Behaviour(spelling=spelling))) as desk:
        answers = [desk.answer("incremental/organizations.json", start_time=0) for _ in range(11)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429]
        assert answers[0].headers[limit] == "700"
        assert answers[0].headers[bucket].startswith("total=10; remaining=9; resets=")
        assert answers[10].headers["content-type"].startswith("text/plain")
        assert 1 <= int(answers[10].headers["retry-after"]) <= 61
        # The cursor exports and everything else have limits of their own.
        assert desk.answer("incremental/users/cursor.json", start_time=0).status_code == 200
        assert desk.answer("groups.json").status_code == 200


def test_a_counter_forgets_after_a_minute(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    counter = Counter(2)
    counter.enter()
    now[0] += 30
    counter.enter()
    assert (counter.left, counter.resets()) == (0, 31)
    now[0] += 31
    assert counter.left == 1


def test_changes_move_marks_and_leave_update_times_alone_where_the_system_makes_them():
    account = Account(clock=CLOCK)
    tickets, changes = account.world.tables["tickets"], Changes(account.world, account.options.profile)
    before = tickets.updated.copy(), tickets.marks.copy(), len(account.world.events.times)
    for _ in range(30):
        changes.update()
    assert (tickets.marks != before[1]).sum() > 15
    changes.delete()
    assert (tickets.states == SCRUBBED).sum() + (tickets.states != LIVE).sum() > 0
    changes.create()
    assert len(tickets.ids) == 301
    assert (np.diff(account.world.events.times) >= 0).all()


def test_a_merge_moves_the_tickets_of_the_user_who_lost_and_nothing_else_of_them():
    account = Account(clock=CLOCK, users=10)
    changes = Changes(account.world, account.options.profile)

    def tickets():
        with asking(account) as desk:
            found = desk.get("incremental/tickets/cursor", start_time=0, per_page=1_000)["tickets"]
            users = desk.get("incremental/users/cursor", start_time=0)["users"]
        live = {ticket["id"]: ticket for ticket in found if ticket["status"] != "deleted"}
        return live, {user["id"] for user in users if not user["active"]}

    account.behaviour = replace(account.behaviour, export_page=1_000)
    before, inactive = tickets()
    changes.merge()
    # The export leaves the last minute out.
    account.world.clock += 61
    after, then_inactive = tickets()
    (lost,) = then_inactive - inactive
    moved = {key for key, ticket in before.items() if ticket["requester_id"] == lost}
    assert moved
    assert set(after) == set(before)
    assert lost not in {ticket["requester_id"] for ticket in after.values()}
    assert len({after[key]["requester_id"] for key in moved}) == 1
    what_moves = {"requester_id", "generated_timestamp"}
    for key, ticket in after.items():
        assert {
            name
            for name, value in ticket.items()
            if value != before[key][name] and name not in ("url", "updated_at")
        } == (what_moves if key in moved else set())
        assert ticket["updated_at"] == before[key]["updated_at"]


def test_the_same_seed_gives_the_same_account_and_another_gives_another():
    pages = []
    for seed in (5, 5, 6):
        with asking(Account(seed=seed)) as desk:
            page = json.dumps(desk.get("incremental/tickets/cursor", start_time=0, include="metric_sets"))
            pages.append(page.replace(desk.url, ""))
    assert pages[0] == pages[1] != pages[2]


def test_an_event_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no event log"):
        run(SimulatorOptions(event_log=tmp_path / "log.csv", clock=CLOCK))


def test_faults_speak_as_zendesk_does(monkeypatch):
    monkeypatch.setitem(PROFILES, "failing", FaultProfile(throttle=0.3, server_error=0.3))
    with served(SimulatorOptions(tickets=200, faults="failing")) as simulator:
        desk, bodies = Asking(simulator.url), {}
        for number in range(40):
            answer = desk.answer("users.json", per_page=1, page=1 + number % 20)
            bodies.setdefault(answer.status_code, answer)
    assert bodies[429].text == "Number of allowed API requests per minute exceeded"
    assert bodies[504].text == "upstream request timeout"
    assert bodies[502].headers["content-type"] == "text/html"
