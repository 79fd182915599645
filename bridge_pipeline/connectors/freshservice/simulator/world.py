"""What a simulated Freshservice account holds: rows with their times and states, and how they change.

Times are whole seconds since 1970. What a row looks like to the API is `records`; who asks is `dialect`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from random import Random

from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour

DAY = 86_400
LIVE, TRASHED, SPAM, ERASED = "live", "trashed", "spam", "erased"
# Tickets, problems and changes count from 1; of assets only the display_id does (vendor-apis B.3).
_FIRST_IDS = {
    "departments": 21_000_315_199,
    "people": 21_001_397_559,
    "groups": 21_000_478_053,
    "tickets": 1,
    "assets": 1,
    "problems": 1,
    "changes": 1,
}
_GROUPS = 6
_MALFORMED = ("string_id", "impossible_date", "wrong_type", "null_id")
CONVERSATIONS_PER_TICKET = 1_000


@dataclass
class Said:
    """One conversation of a ticket."""

    number: int
    at: int
    state: str = LIVE


@dataclass
class Row:
    """One record. `listed_from` is the answer from which on lists show its newest version; before that
    they show `shown`, the change time of the version before, or nothing of a new one."""

    number: int
    id: int
    created: int
    updated: int
    version: int = 0
    state: str = LIVE
    agent: bool = False
    broken: str | None = None
    said: list[Said] = field(default_factory=list)
    listed_from: int = 0
    shown: tuple[int, int] | None = None


@dataclass
class World:
    """One account: its rows by kind, and the moment at which the next change happens."""

    seed: int
    rows: dict[str, list[Row]]
    clock: int
    answers: int = 0
    changes: int = 0

    def of(self, kind: str) -> Iterator[Row]:
        """The rows that exist; what was erased does not."""
        return (row for row in self.rows[kind] if row.state != ERASED)

    def find(self, kind: str, identity: int) -> Row | None:
        """The row with that id."""
        number = identity - _FIRST_IDS[kind]
        rows = self.rows[kind]
        return rows[number] if 0 <= number < len(rows) and rows[number].state != ERASED else None


def generate(options: SimulatorOptions) -> World:
    """The account that the options describe."""
    rng = Random(options.seed)  # noqa: S311 - chance by seed
    start, end = midnight(options.first_day), midnight(options.last_day) + DAY
    some = max(1, options.tickets // 20)
    counts = {
        "departments": _count(options.accounts, options.tickets, 100),
        "people": max(2, _count(options.users, options.tickets, 10)),
        "groups": _GROUPS,
        "tickets": options.tickets,
        "assets": some,
        "problems": some,
        "changes": some,
    }
    rows = {kind: _rows(kind, count, rng, start, end) for kind, count in counts.items()}
    for row in rows["people"]:
        row.agent = row.number % 5 == 0
    for row in rows["tickets"]:
        row.state = rng.choices((LIVE, TRASHED, SPAM), (94, 4, 2))[0]
        row.said = _said(row, rng)
    for kind in ("assets", "problems", "changes"):
        for row in rows[kind][6::9]:
            row.state = TRASHED
    if options.profile.malformed and options.tickets >= 100:
        live = [row for row in rows["tickets"] if row.state == LIVE]
        for row, kind in zip(live[7::20], _MALFORMED, strict=False):
            row.broken = kind
    clock = seconds_of(options.clock) if options.clock else end
    return World(options.seed, rows, clock)


def seconds_of(moment: datetime) -> int:
    """Whole seconds since 1970; a naive moment is UTC."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def midnight(day: date) -> int:
    """The day's first second in UTC."""
    return seconds_of(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _count(given: int | None, tickets: int, parts: int) -> int:
    return max(1, tickets // parts) if given is None else given


def _rows(kind: str, count: int, rng: Random, start: int, end: int) -> list[Row]:
    """Rows whose change times tie often, and an eighth of them in one second (an imported batch)."""
    times = [rng.randrange(start, end) for _ in range(count)]
    for number in range(1, count):
        if rng.random() < 0.2:
            times[number] = times[number - 1]
    for number in range(count // 2, count // 2 + count // 8):
        times[number] = times[count // 2]
    ages = (0 if rng.random() < 0.1 else rng.randrange(60 * DAY) for _ in times)
    return [
        Row(number, _FIRST_IDS[kind] + number, time - age, time)
        for number, (time, age) in enumerate(zip(times, ages, strict=True))
    ]


def _said(row: Row, rng: Random) -> list[Said]:
    """Few tickets are talked about at length, and those for more than one page."""
    count = 130 if row.number % 97 == 41 else rng.choices(range(4), (3, 4, 2, 1))[0]
    times = sorted(rng.randint(row.created, row.updated) for _ in range(count))
    return [Said(number, time) for number, time in enumerate(times)]


class Changes:
    """Changes the account after so many answers, as the profile of faults says."""

    def __init__(self, world: World, options: SimulatorOptions, behaviour: Behaviour) -> None:
        self._world, self._profile, self._behaviour = world, options.profile, behaviour

    def after_answer(self) -> None:
        """Counts an answer, and makes the changes that are due."""
        world, profile = self._world, self._profile
        world.answers += 1
        calm = self._behaviour.calm_after
        if calm is not None and world.answers > calm:
            return
        for every, change in (
            (profile.update_every, self.update),
            (profile.update_every * 3, self.speak),
            (profile.create_every, self.create),
            (profile.delete_every, self.remove),
            (profile.delete_every, self.convert),
        ):
            if every and world.answers % every == 0:
                change()

    def update(self) -> None:
        """Somebody changes a ticket."""
        if row := self._some("tickets"):
            self.touch(row)

    def speak(self) -> None:
        """Somebody says something in a ticket, which may or may not move its change time."""
        if row := self._some("tickets"):
            now = self._now()
            row.said.append(Said(len(row.said), now))
            self._world.changes += 1
            if self._behaviour.speaking:
                self.touch(row, now)

    def create(self) -> None:
        """Somebody asks for help."""
        now, tickets = self._now(), self._world.rows["tickets"]
        row = Row(len(tickets), _FIRST_IDS["tickets"] + len(tickets), now, now)
        row.listed_from = self._world.answers + self._behaviour.late
        tickets.append(row)
        self._world.changes += 1

    def remove(self) -> None:
        """A ticket goes to the trash, is called spam, or is erased with its requester."""
        if row := self._some("tickets"):
            row.state = (TRASHED, SPAM, ERASED)[self._world.answers % 3]
            self._world.changes += 1

    def convert(self) -> None:
        """A requester becomes an agent, and another one is merged into a third."""
        rng = Random(self._now())  # noqa: S311 - chance by seed
        requesters = [row for row in self._world.of("people") if not row.agent]
        if len(requesters) > 2:
            promoted, lost, won = rng.sample(requesters, 3)
            promoted.agent, lost.state = True, ERASED
            for row in (promoted, won):
                self.touch(row)

    def touch(self, row: Row, now: int | None = None) -> None:
        """A row changes; lists may show it later."""
        row.shown = (row.updated, row.version)
        row.listed_from = self._world.answers + self._behaviour.late
        row.updated, row.version = self._now() if now is None else now, row.version + 1
        self._world.changes += 1

    def _now(self) -> int:
        self._world.clock += 1 + self._world.answers % 7
        return self._world.clock

    def _some(self, kind: str) -> Row | None:
        # A broken record stays as it is: its fault would move with it.
        live = [row for row in self._world.rows[kind] if row.state == LIVE and not row.broken]
        rng = Random(self._world.seed * 7919 + self._world.clock)  # noqa: S311 - chance by seed
        return rng.choice(live) if live else None
