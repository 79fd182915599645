"""An instance made up from a seed, and how it changes while it is read.

Many rows change in the same second, as they do where jobs and imports write (vendor-apis D.4).
"""

from datetime import UTC, datetime, time, timedelta

from bridge_pipeline.connector_kit.simulator import FaultProfile, SimulatorOptions
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from bridge_pipeline.connectors.servicenow.simulator.schema import COLUMNS, PRIORITIES, REFERENCES
from bridge_pipeline.connectors.servicenow.simulator.world import (
    Dice,
    Fields,
    Row,
    Table,
    World,
    duration,
    key_of,
    read,
    written,
)

_GROUPS = ("Service Desk", "Network", "Hardware", "Software", "Database", "Field Services", "Security")
_SYMPTOMS = ("Cannot sign in", "E-mail is slow", "Printer is jammed", "VPN drops", "Screen flickers")
_CLASSES = ("cmdb_ci_computer", "cmdb_ci_server", "cmdb_ci_service", "cmdb_ci_netgear")
_INCIDENT_STATES = ("1", "2", "2", "3", "6", "7", "7", "7", "8")
_PROBLEM_STATES = ("101", "102", "103", "104", "106", "107", "4")
_CHANGE_STATES = ("-5", "-4", "-3", "-2", "-1", "0", "3", "4")
_LEVELS = ("1", "2", "2", "3", "3")
_IMPORTS = 17
_COMMENTS_PER_TEN = 15
# The newest stamp of a row may be so much older than the moment at which it can be seen.
_COMMIT_LAG = timedelta(seconds=40)


