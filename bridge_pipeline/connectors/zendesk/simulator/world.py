"""What a simulated Zendesk account holds: rows by number, their times and states, and how they change.

Times are whole seconds since 1970. What a row looks like to the API is `records`; who asks is `dialect`.
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from random import Random
from typing import Any

import numpy as np

from bridge_pipeline.connector_kit.simulator import FaultProfile, SimulatorOptions

Rows = np.ndarray[Any, np.dtype[np.int64]]
DAY = 86_400
LIVE, DELETED, SCRUBBED = 0, 1, 2
# Ids of tickets are small and dense, all others are not (vendor-apis C.4).
_FIRST_IDS = {"accounts": 360_000_000_017, "users": 370_000_000_041, "groups": 360_900_000_003, "tickets": 1}
_STEPS = {"accounts": 13, "users": 7, "groups": 11, "tickets": 1}
_GROUPS = 8
# More rows than fill a page change within one second, if there are so many (vendor-apis C.3, 6 and 7).
_BURST = 1_200
_SCRUBBED_AFTER = 30 * DAY


def seconds_of(moment: datetime) -> int:
    """Whole seconds since 1970; a naive moment is UTC."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def midnight(day: date) -> int:
    """The day's first second in UTC."""
    return seconds_of(datetime(day.year, day.month, day.day, tzinfo=UTC))


class Table:
    """The rows of one entity; a row's number never changes.

    `marks` are what exports are ordered by: `generated_timestamp` of tickets, the change time of others.
    """

    def __init__(self, entity: str, created: Rows, updated: Rows, marks: Rows | None = None) -> None:
        self.entity = entity
        self.ids = _FIRST_IDS[entity] + _STEPS[entity] * np.arange(len(created), dtype=np.int64)
        self.created, self.updated = created, updated
        self.marks = updated.copy() if marks is None else marks
        self.states = np.zeros(len(created), np.int8)
        self.versions = np.zeros(len(created), np.int64)
        self.changes = 0
        self._order: Rows | None = None

    @property
    def order(self) -> Rows:
        """Row numbers by mark and id, as exports go."""
        if self._order is None:
            self._order = np.lexsort((self.ids, self.marks))
        return self._order

    def row_of(self, identity: int) -> int | None:
        """The row with that id, in whatever state."""
        row, rest = divmod(identity - _FIRST_IDS[self.entity], _STEPS[self.entity])
        return row if rest == 0 and 0 <= row < len(self.ids) else None

    def touch(self, row: int, now: int, system: bool = False) -> None:
        """Changes a row; what the system does moves only its mark."""
        self.marks[row] = now
        self.versions[row] += 1
        if not system:
            self.updated[row] = now
        self._changed()

    def move(self, rows: Rows, now: int) -> None:
        """Moves the marks of rows of which the system changed no more than what they refer to."""
        self.marks[rows] = now
        self._changed()

    def remove(self, row: int, now: int, state: int = DELETED) -> None:
        """Deletes or scrubs a row; scrubbing leaves the change time as it was."""
        self.states[row] = state
        self.touch(row, now, system=state == SCRUBBED)

    def add(self, now: int) -> int:
        """A new row; gives its number."""
        row = len(self.ids)
        self.ids = np.append(self.ids, _FIRST_IDS[self.entity] + _STEPS[self.entity] * row)
        self.created, self.updated = np.append(self.created, now), np.append(self.updated, now)
        self.marks = np.append(self.marks, now)
        self.states, self.versions = np.append(self.states, np.int8(LIVE)), np.append(self.versions, 0)
        self._changed()
        return row

    def _changed(self) -> None:
        self.changes += 1
        self._order = None


