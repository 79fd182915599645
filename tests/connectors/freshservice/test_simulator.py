"""The double speaks as the vendor does: paths, pages, headers, limits, errors, and what is in the trash."""

import base64
import json
from datetime import date
from pathlib import Path

import httpx
import pytest

from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.freshservice.simulator import limits as limiting
from bridge_pipeline.connectors.freshservice.simulator import serving
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.dialect import Freshservice
from bridge_pipeline.connectors.freshservice.simulator.world import LIVE, SPAM, TRASHED
from tests.connectors.freshservice.account import KEY, Account

FIXTURES = Path(__file__).resolve().parents[4] / "shared/reference/fixtures/freshservice/error-bodies"
recorded_only = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded errors are not here")


@pytest.fixture(scope="module")
def desk():
    account = Account(tickets=150, clock=None)
    with serving(account) as simulator, asking(simulator) as client:
        client.account = account
        yield client


def asking(simulator, key=KEY):
    return httpx.Client(base_url=f"{simulator.url}/api/v2", auth=(key, "X"))


def recorded(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())["response"]


def test_the_list_is_cut_to_thirty_days_unless_a_change_time_is_given():
    account = Account(tickets=150, first_day=date(2025, 1, 1), last_day=date(2025, 3, 1))
    account.options = SimulatorOptions(tickets=150, clock=None)
    with serving(account) as simulator, asking(simulator) as client:
        assert client.get("/tickets").json() == {"tickets": []}
        assert len(client.get("/tickets?updated_since=1970-01-01T00:00:00Z").json()["tickets"]) == 30
        account.changing.create()
        account.world.rows["tickets"][-1].created = account.now - 86_400
        assert len(client.get("/tickets").json()["tickets"]) == 1


def test_a_page_links_the_next_one_and_the_last_page_links_none(desk):
    query = "/tickets?updated_since=1970-01-01T00:00:00Z&per_page=60"
    first = desk.get(query)
    assert first.headers["link"].endswith(
        'updated_since=1970-01-01T00%3A00%3A00Z&per_page=60&page=2>; rel="next"'
    )
    assert len(first.json()["tickets"]) == 60
    last = desk.get(f"{query}&page=3")
    assert "link" not in last.headers
    assert 0 < len(last.json()["tickets"]) < 60
    assert desk.get(f"{query}&page=4").json() == {"tickets": []}
    assert set(first.json()) == {"tickets"}


def test_tickets_come_newest_created_first_or_in_the_order_asked_for(desk):
    query = "/tickets?updated_since=1970-01-01T00:00:00Z&per_page=100"
    created = [ticket["created_at"] for ticket in desk.get(query).json()["tickets"]]
    assert created == sorted(created, reverse=True)
    ascending = desk.get(f"{query}&order_by=updated_at&order_type=asc").json()["tickets"]
    changed = [ticket["updated_at"] for ticket in ascending]
    assert changed == sorted(changed)
    since = desk.get(f"/tickets?updated_since={changed[40]}&order_by=updated_at&order_type=asc").json()[
        "tickets"
    ]
    assert since[0]["updated_at"] == changed[40]


def test_trash_and_spam_are_on_lists_of_their_own_and_answer_by_their_id(desk):
    rows = desk.account.world.rows["tickets"]
    for name, state, mark in (("deleted", TRASHED, "deleted"), ("spam", SPAM, "spam")):
        listed = desk.get(f"/tickets?filter={name}&per_page=100").json()["tickets"]
        assert {ticket["id"] for ticket in listed} == {row.id for row in rows if row.state == state} != set()
        assert desk.get(f"/tickets/{listed[0]['id']}").json()["ticket"][mark] is True
    trashed = desk.get("/assets?trashed=true").json()["assets"]
    assert trashed
    assert desk.get(f"/assets/{trashed[0]['display_id']}").status_code == 404


def test_an_asset_is_found_by_its_display_id_and_not_by_its_id(desk):
    asset = desk.get("/assets").json()["assets"][0]
    assert desk.get(f"/assets/{asset['display_id']}").json()["asset"] == asset
    assert desk.get(f"/assets/{asset['id']}").status_code == 404
    full = desk.get(f"/assets/{asset['display_id']}?include=type_fields").json()["asset"]
    assert {key.rsplit("_", 1)[0] for key in full["type_fields"]} >= {"serial_number", "asset_state"}


def test_a_detail_says_more_than_the_list_and_its_stats_have_another_number(desk):
    listed = desk.get("/tickets?updated_since=1970-01-01T00:00:00Z&include=stats").json()["tickets"][0]
    detail = desk.get(f"/tickets/{listed['id']}?include=stats,tags").json()["ticket"]
    assert {"tags", "urgency", "sla_policy_id"} <= set(detail) - set(listed)
    assert all(detail[key] == value for key, value in listed.items())
    assert detail["stats"]["ticket_id"] != detail["id"]
    assert {"stats", "tags"}.isdisjoint(desk.get(f"/tickets/{listed['id']}").json()["ticket"])


