"""The simulated instance answers as the vendor's reference says, and serves the vendor's own client."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pysnc
import pytest
import requests
from requests.adapters import HTTPAdapter

from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.servicenow.simulator import serving
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from bridge_pipeline.connectors.servicenow.simulator.query import parse
from bridge_pipeline.settings import PROJECT_ROOT
from tests.connectors.servicenow.reading import instance, truth

SHARED = Path(os.environ.get("BRIDGE_SHARED", PROJECT_ROOT.parent / "shared"))
FIXTURES = SHARED / "reference" / "fixtures" / "servicenow"
INCIDENTS = "/api/now/table/incident"


@pytest.fixture(scope="module")
def served():
    with (
        instance() as (simulator, _),
        httpx.Client(base_url=simulator.url, auth=("me", "secret"), trust_env=False) as client,
    ):
        yield simulator, client


@pytest.fixture
def get(served):
    return lambda path=INCIDENTS, **params: served[1].get(path, params=params)


def keys(answer):
    return [row["sys_id"] for row in answer.json()["result"]]


def test_raw_rows_are_texts_and_references_are_objects_or_empty(get):
    rows = get(sysparm_limit=100, sysparm_query="ORDERBYnumber").json()["result"]
    kinds = {type(value) for row in rows for value in row.values()}
    assert kinds == {str, dict}
    companies = [row["company"] for row in rows]
    assert "" in companies
    reference = next(company for company in companies if company)
    assert set(reference) == {"link", "value"}
    assert reference["link"].endswith(f"/api/now/table/core_company/{reference['value']}")


@pytest.mark.parametrize(
    ("params", "form"),
    [
        ({"sysparm_exclude_reference_link": "true"}, str),
        ({"sysparm_display_value": "true"}, {"link", "display_value"}),
        ({"sysparm_display_value": "all"}, {"link", "display_value", "value"}),
        (
            {"sysparm_display_value": "all", "sysparm_exclude_reference_link": "true"},
            {"display_value", "value"},
        ),
    ],
)
def test_the_form_of_a_reference_depends_on_the_parameters(params, form, get):
    row = get(sysparm_query="companyISNOTEMPTY", sysparm_limit=1, **params).json()["result"][0]
    assert isinstance(row["company"], str) if form is str else set(row["company"]) == form


def test_display_mode_speaks_to_its_user(get):
    query = {"sysparm_query": "state=7^calendar_durationISNOTEMPTY", "sysparm_limit": 1}
    raw, shown = (get(**query, sysparm_display_value=m).json()["result"][0] for m in ("false", "true"))
    assert raw["state"] == "7"
    assert shown["state"] == "Closed"
    assert raw["calendar_duration"].startswith("19")
    assert "Hour" in shown["calendar_duration"] or "Day" in shown["calendar_duration"]
    assert raw["sys_updated_on"] != shown["sys_updated_on"]


def test_dot_walks_come_back_flat_and_unknown_fields_are_left_out(get):
    row = get(
        sysparm_fields="number,caller_id.email,no_such_field", sysparm_query="caller_idISNOTEMPTY"
    ).json()["result"][0]
    assert set(row) == {"number", "caller_id.email"}
    assert row["caller_id.email"].endswith("@example.com")


def test_a_part_that_is_not_understood_is_dropped(get):
    everything = int(get(sysparm_limit=1).headers["x-total-count"])
    for query in ("no_such_field=1", "number~x", "javascript:x()"):
        assert int(get(sysparm_query=query, sysparm_limit=1).headers["x-total-count"]) == everything
    with instance(Habits(no_rows=True)) as (strict, _):
        answer = httpx.get(f"{strict.url}{INCIDENTS}?sysparm_query=no_such_field=1", auth=("me", "secret"))
        assert answer.json() == {"result": []}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a=1", ["x", "y"]),
        ("a=1^b=2", ["y"]),
        ("a=1^ORa=3^b=2", ["y"]),
        ("a=3^NQb=2", ["y", "z"]),
        ("a>1^NQa=1^b>1^ORDERBYDESCa", ["z", "y"]),
        ("bISEMPTY", ["z"]),
        ("bISNOTEMPTY", ["x", "y"]),
        ("aIN1,3", ["x", "y", "z"]),
        ("aNOT IN1", ["z"]),
        ("b!=2", ["x", "z"]),
        ("aBETWEEN2@9", ["z"]),
        ("cLIKEhel", ["x"]),
        ("cSTARTSWITHw", ["y"]),
        ("cENDSWITHo", ["x"]),
        ("b<2", ["x"]),
        ("t>=javascript:gs.dateGenerate('2024-01-02','00:00:00')", ["y"]),
    ],
)
def test_encoded_queries(query, expected):
    rows = {
        "x": {"a": "1", "b": "1", "c": "hello", "t": "2024-01-01 10:00:00"},
        "y": {"a": "1", "b": "2", "c": "world", "t": "2024-01-02 00:00:00"},
        "z": {"a": "3", "b": "", "c": "", "t": ""},
    }
    parsed = parse(query, lambda column: column in "abct")
    assert not parsed.dropped
    found = [name for name, row in rows.items() if parsed.matches(row, lambda row, column: row[column])]
    for column, descending in parsed.order:
        found.sort(key=lambda name, column=column: rows[name][column], reverse=descending)
    assert found == expected


def test_pages_have_links_unless_one_holds_everything(get):
    first = get(sysparm_limit=100, sysparm_query="ORDERBYsys_id")
    assert first.headers["x-total-count"] == "240"
    assert set(first.links) == {"first", "next", "last"}
    assert "sysparm_offset=200" in first.links["last"]["url"]
    last = get(sysparm_limit=100, sysparm_offset=200)
    assert set(last.links) == {"first", "prev", "last"}
    assert "link" not in get(sysparm_limit=240).headers
    assert "link" not in get(sysparm_limit=10, sysparm_suppress_pagination_header="true").headers
    assert "x-total-count" not in get(sysparm_limit=10, sysparm_no_count="true").headers


def test_without_an_order_pages_overlap(get):
    pages = [keys(get(sysparm_limit=80, sysparm_offset=offset)) for offset in (0, 80, 160)]
    assert len({key for page in pages for key in page}) < 240


def test_the_limit_is_applied_before_access_rules():
    with instance(Habits(hidden_run=40)) as (simulator, _):
        answer = httpx.get(
            f"{simulator.url}{INCIDENTS}?sysparm_query=ORDERBYnumber&sysparm_limit=10&sysparm_offset=20",
            auth=("me", "secret"),
        )
        assert answer.json()["result"] == []
        assert answer.headers["x-total-count"] == "240"
        assert len(truth(simulator, "tickets")) == 200


@pytest.mark.parametrize(
    ("path", "status", "fixture"),
    [
        ("/api/now/table/no_such_table", 400, "400-invalid-table.json"),
        (f"{INCIDENTS}/{'0' * 32}", 404, "404-no-record.json"),
    ],
)
@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"the recorded payloads are not at {FIXTURES}")
def test_refusals_are_worded_as_recorded(path, status, fixture, get):
    answer = get(path)
    assert answer.status_code == status
    assert answer.json() == json.loads((FIXTURES / "error-bodies" / fixture).read_bytes())["response"]["body"]


def test_other_refusals(served, get):
    simulator, client = served
    assert get(sysparm_offset=-1).status_code == 400
    assert get("/api/now/elsewhere").status_code == 400
    assert client.post(INCIDENTS, json={}).status_code == 405
    assert client.get(INCIDENTS, headers={"Accept": "text/csv"}).status_code == 406
    refused = httpx.get(f"{simulator.url}{INCIDENTS}")
    assert refused.status_code == 401
    assert refused.json()["error"] == {
        "message": "User Not Authenticated",
        "detail": "Required to provide Auth information",
    }
    assert get("/api/now/v1/table/incident", sysparm_query="number=none").status_code == 404
    assert get("/api/now/v2/table/incident", sysparm_query="number=none").json() == {"result": []}
    counted = get("/api/now/stats/incident", sysparm_count="true", sysparm_query="state=7").json()
    assert 0 < int(counted["result"]["stats"]["count"]) < 240


def test_tokens_are_given_kept_rotated_and_refused(served):
    simulator, _ = served
    asked = {
        "grant_type": "password",
        "client_id": "x",
        "client_secret": "y",
        "username": "u",
        "password": "p",
    }

    def ask(**changes):
        return httpx.post(f"{simulator.url}/oauth_token.do", data=asked | changes)

    first = ask().json()
    assert set(first) == {"scope", "token_type", "expires_in", "refresh_token", "access_token"}
    assert ask().json()["access_token"] == first["access_token"]
    renewal = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    assert ask(**renewal).json()["access_token"] != first["access_token"]
    assert ask(**renewal).status_code == 401
    assert ask(client_secret="").status_code == 401
    assert ask(grant_type="telepathy").json() == {"error": "unsupported_grant_type"}


def test_the_same_seed_gives_the_same_instance():
    def held(seed):
        with serving(SimulatorOptions(tickets=30, faults="hostile", seed=seed)) as (simulator, _):
            return simulator.truth()

    assert held(1) == held(1) != held(2)


class _Loopback(HTTPAdapter):
    """Sends what is meant for the instance's name to the simulator; the client insists on https."""

    def __init__(self, url):
        self._target = urlsplit(url)
        super().__init__()

    def send(self, request, **options):
        parts = urlsplit(request.url)
        request.url = parts._replace(scheme="http", netloc=self._target.netloc).geturl()
        return super().send(request, **options)


def test_the_usual_python_client_reads_it_unchanged(served):
    simulator, _ = served
    session = requests.Session()
    session.auth = ("me", "secret")
    client = pysnc.ServiceNowClient("https://dev00000.service-now.com", session)
    client.session.mount("https://dev00000.service-now.com", _Loopback(simulator.url))
    record = client.GlideRecord("incident", batch_size=50)
    record.add_active_query()
    record.query()
    found = {str(record.sys_id): record for _ in iter(record.next, False)}
    active = {
        row["sys_id"]
        for row in httpx.get(f"{simulator.url}{INCIDENTS}?active=true", auth=("me", "secret")).json()[
            "result"
        ]
    }
    assert set(found) == active
    assert record.get_row_count() == len(active)
    one = client.GlideRecord("incident")
    assert one.get(next(iter(active)))
    assert one.get_value("sys_class_name") == "incident"
    assert one.get_display_value("priority").split(" - ")[0] == one.get_value("priority")
    assert not client.GlideRecord("incident").get("f" * 32)
