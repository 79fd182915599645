"""Dagster's storage for the length of a run: its connections stay open, its schema is known, and events
that come together are stored together."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa

from bridge_pipeline.database.engine import replace_lost_connections

if TYPE_CHECKING:
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage

    Storage = PostgresEventLogStorage | PostgresRunStorage

# What the storages ask about their tables and columns.
_OF_THE_SCHEMA = ("has_table", "_has_asset_key_col_on_connection", "has_run_stats_index_cols")
# What Dagster tells of each result of a check.
_OF_RESULTS = (
    dg.DagsterEventType.STEP_OUTPUT,
    dg.DagsterEventType.HANDLED_OUTPUT,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
)


@contextmanager
def storage_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Lets the instance use its connections again; by itself it opens one for every statement.

    A day of three entities took 900 of them, and they took Postgres longer than all that was asked
    of it. Only for the time of a run: an instance that is forgotten must not keep a connection. One
    that the server closed meanwhile is replaced. Also only for that time what tables and columns the
    storage has is asked once, not with every event, that a partition is there likewise, and an event or a
    batch of them, whatever they are, is one transaction. Within itself it does nothing more.
    """
    # Imported by whoever has such a storage; the code location has none.
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage

    with ExitStack() as kept:
        for storage in (instance.event_log_storage, instance.run_storage):
            if isinstance(storage, PostgresEventLogStorage | PostgresRunStorage) and isinstance(
                storage._engine.pool, sa.NullPool
            ):
                kept.enter_context(_connections_kept(storage))
                kept.enter_context(_schema_known(storage))
                if isinstance(storage, PostgresEventLogStorage):
                    kept.enter_context(
                        _replaced(
                            storage,
                            store_event=_Storing(storage),
                            store_event_batch=functools.partial(_store_batch, storage),
                            has_dynamic_partition=_confirmed_once(storage.has_dynamic_partition),
                        )
                    )
        yield


@contextmanager
def events_together(instance: dg.DagsterInstance) -> Iterator[None]:
    """Stores the events of what a step yields within as one batch: at the end, or when Dagster tells of
    anything else.

    Only around what is yielded at one go, such as the results of a batch's checks: nobody sees the first
    of them before the last. Around a materialisation and its checks it would hide the one from the others.
    Where the storage is not kept, each event is stored by itself.
    """
    storing = vars(instance.event_log_storage).get("store_event")
    with storing.together() if isinstance(storing, _Storing) else nullcontext():
        yield


class _Storing:
    """Stores each event as it comes, or together what checks yield at once."""

    def __init__(self, storage: "PostgresEventLogStorage") -> None:
        self._storage = storage
        self._waiting: list[dg.EventLogEntry] | None = None

    def __call__(self, event: dg.EventLogEntry) -> None:
        if self._waiting is None:
            _store(self._storage, event)
            return
        self._waiting.append(event)
        # Where Dagster itself breaks off, it tells of that, and of the run's end, before it ends the check.
        if event.dagster_event_type not in (None, *_OF_RESULTS):
            self._store_waiting([])

    @contextmanager
    def together(self) -> Iterator[None]:
        self._waiting = self._waiting or []
        try:
            yield
        finally:
            self._store_waiting(None)

    def _store_waiting(self, further: list[dg.EventLogEntry] | None) -> None:
        """Stores what waits; what comes after it waits in `further`, or is stored as it comes."""
        waiting, self._waiting = self._waiting, further
        if waiting:
            _store_batch(self._storage, waiting)


@contextmanager
def _connections_kept(storage: "Storage") -> Iterator[None]:
    before = storage._engine
    storage._engine = sa.create_engine(
        storage.postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=5
    )
    replace_lost_connections(storage._engine)
    try:
        yield
    finally:
        storage._engine.dispose()
        storage._engine = before


def _schema_known(storage: "Storage") -> AbstractContextManager[None]:
    names = [name for name in _OF_THE_SCHEMA if hasattr(storage, name)]
    return _replaced(storage, **{name: _answered_once(getattr(storage, name)) for name in names})


