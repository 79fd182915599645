"""How records of Freshservice become rows: every column, recorded payloads, how like them the double is."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge_pipeline.connector_kit.fields import Refused
from bridge_pipeline.connectors.freshservice import CONNECTOR
from bridge_pipeline.connectors.freshservice.simulator.records import Records
from bridge_pipeline.connectors.freshservice.streams import ticket_records
from tests.connectors import parsed
from tests.connectors.freshservice.account import Account

FIXTURES = Path(__file__).resolve().parents[4] / "shared/reference/fixtures/freshservice/demisto-test-data"
recorded_only = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the vendors' recorded payloads are not here"
)
TIMES = {"created_at": "2023-01-04T14:22:43Z", "updated_at": "2023-02-04T14:22:43Z"}
CREATED, UPDATED = (
    datetime(2023, 1, 4, 14, 22, 43, tzinfo=UTC),
    datetime(2023, 2, 4, 14, 22, 43, tzinfo=UTC),
)

TICKET = TIMES | {
    "id": 7,
    "subject": "What’s wrong with my email? 😀",
    "description": "<div>Hi Team,<br></div>",
    "description_text": "Hi Team,",
    "status": 4,
    "priority": 2,
    "source": 2,
    "department_id": 21000263162,
    "requester_id": 21001397563,
    "responder_id": 21001397559,
    "requested_for_id": 21001397563,
    "category": "Hardware",
    "deleted": False,
    "spam": False,
    "tags": ["vpn"],
    "stats": {
        "ticket_id": 21003880128,
        "resolved_at": "2023-02-01T00:00:00Z",
        "closed_at": "2023-02-02T00:00:00Z",
        "first_responded_at": "2023-01-05T00:00:00Z",
    },
}


def at(day, month=2):
    return datetime(2023, month, day, tzinfo=UTC)


def stream(entity):
    return CONNECTOR.stream(entity)


def columns(entity, record):
    return parsed.columns(stream(entity), record)


def custom(entity, record):
    return json.loads(parsed.parsed(stream(entity), record)["custom_fields"])


def people(record):
    return parsed.people(stream("tickets"), record)


# --- Columns ---------------------------------------------------------------------------------------


def test_the_columns_of_a_ticket():
    assert columns("tickets", TICKET) == {
        "id": "7",
        "subject": "What’s wrong with my email? 😀",
        "description": "<div>Hi Team,<br></div>",
        "status": "Resolved",
        "priority": "Medium",
        "tags": ["vpn"],
        "account_id": "21000263162",
        "created_at": CREATED,
        "updated_at": UPDATED,
        "resolved_at": at(1),
        "responded_at": at(5, 1),
        "closed_at": None,
        "is_closed": False,
    }
    # The numbers stand beside the words.
    assert custom("tickets", TICKET) == {
        key: TICKET[key]
        for key in set(TICKET) - {"id", "subject", "description", "tags", "department_id", *TIMES}
    }


@pytest.mark.parametrize(
    ("status", "word", "resolved", "closed", "is_closed"),
    [
        (2, "Open", None, None, False),
        (3, "Pending", None, None, False),
        (4, "Resolved", at(1), None, False),
        (5, "Closed", at(1), at(2), True),
        # Added by the desk: what it means is not known.
        (8, "8", None, None, None),
        (None, None, None, None, None),
    ],
)
def test_the_status_decides_whether_times_of_the_end_count(status, word, resolved, closed, is_closed):
    found = columns("tickets", TICKET | {"status": status})
    shown = (found["status"], found["resolved_at"], found["closed_at"], found["is_closed"])
    assert shown == (word, resolved, closed, is_closed)


def test_a_ticket_closed_without_having_been_resolved_was_resolved_then():
    stats = TICKET["stats"] | {"resolved_at": None}
    assert columns("tickets", TICKET | {"status": 5, "stats": stats})["resolved_at"] == at(2)


def test_the_people_of_a_ticket():
    assert people(TICKET) == {("21001397563", "requester"), ("21001397559", "assignee")}
    other = TICKET | {"requested_for_id": 9, "responder_id": None}
    assert people(other) == {("21001397563", "requester"), ("9", "watcher")}
    # An agent may ask for himself and work on it.
    same = TICKET | {"requester_id": 9, "requested_for_id": 9, "responder_id": 9}
    assert people(same) == {("9", "requester"), ("9", "assignee")}


@pytest.mark.parametrize(
    ("change", "reason", "pointer"),
    [
        ({"id": "INC-7"}, "id_wrong_type", "/id"),
        ({"id": None}, "id_missing", "/id"),
        ({"status": "Open"}, "wrong_type", "/status"),
        ({"status": True}, "wrong_type", "/status"),
        ({"priority": 2.0}, "wrong_type", "/priority"),
        ({"tags": "vpn"}, "wrong_type", "/tags"),
        ({"subject": 12345}, "wrong_type", "/subject"),
        ({"created_at": "2023-02-30T00:00:00Z"}, "time_invalid", "/created_at"),
        ({"updated_at": None}, "change_time_missing", "/updated_at"),
        ({"stats": {"resolved_at": "yesterday"}}, "time_invalid", "/stats/resolved_at"),
        ({"stats": [{"resolved_at": None}]}, "wrong_type", "/stats"),
        ({"requester_id": "9"}, "id_wrong_type", "/requester_id"),
        ({"department_id": 0}, "id_out_of_range", "/department_id"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(change, reason, pointer):
    with pytest.raises(Refused) as refused:
        columns("tickets", TICKET | change)
    assert (refused.value.reason, refused.value.pointer) == (reason, pointer)


@pytest.mark.parametrize(
    ("change", "state"),
    [({}, None), ({"deleted": True}, "deleted"), ({"spam": True}, "deleted"), ({"deleted": None}, None)],
)
def test_trash_and_spam_say_so_themselves(change, state):
    assert stream("tickets").state(TICKET | change) == state


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {
                "first_name": "Greg",
                "last_name": "Sample",
                "primary_email": "g@e.com",
                "is_agent": False,
                "active": True,
            },
            ("Greg Sample", "g@e.com", "Requester", "active"),
        ),
        (
            {
                "first_name": "Jack",
                "last_name": None,
                "primary_email": None,
                "is_agent": False,
                "active": False,
            },
            ("Jack", None, "Requester", "inactive"),
        ),
        (
            {"first_name": "Ada", "last_name": "L", "email": "a@e.com", "role_ids": [1], "active": True},
            ("Ada L", "a@e.com", "Agent", "active"),
        ),
        ({"first_name": None, "is_agent": True}, (None, None, "Agent", None)),
        ({}, (None, None, None, None)),
    ],
)
def test_the_columns_of_requesters_and_agents(record, expected):
    found = columns("users", TIMES | {"id": 7} | record)
    assert tuple(found[name] for name in ("name", "email", "role", "status")) == expected


@pytest.mark.parametrize(
    ("entity", "change"),
    [
        ("users", {"active": "true"}),
        ("users", {"is_agent": 1}),
        ("assets", {"type_fields": ["x"]}),
        ("changes", {"stats": "none"}),
        ("comments", {"private": "false"}),
    ],
)
def test_what_is_of_another_type_is_refused_and_not_guessed(entity, change):
    with pytest.raises(Refused) as refused:
        columns(entity, TIMES | {"id": 7, "display_id": 7} | change)
    assert (refused.value.reason, refused.value.pointer) == ("wrong_type", f"/{next(iter(change))}")


def test_the_columns_of_an_asset_whose_fields_are_named_after_a_type_above():
    asset = TIMES | {
        "id": 21001118374,
        "display_id": 2,
        "name": "Dell Monitor",
        "asset_type_id": 21000855304,
        "user_id": 21001397563,
        "department_id": None,
        "type_fields": {
            "product_21000855267": 21000056898,
            "serial_number_21000855267": "SN-1",
            "asset_state_21000855267": "In Use",
            "old_serial_number_21000855267": "no",
        },
    }
    found = columns("assets", asset)
    assert found["id"] == "2"
    assert (found["type"], found["status"], found["serial_number"]) == ("21000855304", "In Use", "SN-1")
    assert (found["user_id"], found["account_id"]) == ("21001397563", None)
    assert custom("assets", asset)["id"] == 21001118374
    assert columns("assets", asset | {"type_fields": None})["serial_number"] is None


def test_the_columns_of_a_conversation():
    said = TIMES | {"id": 1, "user_id": 9, "ticket_id": 6, "body": "<div>Hi</div>", "private": True}
    found = columns("comments", said)
    assert (found["ticket_id"], found["author_id"], found["body"]) == ("6", "9", "<div>Hi</div>")
    assert found["is_public"] is False
    assert columns("comments", said | {"private": False})["is_public"] is True


def test_the_columns_of_a_change_and_a_problem():
    change = TIMES | {"id": 17, "subject": "Fix", "description": "d", "priority": 1, "status": 6, "risk": 4}
    change |= {"change_type": 4, "planned_start_date": "2023-03-25T07:37:58Z", "department_id": 5}
    found = columns("changes", change)
    assert (found["status"], found["type"], found["risk"]) == ("Closed", "Emergency", "Very high")
    assert (found["is_closed"], found["account_id"]) == (True, "5")
    assert found["planned_start_at"] == datetime(2023, 3, 25, 7, 37, 58, tzinfo=UTC)
    problem = columns("problems", change | {"status": 2})
    assert (problem["status"], problem["is_closed"]) == ("Change requested", False)


def test_the_bytes_of_a_ticket_are_found_in_a_list_and_in_an_answer_of_one():
    one, two = b'{"id": 1, "x": 1e5}', b'{"id":2}'
    assert ticket_records(b'{"tickets": [%b ,%b]}' % (one, two)) == [one, two]
    assert ticket_records(b'{"ticket":%b}' % one) == [one]


# --- Recorded payloads -----------------------------------------------------------------------------

_RECORDED = {
    "accounts": "department-list",
    "users": "requester-list",
    "tickets": "ticket-list",
    "comments": "ticket-conversation-list",
    "assets": "asset-list",
    "problems": "problem-list",
    "changes": "change-list",
}


def recorded(entity):
    document = json.loads((FIXTURES / f"{_RECORDED[entity]}.json").read_text())
    return next(value for value in document.values() if isinstance(value, list))


def with_real_times(record):
    """The samples' authors masked times, with words that are none."""
    masked = {key for key, value in record.items() if isinstance(value, str) and "]_" in value}
    return {key: TIMES["updated_at"] if key in masked else value for key, value in record.items()}