@dataclass
class Events:
    """What happened in tickets, in the order of time: the row, a number, and whether something was said."""

    times: Rows
    tickets: Rows
    numbers: Rows
    spoken: np.ndarray[Any, np.dtype[np.bool_]]

    def add(self, now: int, ticket: int, spoken: bool) -> None:
        """One more event of a ticket, later than all others."""
        number = int(np.count_nonzero(self.tickets == ticket))
        self.times = np.append(self.times, now)
        self.tickets, self.numbers = np.append(self.tickets, ticket), np.append(self.numbers, number)
        self.spoken = np.append(self.spoken, spoken)

    def of(self, ticket: int) -> Rows:
        """The positions of a ticket's events."""
        return np.flatnonzero(self.tickets == ticket)


@dataclass
class World:
    """One account: its tables, its tickets' events, and the moment at which the next change happens.

    `inherited` has the tickets that a merge gave to another user: the ticket's row, and that user's.
    """

    seed: int
    tables: dict[str, Table]
    events: Events
    clock: int
    malformed: dict[int, str] = field(default_factory=dict)
    inherited: dict[int, int] = field(default_factory=dict)

    def requesters(self) -> Rows:
        """The row of the user who asked, of each ticket."""
        users = self._asking(np.arange(len(self.tables["tickets"].ids)))
        users[list(self.inherited)] = list(self.inherited.values())
        return users

    def requester(self, ticket: int) -> int:
        """The same of one ticket."""
        return self.inherited.get(ticket, int(self._asking(np.array([ticket]))[0]))

    def _asking(self, tickets: Rows) -> Rows:
        # Knuth's multiplicative hash: whoever asks does so again and again, in no order.
        return (tickets + self.seed) * 2_654_435_761 % 2**32 % len(self.tables["users"].ids)


def generate(options: SimulatorOptions) -> World:
    """The account that the options describe."""
    rng = np.random.default_rng(options.seed)
    start, end = midnight(options.first_day), midnight(options.last_day) + DAY
    tickets = _tickets(options, rng, start, end)
    tables = {
        "accounts": _others("accounts", _count(options.accounts, options.tickets, 100), rng, start, end),
        "users": _others("users", _count(options.users, options.tickets, 10), rng, start, end),
        "groups": _others("groups", _GROUPS, rng, start, end),
        "tickets": tickets,
    }
    for entity, one_in in (("accounts", 25), ("users", 15), ("groups", 8)):
        tables[entity].states[one_in - 1 :: one_in] = DELETED
    clock = seconds_of(options.clock) if options.clock else end
    return World(options.seed, tables, _events(tickets, rng), clock, _malformed(options, tickets))


