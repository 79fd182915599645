"""What the rows of an account look like to the API: the shapes of vendor-apis B.5, with their oddities.

Everything is drawn from the seed, the row and its version, so that the same version is always the same.
"""

from datetime import UTC, datetime
from random import Random
from typing import Any

from bridge_pipeline.connectors.freshservice.simulator.world import (
    CONVERSATIONS_PER_TICKET,
    DAY,
    LIVE,
    SPAM,
    TRASHED,
    Row,
    Said,
    World,
)

Record = dict[str, Any]
_TEXTS = (
    "What’s wrong with my email?",
    "The VPN drops after an hour.",
    "Cannot print — again 😀",
    "Please reset my access.",
)
_CATEGORIES = (None, "Hardware", "Software", "Network")
_ASSET_TYPES = (21_002_421_487, 21_002_421_495, 21_002_421_523)
# Keys of type fields may carry the number of a type above the asset's own.
_ABOVE = 21_000_855_267
_INTERNAL = 21_003_880_000
_FIRST_SAID = 21_004_158_000
_STATUSES = (2, 2, 3, 4, 5, 5, 8)
# Only at the ticket's own address (B.2).
_DETAIL_ONLY: Record = {
    "bcc_emails": None,
    "sla_policy_id": 21_000_057_781,
    "applied_business_hours": 21_000_011_791,
    "created_within_business_hours": True,
    "approval_status": 4,
    "approval_status_name": "Not Requested",
    "resolution_notes": None,
    "resolution_notes_html": None,
    "attachments": [],
}


