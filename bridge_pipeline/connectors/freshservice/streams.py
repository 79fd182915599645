"""The entities of Freshservice and how their columns are read (vendor-apis B.3 to B.5).

Enumerations are numbers: translated by the tables below, with the number itself in `custom_fields`.
"""

import re
from collections.abc import Mapping
from typing import Any

from bridge_pipeline.connector_kit import fields, pages
from bridge_pipeline.connector_kit.connector import Person, Stream
from bridge_pipeline.connector_kit.fields import Field, Record, Refused
from bridge_pipeline.model import ACCOUNTS, ASSETS, CHANGES, COMMENTS, GROUPS, PROBLEMS, TICKETS, USERS

STATUSES = {2: "Open", 3: "Pending", 4: "Resolved", 5: "Closed"}
PRIORITIES = {1: "Low", 2: "Medium", 3: "High", 4: "Urgent"}
PROBLEM_STATUSES = {1: "Open", 2: "Change requested", 3: "Closed"}
CHANGE_STATUSES = {
    1: "Open",
    2: "Planning",
    3: "Awaiting approval",
    4: "Pending release",
    5: "Pending review",
    6: "Closed",
}
CHANGE_TYPES = {1: "Minor", 2: "Standard", 3: "Major", 4: "Emergency"}
RISKS = {1: "Low", 2: "Medium", 3: "High", 4: "Very high"}
_RESOLVED, _CLOSED = 4, 5
# Keys of a type's own fields end with the number of the asset type, or of one above it (B.5).
_TYPE_FIELD = re.compile(r"(\w+?)_\d{5,}")


def chosen(column: str, table: Mapping[int, str], key: str | None = None) -> Field:
    """An enumeration in the words of `table`; a number that the desk added itself is kept as digits."""
    name = key or column

    def read(record: Record) -> str | None:
        value = record.get(name)
        if value is None:
            return None
        if type(value) is not int:
            raise Refused("wrong_type", f"/{name}", f"expected a number, got {type(value).__name__}")
        return table.get(value, str(value))

    return Field(column, read, reads=(name,))


def _closed(closed: int, table: Mapping[int, str]) -> Field:
    """Whether it is closed; not known of a status that the desk added itself."""

    def read(record: Record) -> bool | None:
        status = record.get("status")
        return status == closed if status in table else None

    return Field("is_closed", read, reads=("status",))


def _object(record: Record, key: str) -> Mapping[str, Any]:
    """What an `include` added, if it did."""
    value = record.get(key)
    if value is None or isinstance(value, dict):
        return value or {}
    raise Refused("wrong_type", f"/{key}", f"expected an object, got {type(value).__name__}")


def _stat(column: str, *choices: tuple[str, tuple[int, ...]]) -> Field:
    """The first time of `stats` that is there, each for tickets in some statuses only; any for none."""

    def read(record: Record) -> int | None:
        stats = _object(record, "stats")
        for name, statuses in choices:
            if statuses and record.get("status") not in statuses:
                continue
            if (found := fields.microseconds(stats.get(name), f"/stats/{name}")) is not None:
                return found
        return None

    return Field(column, read, reads=("stats",))


_PARTS = (("requester_id", "requester"), ("requested_for_id", "watcher"), ("responder_id", "assignee"))


def _people(record: Record) -> list[Person]:
    """Who asked, for whom where that is somebody else, and the agent."""
    users = {key: fields.integer_id(record.get(key), f"/{key}") for key, _ in _PARTS}
    if users["requested_for_id"] == users["requester_id"]:
        users["requested_for_id"] = None
    return [Person(user, part) for key, part in _PARTS if (user := users[key])]


def _removed(record: Record) -> str | None:
    """What is in the trash or called spam is on no list, and comes back to it when it is restored."""
    return "deleted" if record.get("deleted") is True or record.get("spam") is True else None


# --- People: requesters and agents, one space of ids ------------------------------------------------


_ACTIVE, _IS_AGENT = fields.boolean("active"), fields.boolean("is_agent")


def _name(record: Record) -> str | None:
    parts = [_text(record, key) for key in ("first_name", "last_name")]
    return " ".join(part for part in parts if part) or None


def _email(record: Record) -> str | None:
    """Agents have `email`, requesters `primary_email`, or none."""
    return _text(record, "primary_email" if record.get("primary_email") is not None else "email")


def _text(record: Record, key: str) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    raise Refused("wrong_type", f"/{key}", f"expected text, got {type(value).__name__}")


def _role(record: Record) -> str | None:
    is_agent = _IS_AGENT.read(record)
    if is_agent is not None:
        return "Agent" if is_agent else "Requester"
    return "Agent" if "role_ids" in record or "roles" in record else None


def _status_of_user(record: Record) -> str | None:
    """Who was deactivated stays: tickets refer to them."""
    active = _ACTIVE.read(record)
    return None if active is None else "active" if active else "inactive"


# --- Assets ------------------------------------------------------------------------------------------


