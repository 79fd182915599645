"""How records of Client Central become rows: every column, and nothing of a record is lost."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.fields import Refused
from bridge_pipeline.connectors.helpdesk import CONNECTOR
from bridge_pipeline.connectors.helpdesk.streams import STREAMS
from tests.connectors.parsed import columns, parsed
from tests.connectors.parsed import people as people_of

ACCOUNTS, USERS, TICKETS = STREAMS
FIXTURES = Path(__file__).resolve().parents[4] / "shared/reference/fixtures/clientcentral/node-client-docs"

# As the vendor's API answers with `select=*,…` (vendor-apis A.3), three forms of times included.
TICKET = {
    "id": 571864,
    "_type": "Ticket",
    "type": {"id": 23, "_type": "TicketType", "name": "Incident"},
    "project": {"id": 22, "_type": "TicketProject"},
    "workspace": {"id": 49, "_type": "Workspace"},
    "created_by_user": {"id": 12973, "_type": "User"},
    "status": {"id": 61, "_type": "TicketStatus", "name": "In Progress", "closed": False},
    "priority": {"id": 11, "_type": "TicketPriority", "name": "High"},
    "account": {"id": 5398, "_type": "Account", "name": "ACME"},
    "customer_user": {"id": 40384, "_type": "User"},
    "assignee": {"id": 12974, "_type": "User"},
    "events": [{"id": 1, "event_changes": [{"name": "status", "from_value": "", "to_value": "New"}]}],
    "user_watchers": [{"id": 7, "_type": "User"}, {"id": 40384, "_type": "User"}],
    "role_watchers": [{"id": 12744, "_type": "Role"}],
    "email_watchers": ["person01@example.com"],
    "subject": "Printer — \u202eout of paper 😀",
    "description": "<div>again</div>",
    "internal": False,
    "created_at": "2021-08-05T14:54:07Z",
    "updated_at": "2024-12-05T11:00:39+02:00",
    "responded_at": "2021-08-05T15:00:00.000000Z",
    "resolved_at": None,
    "created_by_name": None,
    "spent_time": 30,
    "tags": ["printer", "urgent"],
    "status_reason": {"id": 374, "name": "Other", "_type": 370},
    "approvers": [{"id": 5, "_type": "User"}],
    "cost_centre": "0042",
    "estimate": 1.5,
    "serial": 2**70,
    "wifi_password": "hunter2",
}
USER = {
    "id": 40384,
    "_type": "User",
    "number": 9001,
    "first_name": "Ann",
    "last_name": "Smith",
    "name": "Ann Smith",
    "email": "ann.smith@example.com",
    "title": {"id": 1, "_type": "Title", "name": "Dr"},
    "roles": [
        {"id": 3, "_type": "Role", "name": "Agent"},
        {"id": 2, "_type": "Role", "name": "Administrator"},
    ],
    "locked": False,
    "locale": "en",
    "account": {"id": 5398, "_type": "Account"},
    "last_sign_in_at": None,
    "created_at": "2020-01-01T00:00:00Z",
    "updated_at": "2020-01-02T00:00:00Z",
}
ACCOUNT = {
    "id": 5398,
    "_type": "Account",
    "name": "ACME",
    "created_at": "2020-01-01T00:00:00Z",
    "updated_at": None,
    "industry": "Paper",
}
RECORDS = [(TICKETS, TICKET), (USERS, USER), (ACCOUNTS, ACCOUNT)]


RECORDS_BY = {stream.path: record for stream, record in RECORDS}
EAST = timezone(timedelta(hours=5, minutes=45))


def people(record):
    return people_of(TICKETS, record)


def at(*parts, micros=0):
    return datetime(*parts, tzinfo=UTC) + timedelta(microseconds=micros)


# --- Every column -------------------------------------------------------------------------------


def test_the_columns_of_a_ticket():
    assert columns(TICKETS, TICKET) == {
        "id": "571864",
        "subject": "Printer — \u202eout of paper 😀",
        "description": "<div>again</div>",
        "status": "In Progress",
        "priority": "High",
        "tags": ["printer", "urgent"],
        "account_id": "5398",
        "created_at": at(2021, 8, 5, 14, 54, 7),
        "updated_at": at(2024, 12, 5, 9, 0, 39),
        "resolved_at": None,
        "responded_at": at(2021, 8, 5, 15),
        "closed_at": None,
        "is_closed": False,
    }


def test_what_a_column_holds_entirely_is_not_kept_twice():
    held = {"id", "subject", "description", "tags", "created_at", "updated_at", "responded_at", "resolved_at"}
    assert set(json.loads(parsed(TICKETS, TICKET)["custom_fields"])) == set(TICKET) - held


def test_the_columns_of_a_user_and_an_account():
    assert columns(USERS, USER) == {
        "id": "40384",
        "name": "Ann Smith",
        "email": "ann.smith@example.com",
        "role": "Administrator, Agent",
        "status": "active",
        "created_at": at(2020, 1, 1),
        "updated_at": at(2020, 1, 2),
    }
    assert columns(ACCOUNTS, ACCOUNT) == {
        "id": "5398",
        "name": "ACME",
        "created_at": at(2020, 1, 1),
        "updated_at": None,
    }


@pytest.mark.parametrize(
    ("stream", "record", "column", "expected"),
    [
        (TICKETS, {"status": "Open"}, "status", "Open"),
        (TICKETS, {"status": {"id": 11, "_type": "TicketStatus"}}, "status", None),
        (TICKETS, {"status": None}, "status", None),
        (TICKETS, {"status": {"name": "Closed", "closed": True}}, "is_closed", True),
        (TICKETS, {"status": {"name": "Closed"}}, "is_closed", None),
        (TICKETS, {"status": "Closed"}, "is_closed", None),
        (TICKETS, {"status": "Closed", "is_closed": True}, "is_closed", True),
        (TICKETS, {"priority": "High"}, "priority", "High"),
        (TICKETS, {"tags": []}, "tags", []),
        (TICKETS, {"tags": None}, "tags", None),
        (TICKETS, {"tags": [2**70, {"b": 1, "a": 2}]}, "tags", [2**70, {"b": 1, "a": 2}]),
        (TICKETS, {"account": 7}, "account_id", "7"),
        (TICKETS, {"account": None, "account_id": 8}, "account_id", "8"),
        (TICKETS, {"account": {"id": 2**63 - 1}}, "account_id", str(2**63 - 1)),
        (TICKETS, {"account": {"id": None}}, "account_id", None),
        (TICKETS, {"closed_at": "2025-01-01T00:00:00.1234567Z"}, "closed_at", at(2025, 1, 1, micros=123_456)),
        (USERS, {"roles": []}, "role", None),
        (USERS, {"roles": None}, "role", None),
        (USERS, {"roles": [{"id": 1, "_type": "Role"}, "agent"]}, "role", "agent"),
        (USERS, {"role": "admin"}, "role", "admin"),
        (USERS, {"role": {"id": 1, "name": "admin"}}, "role", "admin"),
        (USERS, {"locked": True}, "status", "locked"),
        (USERS, {"locked": None}, "status", None),
        (USERS, {"status": "invited"}, "status", "invited"),
        (USERS, {"status": {"id": 1, "name": "invited"}}, "status", "invited"),
    ],
)
def test_other_forms_of_a_column(stream, record, column, expected):
    base = {key: value for key, value in RECORDS_BY[stream.path].items() if key not in record}
    assert columns(stream, base | record)[column] == expected


@pytest.mark.parametrize(
    ("stream", "change", "reason", "pointer"),
    [
        (TICKETS, {"id": None}, "id_missing", "/id"),
        (TICKETS, {"id": "571864"}, "id_wrong_type", "/id"),
        (TICKETS, {"id": 0}, "id_out_of_range", "/id"),
        (TICKETS, {"id": 2**63}, "id_out_of_range", "/id"),
        (TICKETS, {"subject": 5}, "wrong_type", "/subject"),
        (TICKETS, {"subject": {"en": "x"}}, "wrong_type", "/subject"),
        (TICKETS, {"status": {"name": {"en": "New"}}}, "wrong_type", "/status/name"),
        (TICKETS, {"status": 5}, "wrong_type", "/status"),
        (TICKETS, {"status": {"closed": "yes"}}, "wrong_type", "/status/closed"),
        (TICKETS, {"tags": "a,b"}, "wrong_type", "/tags"),
        (TICKETS, {"account": "ACME"}, "id_wrong_type", "/account"),
        (TICKETS, {"account": {"id": "5"}}, "id_wrong_type", "/account/id"),
        (TICKETS, {"account": None, "account_id": -1}, "id_out_of_range", "/account_id"),
        (TICKETS, {"updated_at": None}, "change_time_missing", "/updated_at"),
        (TICKETS, {"updated_at": "2030-01-01T00:00:00.000001Z"}, "change_time_in_future", "/updated_at"),
        (TICKETS, {"updated_at": "2024-12-05T11:00:39"}, "time_without_zone", "/updated_at"),
        (TICKETS, {"resolved_at": "soon"}, "time_invalid", "/resolved_at"),
        (TICKETS, {"customer_user": {"id": "5"}}, "id_wrong_type", "/customer_user/id"),
        (TICKETS, {"customer_user": None, "requester": 1.5}, "id_wrong_type", "/requester"),
        (TICKETS, {"assignee": "User:" + "9" * 5000}, "id_out_of_range", "/assignee/id"),
        (TICKETS, {"assignee": "User:0"}, "id_out_of_range", "/assignee/id"),
        (TICKETS, {"user_watchers": [{"id": 1}, {"id": True}]}, "id_wrong_type", "/user_watchers/1/id"),
        (USERS, {"roles": [5]}, "wrong_type", "/roles/0"),
        (USERS, {"email": []}, "wrong_type", "/email"),
        (ACCOUNTS, {"name": False}, "wrong_type", "/name"),
        (ACCOUNTS, {"updated_at": "2999-01-01T00:00:00Z"}, "change_time_in_future", "/updated_at"),
    ],
)
def test_a_value_that_cannot_be_what_it_should_is_refused_with_its_place(stream, change, reason, pointer):
    with pytest.raises(Refused) as caught:
        parsed(stream, RECORDS_BY[stream.path] | change)
    assert (caught.value.reason, caught.value.pointer) == (reason, pointer)


def test_only_reference_entities_may_lack_a_change_time():
    for stream in (USERS, ACCOUNTS):
        assert parsed(stream, RECORDS_BY[stream.path] | {"updated_at": None})["updated_at"] is None


# --- People -------------------------------------------------------------------------------------


def test_the_people_of_a_ticket():
    assert people(TICKET) == {
        ("40384", "requester"),
        ("12973", "creator"),
        ("12974", "assignee"),
        ("7", "watcher"),
        ("40384", "watcher"),
    }


@pytest.mark.parametrize(
    ("assignee", "found"),
    [
        ({"id": 5, "_type": "User"}, {"5"}),
        ({"id": 5}, {"5"}),
        (5, {"5"}),
        ("User:5", {"5"}),
        ({"id": 12744, "_type": "Role"}, set()),
        ("Role:12744", set()),
        ("User:", set()),
        ("User:x", set()),
        ("User:٥", set()),
        ("Ann Smith", set()),
        ("", set()),
        (None, set()),
        ({"id": None, "_type": "User"}, set()),
        ({"_printed": "[Object]"}, set()),
    ],
)
def test_a_user_as_assignee_is_linked_and_a_role_is_not(assignee, found):
    record = {"id": 1, "updated_at": TICKET["updated_at"], "assignee": assignee}
    assert people(record) == {(user, "assignee") for user in found}


@pytest.mark.parametrize(
    ("change", "requesters"),
    [
        ({"customer_user": 1, "requester": 2}, {"1"}),
        ({"customer_user": None, "requester": 2}, {"2"}),
        ({"requester": {"id": 2, "_type": "User"}}, {"2"}),
        ({"customer_user": None}, set()),
    ],
)
def test_the_requester_has_two_names(change, requesters):
    record = {"id": 1, "updated_at": TICKET["updated_at"], **change}
    assert people(record) == {(user, "requester") for user in requesters}


def test_watchers_that_are_no_list_link_nobody():
    assert people({"id": 1, "updated_at": TICKET["updated_at"], "user_watchers": None}) == set()


# --- Nothing is lost ----------------------------------------------------------------------------


def rebuilt(stream, record):
    """A record from its row alone: what canonical columns hold entirely, and the custom fields."""
    row, found = parsed(stream, record), columns(stream, record)
    whole = json.loads(row["custom_fields"])
    for field in stream.fields:
        for key in field.consumes:
            assert key not in whole
            whole[key] = int(found[field.column]) if field.column == "id" else found[field.column]
    return {key: value for key, value in whole.items() if value is not None}


def normalised(stream, record):
    """A record without nulls and with its canonical times as times."""
    times = {c.name for c in stream.entity.columns if c.kind.name == "TIMESTAMP"}
    return {
        key: datetime.fromisoformat(value) if key in times else value
        for key, value in record.items()
        if value is not None
    }


@pytest.mark.parametrize(("stream", "record"), RECORDS, ids=["tickets", "users", "accounts"])
def test_canonical_and_custom_fields_together_are_the_record(stream, record):
    assert rebuilt(stream, record) == normalised(stream, record)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=6)
        | st.sampled_from(["people", "custom_fields", "content_hash", "raw", "role", "is_closed", "tenant"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
        ),
        max_size=5,
    )
)
def test_any_custom_field_is_kept_whatever_its_name(custom):
    known = {key for field in ACCOUNTS.fields for key in field.consumes}
    record = {key: value for key, value in custom.items() if key not in known} | ACCOUNT
    assert rebuilt(ACCOUNTS, record) == normalised(ACCOUNTS, record)


def changes(value):
    """Values near to this one, of a type that the same field may hold."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif isinstance(value, str):
        yield value.replace(value[:4], f"{int(value[:4]) - 1}") if value[:2] == "20" else f"{value} "
    elif isinstance(value, list):
        yield value[1:]
        yield from ([inner, *value[1:]] for inner in changes(value[0]))
    elif isinstance(value, dict):
        yield from ({**value, key: inner} for key in value for inner in changes(value[key]))
    else:
        yield "2020-06-01T00:00:00Z"


