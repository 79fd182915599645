"""Dagster's event log in Postgres, which stores an event, or those that come together, whole or not at all.

What it stores is what Dagster stores by itself, which tests hold it to.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Status
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster_postgres import PostgresEventLogStorage

# What Dagster tells of each result of a check.
_OF_RESULTS = (
    dg.DagsterEventType.STEP_OUTPUT,
    dg.DagsterEventType.HANDLED_OUTPUT,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
)

# Seconds after which Postgres ends the transaction of a process that has been stopped amid it.
_STOPPED = 30
# Waits until nobody else stores events, and lets nobody before this transaction ends. An event has its number
# before it is seen, and whoever reads on after the last number, as Dagster does for its sensors and for its
# summary of an asset's partitions, would never see one that came late with a lower one.
TURN = sa.text(f"""
    select set_config('idle_in_transaction_session_timeout', '{_STOPPED}s', true),
        pg_advisory_xact_lock(hashtextextended('events', 0))
""")


class TransactionalEventLog(PostgresEventLogStorage):
    """Dagster's event log in Postgres: an event, or a batch of them, is one transaction.

    By itself every event is one to five statements, each durable before the next, and a batch of them is no
    more than that unless it tells of materialisations alone; one statement notifies whoever listened in older
    versions. Events are seen in the order of their numbers.
    """

    # What waits to be stored together, if anything does.
    _waiting: list[dg.EventLogEntry] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Of each thread, the transaction that it stores events in.
        self._own = threading.local()
        super().__init__(*arguments, **named)

    def store_event(self, event: dg.EventLogEntry) -> None:
        """Stores an event, or keeps it for those that come `together`."""
        if self._waiting is None:
            self.store_event_batch([event])
            return
        self._waiting.append(event)
        # Where Dagster itself breaks off, it tells of that, and of the run's end, before it ends the check.
        if event.dagster_event_type not in (None, *_OF_RESULTS):
            self._store_waiting([])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Stores what comes within as one batch: at the end, or when Dagster tells of anything else than
        results of checks."""
        self._waiting = self._waiting or []
        try:
            yield
        finally:
            self._store_waiting(None)

    def _store_waiting(self, further: list[dg.EventLogEntry] | None) -> None:
        """Stores what waits; what comes after it waits in `further`, or is stored as it comes."""
        waiting, self._waiting = self._waiting, further
        self.store_event_batch(waiting or [])

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Stores events, whatever they are, and all that they say of assets and checks."""
        if not events:
            return
        rows = [self._event_to_row(event) for event in events]
        log = SqlEventLogStorageTable
        with self._one_transaction() as connection:
            connection.execute(TURN)
            ids = connection.execute(log.insert().values(rows).returning(log.c.id)).scalars().all()
            stored = list(zip(ids, events, strict=True))
            self._store_assets(connection, stored)
            of_checks = [
                _CheckEvent(number, entry, row)
                for (number, entry), row in zip(stored, rows, strict=True)
                if entry.dagster_event_type in ASSET_CHECK_EVENTS
            ]
            self._store_checks(connection, of_checks)

    @contextmanager
    def _one_transaction(self) -> Iterator[sa.Connection]:
        """A transaction that everything that this thread asks of the storage meanwhile is a part of."""
        with self.index_transaction() as connection:
            self._own.connection = connection
            try:
                yield connection
            finally:
                del self._own.connection

    def index_connection(self) -> AbstractContextManager[sa.Connection]:
        """A connection, which is that of the transaction that this thread stores events in, if it does."""
        own = getattr(self._own, "connection", None)
        return super().index_connection() if own is None else nullcontext(own)

    def _store_assets(
        self, connection: sa.Connection, stored: Iterable[tuple[int, dg.EventLogEntry]]
    ) -> None:
        """What the events say of assets; of many that say the same of one, the last."""
        of_assets = [
            each
            for each in stored
            if each[1].dagster_event_type in ASSET_EVENTS and each[1].get_dagster_event().asset_key
        ]
        if not of_assets:
            return
        numbers, entries = zip(*of_assets, strict=True)
        self._store_asset_event_tags(connection, entries, numbers)
        newest = {
            (entry.dagster_event_type, entry.get_dagster_event().asset_key): (entry, number)
            for number, entry in of_assets
        }
        for entry, number in sorted(newest.values(), key=lambda each: each[1]):
            self._store_asset_event(connection, entry, number)

    def _store_checks(self, connection: sa.Connection, events: "Sequence[_CheckEvent]") -> None:
        """What the events say of checks: one statement for all that are planned, one for all that are judged.

        Those that do not have just one plan are left to Dagster, which adds what is missing and refuses the
        rest.
        """
        planned_type = dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
        planned = [each for each in events if each.entry.dagster_event_type == planned_type]
        judged = [each for each in events if each.entry.dagster_event_type != planned_type]
        whole = [each for each in planned if each.said.partitions_subset is None]
        _plan(connection, whole)
        # Of what is judged twice, the last.
        newest = {_about(each): each for each in judged if each.entry.run_id}
        found = _judge(connection, list(newest.values()))
        of_a_part = [each for each in planned if each.said.partitions_subset is not None]
        for each in (*of_a_part, *(each for each in judged if found[_about(each)] != 1)):
            self.store_asset_check_event(each.entry, each.number)


@dataclass(frozen=True)
class _CheckEvent:
    """An event of a check: its number in the log, itself, and its row there."""

    number: int
    entry: dg.EventLogEntry
    row: Mapping[str, Any]

    @property
    def said(self) -> Any:
        """What was planned, or judged."""
        return self.entry.get_dagster_event().event_specific_data


def _plan(connection: sa.Connection, events: Sequence[_CheckEvent]) -> None:
    rows = [
        {
            "asset_key": each.said.asset_key.to_string(),
            "check_name": each.said.check_name,
            "run_id": each.entry.run_id,
            "execution_status": Status.PLANNED.value,
            "evaluation_event": each.row["event"],
            "evaluation_event_timestamp": each.row["timestamp"],
            "evaluation_event_storage_id": each.number,
        }
        for each in events
    ]
    if rows:
        connection.execute(AssetCheckExecutionsTable.insert().values(rows))


_JUDGE = sa.text("""
    update asset_check_executions as planned
    set execution_status = judged.status, evaluation_event = judged.event,
        evaluation_event_timestamp = judged.at, evaluation_event_storage_id = judged.number,
        materialization_event_storage_id = judged.materialization
    from unnest(
        cast(:assets as text[]), cast(:names as text[]), cast(:runs as text[]), cast(:partitions as text[]),
        cast(:statuses as text[]), cast(:events as text[]), cast(:times as timestamp[]),
        cast(:numbers as bigint[]), cast(:materializations as bigint[])
    ) as judged (asset, name, run, partition, status, event, at, number, materialization)
    where planned.asset_key = judged.asset and planned.check_name = judged.name
        and planned.run_id = judged.run and planned.partition is not distinct from judged.partition
    returning judged.asset, judged.name, judged.run, judged.partition
""")


def _judge(connection: sa.Connection, events: Sequence[_CheckEvent]) -> Counter[tuple[Any, ...]]:
    """Lets each judgement take the place of its plan; gives how many plans there were of each."""
    if not events:
        return Counter()
    targets = [each.said.target_materialization_data for each in events]
    assets, names, runs, parts = (list(each) for each in zip(*map(_about, events), strict=True))
    columns = {
        "assets": assets,
        "names": names,
        "runs": runs,
        "partitions": parts,
        "statuses": [(Status.SUCCEEDED if each.said.passed else Status.FAILED).value for each in events],
        "events": [each.row["event"] for each in events],
        "times": [each.row["timestamp"] for each in events],
        "numbers": [each.number for each in events],
        "materializations": [target and target.storage_id for target in targets],
    }
    return Counter(tuple(row) for row in connection.execute(_JUDGE, columns))


def _about(event: _CheckEvent) -> tuple[Any, ...]:
    """Asset, check, run and partition of what is judged."""
    said = event.said
    return said.asset_key.to_string(), said.check_name, event.entry.run_id, said.partition
