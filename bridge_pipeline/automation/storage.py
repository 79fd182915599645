"""Dagster's storage in Postgres, which makes the summary of an asset's partitions from the log in less time,
and numbers the events of an asset in the order in which they are seen.

Nothing is kept here, and every answer is Dagster's own, which tests hold it to. When summaries are made
before anybody asks is `summaries`', how the events of a run are stored `resources.storage`'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa
from dagster._config.config_schema import UserConfigSchema
from dagster._core.events import DagsterEventType
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage

from bridge_pipeline.automation.dimensions import by_dimension
from resources.storage import turn

if TYPE_CHECKING:
    from dagster._core.loader import LoadingContext
    from dagster._core.storage.partition_status_cache import AssetStatusCacheValue


class SummingStorage(DagsterPostgresStorage):
    """Dagster's storage in Postgres, with an event log that sums up quickly; for `dagster.yaml`."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        # The other one has made the tables.
        self._event_log_storage = SummingEventLog(postgres_url, should_autocreate_tables=False)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """What `dagster.yaml` says of it."""
        return {"postgres_url": dg.StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "SummingStorage":
        """The storage that `dagster.yaml` asks for."""
        return cls(config_value["postgres_url"], inst_data)


class SummingEventLog(PostgresEventLogStorage):
    """Dagster's event log in Postgres, which sums up quickly what became of an asset's partitions."""

    def prepare_insert_event(self, event: dg.EventLogEntry) -> Any:
        """Inserts an event; one of an asset in its turn, and not beside the transaction of a run.

        Where a run was launched while another one stored what it had materialised, the plan could be seen
        first.
        """
        row = self._event_to_row(event)
        if row["asset_key"] is None:
            return super().prepare_insert_event(event)
        # Only what the turn has given gets a number.
        taken = turn([row["asset_key"]]).cte("turn")
        columns = [sa.literal(value, SqlEventLogStorageTable.c[name].type) for name, value in row.items()]
        return SqlEventLogStorageTable.insert().from_select(list(row), sa.select(*columns).select_from(taken))

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
