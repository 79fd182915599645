"""A helpdesk's records, rendered to the pages of its listing before anything is measured.

The same numbers always give the same bytes. What serves the pages is in `source`.
"""

import csv
import gzip
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path

# The connection that reads them.
NAME = "bench-helpdesk"
PAGE = 1_000
FIRST_DAY = date(2024, 1, 1)
_STATUSES = ("New", "Open", "Waiting for customer", "Resolved", "Closed")
_PRIORITIES = ("Low", "Normal", "High", "Urgent")
_TAGS = ('"printer"', '"network","vpn"', '"onboarding"', "", '"billing","refund","urgent"')
_TEXT = (
    "The device in the second floor does not answer since this morning. We have restarted it twice, "
    "looked at the cable and asked the neighbours; nothing helped. Please send somebody who knows it, "
    "or tell us what else we can try before the auditors come on Thursday."
)


@dataclass(frozen=True)
class World:
    """What a desk holds.

    `tickets` are spread evenly over `days` days from `FIRST_DAY`. Of each `changed_every`, the first
    one has changed once more since the world with 0. Of `rows`, a CSV file (`.gz` or not), each ticket has
    the fields of one as its own, in turn: another data set.
    """

    tickets: int
    days: int
    changed_every: int = 0
    accounts: int = 200
    users: int = 2_000
    rows: Path | None = None

    @property
    def name(self) -> str:
        """Names what it holds, as a folder may be named."""
        return "-".join(Path(str(value)).name for value in vars(self).values())

    @property
    def changed(self) -> int:
        """How many tickets have changed since the world with 0."""
        return -(-self.tickets // self.changed_every) if self.changed_every else 0

    @property
    def last_day(self) -> date:
        """The last day on which a ticket changed."""
        return FIRST_DAY + timedelta(days=self.days - 1)


def render(world: World, folder: Path) -> None:
    """Writes the pages of each entity below `folder`: `<entity>.pages`, and where each begins in
    `<entity>.json`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder, "accounts", world.accounts, (_account(number) for number in _ids(world.accounts)))
    _write(folder, "users", world.users, (_user(number) for number in _ids(world.users)))
    _write(folder, "tickets", world.tickets, _tickets(world))


def _ids(count: int) -> range:
    return range(1, count + 1)


def _write(folder: Path, entity: str, count: int, records: Iterable[str]) -> None:
    pages, starts, rendered = -(-count // PAGE), [0], iter(records)
    with (folder / f"{entity}.pages").open("wb") as file:
        for page in range(1, pages + 1):
            part = ",".join(islice(rendered, PAGE))
            more = "true" if page < pages else "false"
            head = f'{{"page":{page},"more":{more},"total_pages":{pages},"data":['
            file.write(f"{head}{part}]}}".encode())
            starts.append(file.tell())
    (folder / f"{entity}.json").write_text(json.dumps(starts))


def _account(number: int) -> str:
    return (
        f'{{"id":{number},"_type":"Account","name":"Account {number}",'
        '"created_at":"2023-01-01T08:00:00Z","updated_at":"2023-06-01T08:00:00Z"}'
    )


def _user(number: int) -> str:
    return (
        f'{{"id":{number},"_type":"User","name":"User {number}","email":"user{number}@example.com",'
        '"roles":[{"id":3,"_type":"Role","name":"Agent"}],"locked":false,'
        '"created_at":"2023-01-01T08:00:00Z","updated_at":"2023-06-01T08:00:00Z"}'
    )


def _tickets(world: World) -> Iterator[str]:
    begin = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC)
    # An hour is left at the end of the span, for changes.
    step = (timedelta(days=world.days) - timedelta(hours=1)) / max(world.tickets, 1)
    more = cycle(fields(world.rows) if world.rows else [""])
    for number, own in zip(_ids(world.tickets), more, strict=False):
        changed = bool(world.changed_every) and number % world.changed_every == 1 % world.changed_every
        yield _ticket(number, begin + step * (number - 1), changed, world, own)


def fields(path: Path) -> list[str]:
    """What each row of a CSV file in UTF-8 adds to a ticket, in JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no rows, or is not UTF-8.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        rows = [{f"cf_data_{name}": value for name, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return [f",{json.dumps(row, ensure_ascii=False)[1:-1]}" for row in rows]


def _ticket(number: int, moment: datetime, changed: bool, world: World, fields: str) -> str:
    status, priority = number % len(_STATUSES), number * 7 % len(_PRIORITIES)
    closed = status >= 3
    at = f'"{moment:%Y-%m-%dT%H:%M:%S}Z"'
    created = f'"{moment - timedelta(hours=number % 700):%Y-%m-%dT%H:%M:%S}Z"'
    updated = f'"{moment + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}Z"' if changed else at
    account, user = number * 31 % world.accounts + 1, number * 17 % world.users + 1
    return (
        f'{{"id":{number},"_type":"Ticket","subject":"Printer {number} is on fire{" again" * changed}",'
        f'"description":"<p>Number {number}. {_TEXT[: 60 + number * 13 % 200]}</p>",'
        f'"status":{{"id":{status + 1},"_type":"TicketStatus","name":"{_STATUSES[status]}",'
        f'"closed":{"true" if closed else "false"}}},'
        f'"priority":{{"id":{priority + 1},"_type":"TicketPriority","name":"{_PRIORITIES[priority]}"}},'
        f'"account":{{"id":{account},"_type":"Account","name":"Account {account}"}},'
        f'"customer_user":{{"id":{user},"_type":"User"}},"assignee":{{"id":12744,"_type":"Role"}},'
        f'"user_watchers":[],"tags":[{_TAGS[number % len(_TAGS)]}],'
        f'"created_at":{created},"updated_at":{updated},"resolved_at":{at if closed else "null"},'
        f'"responded_at":{at},"closed_at":{at if closed else "null"},'
        f'"cf_building":{{"id":374,"name":"Other","_type":370}},"cf_floor":{number % 12}{fields}}}'
    )