class Generated:
    """Builds the rows of an instance; a row's fields depend on the seed, its table and its number."""

    def __init__(self, options: SimulatorOptions, habits: Habits) -> None:
        self._seed = options.seed
        self._habits = habits
        self._first = datetime.combine(options.first_day, time(), UTC)
        self._end = datetime.combine(options.last_day + timedelta(days=1), time(), UTC)
        tickets = options.tickets
        self._counts = {
            "core_company": tickets // 100 + 1 if options.accounts is None else options.accounts,
            "cmn_location": 12,
            "sys_user": tickets // 10 + 3 if options.users is None else options.users,
            "sys_user_group": len(_GROUPS),
            "incident": tickets,
            "sys_journal_field": tickets * _COMMENTS_PER_TEN // 10,
            "cmdb_ci": tickets // 5,
            "problem": tickets // 20,
            "change_request": tickets // 20,
        }
        builders = {
            "core_company": self._company,
            "cmn_location": lambda row: {"name": f"Site {row.number}", "country": "ZA"},
            "sys_user": self._user,
            "sys_user_group": lambda row: {"name": _GROUPS[row.number], "active": "true"},
            "incident": self._incident,
            "sys_journal_field": self._entry,
            "cmdb_ci": self._item,
            "problem": self._problem,
            "change_request": self._change,
        }
        self.tables = {
            name: Table(name, COLUMNS[name], REFERENCES[name], build, name == "sys_journal_field")
            for name, build in builders.items()
        }
        for name, table in self.tables.items():
            for number in range(self._counts[name]):
                table.add(self._row(name, number))

    def world(self, clock: datetime | None) -> World:
        """The instance; its clock begins behind all rows."""
        return World(self.tables, clock or self._end)

    def _row(self, table: str, number: int) -> Row:
        dice = Dice(self._seed, table, number)
        created = self._moment(dice)
        updated = self._moment(dice)
        if table in ("sys_user", "cmdb_ci"):
            # An import stamps all that it touches with one second.
            updated = self._first + (self._end - self._first) * dice.below(_IMPORTS) / _IMPORTS
        elif dice.one_in(12):
            # A nightly job.
            updated = updated.replace(hour=2, minute=0, second=0)
        created, updated = min(created, updated), max(created, updated)
        hidden = dice.below(1_000) < self._habits.hidden_per_mille or self._in_hidden_run(table, number)
        row = Row(self._key(table, number), number, written(created), written(updated), dice.below(9), hidden)
        return row

    def _in_hidden_run(self, table: str, number: int) -> bool:
        # Access rules hide whole classes and companies, so pages come back empty.
        return table in ("incident", "sys_journal_field") and 5 <= number < 5 + self._habits.hidden_run

    def _moment(self, dice: Dice) -> datetime:
        seconds = int((self._end - self._first).total_seconds())
        return self._first + timedelta(seconds=dice.below(seconds))

    def _key(self, table: str, number: int) -> str:
        return key_of(self._seed, table, number)

    def _any(self, table: str, dice: Dice, empty: int = 0) -> str:
        """The key of some row of a table; now and then none."""
        if not self._counts[table] or (empty and dice.one_in(empty)):
            return ""
        return self._key(table, dice.below(self._counts[table]))

    def _company(self, row: Row) -> Fields:
        return {"name": f"Company {row.number}", "customer": "true", "vendor": "false", "country": "ZA"}

    def _user(self, row: Row) -> Fields:
        dice = Dice(self._seed, "user", row.number)
        return {
            "user_name": f"user.{row.number}",
            "name": f"Person {row.number}",
            "first_name": "Person",
            "last_name": str(row.number),
            "email": f"person{row.number}@example.com",
            "active": "false" if dice.one_in(15) else "true",
            "locked_out": "true" if dice.one_in(30) else "false",
            "roles": "itil" if dice.one_in(5) else "",
            "company": self._any("core_company", dice, 6),
            "vip": "false",
        }

    def _task(self, row: Row, dice: Dice, prefix: str) -> Fields:
        impact, urgency = dice.of(_LEVELS), dice.of(_LEVELS)
        return {
            "number": f"{prefix}{row.number:07}",
            "short_description": f"{dice.of(_SYMPTOMS)} ({row.number})",
            "description": "" if dice.one_in(3) else "Since this morning.\nPlease help.",
            "opened_at": row.created,
            "opened_by": self._any("sys_user", dice, 9),
            "assigned_to": self._any("sys_user", dice, 3),
            "assignment_group": self._any("sys_user_group", dice, 5),
            "company": self._any("core_company", dice, 4),
            "location": self._any("cmn_location", dice, 2),
            "cmdb_ci": self._any("cmdb_ci", dice, 2),
            "sys_domain": "global",
            "sys_domain_path": "/",
            "impact": impact,
            "urgency": urgency,
            "priority": PRIORITIES[impact, urgency],
            "approval": "not requested",
            "upon_approval": "proceed",
            "upon_reject": "cancel",
            "contact_type": dice.of(("email", "phone", "self-service", "walk-in", "chat")),
            "knowledge": "false",
            "made_sla": "true",
            "escalation": "0",
            "reassignment_count": str(dice.below(4)),
            "sys_created_by": f"user.{dice.below(50)}",
            "sys_updated_by": "system",
        }

    def _incident(self, row: Row) -> Fields:
        dice = Dice(self._seed, "task", row.number)
        state = Dice(self._seed, "state", row.number, row.mods).of(_INCIDENT_STATES)
        done, closed = state in ("6", "7"), state in ("7", "8")
        fields = self._task(row, dice, "INC") | {
            "sys_class_name": "incident",
            "state": state,
            "incident_state": state,
            "active": "false" if closed else "true",
            "caller_id": self._any("sys_user", dice, 20),
            "category": dice.of(("software", "hardware", "network", "inquiry")),
            "severity": "3",
            "notify": "1",
            "watch_list": ",".join(
                {self._any("sys_user", dice), "someone@example.com"} if dice.one_in(9) else ()
            ),
            "resolved_at": row.updated if done else "",
            "closed_at": row.updated if closed else "",
            "close_code": "Solved (Permanently)" if done else "",
            "problem_id": self._any("problem", dice, 2) if dice.one_in(8) else "",
            "reopen_count": "0",
        }
        if done:
            fields["calendar_duration"] = duration(read(row.updated) - read(row.created))
        if self._habits.malformed and row.number % 211 == 7:
            fields["resolved_at"] = "0000-00-00 00:00:00"
        return fields

    def _entry(self, row: Row) -> Fields:
        dice = Dice(self._seed, "entry", row.number)
        table = "problem" if dice.one_in(10) and self._counts["problem"] else "incident"
        element = dice.of(("comments", "work_notes", "work_notes", "close_notes_history"))
        return {
            "name": table,
            "element_id": self._any(table, dice),
            "element": element,
            "value": f"Entry {row.number}\nwith a second line, and = at its start"
            if dice.one_in(4)
            else "Noted.",
            "sys_created_by": f"user.{dice.below(50)}",
        }

    def _item(self, row: Row) -> Fields:
        dice = Dice(self._seed, "item", row.number)
        return {
            "name": f"ci-{row.number:05}",
            "sys_class_name": dice.of(_CLASSES),
            "asset_tag": f"P{row.number:06}",
            "serial_number": "" if dice.one_in(3) else f"SN-{dice.below(10**9):09}",
            "install_status": dice.of(("1", "1", "1", "6", "7")),
            "operational_status": "1",
            "assigned_to": self._any("sys_user", dice, 2),
            "company": self._any("core_company", dice, 3),
        }

    def _problem(self, row: Row) -> Fields:
        dice = Dice(self._seed, "problem", row.number)
        state = dice.of(_PROBLEM_STATES)
        done = state in ("106", "107")
        return self._task(row, dice, "PRB") | {
            "sys_class_name": "problem",
            "state": state,
            "problem_state": state,
            "active": "false" if state in ("107", "4") else "true",
            "known_error": "false",
            "resolved_at": row.updated if done else "",
            "closed_at": row.updated if state == "107" else "",
        }

    def _change(self, row: Row) -> Fields:
        dice = Dice(self._seed, "change", row.number)
        state = dice.of(_CHANGE_STATES)
        start = read(row.created) + timedelta(days=dice.below(30))
        return self._task(row, dice, "CHG") | {
            "sys_class_name": "change_request",
            "state": state,
            "active": "false" if state in ("3", "4") else "true",
            "priority": dice.of(("1", "2", "3", "4")),
            "type": dice.of(("standard", "normal", "emergency")),
            "risk": dice.of(("1", "2", "3", "4")),
            "start_date": written(start),
            "end_date": written(start + timedelta(hours=2)),
            "closed_at": row.updated if state == "3" else "",
            "requested_by": self._any("sys_user", dice),
        }


