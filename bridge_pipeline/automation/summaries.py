"""Which partitions of an asset are materialised: Dagster's summary of that, brought up to date before
anybody asks.

Dagster makes it from the whole log when an asset's partitions are looked at for the first time, and anew
whenever they are others; later it reads what was added. Whoever looks would wait for it. A connection that
is added here leaves it true; one that went does not.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import dagster as dg
import structlog
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from assets.partitions import CONNECTIONS
from bridge_pipeline import naming
from bridge_pipeline.automation.dimensions import by_dimension

log = structlog.get_logger(__name__)
Partitioned = Mapping[dg.AssetKey, dg.PartitionsDefinition]
# Seconds after which a look begins with no further asset: Dagster gives a tick a minute.
BUDGET = 20.0


@dataclass
class Look:
    """What the last look came to.

    Attributes:
        event: the newest event of the log that was there.
        partitions: the identities of all definitions of partitions; another connection changes them.
        due: the assets whose summaries it did not come to, as texts.
        made: how many it made, of this look alone.
    """

    event: int = 0
    partitions: list[str] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    made: int = 0

    @classmethod
    def of(cls, cursor: str | None) -> "Look":
        """The look that left this cursor."""
        return cls(**json.loads(cursor)) if cursor else cls()

    @property
    def cursor(self) -> str:
        """What the next look is to know."""
        return json.dumps(asdict(self) | {"made": 0})


def partitioned(graph: BaseAssetGraph) -> Partitioned:
    """The assets that have partitions."""
    found = {key: graph.get(key).partitions_def for key in sorted(graph.get_all_asset_keys())}
    return {key: definition for key, definition in found.items() if definition is not None}


def look(instance: dg.DagsterInstance, assets: Partitioned, last: Look, budget: float = BUDGET) -> Look:
    """Brings the summaries of assets up to date that were materialised since the last look, at least one.

    One that fails is logged and comes last in the next look, so that no other waits for it.

    Costs two queries where nothing happened.
    """
    ends = time.monotonic() + budget
    newest = instance.event_log_storage.get_maximum_record_id() or 0
    with partition_loading_context(dynamic_partitions_store=instance):
        partitions = sorted({each.get_serializable_unique_identifier() for each in assets.values()})
    by_text = {key.to_user_string(): key for key in assets}
    places = {text: place for place, text in enumerate(last.due)}
    due = [
        text
        for text, key in sorted(by_text.items(), key=lambda each: places.get(each[0], len(places)))
        if partitions != last.partitions
        or text in last.due
        or (newest > last.event and _materialised(instance, key, last.event))
    ]
    made, failed = 0, list[str]()
    while due and (not made or time.monotonic() < ends):
        text = due.pop(0)
        key = by_text[text]
        try:
            get_and_update_asset_status_cache_value(instance, key, by_dimension(assets[key]), instance)
        except Exception:
            log.exception("the partitions of an asset cannot be summed up", asset=text)
            failed.append(text)
        made += 1
    return Look(newest, partitions, due + failed, made)


def add_connection(instance: dg.DagsterInstance, name: str, days: dg.PartitionsDefinition) -> None:
    """Makes a connection a partition, and lets the summaries that were true before be true afterwards.

    Dagster knows a summary by all partitions there were, and would make each anew from the whole log. A
    connection that nothing was ever planned or done for changes none of them but by being there.

    Args:
        days: the partitions of the assets of days, which the connection belongs to.
    """
    if instance.has_dynamic_partition(naming.CONNECTION_DIMENSION, name):
        return
    before = _identities(instance, days)
    instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [name])
    after = dict(zip(before, _identities(instance, days), strict=True))
    for record in instance.get_asset_records():
        key, summary = record.asset_entry.asset_key, record.asset_entry.cached_status
        if summary and summary.partitions_def_id in after and not _ever_planned(instance, key, name):
            renamed = summary._replace(partitions_def_id=after[summary.partitions_def_id])
            instance.update_asset_cached_status_data(key, renamed)


def _identities(instance: dg.DagsterInstance, days: dg.PartitionsDefinition) -> list[str]:
    with partition_loading_context(dynamic_partitions_store=instance):
        return [each.get_serializable_unique_identifier() for each in (days, CONNECTIONS)]


def _ever_planned(instance: dg.DagsterInstance, key: dg.AssetKey, name: str) -> bool:
    """Whether the log has anything of a connection that a summary of the asset would count."""
    # The code location has no storage, and loads in less time without one.
    import sqlalchemy as sa
    from dagster._core.events import ASSET_EVENTS
    from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable

    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    log = SqlEventLogStorageTable.c
    query = sa.select(log.id).where(
        log.asset_key == key.to_string(),
        log.dagster_event_type.in_([kind.value for kind in ASSET_EVENTS]),
        sa.or_(log.partition.startswith(f"{name}|", autoescape=True), log.partition == name),
    )
    with storage.index_connection() as connection:
        return connection.execute(query.limit(1)).first() is not None


def _materialised(instance: dg.DagsterInstance, key: dg.AssetKey, since: int) -> bool:
    wanted = dg.AssetRecordsFilter(asset_key=key, after_storage_id=since)
    return bool(instance.fetch_materializations(wanted, limit=1).records)