CHANGED = [
    pytest.param(stream, record, key, changed, id=f"{stream.entity.name}-{key}-{index}")
    for stream, record in RECORDS
    for key in record
    for index, changed in enumerate(changes(record[key]))
]


@pytest.mark.parametrize(("stream", "record", "key", "changed"), CHANGED)
def test_a_change_of_any_value_changes_the_hash(stream, record, key, changed):
    assert parsed(stream, record | {key: changed})["content_hash"] != parsed(stream, record)["content_hash"]


@pytest.mark.parametrize(("stream", "record"), RECORDS, ids=["tickets", "users", "accounts"])
def test_another_order_of_keys_or_another_zone_of_a_time_does_not_change_the_hash(stream, record):
    base = parsed(stream, record)["content_hash"]
    assert parsed(stream, dict(reversed(record.items())))["content_hash"] == base
    other = record | {"created_at": str(datetime.fromisoformat(record["created_at"]).astimezone(EAST))}
    assert parsed(stream, other)["content_hash"] == base


# --- Recorded answers ---------------------------------------------------------------------------


def recorded(name):
    path = FIXTURES / name
    if not path.is_file():
        pytest.skip("the recorded answers do not lie beside the project")
    return json.dumps(json.loads(path.read_text())["response"]["body"]).encode()