@contextmanager
def _replaced(storage: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Lets the storage have these methods instead of those of its class."""
    vars(storage).update(methods)
    try:
        yield
    finally:
        for name in methods:
            delattr(storage, name)


def turn(assets: Iterable[str]) -> sa.Select[Any]:
    """Waits until nobody else stores events of these assets, and lets nobody before this transaction ends.

    Otherwise the events of an asset could be seen in another order than that of their numbers, and whoever
    reads on after the last, as Dagster does for its summary of an asset's partitions, would never see those
    that came late. In one order for all, so that no two wait for each other. Not by the rows of the assets:
    of an asset that nothing was stored of there is none.

    Args:
        assets: their keys, as they stand in Dagster's tables.
    """
    asset = sa.func.unnest(sa.cast(sorted(assets), sa.ARRAY(sa.Text))).column_valued("asset")
    name = sa.func.concat("events of ", asset)
    return sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0)).label("taken"))


def _store(storage: "PostgresEventLogStorage", event: dg.EventLogEntry) -> None:
    """Stores an event as Dagster does, but durably once: all it says, or nothing of it.

    By itself each of its statements is durable before the next, and one of them notifies whoever listened
    in older versions.
    """
    from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS

    if event.dagster_event_type in ASSET_EVENTS | ASSET_CHECK_EVENTS:
        _store_batch(storage, [event])
        return
    with storage._connect() as connection:
        connection.execute(storage.prepare_insert_event(event))


def _store_batch(storage: "PostgresEventLogStorage", events: Sequence[dg.EventLogEntry]) -> None:
    """Stores events as Dagster does, but all of them in one transaction.

    By itself it does so for materialisations alone, and every event is two to four statements, each of
    them durable before the next: half of the time of a small check. It notifies nobody, as Dagster does
    not of batches: nothing listens any more.
    """
    from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    rows = [storage._event_to_row(event) for event in events]
    numbered = SqlEventLogStorageTable.insert().values(rows).returning(SqlEventLogStorageTable.c.id)
    with (
        storage.index_transaction() as connection,
        _replaced(storage, index_connection=lambda: nullcontext(connection)),
    ):
        if keys := {row["asset_key"] for row in rows} - {None}:
            connection.execute(turn(keys))
        ids = connection.execute(numbered).scalars().all()
        stored = list(zip(ids, events, strict=True))
        of_assets = [
            each
            for each in stored
            if each[1].dagster_event_type in ASSET_EVENTS and each[1].get_dagster_event().asset_key
        ]
        _store_assets(storage, connection, of_assets)
        of_checks = [
            _CheckEvent(number, entry, row)
            for (number, entry), row in zip(stored, rows, strict=True)
            if entry.dagster_event_type in ASSET_CHECK_EVENTS
        ]
        _store_checks(storage, connection, of_checks)


def _store_assets(
    storage: "PostgresEventLogStorage", connection: sa.Connection, stored: list[tuple[int, dg.EventLogEntry]]
) -> None:
    """What the events say of assets; of many that say the same of one, the last."""
    if not stored:
        return
    numbers, entries = zip(*stored, strict=True)
    storage._store_asset_event_tags(connection, entries, numbers)
    newest = {
        (entry.dagster_event_type, entry.get_dagster_event().asset_key): (entry, number)
        for number, entry in stored
    }
    for entry, number in newest.values():
        storage._store_asset_event(connection, entry, number)


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


def _store_checks(
    storage: "PostgresEventLogStorage", connection: sa.Connection, events: Sequence[_CheckEvent]
) -> None:
    """What the events say of checks: one statement for all that are planned, one for all that are judged.

    Those that do not have just one plan are left to Dagster, which adds what is missing and refuses the rest.
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
        storage.store_asset_check_event(each.entry, each.number)


def _plan(connection: sa.Connection, events: Sequence[_CheckEvent]) -> None:
    from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

    rows = [
        {
            "asset_key": each.said.asset_key.to_string(),
            "check_name": each.said.check_name,
            "run_id": each.entry.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
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
    from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Status

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


def _answered_once(ask: Callable[..., bool]) -> Callable[..., bool]:
    """The same question, which is not asked again for the same names, whatever the connection."""
    answers: dict[tuple[Any, ...], bool] = {}

    @functools.wraps(ask)
    def asked(*arguments: Any) -> bool:
        names = tuple(each for each in arguments if not isinstance(each, sa.Connection))
        if names not in answers:
            answers[names] = ask(*arguments)
        return answers[names]

    return asked


def _confirmed_once(ask: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """The same question of a partition, which is not asked again once it is there: a connection is not
    removed during a run of it."""
    there: set[tuple[str, str]] = set()

    @functools.wraps(ask)
    def asked(definition: str, key: str) -> bool:
        if (definition, key) not in there and ask(definition, key):
            there.add((definition, key))
        return (definition, key) in there

    return asked
