"""A recorded incident log as it stood at a moment, for simulators to replay (semantics, rule 32).

The log is a CSV file (`.gz` or not), one row for each state of an incident after an update; the
times in it are UTC, without seconds. What a vendor's API makes of it is the simulators' affair.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

UNKNOWN = "?"


@dataclass(frozen=True)
class Version:
    """An incident after one update: when, and the log's row."""

    updated: datetime
    row: dict[str, str]


class IncidentLog:
    """The newest version of every incident before `clock`, and what had been seen by then.

    Attributes:
        incidents: by the incident's number.
        first_seen: for each of `columns`, its values and when each of them first stood in a row.
    """

    def __init__(self, path: Path, clock: datetime, columns: tuple[str, ...] = ()) -> None:
        self.clock = clock
        self.incidents: dict[str, Version] = {}
        self.first_seen: dict[str, dict[str, datetime]] = {column: {} for column in columns}
        for row in _rows(path):
            updated = log_time(row["sys_updated_at"])
            if updated is not None and row["number"] != UNKNOWN and updated < clock:
                self._enter(row, updated)

    def past(self, text: str) -> datetime | None:
        """A time of the log; None where it is later than the clock.

        Every row holds the incident's outcomes, also those written before them.
        """
        moment = log_time(text)
        return None if moment is None or moment > self.clock else moment

    def _enter(self, row: dict[str, str], updated: datetime) -> None:
        known = self.incidents.get(row["number"])
        # Of several updates in a minute, and of a repeated count, the last one counts.
        if known is None or (updated, _updates(row)) >= (known.updated, _updates(known.row)):
            self.incidents[row["number"]] = Version(updated, row)
        for column, seen in self.first_seen.items():
            if (value := row[column]) != UNKNOWN:
                seen[value] = min(seen.get(value, updated), updated)


def log_time(text: str) -> datetime | None:
    """A time of the log (`D/M/YYYY HH:MM`, UTC); None for `?`."""
    return None if text == UNKNOWN else datetime.strptime(text, "%d/%m/%Y %H:%M").replace(tzinfo=UTC)


def created(row: dict[str, str]) -> datetime | None:
    """When an incident was created; when it was opened, where that is not known."""
    return log_time(row["sys_created_at"]) or log_time(row["opened_at"])


def _updates(row: dict[str, str]) -> int:
    return int(row["sys_mod_count"])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
