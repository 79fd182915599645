"""The simulated Client Central answers as the reference says, and knows the truth about itself."""

import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest

from bridge_pipeline.connector_kit.simulator import RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from tests.connectors.helpdesk.simulator.reader import TOKEN, Record, ask, every, ids, instant, page_of

# --- Answers and envelopes ---


def test_pages_hold_a_hundred_records_and_say_how_many_pages_there_are(calm: RunningSimulator) -> None:
    first = page_of(calm, "tickets", page=1)
    assert list(first) == ["page", "more", "total_pages", "data"]
    assert (first["page"], first["more"], first["total_pages"], len(first["data"])) == (1, True, 15, 100)
    assert page_of(calm, "tickets", page=15)["more"] is False


def test_no_record_is_listed_twice(calm: RunningSimulator) -> None:
    found = ids(every(calm, "tickets"))
    assert found == sorted(set(found))


@pytest.mark.parametrize("number", [16, 17, 10**14])
def test_a_page_past_the_end_is_empty_and_no_error(calm: RunningSimulator, number: int) -> None:
    assert page_of(calm, "tickets", page=number) == {
        "page": number,
        "more": False,
        "total_pages": 15,
        "data": [],
    }


@pytest.mark.parametrize("number", ["0", "-3", "two", "", "9" * 5_000])
def test_what_is_no_page_number_means_the_first_page(calm: RunningSimulator, number: str) -> None:
    assert page_of(calm, "tickets", page=number)["page"] == 1


def test_count_adds_the_number_of_matching_records(calm: RunningSimulator) -> None:
    assert page_of(calm, "tickets", count="true")["count"] == 1_500
    assert page_of(calm, "tickets", count="true", filter="id <= 500010")["count"] == 10


@pytest.mark.parametrize(
    ("envelope", "records"),
    [
        ("paged", lambda body: body["data"]),
        ("named", lambda body: body["tickets"]),
        ("data", lambda body: body["data"]),
        ("array", lambda body: body),
    ],
)
def test_each_envelope_holds_the_same_records(envelope: str, records: Callable[[Any], Any]) -> None:
    options = SimulatorOptions(tickets=30, faults="calm", envelope=envelope, page_size=20)
    with serving(options) as simulator:
        bodies = [page_of(simulator, "tickets", page=number) for number in (1, 2, 3)]
    assert [len(records(body)) for body in bodies] == [20, 10, 0]
    assert ids(records(bodies[0])) == list(range(500_001, 500_021))
    if envelope in ("named", "data"):
        assert len(bodies[0]) == 1


def test_a_desk_without_tickets_answers_too() -> None:
    with serving(SimulatorOptions(tickets=0, accounts=0, users=0, faults="hostile")) as simulator:
        assert simulator.truth()["entities"] == {"accounts": {}, "users": {}, "tickets": {}}
        empty = {"page": 1, "more": False, "total_pages": 0, "data": []}
        assert page_of(simulator, "tickets", filter="id > 5") == empty


def test_a_record_is_found_by_id(calm: RunningSimulator, tickets: list[Record]) -> None:
    answer = ask(
        calm, f"/api/v1/tickets/{tickets[7]['id']}.json", select="*,status.*,priority.name,account.name"
    )
    assert answer.json() == {"data": tickets[7]}


@pytest.mark.parametrize("path", ["tickets/1", "tickets/99999999999999999999999", "users/7", "accounts/0"])
def test_an_unknown_id_is_not_found(calm: RunningSimulator, path: str) -> None:
    answer = ask(calm, f"/api/v1/{path}.json")
    assert answer.status_code == 404
    assert "error" in answer.json()


@pytest.mark.parametrize("path", ["/", "/api/v1/tickets", "/api/v1/tickets/5", "/api/v1/planets.json"])
def test_a_path_without_its_json_ending_or_of_no_entity_is_not_found(
    calm: RunningSimulator, path: str
) -> None:
    assert ask(calm, path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_written(calm: RunningSimulator, method: str) -> None:
    answer = httpx.request(method, f"{calm.url}/api/v1/tickets.json?token={TOKEN}", json={"ticket": {}})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


# --- Credentials ---


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 40, "17-" + "a" * 28, "17-" + "a!" * 20, "-" + "a" * 40]
)
def test_a_malformed_credential_is_refused_in_words_that_repeat_it(
    calm: RunningSimulator, token: str
) -> None:
    answer = ask(calm, "/api/v1/tickets.json", token=token)
    assert answer.status_code == 401
    assert str(answer.request.url.raw_path, "ascii") in answer.json()["error"]


def test_a_missing_credential_is_refused(calm: RunningSimulator) -> None:
    assert httpx.get(f"{calm.url}/api/v1/tickets.json").status_code == 401


def test_only_the_named_token_is_accepted_when_one_is_named() -> None:
    with serving(SimulatorOptions(tickets=5, faults="calm", token=TOKEN)) as simulator:
        assert ask(simulator, "/api/v1/tickets.json").status_code == 200
        assert ask(simulator, "/api/v1/tickets.json", token=TOKEN + "x").status_code == 401


# --- Truth ---


def fingerprint(record: Record) -> dict[str, str]:
    moment = instant(record["updated_at"])
    whole = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return {
        "updated_at": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }


def test_the_truth_is_what_a_patient_reader_collects(calm: RunningSimulator) -> None:
    collected = {
        entity: {str(record["id"]): fingerprint(record) for record in every(calm, entity, select="*")}
        for entity in ("accounts", "users", "tickets")
    }
    assert calm.truth()["entities"] == collected
    assert {entity: len(records) for entity, records in collected.items()} == {
        "accounts": 15,
        "users": 150,
        "tickets": 1_500,
    }