def live(desk):
    """Every live ticket as its own address shows it, by id."""
    rows = [row for row in desk.account.world.rows["tickets"] if row.state == LIVE and not row.broken]
    return {row.id: desk.get(f"/tickets/{row.id}?include=tags").json()["ticket"] for row in rows}


def test_filters_other_than_a_change_time_lift_the_thirty_days_too(desk):
    tickets = live(desk)
    asked = next(iter(tickets.values()))["requester_id"]
    for query, key, value in (
        (f"requester_id={asked}", "requester_id", asked),
        ("type=Service+Request", "type", "Service Request"),
    ):
        found = desk.get(f"/tickets?{query}&per_page=100").json()["tickets"]
        wanted = {number for number, ticket in tickets.items() if ticket[key] == value}
        assert wanted <= {ticket["id"] for ticket in found}
        assert {ticket[key] for ticket in found} == {value}


@pytest.mark.parametrize(
    ("query", "means"),
    [
        ("priority:3 AND status:2", lambda t: t["priority"] == 3 and t["status"] == 2),
        ("priority:3 OR status:4", lambda t: t["priority"] == 3 or t["status"] == 4),
        ("priority:1 AND (status:2 OR status:3)", lambda t: t["priority"] == 1 and t["status"] in (2, 3)),
        ("urgency:>2", lambda t: t["urgency"] >= 2),
        ("tag:'vpn'", lambda t: "vpn" in t["tags"]),
        ("agent_id:null", lambda t: t["responder_id"] is None),
        ("weather_server:'w1'", lambda t: t["custom_fields"]["weather_server"] == "w1"),
        ("created_at:>'2025-01-15'", lambda t: t["created_at"][:10] >= "2025-01-15"),
    ],
)
def test_a_filter_lists_what_its_query_means(desk, query, means):
    found, page = [], 1
    while answer := desk.get("/tickets/filter", params={"query": f'"{query}"', "page": page}).json():
        assert len(answer["tickets"]) <= 30
        found += answer["tickets"]
        page += 1
        if not answer["tickets"]:
            break
    assert len(found) == answer["total"]
    wanted = {number for number, ticket in live(desk).items() if means(ticket)}
    assert 0 < len(wanted) < len(live(desk))
    assert {ticket["id"] for ticket in found if type(ticket["id"]) is int} >= wanted
    assert all(means(ticket) for number, ticket in live(desk).items() if number in {t["id"] for t in found})


def test_people_are_found_by_their_address_and_by_being_active(desk):
    agents = desk.get("/agents").json()["agents"]
    for name, key, known in (("agents", "email", agents), ("requesters", "primary_email", None)):
        everyone = known or desk.get(f"/{name}?per_page=100").json()[name]
        someone = next(person for person in everyone if person[key])
        assert desk.get(f"/{name}", params={"email": someone[key]}).json()[name] == [someone]
        query = f"\"first_name:'{someone['first_name']}'\""
        assert someone in desk.get(f"/{name}", params={"query": query}).json()[name]
        inactive = desk.get(f"/{name}?active=false").json()[name]
        assert [person["active"] for person in inactive] == [False] * len(inactive)


def test_requesters_leave_agents_out_unless_told_otherwise(desk):
    requesters = desk.get("/requesters?per_page=100").json()["requesters"]
    agents = desk.get("/agents?per_page=100").json()["agents"]
    both = desk.get("/requesters?per_page=100&include_agents=true").json()["requesters"]
    assert {person["id"] for person in both} == {person["id"] for person in [*requesters, *agents]}
    assert {person["id"] for person in requesters}.isdisjoint(person["id"] for person in agents)
    assert all("primary_email" in person for person in requesters)
    assert all("email" in person for person in agents)
    assert desk.get(f"/requesters/{agents[0]['id']}").status_code == 404


def test_conversations_have_pages_and_a_count(desk):
    row = next(row for row in desk.account.world.rows["tickets"] if len(row.said) > 100)
    first = desk.get(f"/tickets/{row.id}/conversations?per_page=100")
    assert first.json()["meta"] == {"count": 130}
    assert 'rel="next"' in first.headers["link"]
    second = desk.get(f"/tickets/{row.id}/conversations?per_page=100&page=2")
    assert len(second.json()["conversations"]) == 30
    assert "link" not in second.headers


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tickets?created_since=2025-01-01", 400),
        ("/tickets?per_page=101", 400),
        ("/tickets?page=0", 400),
        ("/tickets?page=301", 400),
        ("/tickets?updated_since=yesterday", 400),
        ("/tickets?filter=mine", 400),
        ("/problems?updated_since=2025-01-01", 400),
        ("/tickets/1?page=2", 400),
        ("/tickets/filter", 400),
        ("/tickets/filter?query=priority:1", 400),
        ('/tickets/filter?query="priority:1 AND"', 400),
        ('/tickets/filter?query="(priority:1"', 400),
        ('/tickets/filter?query="colour:1"', 400),
        ('/tickets/filter?query="priority:high"', 400),
        (f'/tickets/filter?query="priority:{"1" * 512}"', 400),
        ('/tickets/filter?query="priority:1"&per_page=100', 400),
        ("/incidents", 404),
        ("/tickets/999999", 404),
        ("/tickets/999999/conversations", 404),
        ("/conversations/1", 404),
    ],
)
def test_what_is_asked_wrongly_is_refused(desk, path, status):
    answer = desk.get(path)
    assert answer.status_code == status
    if status == 400:
        assert set(answer.json()) == {"description", "errors"}
    else:
        assert answer.content == b""


