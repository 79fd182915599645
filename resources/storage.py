"""Dagster's storage for the length of a run: its connections stay open, and its schema is known."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    storage has is asked once, not with every event. Within itself it does nothing more.
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
        yield


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


@contextmanager
def _schema_known(storage: "Storage") -> Iterator[None]:
    names = [name for name in _OF_THE_SCHEMA if hasattr(storage, name)]
    for name in names:
        setattr(storage, name, _answered_once(getattr(storage, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(storage, name)


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
