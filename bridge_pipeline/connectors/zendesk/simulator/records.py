"""What the rows of an account look like to the API: the objects of vendor-apis C.4, with their oddities.

Everything is drawn from the seed, the row and its version, so that the same row is always the same.
"""

from datetime import UTC, datetime
from random import Random
from typing import Any

import orjson

from bridge_pipeline.connectors.zendesk.simulator.world import LIVE, SCRUBBED, World

Record = dict[str, Any]
_STATUSES = ("new", "open", "pending", "hold", "solved", "closed")
_PRIORITIES = ("urgent", "high", "normal", "low", None)
_TYPES = ("problem", "incident", "question", "task", None)
_TAGS = ("printer", "vpn", "payroll", "month_end", "vip")
_CHANNELS = ("email", "web", "api", "mobile_sdk")
_FIELD_IDS = (360_000_111_001, 360_000_111_002, 360_000_111_003)
_TEXTS = (
    "The VPN drops after an hour.",
    "Cannot print — again 😀",
    "Please reset my access.",
    "Pay slip is empty",
)
_FIRST_EVENT, _FIRST_COMMENT, _PER_TICKET = 900_000_000_000, 910_000_000_000, 1_000

# What no ticket of the double differs in.
_SAME_IN_ALL: Record = {
    "external_id": None,
    "recipient": None,
    "follower_ids": [],
    "email_cc_ids": [],
    "forum_topic_id": None,
    "problem_id": None,
    "has_incidents": False,
    "is_public": True,
    "due_at": None,
    "sharing_agreement_ids": [],
    "custom_status_id": 12_480_498_776_781,
    "followup_ids": [],
    "ticket_form_id": 360_000_389_592,
    "brand_id": 360_002_256_672,
    "allow_channelback": False,
    "allow_attachments": True,
    "from_messaging_channel": False,
}