@recorded_only
@pytest.mark.parametrize(
    ("name", "path", "key"),
    [
        ("400-validation-unknown-query-or-body-field", "/tickets?priorty=1", KEY),
        ("401-invalid-credentials", "/tickets", "other"),
        ("403-access-denied", "/agents", KEY),
    ],
)
def test_errors_are_worded_as_recorded(name, path, key):
    account = Account(Behaviour(limits=False, forbidden=frozenset({"agents"})), tickets=5, token=KEY)
    with serving(account) as simulator, asking(simulator, key) as client:
        answer, expected = client.get(path), recorded(name)
        assert (answer.status_code, answer.json()) == (expected["status"], expected["body"])


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic !", "Basic " + base64.b64encode(b":X").decode()])
def test_a_request_without_a_key_is_refused(desk, header):
    answer = httpx.get(f"{desk.base_url}tickets", headers={"Authorization": header} if header else {})
    assert answer.status_code == 401


def test_every_answer_says_what_is_left_of_the_limit_that_it_counts_for(desk):
    listed, single, other = (
        desk.get(path) for path in ("/agents", "/tickets/1?include=stats,tags", "/groups")
    )
    assert [answer.headers["x-ratelimit-total"] for answer in (listed, single, other)] == [
        "140",
        "160",
        "500",
    ]
    assert single.headers["x-ratelimit-used-currentrequest"] == "3"
    assert desk.get("/assets?include=type_fields").headers["x-ratelimit-used-currentrequest"] == "3"
    for answer in (listed, single, other):
        assert answer.headers["x-freshservice-api-version"] == "latest=v2; requested=v2"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1_000.0
        monkeypatch.setattr(limiting.time, "monotonic", lambda: self.now)


def test_limits_are_fixed_windows_that_refused_requests_count_for_too(monkeypatch):
    clock = Clock(monkeypatch)
    counted = limiting.Limits("starter", None, enforced=True)
    assert all(counted.enter("agents", 1)[1] is None for _ in range(40))
    clock.now += 46
    headers, refusal = counted.enter("agents", 1)
    assert refusal.status == 429
    assert dict(refusal.headers)["Retry-After"] == "15"
    assert dict(headers)["x-ratelimit-remaining"] == "0"
    # Other lists have limits of their own; the account's counts them all, the refused one as well.
    assert dict(counted.enter("requesters", 1)[0])["x-ratelimit-remaining"] == "39"
    assert dict(counted.enter(None, 3)[0])["x-ratelimit-remaining"] == "55"
    clock.now += 15
    assert dict(counted.enter("agents", 1)[0])["x-ratelimit-remaining"] == "39"


def test_the_account_limit_refuses_what_the_own_one_would_allow(monkeypatch):
    Clock(monkeypatch)
    counted = limiting.Limits("enterprise", 2, enforced=True)
    assert [counted.enter("tickets", 1)[1] is None for _ in range(3)] == [True, True, False]


def test_a_misleading_answer_names_no_time_to_wait_for():
    misled = limiting.Misled()
    values = [dict(misled("33").headers)["Retry-After"] for _ in range(5)]
    assert set(values) >= {"33", "0", "-30", "soon"}
    assert "GMT" in " ".join(values)


def test_the_same_seed_gives_the_same_account():
    accounts = [Freshservice(SimulatorOptions(tickets=60, seed=seed)) for seed in (7, 7, 8)]
    first, same, other = (b"".join(account.truth()) for account in accounts)
    assert first == same != other


def test_the_truth_says_what_is_live_trashed_and_broken():
    account = Account(tickets=120, faults="typical")
    truth = json.loads(b"".join(account.truth()))
    live = {str(row.id) for row in account.world.rows["tickets"] if row.state == LIVE and not row.broken}
    assert set(truth["entities"]["tickets"]) == live
    assert {each["reason"] for each in truth["malformed"]} == {
        "string_id",
        "impossible_date",
        "wrong_type",
        "null_id",
    }
    assert truth["unlisted"]["comments"]
    assert not set(truth["deleted"]["tickets"]) & live


def test_a_changed_ticket_stays_in_lists_as_it_was_for_a_while():
    account = Account(Behaviour(limits=False, late=3), tickets=20)
    row = next(row for row in account.world.rows["tickets"] if row.state == LIVE)
    before = row.updated
    account.changing.touch(row)
    account.changing.create()
    seen = []
    for _ in range(5):
        listed = {each.row.id: each for each in account._tickets({"updated_since": "1970-01-01T00:00:00Z"})}
        seen.append((listed[row.id].updated == before, len(account.world.rows["tickets"]) in listed))
        account.changing.after_answer()
    assert seen == [(True, False)] * 3 + [(False, True)] * 2
