"""Records asked for one by one: an answer is that record, and a bad one costs no other."""

import json

import pytest

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.steps.extract import extract_ids
from tests.integration.desk import Answer, account
from tests.integration.flow import NAME, day, quarantined

DAY = day("2024-03-01")


@pytest.fixture
def desk(desk):
    desk.records["accounts"] = [account(number, "2012-01-01T00:00:00Z") for number in range(1, 10)]
    return desk


def lookup(workspace, *ids: int):
    return extract_ids(workspace, NAME, "accounts", [str(number) for number in ids], DAY)


@pytest.mark.slow
def test_an_answer_with_another_id_is_never_taken_for_the_record(workspace, desk):
    other = json.dumps({"data": account(2, "2012-01-01T00:00:00Z")}).encode()
    desk.before = lambda request: Answer(200, other) if request.id == "1" else None
    assert lookup(workspace, 1) is None
    assert lookup(workspace, 1, 3).landed == 1


def test_an_answer_without_a_proper_id_goes_to_quarantine(workspace, desk):
    raw = b'{"id":"1","name":"as text","updated_at":"2012-01-01T00:00:00Z"}'
    desk.before = lambda request: Answer(200, b'{"data":' + raw + b"}") if request.id == "1" else None
    batch = lookup(workspace, 1, 2)
    assert (batch.fetched, batch.landed, batch.quarantined) == (2, 1, 1)
    assert quarantined(workspace, "accounts") == {raw: "id_wrong_type"}


def test_a_refused_record_costs_only_itself(workspace, desk):
    desk.before = lambda request: Answer(403, b"{}") if request.id in ("2", "4") else None
    batch = lookup(workspace, 1, 2, 3, 4, 5)
    assert batch.landed == 3


def test_many_refusals_in_a_row_mean_that_the_source_gives_none(workspace, desk):
    desk.before = lambda request: Answer(403, b"{}") if request.id != "1" else None
    with pytest.raises(SourceError):
        lookup(workspace, *range(1, 10))
    assert desk.lookups("accounts") == ["1", "2", "3", "4", "5", "6"]


def test_a_refused_credential_stops_at_once(workspace, desk):
    desk.before = lambda request: Answer(401, b"{}") if request.id == "1" else None
    with pytest.raises(SourceError):
        lookup(workspace, 1, 2)
    assert desk.lookups("accounts") == ["1"]
