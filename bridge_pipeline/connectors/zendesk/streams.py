"""The entities of Zendesk Support and how their columns are read (vendor-apis C.3 to C.5).

A ticket's change mark is `generated_timestamp`, by which the export is ordered: what the system
changes moves nothing else, and a window by `updated_at` would lose that version.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bridge_pipeline.connector_kit import fields, pages
from bridge_pipeline.connector_kit.connector import Person, Stream
from bridge_pipeline.connector_kit.fields import Field, Record, Refused
from bridge_pipeline.model import ACCOUNTS, COMMENTS, GROUPS, TICKETS, USERS

# vendor-apis C.5; values not listed are kept as they are.
STATUSES = {
    "new": "New",
    "open": "Open",
    "pending": "Pending",
    "hold": "On-hold",
    "solved": "Solved",
    "closed": "Closed",
    "deleted": "Deleted",
}
PRIORITIES = {"urgent": "Urgent", "high": "High", "normal": "Normal", "low": "Low"}
ROLES = {"end-user": "End user", "agent": "Agent", "admin": "Administrator"}
# A solved ticket can be reopened, a closed one cannot; Zendesk calls neither unsolved.
_RESOLVED = ("solved", "closed")
_MICROSECONDS = 1_000_000
_COMMENT = "Comment"


def translated(column: str, table: dict[str, str]) -> Field:
    """An enumeration in the words of `table`; its own value stays in `custom_fields`."""

    def read(record: Record) -> str | None:
        value = record.get(column)
        if value is None or isinstance(value, str):
            return None if value is None else table.get(value, value)
        raise Refused("wrong_type", f"/{column}", f"expected text, got {type(value).__name__}")

    return Field(column, read, reads=(column,))


def reference(column: str, key: str) -> Field:
    """The id of another record; null where there is none, or the system itself (-1)."""
    return Field(column, lambda record: _reference(record.get(key), f"/{key}"), reads=(key,))


def _reference(value: Any, pointer: str) -> str | None:
    return None if value == -1 else fields.integer_id(value, pointer)


def _generated(record: Record) -> int | None:
    """`generated_timestamp` in µs; `updated_at` where there is none: in some lookups, and 0 when just
    created."""
    value = record.get("generated_timestamp")
    if value is None or (type(value) is int and value == 0):
        return fields.microseconds(record.get("updated_at"), "/updated_at")
    return _epoch(value, "/generated_timestamp")


def _listed_mark(record: Record, mark: int) -> dict[str, Any]:
    """`generated_timestamp` as the export showed it, unless the ticket tells its own or has changed since."""
    if "generated_timestamp" in record:
        return {}
    try:
        updated = fields.microseconds(record.get("updated_at"), "/updated_at")
    except Refused:
        return {}
    second = mark // _MICROSECONDS
    return {} if updated and updated > second * _MICROSECONDS else {"generated_timestamp": second}


def _epoch(value: Any, pointer: str) -> int:
    if type(value) is not int:
        raise Refused("wrong_type", pointer, f"expected whole seconds, got {type(value).__name__}")
    if not 0 < value < 253_402_300_800:
        raise Refused("time_invalid", pointer, str(value)[:60])
    return value * _MICROSECONDS


def _metric(name: str, statuses: tuple[str, ...]) -> Callable[[Record], int | None]:
    """A time of the `metric_sets` sideload, for tickets that are in one of these statuses."""

    def read(record: Record) -> int | None:
        metrics = record.get("metric_set")
        if metrics is not None and not isinstance(metrics, dict):
            raise Refused("wrong_type", "/metric_set", f"expected an object, got {type(metrics).__name__}")
        if metrics is None or record.get("status") not in statuses:
            return None
        return fields.microseconds(metrics.get(name), f"/metric_set/{name}")

    return read


def _is_closed(record: Record) -> bool | None:
    status = record.get("status")
    return None if status is None else status == "closed"


_PARTS = (
    ("requester_id", "requester"),
    ("submitter_id", "creator"),
    ("assignee_id", "assignee"),
    ("collaborator_ids", "watcher"),
    ("follower_ids", "watcher"),
    ("email_cc_ids", "watcher"),
)


def _people(record: Record) -> list[Person]:
    found = []
    for key, part in _PARTS:
        value = record.get(key)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            pointer = f"/{key}/{index}" if isinstance(value, list) else f"/{key}"
            if user := _reference(item, pointer):
                found.append(Person(user, part))
    return found


_ACTIVE, _SUSPENDED = fields.boolean("active"), fields.boolean("suspended")


def _status_of_user(record: Record) -> str | None:
    """A deleted user stays one, as inactive: tickets refer to it (vendor-apis C.3, 10)."""
    active, suspended = _ACTIVE.read(record), _SUSPENDED.read(record)
    if active is False:
        return "inactive"
    if suspended:
        return "locked"
    return None if active is None else "active"


def _state_of_ticket(record: Record) -> str | None:
    return "deleted" if record.get("status") == "deleted" else None


def _state_of_account(record: Record) -> str | None:
    return "deleted" if record.get("deleted_at") is not None else None


def _state_of_group(record: Record) -> str | None:
    return "deleted" if record.get("deleted") is True else None


def _commented_at(record: Record) -> int | None:
    """When the event happened that the comment came with, which is what the stream is ordered by."""
    event = record.get("ticket_event")
    value = event.get("timestamp") if isinstance(event, dict) else None
    if value is None:
        return fields.microseconds(record.get("created_at"), "/created_at")
    return _epoch(value, "/ticket_event/timestamp")


def _ticket_of_comment(record: Record) -> str | None:
    event = record.get("ticket_event")
    value = event.get("ticket_id") if isinstance(event, dict) else None
    return fields.integer_id(value, "/ticket_event/ticket_id")


def comments_of(body: bytes) -> list[bytes]:
    """The comments of an answer of `ticket_events?include=comment_events`, each as one record.

    What of the event says which ticket it was and when is put before the comment's own members, as
    `ticket_event`: a comment does not name its ticket (vendor-apis C.4).

    Raises:
        UnreadableBody: it is no such answer.
    """
    found = []
    for raw in pages.exact_records(body, ("ticket_events",)):
        # Most events hold no comment and need not be taken apart.
        if b'"Comment"' not in raw or b'"child_events"' not in raw:
            continue
        event = pages.parse_record(raw)
        if not isinstance(event, dict):
            # Of an event that cannot be read nothing but its bytes is certain: it goes to quarantine.
            found.append(raw)
            continue
        own = {key: event.get(key) for key in ("id", "ticket_id", "timestamp", "created_at")}
        found += [
            pages.with_members(child, {"ticket_event": own})
            for child in _children(raw)
            if child.startswith(b"{") and _kind(child) == _COMMENT
        ]
    return found


def _children(event: bytes) -> list[bytes]:
    try:
        return pages.exact_records(event, ("child_events",))
    except pages.UnreadableBody:
        return []


def _kind(child: bytes) -> Any:
    record = pages.parse_record(child)
    # One that cannot be accepted is kept: it says why when it is parsed as a record.
    return record.get("event_type") if isinstance(record, dict) else _COMMENT


def comment_page(body: bytes) -> pages.PageContent:
    """An answer of the event stream, with its comments as records."""
    envelope = pages.parse_list(body, ("ticket_events",))
    exact = comments_of(body)
    return replace(envelope, records=[pages.parse_record(raw) for raw in exact], exact=exact)


_TIMES = (fields.instant("created_at"), fields.instant("updated_at"))

STREAMS = (
    Stream(
        ACCOUNTS,
        "/api/v2/incremental/organizations.json",
        "",
        ("organizations",),
        ("organization",),
        (fields.identity(), fields.text("name"), *_TIMES),
        state=_state_of_account,
    ),
    Stream(
        USERS,
        "/api/v2/incremental/users/cursor.json",
        "",
        ("users",),
        ("user",),
        (
            fields.identity(),
            fields.text("name"),
            fields.text("email"),
            translated("role", ROLES),
            Field("status", _status_of_user, reads=("active", "suspended")),
            *_TIMES,
        ),
    ),
    Stream(
        GROUPS,
        "/api/v2/groups.json",
        "",
        ("groups",),
        ("group",),
        (fields.identity(), fields.text("name"), fields.text("description"), *_TIMES),
        state=_state_of_group,
    ),
    Stream(
        TICKETS,
        "/api/v2/incremental/tickets/cursor.json",
        "metric_sets",
        ("tickets",),
        ("ticket",),
        (
            fields.identity(),
            fields.text("subject"),
            fields.text("description"),
            translated("status", STATUSES),
            translated("priority", PRIORITIES),
            fields.array("tags"),
            reference("account_id", "organization_id"),
            fields.instant("created_at"),
            Field("updated_at", _generated, reads=("generated_timestamp", "updated_at")),
            Field("resolved_at", _metric("solved_at", _RESOLVED), reads=("metric_set",)),
            # Zendesk gives minutes to the first reply, not its time.
            Field("responded_at", lambda _: None),
            Field("closed_at", _metric("status_updated_at", ("closed",)), reads=("metric_set",)),
            Field("is_closed", _is_closed, reads=("status",)),
        ),
        _people,
        state=_state_of_ticket,
        listed_mark=_listed_mark,
    ),
    Stream(
        COMMENTS,
        "/api/v2/incremental/ticket_events.json",
        "comment_events",
        ("ticket_events",),
        ("comment",),
        (
            fields.identity(),
            Field("ticket_id", _ticket_of_comment, reads=("ticket_event",)),
            reference("author_id", "author_id"),
            fields.text("body"),
            fields.boolean("is_public", "public"),
            fields.instant("created_at"),
            Field("updated_at", _commented_at, reads=("ticket_event", "created_at")),
        ),
        split=comments_of,
    ),
)
