"""Dagster's storage in Postgres as Bridge has it, named in `dagster.yaml`.

Every answer is Dagster's own, which tests hold it to. Connections stay open for the length of a run, events
are stored in transactions (`storing`), and the summary of an asset's partitions is made from the log in less
time; when it is made before anybody asks is `summaries`'.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from dagster._config.config_schema import UserConfigSchema
from dagster._core.events import DagsterEventType
from dagster._core.storage.event_log import SqlEventLogStorageMetadata, SqlEventLogStorageTable
from dagster._core.storage.runs import RunStorageSqlMetadata
from dagster._core.storage.schedules import ScheduleStorageSqlMetadata
from dagster._core.storage.schedules.migration import OPTIONAL_SCHEDULE_DATA_MIGRATIONS
from dagster._core.storage.schedules.schema import SecondaryIndexMigrationTable
from dagster._core.storage.sql import stamp_alembic_rev
from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.run_storage import run_storage
from dagster_postgres.utils import pg_alembic_config, retry_pg_connection_fn

from bridge_pipeline.automation.dimensions import by_dimension
from bridge_pipeline.automation.storing import TransactionalEventLog
from bridge_pipeline.database.engine import advisory_lock, replace_lost_connections

if TYPE_CHECKING:
    from dagster._core.loader import LoadingContext
    from dagster._core.storage.partition_status_cache import AssetStatusCacheValue

_METADATA = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)


class BridgeStorage(DagsterPostgresStorage):
    """Dagster's storage in Postgres, with Bridge's storages of runs, events and schedules."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        retry_pg_connection_fn(partial(_make_tables, postgres_url))
        super().__init__(postgres_url, should_autocreate_tables=False, inst_data=inst_data)
        self._run_storage = RunStorage(postgres_url, should_autocreate_tables=False)
        self._event_log_storage = EventLog(postgres_url, should_autocreate_tables=False)
        self._schedule_storage = ScheduleStorage(postgres_url, should_autocreate_tables=False)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """What `dagster.yaml` says of it."""
        return {"postgres_url": dg.StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "BridgeStorage":
        """The storage that `dagster.yaml` asks for."""
        return cls(config_value["postgres_url"], inst_data)


def _make_tables(postgres_url: str) -> None:
    """Makes the tables where they are not whole: one process does, and the others wait for it.

    By itself Dagster makes one after the other, and takes the first for all of its kind: what a killed
    process had not made would be missing for good.
    """
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if _whole(connection):
            return
        advisory_lock(connection, "dagster-tables", long=True)
        if _whole(connection):
            return
        with engine.begin() as making:
            for metadata in _METADATA:
                metadata.create_all(making)
            if MigrationContext.configure(making).get_current_revision() is None:
                stamp_alembic_rev(pg_alembic_config(run_storage.__file__), making)
        runs = PostgresRunStorage(postgres_url, should_autocreate_tables=False)
        events = PostgresEventLogStorage(postgres_url, should_autocreate_tables=False)
        schedules = PostgresScheduleStorage(postgres_url, should_autocreate_tables=False)
        # Each notes what of itself is done, and does that no more.
        for finish in (runs.migrate, runs.optimize, events.reindex_events, events.reindex_assets):
            finish()
        schedules.migrate()
        schedules.optimize()


def _whole(connection: sa.Connection) -> bool:
    """Whether all tables are there, and what is noted last."""
    if not {name for each in _METADATA for name in each.tables} <= set(
        sa.inspect(connection).get_table_names()
    ):
        return False
    noted = SecondaryIndexMigrationTable.c.name.in_(OPTIONAL_SCHEDULE_DATA_MIGRATIONS)
    return connection.execute(sa.select(SecondaryIndexMigrationTable.c.name).where(noted)).first() is not None


class Replacing:
    """Of a storage in Postgres: the webserver's open connections are replaced once the server closed them.

    By itself each of them would fail once, and leave a run that was asked for in no queue.
    """

    _engine: sa.Engine

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Keeps connections open."""
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)  # type: ignore[misc]
        replace_lost_connections(self._engine)


class Kept(Replacing):
    """Of a storage in Postgres: for a while its connections stay open, and what was there is there.

    A connection that the server closed meanwhile is replaced.
    """

    postgres_url: str
    # The questions to which the answer was yes, while they are kept.
    _affirmed: set[tuple[str, ...]] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps connections and answers meanwhile, where nobody does already."""
        if not isinstance(self._engine.pool, sa.NullPool):
            yield
            return
        before, self._affirmed = self._engine, set()
        self._engine = sa.create_engine(
            self.postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=5
        )
        replace_lost_connections(self._engine)
        try:
            yield
        finally:
            self._engine.dispose()
            self._engine, self._affirmed = before, None

    def _is_there(self, ask: Callable[[], bool], *what: str) -> bool:
        """Asks, unless the answer is known to be yes."""
        if self._affirmed is None:
            return ask()
        if what not in self._affirmed and ask():
            self._affirmed.add(what)
        return what in self._affirmed


class RunStorage(Kept, PostgresRunStorage):
    """Dagster's storage of runs in Postgres."""

    def has_run_stats_index_cols(self) -> bool:
        """Asked once."""
        return self._is_there(super().has_run_stats_index_cols, "statistics")


class ScheduleStorage(Replacing, PostgresScheduleStorage):
    """Dagster's storage of schedules and sensors in Postgres."""


class EventLog(Kept, TransactionalEventLog):
    """Dagster's event log in Postgres, which sums up quickly what became of an asset's partitions."""

    def has_table(self, table_name: str) -> bool:
        """Asked once of a table; by itself with every event."""
        return self._is_there(partial(super().has_table, table_name), "table", table_name)

    def _has_asset_key_col_on_connection(self, conn: sa.Connection, column_name: str) -> bool:
        ask = partial(super()._has_asset_key_col_on_connection, conn, column_name)
        return self._is_there(ask, "column", column_name)

    def has_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> bool:
        """Asked once of a partition that is there: a connection is not removed during a run of it."""
        ask = partial(super().has_dynamic_partition, partitions_def_name, partition_key)
        return self._is_there(ask, "partition", partitions_def_name, partition_key)

    def get_asset_status_cache_values(
        self,
        partitions_defs_by_key: Iterable[tuple[dg.AssetKey, dg.PartitionsDefinition | None]],
        context: "LoadingContext",
    ) -> Sequence["AssetStatusCacheValue | None"]:
        """The summaries of assets, brought up to date: what the UI asks for."""
        wanted = [
            (key, partitions and by_dimension(partitions)) for key, partitions in partitions_defs_by_key
        ]
        return super().get_asset_status_cache_values(wanted, context)

    def get_latest_asset_partition_materialization_attempts_without_materializations(
        self, asset_key: dg.AssetKey, after_storage_id: int | None = None
    ) -> Mapping[str, tuple[str, int]]:
        """The partitions that were planned and not materialised since: run and event of each.

        Dagster reads the newest two events of each partition, twice, and compares them itself. Their numbers
        are in an index: here only the events that are asked for are read.
        """
        log = SqlEventLogStorageTable.c
        planned, done = (
            self._latest_event_ids_by_partition_subquery(
                asset_key, [kind], after_cursor=after_storage_id
            ).alias(kind.value.lower())
            for kind in (
                DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
                DagsterEventType.ASSET_MATERIALIZATION,
            )
        )
        # Not joined: Postgres would read the event of every partition before it knows which are wanted.
        run = sa.select(log.run_id).where(log.id == planned.c.id).scalar_subquery()
        query = (
            sa.select(planned.c.partition, planned.c.id, run.label("run_id"))
            .select_from(planned.outerjoin(done, done.c.partition == planned.c.partition))
            .where(sa.or_(done.c.id.is_(None), done.c.id < planned.c.id))
        )
        with self.index_connection() as connection:
            return {row.partition: (row.run_id, row.id) for row in connection.execute(query)}
