"""Dagster's storage for the length of a run: its connections stay open, its schema is known, and events
that come together are stored together."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa

from bridge_pipeline.database.engine import replace_lost_connections

if TYPE_CHECKING:
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage

    Storage = PostgresEventLogStorage | PostgresRunStorage

# What the storages ask about their tables and columns.
_OF_THE_SCHEMA = ("has_table", "_has_asset_key_col_on_connection", "has_run_stats_index_cols")


@contextmanager
def storage_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Lets the instance use its connections again; by itself it opens one for every statement.

    A day of three entities took 900 of them, and they took Postgres longer than all that was asked
    of it. Only for the time of a run: an instance that is forgotten must not keep a connection. One
    that the server closed meanwhile is replaced. Also only for that time what tables and columns the
    storage has is asked once, not with every event, that a partition is there likewise, and a batch of
    events, whatever they are, is one transaction. Within itself it does nothing more.
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
                            store_event_batch=functools.partial(_store_batch, storage),
                            has_dynamic_partition=_confirmed_once(storage.has_dynamic_partition),
                        )
                    )
        yield


@contextmanager
def events_together(instance: dg.DagsterInstance) -> Iterator[None]:
    """Stores the events of what a step yields within as one batch, at the end.

    Only around what is yielded at one go, such as the results of a batch's checks: nobody sees the first
    of them before the last. Around a materialisation and its checks it would hide the one from the others.
    Where the storage is not kept, each event is stored by itself.
    """
    storage = instance.event_log_storage
    if "store_event_batch" not in vars(storage):
        yield
        return
    waiting: list[dg.EventLogEntry] = []
    try:
        with _replaced(storage, store_event=waiting.append):
            yield
    finally:
        if waiting:
            storage.store_event_batch(waiting)


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


def _store_batch(storage: "PostgresEventLogStorage", events: Sequence[dg.EventLogEntry]) -> None:
    """Stores events as Dagster does, but all of them in one transaction.

    By itself it does so for materialisations alone, and every event is two to four statements, each of
    them durable before the next: half of the time of a small check. It notifies nobody, as Dagster does
    not of batches: nothing listens any more.
    """
    from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    numbered = storage.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
    with (
        storage._engine.connect().execution_options(isolation_level="READ COMMITTED") as connection,
        connection.begin(),
        _replaced(storage, index_connection=lambda: nullcontext(connection)),
    ):
        ids = connection.execute(numbered).scalars().all()
        stored = list(zip(ids, events, strict=True))
        of_assets = [each for each in stored if each[1].dagster_event_type in ASSET_EVENTS]
        _store_assets(storage, connection, of_assets)
        for number, entry in stored:
            if entry.dagster_event_type in ASSET_CHECK_EVENTS:
                storage.store_asset_check_event(entry, number)


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
