"""Rows of the Table API become canonical values; nothing is guessed and nothing is lost."""

import json
import os
from pathlib import Path

import pytest

from bridge_pipeline.connector_kit.fields import Refused, from_microseconds
from bridge_pipeline.connectors.servicenow import CONNECTOR
from bridge_pipeline.connectors.servicenow.simulator.schema import COLUMNS
from bridge_pipeline.settings import PROJECT_ROOT
from tests.connectors.parsed import parsed

SHARED = Path(os.environ.get("BRIDGE_SHARED", PROJECT_ROOT.parent / "shared"))
FIXTURES = SHARED / "reference" / "fixtures" / "servicenow"
KEY, OTHER = "1c741bd70b2322007518478d83673af3", "681ccaf9c0a8016400b98a06818d57c7"
ROW = {"sys_id": KEY, "sys_created_on": "2016-12-12 15:19:57", "sys_updated_on": "2016-12-14 02:46:44"}
# Fixture → entity.
RECORDED = {
    "faros-test-files/incidentsRest.json": "tickets",
    "faros-test-files/incidents.json": "tickets",
    "faros-test-files/destination-incidents.json": "tickets",
    "faros-test-files/users.json": "users",
    "faros-test-files/destination-users.json": "users",
    "official-docs/TableAPI-01-table-get-now-table-tablename.json": "problems",
    "official-docs/TableAPI-02-table-get-now-table-tablename-sys-id.json": "tickets",
    "official-docs/TableAPI-03-table-patch-now-table-tablename-sys-id.json": "tickets",
    "official-docs/TableAPI-04-table-post-now-table-tablename.json": "tickets",
    "official-docs/TableAPI-05-table-put-now-table-tablename-sys-id.json": "tickets",
}


def value(entity, column, **row):
    stream = CONNECTOR.stream(entity)
    return stream.fields[stream.entity.column_names.index(column)].read({**ROW, **row})


def refused(entity, column, **row):
    with pytest.raises(Refused) as caught:
        value(entity, column, **row)
    return caught.value.reason, caught.value.pointer


def recorded(name):
    found = json.loads((FIXTURES / name).read_bytes())
    found = found["body"]["result"] if isinstance(found, dict) else found
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    ("entity", "column", "row", "expected"),
    [
        ("tickets", "status", {"state": "1"}, "New"),
        ("tickets", "status", {"state": "7"}, "Closed"),
        ("tickets", "status", {"state": "4"}, "4"),
        ("tickets", "status", {"state": "-100"}, "-100"),
        ("tickets", "status", {"state": ""}, None),
        ("tickets", "priority", {"priority": "3"}, "Moderate"),
        ("tickets", "priority", {"priority": "3 - Moderate"}, "3 - Moderate"),
        ("tickets", "subject", {"short_description": ""}, None),
        ("tickets", "is_closed", {"active": "false", "state": "6"}, True),
        ("tickets", "is_closed", {"active": "true", "state": "7"}, False),
        ("tickets", "is_closed", {"active": "", "state": "8"}, True),
        ("tickets", "is_closed", {"state": "2"}, False),
        ("tickets", "is_closed", {"state": "42"}, None),
        ("tickets", "account_id", {"company": ""}, None),
        ("tickets", "account_id", {"company": OTHER}, OTHER),
        ("tickets", "account_id", {"company": {"link": "https://x/y", "value": OTHER}}, OTHER),
        ("tickets", "account_id", {"company": {"display_value": "ACME", "link": "", "value": ""}}, None),
        ("tickets", "account_id", {}, None),
        ("problems", "status", {"state": "106"}, "Resolved"),
        ("changes", "status", {"state": "-5"}, "New"),
        ("changes", "status", {"state": "0"}, "Review"),
        ("changes", "risk", {"risk": "1"}, "Very High"),
        ("changes", "type", {"type": "emergency"}, "emergency"),
        ("comments", "is_public", {"element": "comments"}, True),
        ("comments", "is_public", {"element": "work_notes"}, False),
        ("comments", "ticket_id", {"element_id": KEY}, KEY),
        ("assets", "type", {"sys_class_name": "cmdb_ci_server"}, "cmdb_ci_server"),
        ("assets", "user_id", {"assigned_to": OTHER}, OTHER),
        ("users", "status", {"active": "true", "locked_out": "false"}, "active"),
        ("users", "status", {"active": "true", "locked_out": "true"}, "locked"),
        ("users", "status", {"active": "false"}, "locked"),
        ("users", "status", {}, None),
        ("users", "id", {"sys_id": "sixty-four bits are not enough!!"}, None),
    ],
)
def test_values_are_read(entity, column, row, expected):
    if column == "id":
        assert refused(entity, column, **row) == ("id_out_of_range", "/sys_id")
    else:
        assert value(entity, column, **row) == expected


