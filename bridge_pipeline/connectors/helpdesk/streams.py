"""The entities of Client Central and how their columns are read (vendor-apis A.2, A.3).

Related objects come as stubs `{"id": 11, "_type": "TicketStatus"}`; `select` adds the
fields of theirs that are needed. Stubs stay whole in `custom_fields`, so nothing is lost.
"""

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from bridge_pipeline.connector_kit import fields
from bridge_pipeline.connector_kit.connector import AllPeople, Person, Stream
from bridge_pipeline.connector_kit.fields import Field, Record, Refused
from bridge_pipeline.model import ACCOUNTS, TICKETS, USERS

# Who takes part in a ticket beside its requester.
_SLOTS = (("created_by_user", "creator"), ("assignee", "assignee"))


def stub_name(column: str) -> Field:
    """The `name` of a stub, or the text itself where the source sends a plain one."""

    def read(record: Record) -> str | None:
        return _name(record.get(column), f"/{column}")

    names = fields.within(column, fields.plain("name", str))
    return Field(column, read, reads=(column,), read_all=names)


def stub_id(column: str, key: str, plain: str) -> Field:
    """The `id` of the stub `key`, or the plain integer under `key` or `plain`."""

    def read(record: Record) -> str | None:
        value = record.get(key)
        if isinstance(value, dict):
            return fields.integer_id(value.get("id"), f"/{key}/id")
        if value is not None:
            return fields.integer_id(value, f"/{key}")
        return fields.integer_id(record.get(plain), f"/{plain}")

    return Field(column, read, reads=(key, plain), read_all=fields.within(key, fields.ids("id")))


def _name(value: Any, pointer: str) -> str | None:
    if isinstance(value, dict):
        value, pointer = value.get("name"), f"{pointer}/name"
    if value is None or isinstance(value, str):
        return value
    raise Refused("wrong_type", pointer, f"expected text, got {type(value).__name__}")


def _is_closed(record: Record) -> bool | None:
    status = record.get("status")
    closed = status.get("closed") if isinstance(status, dict) else record.get("is_closed")
    if closed is None or isinstance(closed, bool):
        return closed
    raise Refused("wrong_type", "/status/closed", f"expected a boolean, got {type(closed).__name__}")


def _role(record: Record) -> str | None:
    roles = record.get("roles")
    if isinstance(roles, list) and record.get("role") is None:
        names = [_name(role, f"/roles/{index}") for index, role in enumerate(roles)]
        return ", ".join(sorted(name for name in names if name)) or None
    return _name(record.get("role"), "/role")


def _status_of_user(record: Record) -> str | None:
    locked = record.get("locked")
    if record.get("status") is None and isinstance(locked, bool):
        return "locked" if locked else "active"
    return _name(record.get("status"), "/status")


def _people(record: Record) -> list[Person]:
    """Who takes part in a ticket. A role as assignee makes no user (vendor-apis A.3)."""
    requester = "requester" if record.get("customer_user") is None else "customer_user"
    slots = [(requester, "requester"), *_SLOTS]
    found = [
        Person(user, part)
        for key, part in slots
        if (value := record.get(key)) is not None and (user := _user(value, f"/{key}"))
    ]
    return found + _watchers(record)


def _watchers(record: Record) -> list[Person]:
    watchers = record.get("user_watchers")
    numbered = enumerate(watchers if isinstance(watchers, list) else ())
    found = [_user(watcher, f"/user_watchers/{index}") for index, watcher in numbered]
    return [Person(user, "watcher") for user in found if user]


def _all_people(records: Sequence[Record]) -> list[list[tuple[str, str]]] | None:
    """`_people` of many; None where one of them is to be read alone."""
    requesters = [
        other if one is None else one
        for one, other in zip(
            fields.under(records, "customer_user"), fields.under(records, "requester"), strict=True
        )
    ]
    users = [_all_users(requesters), *(_all_users(fields.under(records, key)) for key, _ in _SLOTS)]
    found = [each for each in users if each is not None]
    if len(found) < len(users):
        return None
    parts = ("requester", *(part for _, part in _SLOTS))
    people = [[pair for pair in zip(row, parts, strict=True) if pair[0]] for row in zip(*found, strict=True)]
    for place, watchers in enumerate(fields.under(records, "user_watchers")):
        if watchers:
            people[place] += _watchers(records[place])
    return people


def _all_users(values: Sequence[Any]) -> list[str | None] | None:
    """`_user` of stubs or nothing; None where one of them is to be read alone."""
    if not fields.all_of(values, NoneType, dict):
        return None
    return fields.all_integer_ids(
        [value.get("id") if value and value.get("_type", "User") == "User" else None for value in values]
    )


def _user(value: Any, pointer: str) -> str | None:
    """The user that a slot names: as a stub, by its number, or as `User:123`; None for a role."""
    if isinstance(value, str):
        # The form in which an assignee is written back: `User:123`, `Role:12744`. Twenty digits are too
        # many for an id, and refused as such.
        number = value[5:25]
        is_user = value.startswith("User:") and number.isascii() and number.isdigit()
        return fields.integer_id(int(number), f"{pointer}/id") if is_user else None
    if isinstance(value, dict):
        if value.get("_type", "User") != "User":
            return None
        value, pointer = value.get("id"), f"{pointer}/id"
    return fields.integer_id(value, pointer)


def _stream(
    entity: Any,
    select: str,
    columns: tuple[Field, ...],
    people: Callable[[Record], list[Person]] | None = None,
    all_people: AllPeople | None = None,
) -> Stream:
    name = entity.name
    names, single = ("data", name), ("data", name.removesuffix("s"))
    return Stream(entity, f"/api/v1/{name}", select, names, single, columns, people, all_people=all_people)


STREAMS = (
    _stream(
        ACCOUNTS,
        "*",
        (
            fields.identity(),
            fields.text("name"),
            fields.instant("created_at"),
            fields.instant("updated_at"),
        ),
    ),
    _stream(
        USERS,
        "*,account.name,roles.name,title.name",
        (
            fields.identity(),
            fields.text("name"),
            fields.text("email"),
            Field("role", _role, reads=("role", "roles")),
            Field("status", _status_of_user, reads=("status", "locked")),
            fields.instant("created_at"),
            fields.instant("updated_at"),
        ),
    ),
    _stream(
        TICKETS,
        "*,status.name,status.closed,priority.name,type.name,project.name,workspace.name,account.name",
        (
            fields.identity(),
            fields.text("subject"),
            fields.text("description"),
            stub_name("status"),
            stub_name("priority"),
            fields.array("tags"),
            stub_id("account_id", "account", "account_id"),
            fields.instant("created_at"),
            fields.instant("updated_at"),
            fields.instant("resolved_at"),
            fields.instant("responded_at"),
            fields.instant("closed_at"),
            Field(
                "is_closed",
                _is_closed,
                reads=("status", "is_closed"),
                read_all=fields.within("status", fields.plain("closed", bool)),
            ),
        ),
        _people,
        _all_people,
    ),
)