def instant(seconds: int) -> str:
    """A time as Freshservice writes it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def said_id(ticket: int, number: int) -> int:
    """The id of a conversation."""
    return _FIRST_SAID + ticket * CONVERSATIONS_PER_TICKET + number


class Records:
    """The objects of one account."""

    def __init__(self, world: World) -> None:
        self._world = world

    def department(self, row: Row) -> Record:
        """A department."""
        return {
            "description": f"Team {row.number}",
            "custom_fields": {},
            "id": row.id,
            "name": f"Department {row.number}",
            "created_at": instant(row.created),
            "updated_at": instant(row.updated),
            "prime_user_id": None,
            "head_user_id": None,
            "domains": [f"dept{row.number}.example.com"] if row.number % 3 == 0 else [],
        }

    def person(self, row: Row) -> Record:
        """A requester or an agent; some requesters have no e-mail address, some no last name."""
        shared = {
            "active": row.number % 11 != 4,
            "address": None,
            "background_information": None,
            "can_see_all_tickets_from_associated_departments": False,
            "created_at": instant(row.created),
            "custom_fields": {},
            "department_ids": [self._id("departments", row.number)] if row.number % 2 else [],
            "department_names": None,
            "external_id": None,
            "first_name": f"Ada {row.number}",
            "has_logged_in": False,
            "id": row.id,
            "job_title": "CIO" if row.number % 13 == 1 else None,
            "language": "en",
            "last_name": None if row.number % 7 == 3 else f"Lovelace {row.version}",
            "location_id": None,
            "location_name": None,
            "mobile_phone_number": None,
            "reporting_manager_id": None,
            "time_format": "12h",
            "time_zone": "Eastern Time (US & Canada)",
            "updated_at": instant(row.updated),
            "vip_user": False,
            "work_phone_number": None,
        }
        address = f"person{row.number}@example.com"
        if row.agent:
            scopes = {"ticket": None, "problem": None, "change": None, "asset": None, "solution": None}
            roles = [{"role_id": 21_000_150_295, "assignment_scope": "entire_helpdesk", "groups": []}]
            return shared | {
                "email": address,
                "occasional": False,
                "role_ids": [21_000_150_295],
                "roles": roles,
                "scopes": scopes,
                "signature": None,
                "group_ids": [self._id("groups", row.number)],
                "member_of": [self._id("groups", row.number)],
                "observer_of": [],
            }
        return shared | {
            "can_see_all_changes_from_associated_departments": False,
            "is_agent": False,
            "primary_email": None if row.number % 9 == 2 else address,
            "secondary_emails": [],
        }

    def group(self, row: Row) -> Record:
        """A group of agents."""
        return {
            "id": row.id,
            "name": f"Group {row.number}",
            "description": "" if row.number % 2 else f"Looks after {row.number}",
            "escalate_to": None,
            "unassigned_for": None,
            "business_hours_id": None,
            "created_at": instant(row.created),
            "updated_at": instant(row.updated),
            "auto_ticket_assign": False,
            "restricted": False,
            "approval_required": False,
            "agent_ids": [],
            "members": [],
            "observers": [],
            "leaders": [],
        }

    def ticket(self, row: Row, updated: int, version: int, workspaces: int = 1) -> Record:
        """A ticket as lists show it, at one of its versions."""
        rng = self._random(row, 3, version)
        asked = self._id("people", rng.randrange(10_000))
        text = f"{rng.choice(_TEXTS)} ({row.id}.{version})"
        record = {
            "subject": text,
            "group_id": rng.choice((None, self._id("groups", rng.randrange(100)))),
            "department_id": rng.choice((None, self._id("departments", rng.randrange(10_000)))),
            "category": rng.choice(_CATEGORIES),
            "sub_category": None,
            "item_category": None,
            # Who asks may be an agent as well (B.5).
            "requester_id": asked,
            "responder_id": rng.choice((None, self._id("people", 5 * rng.randrange(5)))),
            "due_by": instant(row.created + 3 * DAY),
            "fr_escalated": False,
            "deleted": row.state == TRASHED,
            "spam": row.state == SPAM,
            "email_config_id": None,
            "fwd_emails": [],
            "reply_cc_emails": [],
            "cc_emails": ["person01@example.com"] if rng.random() < 0.1 else [],
            "is_escalated": rng.random() < 0.2,
            "fr_due_by": instant(row.created + DAY),
            "id": row.id,
            "priority": rng.randint(1, 4),
            "status": rng.choice(_STATUSES),
            "source": rng.choice((1, 2, 3, 15)),
            "created_at": instant(row.created),
            "updated_at": instant(updated),
            "requested_for_id": rng.choice((asked, self._id("people", rng.randrange(10_000)))),
            "to_emails": rng.choice((None, [])),
            "type": rng.choice(("Incident", "Incident", "Service Request", "Request")),
            "description": f'<div style="font-size: 14px">{text} <br><br>Regards</div>',
            "description_text": f"{text}\nRegards",
            "custom_fields": {"weather_server": rng.choice((None, "w1"))},
            "workspace_id": workspace_of(row, workspaces),
        }
        broken: Record = {
            "string_id": {"id": f"INC-{row.id}"},
            "null_id": {"id": None},
            "impossible_date": {"created_at": "2025-02-30T10:00:00Z"},
            "wrong_type": {"subject": 12345},
        }
        return record | (broken[row.broken] if row.broken else {})

    def detail(self, row: Row, included: frozenset[str], workspaces: int = 1) -> Record:
        """A ticket as its own address shows it; `included` adds `stats` and `tags`."""
        rng = self._random(row, 4, row.version)
        record = self.ticket(row, row.updated, row.version, workspaces) | _DETAIL_ONLY
        record |= {"urgency": rng.randint(1, 3), "impact": rng.randint(1, 3)}
        if "tags" in included:
            record["tags"] = rng.sample(("vpn", "printer", "vip"), rng.randrange(3))
        if "stats" in included:
            record["stats"] = self.stats(row, record)
        return record

    def stats(self, row: Row, ticket: Record) -> Record:
        """When what happened to a ticket last did."""
        status, ended = ticket["status"], ticket["updated_at"]
        return {
            # An internal number, and not the ticket's (B.5).
            "ticket_id": _INTERNAL + row.number,
            "created_at": instant(row.created),
            "updated_at": ended,
            "opened_at": None,
            "pending_since": ended if status == 3 else None,
            "resolved_at": ended if status in (4, 5) else None,
            "closed_at": ended if status == 5 else None,
            "first_responded_at": instant(row.said[0].at) if row.said else None,
        }

    def conversation(self, row: Row, said: Said) -> Record:
        """One reply or note."""
        rng = self._random(row, 5, said.number)
        private = rng.random() < 0.3
        text = f"{rng.choice(_TEXTS)} #{said.number}"
        return {
            "id": said_id(row.number, said.number),
            "user_id": self._id("people", rng.randrange(10_000)),
            "to_emails": [] if private else ["person02@example.com"],
            "body": f"<div>{text}</div>",
            "body_text": text,
            "ticket_id": row.id,
            "created_at": instant(said.at),
            "updated_at": instant(said.at),
            "incoming": rng.random() < 0.5,
            "private": private,
            "support_email": None,
            "source": 2 if private else 0,
            "from_email": None,
            "cc_emails": [],
            "bcc_emails": None if private else [],
            "attachments": [],
        }

    def asset(self, row: Row, included: frozenset[str]) -> Record:
        """An asset; its `id` addresses nothing."""
        record = {
            "id": 21_001_118_000 + row.number * 3,
            "display_id": row.id,
            "name": f"Laptop {row.number}",
            "description": None,
            "asset_type_id": _ASSET_TYPES[row.number % 3],
            "impact": ("low", "medium", "high")[row.number % 3],
            "author_type": "User",
            "usage_type": "permanent",
            "asset_tag": f"ASSET-{row.id}",
            "user_id": self._id("people", row.number) if row.number % 2 else None,
            "department_id": self._id("departments", row.number) if row.number % 3 else None,
            "location_id": None,
            "agent_id": None,
            "group_id": None,
            "assigned_on": None,
            "created_at": instant(row.created),
            "updated_at": instant(row.updated),
            "end_of_life": "2027-12-25",
            "workspace_id": 2,
        }
        if "type_fields" in included:
            record["type_fields"] = {
                f"product_{_ABOVE}": 21_000_056_898,
                f"vendor_{_ABOVE}": None,
                f"serial_number_{_ABOVE}": f"SN-{row.number:05}",
                f"asset_state_{_ABOVE}": ("In Use", "In Stock")[row.number % 2],
                f"cost_{_ABOVE}": 1_250.5,
            }
        return record

    def problem(self, row: Row) -> Record:
        """A problem."""
        rng = self._random(row, 6, row.version)
        return self._cause(row, rng) | {
            "due_by": instant(row.created + 5 * DAY),
            "known_error": rng.random() < 0.3,
            "status": rng.randint(1, 3),
        }

    def change(self, row: Row) -> Record:
        """A change."""
        rng = self._random(row, 7, row.version)
        return self._cause(row, rng) | {
            "status": rng.randint(1, 6),
            "risk": rng.randint(1, 4),
            "change_type": rng.randint(1, 4),
            "planned_start_date": instant(row.created + DAY),
            "planned_end_date": instant(row.created + 2 * DAY),
            "approval_status": 4,
            "change_window_id": None,
            "maintenance_window": {},
            "blackout_window": {},
            "impacted_services": [],
        }

    def _cause(self, row: Row, rng: Random) -> Record:
        text = f"{rng.choice(_TEXTS)} ({row.id})"
        return {
            "id": row.id,
            "agent_id": None,
            "description": f"<div>{text}</div>",
            "description_text": rng.choice((None, text)),
            "assets": [],
            "requester_id": self._id("people", rng.randrange(10_000)),
            "subject": text,
            "group_id": rng.choice((None, self._id("groups", rng.randrange(100)))),
            "priority": rng.randint(1, 4),
            "impact": rng.randint(1, 3),
            "department_id": rng.choice((None, self._id("departments", rng.randrange(10_000)))),
            "category": rng.choice(_CATEGORIES),
            "sub_category": None,
            "item_category": None,
            "created_at": instant(row.created),
            "updated_at": instant(row.updated),
        }

    def _random(self, row: Row, salt: int, version: int) -> Random:
        return Random(f"{self._world.seed}|{salt}|{row.number}|{version}")  # noqa: S311 - chance by seed

    def _id(self, kind: str, number: int) -> int:
        rows = self._world.rows[kind]
        return rows[number % len(rows)].id


def workspace_of(row: Row, workspaces: int) -> int:
    """The workspace of a ticket; 2 is the primary one."""
    return 2 + row.number % workspaces


def is_listed(row: Row) -> bool:
    """Whether a row is in its list, and not in the trash or among spam."""
    return row.state == LIVE