def _type_field(column: str, name: str) -> Field:
    """A field of the asset's type, as text."""

    def read(record: Record) -> str | None:
        for key, value in _object(record, "type_fields").items():
            found = _TYPE_FIELD.fullmatch(key)
            if found and found[1] == name and isinstance(value, str | int) and not isinstance(value, bool):
                return str(value) or None
        return None

    return Field(column, read, reads=("type_fields",))


def _asset_type(record: Record) -> str | None:
    return fields.integer_id(record.get("asset_type_id"), "/asset_type_id")


_PRIVATE = fields.boolean("private")


def _is_public(record: Record) -> bool | None:
    private = _PRIVATE.read(record)
    return None if private is None else not private


def ticket_records(body: bytes) -> list[bytes]:
    """The exact bytes of the tickets of a list answer, or of the one of a detail answer."""
    try:
        return pages.exact_records(body, ("tickets",))
    except pages.UnreadableBody:
        return [pages.parse_single(body, ("ticket",))[1]]


_TIMES = (fields.instant("created_at"), fields.instant("updated_at"))
_SUBJECT = (fields.text("subject"), fields.text("description"))

STREAMS = (
    Stream(
        ACCOUNTS,
        "/api/v2/departments",
        "",
        ("departments",),
        ("department",),
        (fields.identity(), fields.text("name"), *_TIMES),
    ),
    Stream(
        USERS,
        "/api/v2/requesters",
        "",
        ("requesters", "agents"),
        ("requester", "agent"),
        (
            fields.identity(),
            Field("name", _name, reads=("first_name", "last_name")),
            Field("email", _email, reads=("primary_email", "email")),
            Field("role", _role, reads=("is_agent", "role_ids", "roles")),
            Field("status", _status_of_user, reads=("active",)),
            *_TIMES,
        ),
    ),
    Stream(
        GROUPS,
        "/api/v2/groups",
        "",
        ("groups",),
        ("group",),
        (fields.identity(), fields.text("name"), fields.text("description"), *_TIMES),
    ),
    Stream(
        TICKETS,
        "/api/v2/tickets",
        "stats,tags",
        ("tickets",),
        ("ticket",),
        (
            fields.identity(),
            *_SUBJECT,
            chosen("status", STATUSES),
            chosen("priority", PRIORITIES),
            fields.array("tags"),
            fields.reference("account_id", "department_id"),
            *_TIMES,
            _stat("resolved_at", ("resolved_at", (_RESOLVED, _CLOSED)), ("closed_at", (_CLOSED,))),
            _stat("responded_at", ("first_responded_at", ())),
            _stat("closed_at", ("closed_at", (_CLOSED,))),
            _closed(_CLOSED, STATUSES),
        ),
        _people,
        state=_removed,
        split=ticket_records,
    ),
    Stream(
        COMMENTS,
        "/api/v2/tickets",
        "",
        ("conversations",),
        ("conversation",),
        (
            fields.identity(),
            fields.reference("ticket_id"),
            fields.reference("author_id", "user_id"),
            fields.text("body"),
            Field("is_public", _is_public, reads=("private",)),
            *_TIMES,
        ),
    ),
    Stream(
        ASSETS,
        "/api/v2/assets",
        "type_fields",
        ("assets",),
        ("asset",),
        (
            # Everything else addresses an asset by this number, and by no other (B.3).
            fields.identity("id", "display_id"),
            fields.text("name"),
            Field("type", _asset_type, reads=("asset_type_id",)),
            _type_field("status", "asset_state"),
            _type_field("serial_number", "serial_number"),
            fields.reference("account_id", "department_id"),
            fields.reference("user_id"),
            *_TIMES,
        ),
    ),
    Stream(
        PROBLEMS,
        "/api/v2/problems",
        "",
        ("problems",),
        ("problem",),
        (
            fields.identity(),
            *_SUBJECT,
            chosen("status", PROBLEM_STATUSES),
            chosen("priority", PRIORITIES),
            fields.reference("account_id", "department_id"),
            *_TIMES,
            # Problems say when they were closed nowhere.
            Field("resolved_at", lambda _: None),
            Field("closed_at", lambda _: None),
            _closed(3, PROBLEM_STATUSES),
        ),
        state=_removed,
    ),
    Stream(
        CHANGES,
        "/api/v2/changes",
        "",
        ("changes",),
        ("change",),
        (
            fields.identity(),
            *_SUBJECT,
            chosen("status", CHANGE_STATUSES),
            chosen("priority", PRIORITIES),
            chosen("type", CHANGE_TYPES, "change_type"),
            chosen("risk", RISKS),
            fields.reference("account_id", "department_id"),
            fields.instant("planned_start_at", "planned_start_date"),
            fields.instant("planned_end_at", "planned_end_date"),
            *_TIMES,
            _stat("closed_at", ("closed_at", (6,))),
            _closed(6, CHANGE_STATUSES),
        ),
        state=_removed,
    ),
)