class Changes:
    """What happens to an instance while it is read: by the number of answers, never by the time."""

    def __init__(self, world: World, profile: FaultProfile, seed: int) -> None:
        self._world, self._profile, self._seed = world, profile, seed
        self.answers = 0

    def after_answer(self) -> None:
        """Lets happen what is due."""
        self.answers += 1
        profile, table = self._profile, self._world.tables["incident"]
        dice = Dice(self._seed, "change", self.answers)
        if profile.update_every and self.answers % profile.update_every == 0 and table.rows:
            changed = self._world.tables[dice.of(("incident", "incident", "sys_user", "problem"))]
            if row := self._some(changed, dice):
                changed.touch(row, self._tick())
        if profile.create_every and self.answers % profile.create_every == 0:
            self._create(table)
        if (
            profile.delete_every
            and self.answers % profile.delete_every == 0
            and (row := self._some(table, dice))
        ):
            table.remove(row, self._tick())

    def _create(self, table: Table) -> None:
        """A row that is committed after others that were stamped later."""
        number = len(table.rows) + len(table.deleted)
        stamp = written(max(read(self._tick()) - _COMMIT_LAG, datetime(1970, 1, 1, tzinfo=UTC)))
        row = Row(key_of(self._seed, table.name, number), number, stamp, stamp, appears=self.answers + 3)
        table.add(row)

    def _some(self, table: Table, dice: Dice) -> Row | None:
        keys = list(table.rows)
        return table.rows[keys[dice.below(len(keys))]] if keys else None

    def _tick(self) -> str:
        self._world.clock += timedelta(seconds=1)
        return written(self._world.clock)
