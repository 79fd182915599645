"""Dagster's storage while a run executes in this process: its connections stay open."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import sqlalchemy as sa
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage


@contextmanager
def connections_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Lets the instance use its connections again; by itself it opens one for every statement.

    A day of three entities took 900 of them, and they took Postgres longer than all that was asked
    of it. Only for the time of a run: an instance that is forgotten must not keep a connection. One
    that the server closed meanwhile is replaced.
    """
    storages = [
        storage
        for storage in (instance.event_log_storage, instance.run_storage)
        if isinstance(storage, PostgresEventLogStorage | PostgresRunStorage)
    ]
    before = [storage._engine for storage in storages]
    for storage in storages:
        storage._engine = sa.create_engine(
            storage.postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=5,
            pool_pre_ping=True,
        )
    try:
        yield
    finally:
        for storage, engine in zip(storages, before, strict=True):
            storage._engine.dispose()
            storage._engine = engine
