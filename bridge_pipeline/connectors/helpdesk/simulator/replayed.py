"""A recorded incident log served as a desk, as it stood at a moment.

Nothing is made up, broken or changed here; that is `generated` and `malformed`.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zlib import crc32

import numpy as np

from bridge_pipeline.connector_kit.incident_log import IncidentLog, created
from bridge_pipeline.connectors.helpdesk.simulator.generated import CATALOGS
from bridge_pipeline.connectors.helpdesk.simulator.world import (
    Record,
    Rows,
    Table,
    World,
    catalog_of,
    instant,
    micros_of,
    stub,
)

_FIRST_CALLER, _FIRST_RESOLVER = 1_000_000, 2_000_000
_LOG_STATES = {
    1: "New",
    2: "Active",
    3: "Awaiting User Info",
    4: "Awaiting Problem",
    5: "Awaiting Vendor",
    6: "Awaiting Evidence",
    7: "Resolved",
    8: "Closed",
    9: "-100",
}
_LOG_PRIORITIES = {1: "1 - Critical", 2: "2 - High", 3: "3 - Moderate", 4: "4 - Low"}
_COLUMNS = ("incident_state", "priority", "assignment_group", "caller_id", "assigned_to", "location")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"\d+$")


def _log_id(text: str, first: int = 0) -> int | None:
    """The number at the end of a name such as `Caller 2403`, from `first` on; None for `?`."""
    found = _DIGITS.search(text)
    return first + int(found[0]) if found else None


def _named(names: dict[int, str], name: str) -> int:
    """The id of a name; an unforeseen one gets an id that depends on nothing but the name."""
    for identity, known in names.items():
        if known == name:
            return identity
    identity = 10_000 + crc32(name.encode()) % 1_000_000
    names[identity] = name
    return identity


class Replayed:
    """A recorded incident log as it stood at a moment (semantics, rule 32)."""

    def __init__(self, path: Path, clock: int) -> None:
        self._clock = clock
        self._states, self._priorities = dict(_LOG_STATES), dict(_LOG_PRIORITIES)
        self._log = IncidentLog(path, _EPOCH + timedelta(microseconds=clock), _COLUMNS)
        seen = self._log.first_seen
        for catalog, column in ((self._states, "incident_state"), (self._priorities, "priority")):
            for name in seen[column]:
                _named(catalog, name)
        self._groups = {i: name for name in seen["assignment_group"] if (i := _log_id(name)) is not None}
        people = _numbered(seen["caller_id"], _FIRST_CALLER) | _numbered(seen["assigned_to"], _FIRST_RESOLVER)
        found = {i: v for number, v in self._log.incidents.items() if (i := _log_id(number)) is not None}
        incidents = sorted(found)
        self._incidents = [found[identity].row for identity in incidents]
        times = [micros_of(found[identity].updated) for identity in incidents]
        self.tickets = Table("Ticket", *_columns(incidents, times), self._ticket)
        self.users = self._table("User", people)
        self.accounts = self._table("Account", _numbered(seen["location"], 0))

    def world(self) -> World:
        """The desk that holds these records; its clock stands still."""
        closed = {identity: name == "Closed" for identity, name in self._states.items()}
        catalogs = {
            "TicketStatus": catalog_of("TicketStatus", self._states, closed=closed),
            "TicketPriority": catalog_of("TicketPriority", self._priorities),
            "Role": catalog_of("Role", self._groups),
            **{kind: CATALOGS[kind] for kind in ("TicketType", "TicketProject", "Workspace")},
        }
        tables = {"accounts": self.accounts, "users": self.users, "tickets": self.tickets}
        return World(tables, catalogs, self._clock)

    @staticmethod
    def _table(kind: str, seen: dict[int, tuple[str, int]]) -> Table:
        ids = sorted(seen)

        def build(row: int) -> Record:
            name, first = seen[ids[row]]
            record = stub(kind, ids[row]) | {"name": name}
            return record | {"created_at": instant(first), "updated_at": instant(first)}

        return Table(kind, *_columns(ids, [seen[identity][1] for identity in ids]), build)

    def _ticket(self, number: int) -> Record:
        """An incident as a ticket; the log's columns follow unchanged, but for two outcomes.

        Every row of the log holds the incident's outcomes, also those written before them.
        """
        row = self._incidents[number]
        resolved, closed = self._past(row["resolved_at"]), self._past(row["closed_at"])
        status, priority = (
            _named(self._states, row["incident_state"]),
            _named(self._priorities, row["priority"]),
        )
        return {
            **row,
            "resolved_by": row["resolved_by"] if resolved else None,
            "closed_code": row["closed_code"] if closed else None,
            "id": int(self.tickets.ids[number]),
            "_type": "Ticket",
            "type": stub("TicketType", 21),
            "project": stub("TicketProject", 20),
            "workspace": stub("Workspace", 49),
            "status": stub("TicketStatus", status),
            "priority": stub("TicketPriority", priority),
            "account": _stub_or_none("Account", _log_id(row["location"])),
            "customer_user": _stub_or_none("User", _log_id(row["caller_id"], _FIRST_CALLER)),
            "assignee": _stub_or_none("User", _log_id(row["assigned_to"], _FIRST_RESOLVER)),
            "assignee_roles": _stubs("Role", _log_id(row["assignment_group"])),
            "created_by_user": None,
            "created_by_name": row["opened_by"],
            "created_by_email": None,
            "events": [],
            "attachments": [],
            "user_watchers": [],
            "role_watchers": [],
            "email_watchers": [],
            "subject": f"{row['category']} / {row['subcategory']}: {row['u_symptom']}",
            "description": None,
            "internal": False,
            "visible_to_customer": True,
            "created_at": _instant_or_none(created(row)),
            "updated_at": instant(int(self.tickets.updated[number])),
            "responded_at": None,
            "resolved_at": resolved,
            "closed_at": closed,
        }

    def _past(self, text: str) -> str | None:
        return _instant_or_none(self._log.past(text))


def _numbered(seen: dict[str, datetime], first: int) -> dict[int, tuple[str, int]]:
    """Names and when they were first seen, by the number in the name, from `first` on."""
    return {i: (name, micros_of(m)) for name, m in seen.items() if (i := _log_id(name, first)) is not None}


def _columns(ids: list[int], times: list[int]) -> tuple[Rows, Rows, Rows]:
    moments = np.array(times, np.int64)
    return np.array(ids, np.int64), moments, moments


def _stubs(kind: str, identity: int | None) -> list[Record]:
    return [] if identity is None else [stub(kind, identity)]


def _stub_or_none(kind: str, identity: int | None) -> Record | None:
    return None if identity is None else stub(kind, identity)


def _instant_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else instant(micros_of(moment))
