"""How records of Zendesk become rows: every column, recorded payloads, and the double's likeness to them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.fields import Refused
from bridge_pipeline.connectors.zendesk import CONNECTOR
from bridge_pipeline.connectors.zendesk.simulator.records import Records
from bridge_pipeline.connectors.zendesk.simulator.world import DELETED, SCRUBBED
from bridge_pipeline.connectors.zendesk.streams import comment_page
from tests.connectors import parsed
from tests.connectors.zendesk.account import Account

FIXTURES = Path(__file__).resolve().parents[4] / "shared/reference/fixtures/zendesk"
recorded_only = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the vendors' recorded payloads are not here"
)

TICKET = {
    "id": 35436,
    "external_id": None,
    "via": {"channel": "email"},
    "created_at": "2009-07-20T22:55:29Z",
    "updated_at": "2011-05-05T10:38:52Z",
    "generated_timestamp": 1304592000,
    "type": "incident",
    "subject": "My printer is on fire — again 😀",
    "raw_subject": "{{dc.printer_on_fire}}",
    "description": "The fire is very colourful.",
    "priority": "urgent",
    "status": "solved",
    "requester_id": 20978392,
    "submitter_id": -1,
    "assignee_id": 235323,
    "organization_id": 509974,
    "group_id": 98738,
    "collaborator_ids": [35334, 234],
    "follower_ids": [35334],
    "email_cc_ids": [7],
    "tags": ["enterprise"],
    "custom_fields": [{"id": 27642, "value": "745"}],
    "metric_set": {"solved_at": "2011-05-04T08:00:00Z", "status_updated_at": "2011-05-05T10:38:52Z"},
}
USER = {
    "id": 35436,
    "name": "Johnny",
    "email": "johnny@example.com",
    "role": "end-user",
    "active": True,
    "suspended": False,
    "created_at": "2009-07-20T22:55:29Z",
    "updated_at": "2011-05-05T10:38:52Z",
}


def stream(entity):
    return CONNECTOR.stream(entity)


def columns(entity, record):
    return parsed.columns(stream(entity), record)


def custom(entity, record):
    return json.loads(parsed.parsed(stream(entity), record)["custom_fields"])


def people(record):
    return parsed.people(stream("tickets"), record)


def at(*parts):
    return datetime(*parts, tzinfo=UTC)


# --- Columns ---------------------------------------------------------------------------------------


def test_the_columns_of_a_ticket():
    assert columns("tickets", TICKET) == {
        "id": "35436",
        "subject": "My printer is on fire — again 😀",
        "description": "The fire is very colourful.",
        "status": "Solved",
        "priority": "Urgent",
        "tags": ["enterprise"],
        "account_id": "509974",
        "created_at": at(2009, 7, 20, 22, 55, 29),
        "updated_at": at(2011, 5, 5, 10, 40),
        "resolved_at": at(2011, 5, 4, 8),
        "responded_at": None,
        "closed_at": None,
        "is_closed": False,
    }
    held = {"id", "subject", "description", "tags", "created_at"}
    assert set(custom("tickets", TICKET)) == set(TICKET) - held
    assert custom("tickets", TICKET)["updated_at"] == "2011-05-05T10:38:52Z"


def test_the_people_of_a_ticket():
    assert people(TICKET) == {
        ("20978392", "requester"),
        ("235323", "assignee"),
        ("35334", "watcher"),
        ("234", "watcher"),
        ("7", "watcher"),
    }


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        ({"generated_timestamp": 0}, "updated_at", at(2011, 5, 5, 10, 38, 52)),
        ({"generated_timestamp": None}, "updated_at", at(2011, 5, 5, 10, 38, 52)),
        ({"status": "closed"}, "closed_at", at(2011, 5, 5, 10, 38, 52)),
        ({"status": "closed"}, "is_closed", True),
        ({"status": "open"}, "resolved_at", None),
        ({"status": "hold"}, "status", "On-hold"),
        ({"status": "a status of tomorrow"}, "status", "a status of tomorrow"),
        ({"status": None}, "is_closed", None),
        ({"priority": None}, "priority", None),
        ({"metric_set": None}, "resolved_at", None),
        ({"organization_id": None}, "account_id", None),
        ({"tags": None}, "tags", None),
    ],
)
def test_what_a_ticket_may_look_like(changes, column, value):
    assert columns("tickets", TICKET | changes)[column] == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "35436"}, "id_wrong_type"),
        ({"id": None}, "id_missing"),
        ({"generated_timestamp": "1304592000"}, "wrong_type"),
        ({"generated_timestamp": 10**15}, "time_invalid"),
        ({"generated_timestamp": True}, "wrong_type"),
        ({"status": 4}, "wrong_type"),
        ({"organization_id": "509974"}, "id_wrong_type"),
        ({"requester_id": -5}, "id_out_of_range"),
        ({"tags": "enterprise"}, "wrong_type"),
        ({"created_at": "2025-02-30T10:00:00Z"}, "time_invalid"),
        ({"updated_at": None, "generated_timestamp": 0}, "change_time_missing"),
        ({"generated_timestamp": False}, "wrong_type"),
        ({"metric_set": ["2011-05-04T08:00:00Z"]}, "wrong_type"),
    ],
)
def test_what_a_ticket_may_not_look_like(changes, reason):
    with pytest.raises(Refused) as refused:
        columns("tickets", TICKET | changes)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("without", "changes", "mark", "members"),
    [
        # The system has moved it since an agent did, or nobody has.
        (True, {}, 1304595000, {"generated_timestamp": 1304595000}),
        (True, {}, 1304591932, {"generated_timestamp": 1304591932}),
        # An agent has since the export showed it.
        (True, {}, 1304591931, {}),
        (True, {"updated_at": "some day"}, 1304595000, {}),
        # It tells its own mark.
        (False, {}, 1304595000, {}),
        (False, {"generated_timestamp": 0}, 1304595000, {}),
    ],
)
def test_a_ticket_without_its_mark_is_given_the_one_that_was_listed(without, changes, mark, members):
    ticket = {key: value for key, value in TICKET.items() if not without or key != "generated_timestamp"}
    assert stream("tickets").listed_mark(ticket | changes, mark * 1_000_000) == members


@pytest.mark.parametrize("change", [{"active": "false"}, {"active": 0}, {"suspended": "true"}])
def test_whether_a_user_is_active_is_not_guessed_from_another_type(change):
    with pytest.raises(Refused) as refused:
        columns("users", USER | change)
    assert (refused.value.reason, refused.value.pointer) == ("wrong_type", f"/{next(iter(change))}")


@pytest.mark.parametrize(
    ("changes", "role", "status"),
    [
        ({}, "End user", "active"),
        ({"role": "admin", "suspended": True}, "Administrator", "locked"),
        ({"active": False, "email": None, "permanently_deleted": False}, "End user", "inactive"),
        ({"role": "light-agent", "active": None}, "light-agent", None),
    ],
)
def test_the_columns_of_a_user(changes, role, status):
    found = columns("users", USER | changes)
    assert (found["role"], found["status"]) == (role, status)
    assert found["email"] == (USER | changes)["email"]
    assert stream("users").state is None


@pytest.mark.parametrize(
    ("entity", "record", "state"),
    [
        ("tickets", TICKET, None),
        ("tickets", TICKET | {"status": "deleted"}, "deleted"),
        ("tickets", TICKET | {"status": "deleted", "subject": "SCRUBBED", "description": "X"}, "deleted"),
        ("accounts", {"id": 1}, None),
        ("accounts", {"id": 1, "deleted_at": None}, None),
        ("accounts", {"id": 1, "deleted_at": "2025-01-01T00:00:00Z"}, "deleted"),
        ("groups", {"id": 1, "deleted": False}, None),
        ("groups", {"id": 1, "deleted": True}, "deleted"),
    ],
)
def test_what_is_listed_as_deleted(entity, record, state):
    assert stream(entity).state(record) == state


# --- Comments --------------------------------------------------------------------------------------

CHILD = b"""{ "id": 91048994488, "via": {"channel": "api"}, "type": "Comment", "author_id": 5031726587,
    "body": "This is, {a} \\"comment\\"", "html_body": "<p>x</p>", "public": false, "attachments": [],
    "audit_id": 91048994468, "created_at": "2009-06-25T10:15:18Z", "event_type": "Comment"}"""
EVENT = b"""{"child_events":[%b,{"id":5,"event_type":"Change","status":"open"}],"id":91048994468,
    "ticket_id":666,"timestamp":1245924918,"created_at":"2009-06-25T10:15:18Z","event_type":"Audit"}"""


def events(*items):
    return b'{"ticket_events":[' + b",".join(items) + b'],"count":1,"end_time":8,"end_of_stream":true}'


def test_a_comment_of_the_event_stream_knows_its_ticket():
    quiet = EVENT.replace(b"%b,", b"")
    page = comment_page(events(quiet, EVENT % CHILD, quiet))
    assert page.envelope["end_time"] == 8
    (record,) = page.records
    assert columns("comments", record) == {
        "id": "91048994488",
        "ticket_id": "666",
        "author_id": "5031726587",
        "body": 'This is, {a} "comment"',
        "is_public": False,
        "created_at": at(2009, 6, 25, 10, 15, 18),
        "updated_at": at(2009, 6, 25, 10, 15, 18),
    }
    assert page.exact[0].endswith(CHILD[1:].lstrip())
    assert custom("comments", record)["ticket_event"]["id"] == 91048994468


def test_what_the_system_said_has_no_author():
    (record,) = comment_page(events(EVENT % CHILD.replace(b"5031726587", b"-1"))).records
    assert columns("comments", record)["author_id"] is None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (EVENT % CHILD.replace(b"This is", b"\\ud83d"), "lone_surrogate"),
        ((EVENT % CHILD).replace(b'"ticket_id":666', b'"ticket_id":666,"ticket_id":667'), "repeated_key"),
    ],
)
def test_an_event_that_cannot_be_read_is_kept_as_it_is(event, reason):
    page = comment_page(events(event, EVENT % CHILD))
    bad, good = page.records
    assert isinstance(bad, pages.Rejected)
    assert bad.reason == reason
    assert good["id"] == 91048994488


@pytest.mark.parametrize(
    ("sent", "members", "reason"),
    [
        (b'"ticket_id":666', b'"ticket_id":1180591620717411303424', "id_out_of_range"),
        (b'"timestamp":1245924918', b'"timestamp":1180591620717411303424', "time_invalid"),
        (b'"timestamp":1245924918', b'"timestamp":1245924918.00000000000000000001', "wrong_type"),
    ],
)
def test_an_event_with_a_number_that_cannot_be_harms_its_own_comment_alone(sent, members, reason):
    page = comment_page(events((EVENT % CHILD).replace(sent, members), EVENT % CHILD))
    bad, good = page.records
    with pytest.raises(Refused) as refusal:
        columns("comments", bad)
    assert refusal.value.reason == reason
    assert good["ticket_event"]["ticket_id"] == 666


def test_metric_rows_in_the_event_stream_are_no_comments():
    assert comment_page(events(b'{"id":1,"metric":"agent_work_time","type":"measure"}')).records == []


# --- Recorded payloads -----------------------------------------------------------------------------

RECORDED = [
    ("tickets", "official-oas-examples/cursor-based-export-incremental-tickets-response.json", "tickets"),
    ("tickets", "official-oas-examples/time-based-export-incremental-tickets-response.json", "tickets"),
    ("tickets", "official-oas-examples/tickets-response.json", "tickets"),
    ("tickets", "official-oas-examples/ticket-response.json", "ticket"),
    ("tickets", "go-zendesk-fixtures/GET-tickets.json", "tickets"),
    ("tickets", "go-zendesk-fixtures/GET-ticket.json", "ticket"),
    ("users", "official-oas-examples/cursor-based-export-incremental-users-response.json", "users"),
    ("users", "official-oas-examples/time-based-export-incremental-users-response.json", "users"),
    ("users", "official-oas-examples/delete-user-response.json", "user"),
    ("users", "official-oas-examples/deleted-user-response.json", "deleted_user"),
    ("users", "go-zendesk-fixtures/GET-users.json", "users"),
    ("users", "go-zendesk-fixtures/GET-user.json", "user"),
    ("accounts", "official-oas-examples/export-incremental-organizations-response.json", "organizations"),
    ("accounts", "official-oas-examples/organizations-response.json", "organizations"),
    ("accounts", "go-zendesk-fixtures/GET-organizations.json", "organizations"),
    ("groups", "official-oas-examples/groups-response.json", "groups"),
    ("groups", "go-zendesk-fixtures/GET-group.json", "group"),
    ("groups", "go-zendesk-fixtures/GET-groups.json", "groups"),
]
# Beyond the objects of the vendor's table (C.4), and of single accounts' own making.
NOT_SERVED = {"satisfaction_probability", "custom_object", "settings"}


def recorded(file, name) -> list[dict[str, Any]]:
    body = json.loads((FIXTURES / file).read_text())
    found = body.get("response", {}).get("body", body)[name]
    return found if isinstance(found, list) else [found]


@recorded_only
@pytest.mark.parametrize(("entity", "file", "name"), RECORDED)
def test_recorded_records_are_accepted(entity, file, name):
    for record in recorded(file, name):
        row = parsed.parsed(stream(entity), record)
        assert row["id"] == str(record["id"])
        kept = {
            *json.loads(row["custom_fields"]),
            *(f for field in stream(entity).fields for f in field.consumes),
        }
        assert set(record) <= kept


@recorded_only
@pytest.mark.parametrize(("entity", "file", "name"), RECORDED)
def test_the_double_serves_what_was_recorded(entity, file, name):
    served = double(entity)
    for record in recorded(file, name):
        for key, value in record.items():
            if key in NOT_SERVED:
                continue
            assert key in served, f"{entity} of the double lack {key}"
            assert value is None or isinstance(value, tuple(served[key])), (key, value, served[key])


def double(entity) -> dict[str, set[type]]:
    """The keys of the double's records, each with the types of its values; null may be anything."""
    account = Account()
    account.world.tables["tickets"].states[:2] = DELETED, SCRUBBED
    records = Records(account.world, "https://acme.zendesk.com")
    found: dict[str, set[type]] = {}
    for row in range(len(account.world.tables[entity].ids)):
        for key, value in records.record(entity, row).items():
            found.setdefault(key, set()).add(type(value))
    return {key: {object} if types == {type(None)} else types | {type(None)} for key, types in found.items()}


@recorded_only
def test_recorded_comments_have_the_members_of_the_doubles():
    account = Account()
    comment = Records(account.world, "https://acme.zendesk.com").comment(3, 0, 1_700_000_000)
    for file in (
        "official-oas-examples/ticket-comments-response.json",
        "go-zendesk-fixtures/GET-ticket_comments.json",
    ):
        for record in recorded(file, "comments"):
            assert set(record) <= set(comment)
            wrapped = {"ticket_event": {"ticket_id": 5, "timestamp": None}} | record
            assert columns("comments", orjson.loads(orjson.dumps(wrapped)))["id"] == str(record["id"])
