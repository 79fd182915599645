"""A desk made up from a seed, and the changes that happen to its tickets while it is read.

What recorded incidents look like as tickets is `replayed`; how some records are broken is
`malformed`.
"""

from collections.abc import Callable

import numpy as np

from bridge_pipeline.connector_kit.simulator import FaultProfile, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator.malformed import break_some
from bridge_pipeline.connectors.helpdesk.simulator.world import (
    DAY,
    SECOND,
    Dice,
    Record,
    Table,
    World,
    catalog_of,
    instant,
    micros_of,
    midnight,
    stub,
)

_FIRST_ACCOUNT, _FIRST_USER, _FIRST_TICKET = 5_001, 10_001, 500_001
# Ids that no record has, for references to what does not exist at all.
_NOWHERE = 90_000_000
# One ticket in so many refers to a record that no listing holds, or to one that nobody has.
_ONE_UNLISTED_IN, _ONE_NOWHERE_IN = 333, 4_000

_STATUS_NAMES = {
    1: "New",
    11: "Completed",
    41: "Awaiting Customer",
    61: "In Progress",
    471: "Closed",
    479: "Cancelled",
    512: "Completed",
    849: "Acknowledged",
}
_CLOSED = frozenset({11, 471, 479, 512})
_STATUSES = (1, 11, 41, 61, 61, 471, 471, 471, 479, 512, 849)
_PRIORITY_NAMES = {9: "Very High", 10: "High", 11: "Medium", 12: "Low"}
_PRIORITIES = (9, 10, 10, 11, 11, 11, 11, 12, 12)
_ROLE_NAMES = {12741: "Service Desk", 12744: "Payroll Support", 12750: "Basis Team", 12766: "Customer"}
CATALOGS = {
    "TicketStatus": catalog_of(
        "TicketStatus", _STATUS_NAMES, closed={identity: identity in _CLOSED for identity in _STATUS_NAMES}
    ),
    "TicketPriority": catalog_of("TicketPriority", _PRIORITY_NAMES),
    "TicketType": catalog_of("TicketType", {21: "Incident", 22: "Service Request", 23: "Question"}),
    "TicketProject": catalog_of("TicketProject", {20: "Support", 22: "Managed Services"}),
    "Workspace": catalog_of("Workspace", {47: "Payroll", 49: "Employee Central"}),
    "ServiceLevelAgreement::Policy": catalog_of(
        "ServiceLevelAgreement::Policy", {80: "Standard", 81: "Gold"}
    ),
    "Role": catalog_of("Role", _ROLE_NAMES),
    "Title": catalog_of("Title", {1: "Ms", 2: "Mr", 3: "Dr"}),
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_FIRST_NAMES = _words(
    "Anna|Thabo|Zoë|Łukasz|Mary-Jane|José|Nguyễn|李|Sipho|Ingrid|Omar|Chloé|مريم|עדי|Søren|🦊 Robin|Pieter"
    "|Aïsha|Dmitri|Kate"
)
_LAST_NAMES = _words(
    "Nkosi|O'Brien|van der Merwe|Müller|Smith|García Márquez|小明|Jansen|Okafor|Ödegård|الحسن|Botha|Patel"
    "|Novák|Dlamini|D'Angelo|Brown|Kim|Rossi"
)
_COMPANY_NAMES = _words(
    "Acme Mining|Çelik & Söhne|Blue Water Retail|شركة النور|Kalahari Energy|Orbit 🚀|Nordlys A/S"
    '|Northwind, Inc.|The "Old" Mill|Umbrella Health|Fjord Shipping|株式会社さくら'
)
_PROBLEMS = _words(
    "Cannot log on to|Error in|Request access to|Slow response of|Wrong totals in|Please change"
    "|Print fails from|=SUM(A1:A9) shown by|Data missing in|Upgrade of|Frage zu|خطأ في|🔥 Outage of"
    "|Training for|Password reset for|Duplicate entries\tin"
)
_SYSTEMS = _words(
    "payroll|time tracking|the leave form|SAP GUI|SuccessFactors|the travel portal|e-mail|VPN|recruiting"
    "|the data warehouse|the interface to the bank|the org chart|benefits"
)
_SENTENCES = (
    "The user reports that the totals of the last run do not agree with the report.",
    "It worked yesterday; nothing was changed on our side since.",
    "Steps: open the form, choose the employee, press <b>Save</b>. It says &quot;no authorisation&quot;.",
    "Please see the screenshot and call back on extension 4711.",
    "This concerns about 40 employees of the plant and blocks the payment of Friday.",
    "Grüße aus Köln, bitte vor Monatsende prüfen.",
    "Attached are the log and the variant used.\nThe transport was released on Monday.",
    "Same as last month. 🙏",
)
_MODULES = (
    {"id": 209, "name": "Employee Central Time Tracking & Time Off", "_type": 190},
    {"id": 210, "name": "Employee Central Payroll", "_type": 190},
    None,
    None,
)
_BILLING = (
    {"id": 425, "name": "Time and Material", "_type": 424},
    {"id": 426, "name": "Fixed", "_type": 424},
)
_CAUSES = ({"id": 374, "name": "Other", "_type": 370}, {"id": 375, "name": "User error", "_type": 370})
_PHASES = (None, None, None, {"id": 611, "name": "Realise", "_type": 610})

# What is the same in all tickets.
_BLANK: Record = {
    "reported_version": None,
    "reported_build": None,
    "target_version": None,
    "target_build": None,
    "email_watchers": [],
    "users_blocked": [],
    "sla": None,
    "original_locale": None,
    "approved_time": 0,
    "offering_accesses": [],
    "related_tickets": [],
    "visible_to_customer": True,
}


class _Generated:
    """Builds generated records from their row numbers; equal seeds give equal records."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._seed = options.seed
        accounts = _or_share(options.accounts, options.tickets, 100)
        users = _or_share(options.users, options.tickets, 10)
        self._listed = {"accounts": accounts, "users": users}
        self._agents = max(1, users // 20)
        extra_accounts, extra_users = (_unlisted(accounts), _unlisted(users))
        self.accounts = self._table(
            "Account", _FIRST_ACCOUNT, accounts + extra_accounts, self.account, options
        )
        self.accounts.unlist(extra_accounts)
        self.users = self._table("User", _FIRST_USER, users + extra_users, self.user, options)
        self.users.unlist(extra_users)
        self.tickets = self._table("Ticket", _FIRST_TICKET, options.tickets, self.ticket, options)
        _fill_borders(self.tickets, options)

    def _table(
        self, kind: str, first: int, count: int, build: Callable[[int], Record], options: SimulatorOptions
    ) -> Table:
        """Ids without gaps, changes spread evenly over the days, creation up to 45 days before."""
        chance = np.random.default_rng([options.seed, first])
        start, end = midnight(options.first_day), midnight(options.last_day) + DAY
        ids = np.arange(first, first + count)
        updated = start + chance.integers(0, (end - start) // SECOND, count) * SECOND
        updated += (ids % 3 == 1) * chance.integers(0, SECOND, count)
        created = updated - chance.integers(0, 45 * 86_400, count) * SECOND
        table = Table(kind, ids, created, updated, build)
        table.mixes_styles = True
        return table

    def account(self, row: int) -> Record:
        """One account, by row."""
        dice, identity, created, updated, style = self._begin(self.accounts, row, 1)
        name = dice.of(_COMPANY_NAMES)
        return {
            "id": identity,
            "_type": "Account",
            "name": name if row < len(_COMPANY_NAMES) else f"{name} {row}",
            "number": f"{dice.below(900_000) + 100_000:06d}",
            "active": not dice.one_in(30),
            "country": dice.of(("ZA", "DE", "GB", "US", "AE", None)),
            "website": f"https://account{row}.example.com" if dice.below(2) else None,
            "account_manager": stub("User", _FIRST_USER + dice.below(self._agents)),
            "created_at": instant(created, style),
            "updated_at": instant(updated, style),
        }

    def user(self, row: int) -> Record:
        """One user, by row; `number` differs from `id` (A.3)."""
        dice, identity, created, updated, style = self._begin(self.users, row, 2)
        first, last = dice.of(_FIRST_NAMES), dice.of(_LAST_NAMES)
        agent = row < self._agents
        roles = (12741, 12744, 12750)[: 1 + dice.below(3)] if agent else (12766,)
        signed_in = updated - dice.below(20 * 86_400) * SECOND
        return {
            "id": identity,
            "_type": "User",
            "number": 700_000 + identity,
            "first_name": first,
            "last_name": last,
            "name": f"{first} {last}",
            "email": f"user{row}@{'desk' if agent else f'account{self._home(row)}'}.example.com",
            "title": dice.of((stub("Title", 1), stub("Title", 2), stub("Title", 3), None)),
            "job_title": dice.of(("HR Administrator", "Payroll Clerk", "Basis Consultant", "", None)),
            "locale": dice.of(("en", "en", "de", "fr", "es")),
            "locked": dice.one_in(30),
            "last_sign_in_at": None if dice.one_in(9) else instant(signed_in, style),
            "office_number": f"+27 12 555 {dice.below(10_000):04d}" if dice.below(2) else None,
            "mobile_number": None,
            "account": stub("Account", _FIRST_ACCOUNT + self._home(row)),
            "roles": [stub("Role", role) for role in roles],
            "profile": stub("Profile", 30_000 + row),
            "email_campaigns": [],
            "activities_count": dice.below(500),
            "created_at": instant(created, style),
            "updated_at": instant(updated, style),
        }

    def ticket(self, row: int) -> Record:
        """One ticket, by row, in its present version."""
        dice, identity, created, updated, style = self._begin(self.tickets, row, 3)
        account, customer = self._parties(dice)
        state = Dice(self._seed, row, 4, int(self.tickets.versions[row]))
        status, agent = state.of(_STATUSES), stub("User", _FIRST_USER + state.below(self._agents))
        by_mail = dice.one_in(6)
        responded = created + (300 + dice.below(60_000)) * SECOND
        spent = dice.below(30) * 30
        events = self._events(row)
        return (
            {
                "id": identity,
                "_type": "Ticket",
                "type": dice.of((stub("TicketType", 21), stub("TicketType", 22), stub("TicketType", 23))),
                "project": stub("TicketProject", dice.of((20, 22))),
                "workspace": stub("Workspace", dice.of((47, 49))),
                "created_by_user": None if by_mail else customer,
                "status": stub("TicketStatus", status),
                "priority": stub("TicketPriority", dice.of(_PRIORITIES)),
                "account": account,
                "customer_user": customer,
                "assignee": state.of((agent, agent, agent, stub("Role", 12744), None)),
                "sla_policy": stub("ServiceLevelAgreement::Policy", dice.of((80, 81))),
                "events": events,
                "attachments": [stub("Attachment", identity * 10)] if dice.one_in(4) else [],
                "user_watchers": [stub("User", self._any_user(dice)) for _ in range(dice.below(3))],
                "role_watchers": [stub("Role", 12741)] if dice.one_in(10) else [],
                "time_log_entries": [stub("TimeLogEntry", identity * 10)] if spent else [],
                "subject": f"{dice.of(_PROBLEMS)} {dice.of(_SYSTEMS)}",
                "description": f"<div>{dice.of(_SENTENCES)}</div><p>{dice.of(_SENTENCES)}</p>",
                "internal": dice.one_in(20),
                "created_at": instant(created, style),
                "updated_at": instant(updated, style),
                "created_by_name": f"{dice.of(_FIRST_NAMES)} {dice.of(_LAST_NAMES)}" if by_mail else None,
                "created_by_email": f"sender{row}@mail.example.com" if by_mail else None,
                "responded_at": instant(responded, style) if responded <= updated else None,
                "resolved_at": instant(updated, style) if status in _CLOSED else None,
                "spent_time": spent,
                "spent_approved_time": spent,
                "time_log_entries_duration": spent,
                "assignee_roles": [stub("Role", 12744)],
                "last_event": events[-1],
                "last_user_event": events[0],
                "previous_assignee": agent if dice.one_in(3) else None,
                "previous_status": stub("TicketStatus", 1),
            }
            | _BLANK
            | self._custom_fields(dice, row)
        )

    def _custom_fields(self, dice: Dice, row: int) -> Record:
        """Fields of one tenant's own, among the vendor's at the top level (A.3)."""
        return {
            "related_module": dice.of(_MODULES),
            "system_instance": dice.of((None, "PRD", "QAS")),
            "discovery_related_ticket": f"R{5_900_000 + row} " if dice.one_in(5) else None,
            "root_cause": list(_CAUSES[: dice.below(3)]),
            "sap_module": None,
            "planned_end_date": dice.of((None, "2025-06-30")),
            "business_impact": dice.of((None, "", "Month end is at risk")),
            "sr_loe": dice.of((None, 1, 2.5, 20)),
            "sr_billing_type": dice.of((None, *_BILLING)),
            "sr_allocated_hours": dice.of((None, 20)),
            "included_in_retainer": dice.of((None, True, False)),
            "person_responsible": [stub("User", self._any_user(dice))] if dice.one_in(8) else [],
            "affected_users": [],
            "affected_accounts": [],
            "jira_reference": f"HR-{dice.below(9_000)}" if dice.one_in(6) else None,
            "phase": dice.of(_PHASES),
            "cab_approval_date": None,
            "mac_address": None,
            "tenant_a_ticket_number": None,
            "tenant_a_remedy_login": dice.of((None, None, None, "svc_remedy")),
            "tenant_a_remedy_password": f"pw-{dice.below(10**9):09d}" if dice.one_in(20) else None,
            "tenant_a_approval_status": dice.of((None, "approved", "open")),
        }

    def event(self, kind: str, identity: int) -> Record | None:
        """One event of a ticket, by the event's id; nothing is known of other kinds."""
        row = self.tickets.row_of(identity // 100)
        if kind != "TicketEvent" or row is None:
            return None
        position, count = identity % 100, len(self._events(row))
        dice = Dice(self._seed, identity, 5)
        created, updated = int(self.tickets.created[row]), int(self.tickets.updated[row])
        happened = created + (updated - created) * position // count // SECOND * SECOND
        change = {"id": identity * 10, "name": "status", "from_value": "", "to_value": "New"}
        return {
            **stub("TicketEvent", identity),
            "created_by_user": stub("User", self._any_user(dice)),
            "event_changes": [change] if position == 0 or dice.below(2) else [],
            "comment": f"<div>{dice.of(_SENTENCES)}</div>",
            "internal": dice.one_in(4),
            "created_at": instant(happened),
        }

    def _begin(self, table: Table, row: int, salt: int) -> tuple[Dice, int, int, int, int]:
        identity = int(table.ids[row])
        dice = Dice(self._seed, row, salt)
        return dice, identity, int(table.created[row]), int(table.updated[row]), identity % 3

    def _events(self, row: int) -> list[Record]:
        first = int(self.tickets.ids[row]) * 100
        count = 1 + Dice(self._seed, row, 6).below(4) + int(self.tickets.versions[row])
        return [stub("TicketEvent", first + number) for number in range(min(count, 99))]

    def _parties(self, dice: Dice) -> tuple[Record | None, Record | None]:
        """The account and the customer of a ticket; a few are not to be found in any listing."""
        listed = self._listed
        row = dice.below(listed["users"]) if listed["users"] else None
        account = None if row is None else self._home(row)
        if dice.one_in(_ONE_UNLISTED_IN):
            if dice.below(2) and len(self.users.unlisted):
                row = listed["users"] + dice.below(len(self.users.unlisted))
            elif len(self.accounts.unlisted):
                account = listed["accounts"] + dice.below(len(self.accounts.unlisted))
        if dice.one_in(_ONE_NOWHERE_IN):
            account, row = (_NOWHERE, row) if dice.below(2) else (account, _NOWHERE)
        return (
            None if account is None else stub("Account", _FIRST_ACCOUNT + account),
            None if row is None else stub("User", _FIRST_USER + row),
        )

    def _any_user(self, dice: Dice) -> int:
        return _FIRST_USER + dice.below(max(1, self._listed["users"]))

    def _home(self, user: int) -> int:
        """The row of a user's account."""
        return user % max(1, self._listed["accounts"])


def _or_share(count: int | None, of: int, parts: int) -> int:
    return max(1, of // parts) if count is None else count


def _unlisted(listed: int) -> int:
    return min(50, listed // 20)


def _fill_borders(tickets: Table, options: SimulatorOptions) -> None:
    """Puts a ticket into the last moment before each midnight and one into the first after it."""
    days = (options.last_day - options.first_day).days
    if len(tickets.ids) < 20 * days:
        return
    midnights = midnight(options.first_day) + np.arange(1, days + 1) * DAY
    before, after = slice(0, days), slice(days, 2 * days)
    # Only the style with a fraction can say the last microsecond.
    tickets.updated[before] = midnights - np.where(tickets.ids[before] % 3 == 1, 1, SECOND)
    tickets.updated[after] = midnights
    tickets.created[: 2 * days] = tickets.updated[: 2 * days] - 3_600 * SECOND


def generate(options: SimulatorOptions) -> World:
    generated = _Generated(options)
    tables = {"accounts": generated.accounts, "users": generated.users, "tickets": generated.tickets}
    clock = micros_of(options.clock) if options.clock else midnight(options.last_day) + DAY
    world = World(tables, CATALOGS, clock, generated.event)
    if options.profile.update_every:
        generated.tickets.sort_by_change()
    if options.profile.malformed:
        break_some(tables, options.seed)
    return world


class Changes:
    """Changes tickets after so many answers, as a profile says, so that listings move while read."""

    def __init__(self, world: World, profile: FaultProfile, seed: int) -> None:
        self._world, self._tickets, self._seed = world, world.tables["tickets"], seed
        self._answers = 0
        self._due = (
            (profile.update_every, lambda row, now: self._tickets.touch(row, now)),
            (profile.create_every, lambda _, now: self._tickets.add(now)),
            (profile.delete_every, lambda row, now: self._tickets.remove(row, now)),
        )

    def after_answer(self) -> None:
        """Counts an answer, and makes the changes that are due."""
        self._answers += 1
        for every, change in self._due:
            if every and self._answers % every == 0 and len(self._tickets.order):
                self._change(change, every)

    def _change(self, change: Callable[[int, int], None], salt: int) -> None:
        dice = Dice(self._seed, 7, self._answers, salt)
        row = int(self._tickets.order[dice.below(len(self._tickets.order))])
        self._world.clock += (1 + dice.below(30)) * SECOND
        # A broken record stays as it is: its fault would move with it.
        if row not in self._tickets.malformed:
            change(row, self._world.clock)
