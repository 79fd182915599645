"""The partitions: connection × day, and what of them a run is about."""

from dataclasses import dataclass
from datetime import date

import dagster as dg

from bridge_pipeline import naming
from bridge_pipeline.model import Window

# On the runs of days of a connection that take them through all layers: its name.
CONNECTION_TAG = "bridge/connection"
# On the runs that the schedule requested: the time of its tick.
SCHEDULED_TAG = "bridge/scheduled"
CONNECTIONS = dg.DynamicPartitionsDefinition(name=naming.CONNECTION_DIMENSION)


def connection_days(first_day: date) -> dg.MultiPartitionsDefinition:
    """One partition per connection and finished UTC day since `first_day`."""
    days = dg.DailyPartitionsDefinition(start_date=first_day.isoformat(), timezone="UTC")
    return dg.MultiPartitionsDefinition(
        {naming.CONNECTION_DIMENSION: CONNECTIONS, naming.DAY_DIMENSION: days}
    )


@dataclass(frozen=True)
class Scope:
    """What a run is about: one connection and one window of whole days; `scheduled`: nobody asked by hand."""

    connection: str
    window: Window
    scheduled: bool = False

    @property
    def days(self) -> list[date]:
        """The days of the window."""
        return list(self.window.days())


def scope_of(run: dg.DagsterRun) -> Scope:
    """The scope of a run of one partition or of a range of days of one connection.

    Read from the run, not from a step's context: checks have no partitions, because a partitioned
    check cannot report on a range of them.

    Raises:
        InvalidKey: a partition key that is no valid connection name.
        ValueError: the run has no partition, or spans several connections.
    """
    single = run.tags.get("dagster/partition", "")
    start = run.tags.get("dagster/asset_partition_range_start", single)
    end = run.tags.get("dagster/asset_partition_range_end", single)
    if "|" not in start or "|" not in end:
        raise ValueError("the run has no partition; choose a connection and days")
    (first_connection, first), (last_connection, last) = _split(start), _split(end)
    if first_connection != last_connection:
        raise ValueError(f"a run is about days of one connection, not {start!r} to {end!r}")
    return Scope(first_connection, Window.of_days(first, last), SCHEDULED_TAG in run.tags)


def _split(key: str) -> tuple[str, date]:
    connection, _, day = key.partition("|")
    return naming.checked_key("connection", connection), date.fromisoformat(day)