def instant(seconds: Any) -> str:
    """A time as Zendesk writes it."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


def comment_id(ticket: int, number: int) -> int:
    """The id of the comment that is the `number`-th event of the ticket in that row."""
    return _FIRST_COMMENT + ticket * _PER_TICKET + number


class Records:
    """The objects of one account, under one address."""

    def __init__(self, world: World, base: str) -> None:
        self._world, self._base = world, base

    def record(self, entity: str, row: int, embedded: bool = False) -> Record:
        """One row; `embedded` adds the `metric_set` to a ticket."""
        return {"accounts": self._organization, "users": self._user, "groups": self._group}.get(
            entity, lambda row: self._ticket(row, embedded)
        )(row)

    def rendered(self, entity: str, row: int, embedded: bool = False) -> bytes:
        """The same as bytes, broken where the row is a malformed one."""
        record = self.record(entity, row, embedded)
        if entity == "tickets" and (fault := self._world.malformed.get(row)):
            record |= {
                "string_id": {"id": f"T-{record['id']}"},
                "null_id": {"id": None},
                "impossible_date": {"created_at": "2025-02-30T10:00:00Z"},
                "wrong_type": {"subject": 12345},
            }[fault]
        return orjson.dumps(record)

    def _organization(self, row: int) -> Record:
        table, rng = self._world.tables["accounts"], self._random(row, 1)
        record = {
            "url": self._url("organizations", table.ids[row]),
            "id": int(table.ids[row]),
            "name": f"Organization {row}",
            "shared_tickets": False,
            "shared_comments": False,
            "external_id": rng.choice((None, f"ext-{row}")),
            "created_at": instant(table.created[row]),
            "updated_at": instant(table.updated[row]),
            "domain_names": [f"org{row}.example.com"],
            "details": rng.choice((None, "", "caterpillar")),
            "notes": None,
            "group_id": rng.choice((None, int(self._world.tables["groups"].ids[0]))),
            "tags": [],
            "organization_fields": {"region": rng.choice((None, "emea")), "seats": rng.choice((None, 5.0))},
        }
        # Only those that were deleted have the key, and only in the export (C.3).
        return record | ({} if table.states[row] == LIVE else {"deleted_at": instant(table.updated[row])})

    def _user(self, row: int) -> Record:
        table, rng = self._world.tables["users"], self._random(row, 2)
        live, agent = table.states[row] == LIVE, row % 10 == 0
        gone = {"active": False, "email": None, "organization_id": None, "permanently_deleted": row % 2 == 0}
        record = {
            "id": int(table.ids[row]),
            "url": self._url("users", table.ids[row]),
            "name": f"Ada Lovelace {row}",
            # Live users may have none either (C.3, 10).
            "email": None if row % 9 == 4 else f"user{row}@example.com",
            "created_at": instant(table.created[row]),
            "updated_at": instant(table.updated[row]),
            "time_zone": "Osaka",
            "iana_time_zone": "Asia/Tokyo",
            "phone": None,
            "shared_phone_number": None,
            "photo": None,
            "locale_id": 1,
            "locale": "en-US",
            "organization_id": self._some("accounts", rng),
            "role": ("admin" if row == 0 else "agent") if agent else "end-user",
            "verified": rng.random() < 0.5,
            "external_id": None,
            "tags": [],
            "alias": None,
            "active": True,
            "shared": False,
            "shared_agent": False,
            "last_login_at": None,
            "two_factor_auth_enabled": None,
            "signature": None,
            "details": None,
            "notes": None,
            "role_type": 4 if agent else None,
            "custom_role_id": None,
            "moderator": agent,
            "ticket_restriction": None if agent else "requested",
            "only_private_comments": False,
            "restricted_agent": not agent,
            "suspended": row % 17 == 3,
            "chat_only": False,
            "default_group_id": int(self._world.tables["groups"].ids[1]) if agent else None,
            "report_csv": False,
            "user_fields": {"floor": rng.choice((None, "2", "3"))},
        }
        return record if live else record | gone

    def _group(self, row: int) -> Record:
        table = self._world.tables["groups"]
        return {
            "url": self._url("groups", table.ids[row]),
            "id": int(table.ids[row]),
            "is_public": True,
            "name": f"Group {row}",
            "description": "",
            "default": row == 0,
            "deleted": bool(table.states[row] != LIVE),
            "created_at": instant(table.created[row]),
            "updated_at": instant(table.updated[row]),
        }

    def _ticket(self, row: int, embedded: bool) -> Record:
        table = self._world.tables["tickets"]
        identity, created, updated = int(table.ids[row]), int(table.created[row]), int(table.updated[row])
        rng = self._random(row, 3 + int(table.versions[row]))
        fields = [{"id": _FIELD_IDS[0], "value": rng.choice((None, "option_1"))}]
        fields += [
            {"id": _FIELD_IDS[1], "value": rng.choice((True, False))},
            {"id": _FIELD_IDS[2], "value": []},
        ]
        subject, status = f"{rng.choice(_TEXTS)} ({identity})", rng.choice(_STATUSES)
        channel = rng.choice(_CHANNELS)
        source = {"address": "person01@example.com"} if channel == "email" else {}
        record = _SAME_IN_ALL | {
            "url": self._url("tickets", identity),
            "id": identity,
            "via": {"channel": channel, "source": {"from": source, "to": {}, "rel": None}},
            "created_at": instant(created),
            "updated_at": instant(updated),
            "generated_timestamp": int(table.marks[row]),
            "type": rng.choice(_TYPES),
            "subject": subject,
            "raw_subject": subject,
            "description": f"{rng.choice(_TEXTS)}\n\nSent from a phone",
            "priority": rng.choice(_PRIORITIES),
            "status": status,
            "requester_id": int(self._world.tables["users"].ids[self._world.requester(row)]),
            "submitter_id": rng.choice((-1, self._some("users", rng))),
            "assignee_id": rng.choice((None, self._some("users", rng))),
            "organization_id": rng.choice((None, self._some("accounts", rng))),
            "group_id": int(rng.choice(self._world.tables["groups"].ids.tolist())),
            "collaborator_ids": [self._some("users", rng)] if rng.random() < 0.2 else [],
            "tags": rng.sample(_TAGS, rng.randrange(3)),
            "custom_fields": fields,
            "satisfaction_rating": rng.choice((None, {"score": "unoffered"})),
            "fields": fields,
        }
        if embedded:
            record["metric_set"] = _metrics(identity, status, created, updated)
        if table.states[row] != LIVE:
            record["status"] = "deleted"
        if table.states[row] == SCRUBBED:
            gone = {"subject": "SCRUBBED", "raw_subject": "SCRUBBED", "description": "X"}
            record |= gone | {"tags": [], "custom_fields": [], "fields": []}
        return record

    def event(self, position: int, comments: bool) -> Record:
        """One event of the stream; what was said only with `include=comment_events`."""
        events = self._world.events
        ticket, number = int(events.tickets[position]), int(events.numbers[position])
        time, rng = int(events.times[position]), self._random(ticket, 100 + number)
        identity = _FIRST_EVENT + ticket * _PER_TICKET + number
        change: Record = {"id": identity + 500, "via": "Rule", "event_type": "Change", "status": "open"}
        children = [change]
        if events.spoken[position] and comments:
            children.insert(0, self.comment(ticket, number, time) | {"event_type": "Comment"})
        elif events.spoken[position]:
            children.insert(
                0,
                {
                    "id": comment_id(ticket, number),
                    "event_type": "Comment",
                    "comment_present": True,
                    "comment_public": True,
                },
            )
        return {
            "child_events": children,
            "id": identity,
            "ticket_id": int(self._world.tables["tickets"].ids[ticket]),
            "timestamp": time,
            "updater_id": rng.choice((-1, self._some("users", rng))),
            "via": "Web form",
            "system": {"client": "Mozilla/5.0", "location": "Springfield, ZZ, Nowhere"},
            "metadata": {},
            "event_type": "Audit",
            "created_at": instant(time),
        }

    def comment(self, ticket: int, number: int, time: int) -> Record:
        """What was said with the `number`-th event of a ticket."""
        rng = self._random(ticket, 200 + number)
        text = f"{rng.choice(_TEXTS)} #{number}"
        return {
            "id": comment_id(ticket, number),
            "type": "Comment",
            "author_id": -1 if rng.random() < 0.05 else self._some("users", rng),
            "body": text,
            "html_body": f'<div class="zd-comment"><p dir="auto">{text}</p></div>',
            "plain_body": text,
            "public": rng.random() < 0.7,
            "attachments": [],
            "audit_id": _FIRST_EVENT + ticket * _PER_TICKET + number,
            "via": {"channel": "web", "source": {"from": {}, "to": {}, "rel": None}},
            "created_at": instant(time),
            "metadata": {"system": {"client": "Mozilla/5.0", "ip_address": "203.0.113.9"}, "custom": {}},
        }

    def _random(self, row: int, salt: int) -> Random:
        return Random((self._world.seed << 44) + (salt << 34) + row)  # noqa: S311 - chance by seed

    def _some(self, entity: str, rng: Random) -> int:
        ids = self._world.tables[entity].ids
        return int(ids[rng.randrange(len(ids))])

    def _url(self, path: str, identity: Any) -> str:
        return f"{self._base}/api/v2/{path}/{identity}.json"


def _metrics(identity: int, status: str, created: int, updated: int) -> Record:
    minutes = (updated - created) // 60
    return {
        "url": None,
        "id": 33_000_000 + identity,
        "ticket_id": identity,
        "created_at": instant(created),
        "updated_at": instant(updated),
        "reopens": 0,
        "replies": 1,
        "status_updated_at": instant(updated),
        "latest_comment_added_at": instant(updated),
        "initially_assigned_at": instant(created),
        "assigned_at": instant(created),
        "solved_at": instant(updated) if status in ("solved", "closed") else None,
        "reply_time_in_minutes": {"calendar": min(16, minutes), "business": 0},
        "full_resolution_time_in_minutes": {"calendar": minutes, "business": None},
    }
