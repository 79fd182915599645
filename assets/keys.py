"""How assets are called and shown: keys, groups, owners, kinds and descriptions, in one place."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from assets.partitions import CONNECTION_TAG
from bridge_pipeline import naming
from bridge_pipeline.model import ENTITIES, Entity, Kind

PLATFORM, QUALITY_TEAM, ANALYTICS = "team:data-platform", "team:data-quality", "team:analytics"

_OWNERS = {
    naming.EXTRACTED: PLATFORM,
    naming.TABLES: PLATFORM,
    naming.AUDIT: QUALITY_TEAM,
    naming.QUALITY: QUALITY_TEAM,
    naming.MODELS: ANALYTICS,
}
_KINDS = {
    naming.EXTRACTED: {"python", "dlt", "parquet"},
    naming.TABLES: {"python", "postgres"},
    naming.AUDIT: {"python", "csv"},
    naming.QUALITY: {"python", "html"},
}
_DESCRIPTIONS = {
    naming.EXTRACTED: "Landed from the source's API: journalled, parsed, and proven complete. {0}",
    naming.TABLES: "The table desk.{1}: the newest version of every record. {0}",
    naming.AUDIT: "CSV audit files, one per day, with a manifest that anyone can verify. {0}",
}
_TYPES = {Kind.TEXT: "text", Kind.TIMESTAMP: "timestamptz", Kind.BOOLEAN: "boolean", Kind.JSON: "jsonb"}
# Tables that are no entity's own, and the entity whose load fills them.
_LOADED_WITH = {"ticket_users": "tickets"}
# Parents before children: in a run's one process, the tables that are referred to fill first.
_PRIORITIES = {entity: str(100 - 10 * rank) for rank, entity in enumerate(ENTITIES)}


def key(layer: str, name: str) -> dg.AssetKey:
    """The asset key of `name` in `layer`."""
    return dg.AssetKey(naming.asset_key(layer, name))


def op_tags(entity: str) -> Mapping[str, str]:
    """Tags that order the steps of a run by entity."""
    return {"dagster/priority": _PRIORITIES[entity]}


def layer_asset(
    layer: str, entity: Entity, partitions: dg.PartitionsDefinition, **options: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Decorates the asset of an entity in a layer: its name, looks and partitions.

    A range of days is one run, and an entity that a connection lacks yields nothing.
    """
    return dg.asset(
        key=key(layer, entity.name),
        group_name=layer,
        owners=[_OWNERS[layer]],
        kinds=_KINDS[layer],
        description=_DESCRIPTIONS[layer].format(entity.description, entity.name),
        metadata={"dagster/column_schema": column_schema(entity), **_table_name(layer, entity)},
        op_tags=op_tags(entity.name),
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        **options,
    )


def column_schema(entity: Entity) -> dg.TableSchema:
    """The columns that a record of the entity has in every layer."""
    canonical = [
        dg.TableColumn(
            column.name,
            _TYPES[column.kind],
            column.description,
            constraints=dg.TableColumnConstraints(nullable=column.name != "id"),
            tags={"personal": ""} if column.personal else {},
        )
        for column in entity.columns
    ]
    custom = dg.TableColumn("custom_fields", "jsonb", "All that the source sends and is not canonical.")
    digest = dg.TableColumn("content_hash", "text", "SHA-256 of all columns of the version.")
    return dg.TableSchema([*canonical, custom, digest])


def _table_name(layer: str, entity: Entity) -> dict[str, str]:
    return {"dagster/table_name": f"{naming.DESK_SCHEMA}.{entity.name}"} if layer == naming.TABLES else {}


def model_key(node: Mapping[str, Any]) -> dg.AssetKey:
    """The asset of a node of dbt's manifest: `models/<name>`, or for a source the table it is."""
    name: str = node["name"]
    if node["resource_type"] == "source":
        return key(naming.TABLES, _LOADED_WITH.get(name, name))
    return key(naming.MODELS, name)


def model_group(node: Mapping[str, Any]) -> str:
    """The group of a node of dbt's manifest."""
    return naming.MODELS if node["resource_type"] == "model" else naming.TABLES


def model_owners() -> list[str]:
    """Who owns the models."""
    return [_OWNERS[naming.MODELS]]


def follows_upstream(missing: bool = False) -> dg.AutomationCondition:
    """Materialise when what lies upstream was, and not in one run with what follows it, also for days
    long past.

    Nothing here asks what is missing of all partitions there are, as Dagster's `eager` does: each look
    would cost as much as all connections have days (docs/decisions/0027).

    Args:
        missing: whether some of what lies upstream may never have been materialised.
    """
    condition = dg.AutomationCondition
    by_itself = (
        condition.newly_updated()
        # Of a range of days the other one knows the last alone, and looks up each of them.
        & ~condition.all_new_updates_have_run_tags(tag_keys={CONNECTION_TAG})
        & ~condition.executed_with_root_target()
    )
    updated = condition.any_deps_match(by_itself | condition.will_be_requested())
    handled = condition.newly_requested() | condition.newly_updated()
    due = updated.with_label("upstream was updated").since(handled)
    if not missing:
        due &= ~condition.any_deps_missing()
    return due & ~condition.any_deps_in_progress() & ~condition.in_progress()
