"""The tables of ServiceNow and how their columns are read (vendor-apis D.3, D.6).

Rows are asked for in raw mode: every value is a text, `""` is none, times are UTC without a mark,
references are ids. What another mode would send for a reference is read as well. Choices are
translated by the tables below; the value itself stays in `custom_fields`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from bridge_pipeline.connector_kit import fields
from bridge_pipeline.connector_kit.connector import Person, Stream
from bridge_pipeline.connector_kit.fields import Field, Record, Refused
from bridge_pipeline.model import ACCOUNTS, ASSETS, CHANGES, COMMENTS, GROUPS, PROBLEMS, TICKETS, USERS

# 32 lower-case hex digits, but base records may have any 32 characters (D.3). `^` and `,` end a term
# of a query, and the others end a path.
_KEY = re.compile(r"[!-~]{32}")
_NOT_IN_A_KEY = re.compile(r"[\^,/?#%&\\\"]")
# Characters of a reference: keys have 32, other names (D.3) few more, and no index holds long ones.
_LONGEST_REFERENCE = 255
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_FALSE_TRUE = {"false": False, "true": True}

# The client puts the key of the user there whose login `sys_created_by` is; the login stays in
# `custom_fields`.
AUTHOR = "author"
# The client puts it into what it knows to be deleted.
DELETED = "sys_audit_delete"

INCIDENT_STATES = {
    "1": "New",
    "2": "In Progress",
    "3": "On Hold",
    "6": "Resolved",
    "7": "Closed",
    "8": "Canceled",
}
PROBLEM_STATES = {
    "101": "New",
    "102": "Assess",
    "103": "Root Cause Analysis",
    "104": "Fix in Progress",
    "106": "Resolved",
    "107": "Closed",
}
CHANGE_STATES = {
    "-5": "New",
    "-4": "Assess",
    "-3": "Authorize",
    "-2": "Scheduled",
    "-1": "Implement",
    "0": "Review",
    "3": "Closed",
    "4": "Canceled",
}
PRIORITIES = {"1": "Critical", "2": "High", "3": "Moderate", "4": "Low", "5": "Planning"}
RISKS = {"1": "Very High", "2": "High", "3": "Moderate", "4": "Low"}


def is_key(value: str) -> bool:
    """Whether it can be the key of a row."""
    return bool(_KEY.fullmatch(value)) and not _NOT_IN_A_KEY.search(value)


def filled(record: Record, key: str) -> str | None:
    """The text under `key`; None for `""`, which is how the Table API writes null."""
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value or None
    raise Refused("wrong_type", f"/{key}", f"expected text, got {type(value).__name__}")


def identity() -> Field:
    """A `sys_id`. Refuses `id_missing`, `id_wrong_type`, `id_out_of_range`."""

    def read(record: Record) -> str:
        value = record.get("sys_id")
        if value is None or value == "":
            raise Refused("id_missing", "/sys_id")
        if not isinstance(value, str):
            raise Refused("id_wrong_type", "/sys_id", f"expected text, got {type(value).__name__}")
        if not is_key(value):
            raise Refused("id_out_of_range", "/sys_id", f"no key of 32 characters: {value[:40]!r}")
        return value

    return Field("id", read, ("sys_id",))


def text(column: str, key: str | None = None) -> Field:
    """A text, None for an empty one."""
    name = key or column
    return Field(column, lambda record: filled(record, name), (name,))


def instant(column: str, key: str) -> Field:
    """A time `YYYY-MM-DD HH:MM:SS`, which raw mode gives in UTC (D.3).

    Refuses `time_invalid`: also what display mode writes, which is in the caller's own zone.
    """
    return Field(column, lambda record: moment(record, key), (key,))


def moment(record: Record, key: str) -> int | None:
    """Microseconds since 1970 of the time under `key`."""
    value = filled(record, key)
    if value is None:
        return None
    if not _TIME.fullmatch(value):
        raise Refused("time_invalid", f"/{key}", value[:60])
    return fields.microseconds(f"{value}Z", f"/{key}")


def chosen(column: str, key: str, labels: Mapping[str, str]) -> Field:
    """The label of a choice; one that the table does not know is kept as it is."""

    def read(record: Record) -> str | None:
        value = filled(record, key)
        return None if value is None else labels.get(value, value)

    return Field(column, read, reads=(key,))


def reference(column: str, key: str) -> Field:
    """The id of another row: see `referred`."""
    return Field(column, lambda record: referred(record, key), reads=(key,))


def referred(record: Record, key: str) -> str | None:
    """The id that a reference holds: a plain id, `""`, or an object with a `value` (D.2).

    Refuses `id_wrong_type` and `id_out_of_range`; other names than keys are kept (D.3).
    """
    value, pointer = record.get(key), f"/{key}"
    if isinstance(value, dict):
        if "value" not in value:
            # Display mode leaves it out, and what is displayed is no key.
            raise Refused("id_wrong_type", pointer, "a reference without its value")
        value, pointer = value["value"], f"{pointer}/value"
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Refused("id_wrong_type", pointer, f"expected a reference, got {type(value).__name__}")
    return _short(value, pointer)


def _short(name: str, pointer: str) -> str:
    if len(name) > _LONGEST_REFERENCE:
        raise Refused("id_out_of_range", pointer, f"a reference of {len(name)} characters: {name[:40]!r}")
    return name


def _author(record: Record) -> str | None:
    name = filled(record, AUTHOR)
    return name and _short(name, f"/{AUTHOR}")


def boolean(record: Record, key: str) -> bool | None:
    """`"true"` or `"false"`; None where there is neither."""
    value = filled(record, key)
    if value is None or value in _FALSE_TRUE:
        return _FALSE_TRUE.get(value or "")
    raise Refused("wrong_type", f"/{key}", f"expected true or false, got {value[:60]!r}")


def closed(labels: Mapping[str, str]) -> Field:
    """Whether a task is closed: no longer `active`, or by its state where `active` is not readable."""
    states = {value: label in ("Closed", "Canceled") for value, label in labels.items()}

    def read(record: Record) -> bool | None:
        active = boolean(record, "active")
        return states.get(filled(record, "state") or "") if active is None else not active

    return Field("is_closed", read, reads=("active", "state"))


def _status_of_user(record: Record) -> str | None:
    active, locked = boolean(record, "active"), boolean(record, "locked_out")
    if active is None and locked is None:
        return None
    return "locked" if locked or active is False else "active"


def _is_public(record: Record) -> bool | None:
    """`comments` are for the caller, `work_notes` for the desk."""
    return {"comments": True, "work_notes": False}.get(filled(record, "element") or "")


def _people(record: Record) -> list[Person]:
    """Who takes part in an incident. Lists of watchers hold addresses of people without a user too."""
    named = (("caller_id", "requester"), ("opened_by", "creator"), ("assigned_to", "assignee"))
    people = [Person(user, part) for key, part in named if (user := referred(record, key))]
    watchers = (filled(record, "watch_list") or "").split(",")
    return people + [Person(user.strip(), "watcher") for user in watchers if is_key(user.strip())]


_CREATED = instant("created_at", "sys_created_on")
_UPDATED = instant("updated_at", "sys_updated_on")
_SUBJECT = text("subject", "short_description")
_COMPANY = reference("account_id", "company")


def _stream(
    entity: Any,
    table: str,
    columns: tuple[Field, ...],
    people: Callable[[Record], list[Person]] | None = None,
    only: str = "",
) -> Stream:
    path, names = f"/api/now/table/{table}", ("result",)
    return Stream(entity, path, only, names, names, columns, people, _state)


def _state(record: Record) -> str | None:
    return "deleted" if DELETED in record else None


STREAMS = (
    _stream(ACCOUNTS, "core_company", (identity(), text("name"), _CREATED, _UPDATED)),
    _stream(
        USERS,
        "sys_user",
        (
            identity(),
            text("name"),
            text("email"),
            text("role", "roles"),
            Field("status", _status_of_user, reads=("active", "locked_out")),
            _CREATED,
            _UPDATED,
        ),
    ),
    _stream(GROUPS, "sys_user_group", (identity(), text("name"), text("description"), _CREATED, _UPDATED)),
    _stream(
        TICKETS,
        "incident",
        (
            identity(),
            _SUBJECT,
            text("description"),
            chosen("status", "state", INCIDENT_STATES),
            chosen("priority", "priority", PRIORITIES),
            # `sys_tags` holds the labels of the one user who asks, and no ticket's own.
            Field("tags", lambda record: None),
            _COMPANY,
            _CREATED,
            _UPDATED,
            instant("resolved_at", "resolved_at"),
            # The product has no such time.
            Field("responded_at", lambda record: None),
            instant("closed_at", "closed_at"),
            closed(INCIDENT_STATES),
        ),
        _people,
    ),
    _stream(
        COMMENTS,
        "sys_journal_field",
        (
            identity(),
            reference("ticket_id", "element_id"),
            # Entries of nobody who is a user still have what an author is read from.
            Field("author_id", _author, (AUTHOR,), (AUTHOR, "sys_created_by")),
            text("body", "value"),
            Field("is_public", _is_public, reads=("element",)),
            Field("created_at", lambda record: moment(record, "sys_created_on"), reads=("sys_created_on",)),
            # Entries are written once; the table knows no other time (D.3).
            instant("updated_at", "sys_created_on"),
        ),
        only="name=incident^elementINcomments,work_notes",
    ),
    _stream(
        ASSETS,
        "cmdb_ci",
        (
            identity(),
            text("name"),
            # The row's own class: the table holds those of all its child tables (D.3).
            text("type", "sys_class_name"),
            text("status", "install_status"),
            text("serial_number"),
            _COMPANY,
            reference("user_id", "assigned_to"),
            _CREATED,
            _UPDATED,
        ),
    ),
    _stream(
        PROBLEMS,
        "problem",
        (
            identity(),
            _SUBJECT,
            text("description"),
            chosen("status", "state", PROBLEM_STATES),
            chosen("priority", "priority", PRIORITIES),
            _COMPANY,
            _CREATED,
            _UPDATED,
            instant("resolved_at", "resolved_at"),
            instant("closed_at", "closed_at"),
            closed(PROBLEM_STATES),
        ),
    ),
    _stream(
        CHANGES,
        "change_request",
        (
            identity(),
            _SUBJECT,
            text("description"),
            chosen("status", "state", CHANGE_STATES),
            chosen("priority", "priority", PRIORITIES),
            text("type"),
            chosen("risk", "risk", RISKS),
            _COMPANY,
            instant("planned_start_at", "start_date"),
            instant("planned_end_at", "end_date"),
            _CREATED,
            _UPDATED,
            instant("closed_at", "closed_at"),
            closed(CHANGE_STATES),
        ),
    ),
)