def test_a_recorded_ticket_is_read_whole():
    record, _ = pages.parse_single(recorded("ticket-raw.json"), TICKETS.single_names)
    found = columns(TICKETS, record)
    assert (found["id"], found["account_id"]) == ("571864", "5398")
    assert found["updated_at"] == datetime.fromisoformat(record["updated_at"])
    assert {("40384", "requester"), ("12973", "creator"), ("12973", "assignee")} <= people(record)
    assert rebuilt(TICKETS, record) == normalised(TICKETS, record)
    assert len(json.loads(parsed(TICKETS, record)["custom_fields"])) > 100


def test_a_recorded_list_is_read_whole():
    page = pages.parse_list(recorded("ticket-in-list-raw.json"), TICKETS.names)
    (record,) = page.records
    found = columns(TICKETS, record)
    assert found["resolved_at"] == at(2025, 3, 7, 8, 52, 24)
    assert found["subject"] == "Pending recruits - Person A"
    assert rebuilt(TICKETS, record) == normalised(TICKETS, record)


def test_a_recorded_status_with_selected_names():
    record, _ = pages.parse_single(recorded("select-status-name.json"), TICKETS.single_names)
    record |= {"id": 1, "updated_at": TICKET["updated_at"]}
    assert columns(TICKETS, record)["status"] == "Completed"