@recorded_only
@pytest.mark.parametrize("entity", list(_RECORDED))
def test_recorded_records_become_rows(entity):
    for record in recorded(entity):
        found = columns(entity, with_real_times(record))
        assert found["id"] == str(record["display_id" if entity == "assets" else "id"])
        assert found["updated_at"] is not None
        kept = set(custom(entity, with_real_times(record)))
        held = {key for field in stream(entity).fields for key in field.consumes}
        assert kept == set(record) - held


@recorded_only
@pytest.mark.parametrize("entity", list(_RECORDED))
def test_the_double_gives_what_was_recorded_with_values_of_the_same_kinds(entity):
    double = {key: kinds for record in simulated(entity) for key, kinds in kinds_of(record).items()}
    for record in recorded(entity):
        assert set(record) <= set(double), sorted(set(record) - set(double))
        for key, kind in kinds_of(record).items():
            if record[key] is not None and kind != "str":
                assert kind in {kinds_of(each)[key] for each in simulated(entity) if key in each} | {
                    "NoneType"
                }, key


def kinds_of(record):
    return {key: type(value).__name__ for key, value in record.items()}


def simulated(entity):
    account = Account(tickets=60)
    rows, records = account.world.rows, Records(account.world)
    shapes = {
        "accounts": lambda: map(records.department, rows["departments"]),
        "users": lambda: (records.person(row) for row in rows["people"] if not row.agent),
        "tickets": lambda: (records.ticket(row, row.updated, row.version) for row in rows["tickets"]),
        "comments": lambda: (records.conversation(r, said) for r in rows["tickets"] for said in r.said),
        "assets": lambda: (records.asset(row, frozenset()) for row in rows["assets"]),
        "problems": lambda: map(records.problem, rows["problems"]),
        "changes": lambda: map(records.change, rows["changes"]),
    }
    return list(shapes[entity]())