def _count(given: int | None, tickets: int, parts: int) -> int:
    return max(1, tickets // parts) if given is None else given


def _spread(rng: np.random.Generator, count: int, start: int, end: int) -> Rows:
    """Times in a span of which many are equal, and very many in one second."""
    times = np.sort(rng.integers(start, end, count))
    ties = rng.random(count) < 0.25
    ties[:1] = False
    times = times[np.maximum.accumulate(np.where(ties, 0, np.arange(count)))]
    burst = min(_BURST, count // 8)
    first = count // 2
    if burst > 1:
        times[first : first + burst] = times[first]
    return rng.permutation(times)


def _others(entity: str, count: int, rng: np.random.Generator, start: int, end: int) -> Table:
    updated = _spread(rng, count, start, end)
    return Table(entity, updated - rng.integers(0, 400 * DAY, count), updated)


def _tickets(options: SimulatorOptions, rng: np.random.Generator, start: int, end: int) -> Table:
    count = options.tickets
    marks = _spread(rng, count, start, end)
    # The system changes a ticket long after people did: most rows of recorded pages are such (C.3, 2).
    late = np.where(rng.random(count) < 0.4, rng.integers(0, 20 * DAY, count), 0)
    updated = marks - late
    created = updated - np.where(rng.random(count) < 0.1, 0, rng.integers(0, 30 * DAY, count))
    table = Table("tickets", created, updated, marks)
    table.states[rng.random(count) < 0.03] = DELETED
    scrubbed = (rng.random(count) < 0.02) & (table.states == LIVE)
    table.states[scrubbed] = SCRUBBED
    table.updated[scrubbed] = np.minimum(marks[scrubbed], marks[scrubbed] - _SCRUBBED_AFTER)
    table.created[scrubbed] = table.updated[scrubbed] - DAY
    return table


def _events(tickets: Table, rng: np.random.Generator) -> Events:
    counts = 1 + rng.integers(0, 4, len(tickets.ids))
    rows = np.repeat(np.arange(len(tickets.ids)), counts)
    numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    last = np.maximum(np.repeat(counts, counts) - 1, 1)
    times = tickets.created[rows] + (tickets.updated[rows] - tickets.created[rows]) * numbers // last
    # The first thing said is the description; some events say nothing.
    spoken = (numbers == 0) | (rng.random(len(rows)) < 0.75)
    order = np.lexsort((numbers, rows, times))
    return Events(times[order], rows[order], numbers[order], spoken[order])


def _malformed(options: SimulatorOptions, tickets: Table) -> dict[int, str]:
    if not options.profile.malformed or len(tickets.ids) < 100:
        return {}
    live = np.flatnonzero(tickets.states == LIVE)
    kinds = ("string_id", "impossible_date", "wrong_type", "null_id")
    return {
        int(live[7 + 50 * number]): kind for number, kind in enumerate(kinds) if 7 + 50 * number < len(live)
    }


class Changes:
    """Changes tickets and users after so many answers, as a fault profile says."""

    def __init__(self, world: World, profile: FaultProfile) -> None:
        self._world, self._profile = world, profile
        self._answers = 0

    def after_answer(self) -> None:
        """Counts an answer, and makes the changes that are due."""
        self._answers += 1
        profile = self._profile
        for every, change in (
            (profile.update_every, self.update),
            (profile.create_every, self.create),
            (profile.delete_every, self.delete),
            (profile.delete_every, self.merge),
        ):
            if every and self._answers % every == 0:
                change()

    def update(self) -> None:
        """A person or the system changes a ticket."""
        row, now = self._victim()
        if row is not None:
            system = self._answers % 3 == 0
            self._world.tables["tickets"].touch(row, now, system)
            if not system:
                self._world.events.add(now, row, spoken=True)

    def create(self) -> None:
        """Somebody asks for help."""
        now = self._now()
        self._world.events.add(now, self._world.tables["tickets"].add(now), spoken=True)

    def delete(self) -> None:
        """A ticket is deleted, or scrubbed at once."""
        row, now = self._victim()
        if row is not None:
            state = SCRUBBED if self._answers % 2 else DELETED
            self._world.tables["tickets"].remove(row, now, state)

    def merge(self) -> None:
        """Two users become one: both come again in the export, the one that lost as inactive, whose
        tickets are the other's from then on (C.6)."""
        users, now = self._world.tables["users"], self._now()
        live = np.flatnonzero(users.states == LIVE)
        if len(live) > 1:
            lost, won = Random(now).sample(live.tolist(), 2)  # noqa: S311 - chance by seed
            users.remove(lost, now)
            users.touch(won, now)
            asked = self._sound(np.flatnonzero(self._world.requesters() == lost))
            self._world.inherited |= dict.fromkeys(asked.tolist(), won)
            self._world.tables["tickets"].move(asked, now)

    def _now(self) -> int:
        self._world.clock += 1 + Random(self._answers).randrange(30)  # noqa: S311 - chance by seed
        return self._world.clock

    def _victim(self) -> tuple[int | None, int]:
        now = self._now()
        live = self._sound(np.arange(len(self._world.tables["tickets"].ids)))
        if not len(live):
            return None, now
        return int(live[Random(self._world.seed * 7919 + now).randrange(len(live))]), now  # noqa: S311

    def _sound(self, rows: Rows) -> Rows:
        """The live ones among tickets. A broken record stays as it is: its fault would move with it."""
        live = rows[self._world.tables["tickets"].states[rows] == LIVE]
        return live[~np.isin(live, list(self._world.malformed))]