# --- What is asked ------------------------------------------------------------------------------


def test_every_column_can_be_filled_by_what_is_selected():
    """Names of related objects come only when they are selected (vendor-apis A.2)."""
    for stream in CONNECTOR.streams:
        assert stream.select.split(",")[0] == "*"
    for needed in ("status.name", "status.closed", "priority.name"):
        assert needed in TICKETS.select.split(",")
    assert "roles.name" in USERS.select.split(",")


def test_envelopes_by_entity():
    assert [(s.path, s.names, s.single_names) for s in STREAMS] == [
        ("/api/v1/accounts", ("data", "accounts"), ("data", "account")),
        ("/api/v1/users", ("data", "users"), ("data", "user")),
        ("/api/v1/tickets", ("data", "tickets"), ("data", "ticket")),
    ]


slots = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "id": st.none() | st.integers(-1, 4) | st.just(2**63) | st.booleans(),
        "_type": st.sampled_from(["User", "Role", None]),
    },
)
participants = st.fixed_dictionaries(
    {},
    optional={
        "customer_user": slots,
        "requester": slots,
        "created_by_user": slots,
        "assignee": slots | st.sampled_from(["User:3", "Role:12744", 3]),
        "user_watchers": st.none() | st.lists(slots | st.just("User:4"), max_size=3),
    },
)


@given(st.lists(participants, max_size=4))
def test_people_of_a_whole_page_are_those_of_its_records(records):
    try:
        expected = [TICKETS.people(record) for record in records]
    except Refused as refused:
        expected = refused.pointer
    try:
        found = TICKETS.all_people(records)
    except Refused as refused:
        found = refused.pointer
    assert found in (None, expected)


def test_people_of_a_page_of_stubs_are_read_at_once():
    stub = {"id": 7, "_type": "User"}
    records = [{"customer_user": stub, "assignee": {"id": 1, "_type": "Role"}}, {"requester": stub}, {}]
    assert TICKETS.all_people(records) == [[("7", "requester")], [("7", "requester")], []]