@pytest.mark.parametrize("key", ["sys_updated_on", "resolved_at"])
@pytest.mark.parametrize(
    "text",
    [
        "2016-12-14T02:46:44Z",
        "2016-12-14 02:46",
        "14.12.2016 02:46:44",
        "2016-02-30 00:00:00",
        "0000-00-00 00:00:00",
    ],
)
def test_a_time_in_another_form_is_no_time(key, text):
    column = {"sys_updated_on": "updated_at", "resolved_at": "resolved_at"}[key]
    assert refused("tickets", column, **{key: text}) == ("time_invalid", f"/{key}")


def test_times_without_a_mark_are_utc():
    assert from_microseconds(value("tickets", "updated_at")).isoformat() == "2016-12-14T02:46:44+00:00"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"sys_id": ""}, "id_missing"),
        ({"sys_id": None}, "id_missing"),
        ({"sys_id": 17}, "id_wrong_type"),
        ({"sys_id": KEY[:31]}, "id_out_of_range"),
        ({"sys_id": KEY[:31] + "^"}, "id_out_of_range"),
        ({"sys_id": KEY[:31] + "/"}, "id_out_of_range"),
    ],
)
def test_what_is_no_key_is_refused(row, reason):
    assert refused("tickets", "id", **row) == (reason, "/sys_id")


def test_a_reference_without_its_value_is_refused():
    """Display mode sends such ones (vendor-apis D.2): what is displayed is no key."""
    shown = {"display_value": "ACME", "link": "https://acme.service-now.com/api/now/table/core_company/1"}
    assert refused("tickets", "account_id", company=shown) == ("id_wrong_type", "/company")


@pytest.mark.parametrize("form", [str, lambda name: {"link": "x", "value": name}])
@pytest.mark.parametrize(
    ("entity", "column", "key"),
    [
        ("tickets", "account_id", "company"),
        ("comments", "ticket_id", "element_id"),
        ("assets", "user_id", "assigned_to"),
    ],
)
def test_other_names_than_keys_are_references_and_long_texts_are_none(entity, column, key, form):
    for name in ("global", "ACME\nCorp", "../../../logout.do", "x" * 255):
        assert value(entity, column, **{key: form(name)}) == name
    reason, pointer = refused(entity, column, **{key: form("x" * 256)})
    assert (reason, pointer.split("/")[1]) == ("id_out_of_range", key)


def test_an_author_of_too_long_a_name_is_refused_too():
    assert value("comments", "author_id", author=KEY) == KEY
    assert refused("comments", "author_id", author="x" * 256) == ("id_out_of_range", "/author")


def test_a_ticket_of_somebody_with_too_long_a_name_is_refused():
    with pytest.raises(Refused, match="id_out_of_range"):
        CONNECTOR.stream("tickets").people({**ROW, "caller_id": "x" * 256})


def test_base_records_may_have_other_keys_of_that_length():
    assert (
        value("tickets", "id", sys_id="glide.maint_____________________")
        == "glide.maint_____________________"
    )


def test_people_of_an_incident():
    people = CONNECTOR.stream("tickets").people
    row = {
        "caller_id": KEY,
        "opened_by": {"link": "x", "value": "glide.maint"},
        "assigned_to": "",
        "watch_list": f"{OTHER},someone@example.com,",
    }
    found = {(person.user, person.part) for person in people(row)}
    assert found == {(KEY, "requester"), ("glide.maint", "creator"), (OTHER, "watcher")}


def test_the_original_choices_and_references_stay_beside():
    row = {**ROW, "state": "7", "priority": "3", "company": {"value": OTHER, "link": "x"}, "u_own": "kept"}
    custom = json.loads(parsed(CONNECTOR.stream("tickets"), row)["custom_fields"])
    assert custom == {k: row[k] for k in ("state", "priority", "company", "u_own")}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"the recorded payloads are not at {FIXTURES}")
@pytest.mark.parametrize(("name", "entity"), RECORDED.items())
def test_recorded_rows_are_read_and_their_fields_are_served(name, entity):
    stream = CONNECTOR.stream(entity)
    table = stream.path.rpartition("/")[2]
    for row in recorded(name):
        found = parsed(stream, row)
        assert found["id"] == row["sys_id"]
        assert from_microseconds(found["updated_at"]).strftime("%Y-%m-%d %H:%M:%S") == row["sys_updated_on"]
        assert set(row) <= set(COLUMNS[table])
