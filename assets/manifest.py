"""dbt's manifest as Dagster's specs: the very ones that dagster-dbt derives, without importing dbt.

That import takes longer than all the rest of the code location; only a build pays for it, see
`building`. A test holds these specs to those of dagster-dbt.
"""

import hashlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from assets import keys

Node = Mapping[str, Any]
_UNIQUE_ID = "dagster_dbt/unique_id"
# All models, in dagster-dbt's words; it looks for them in the tags of the op.
SELECTED = {"dagster_dbt/select": "fqn:*"}


def asset_specs(manifest: Mapping[str, Any]) -> list[dg.AssetSpec]:
    """The models of the manifest."""
    return [_asset(manifest, node) for node in _nodes(manifest, "model")]


def check_specs(manifest: Mapping[str, Any]) -> list[dg.AssetCheckSpec]:
    """The tests of the models, each as a check of the model it stands at."""
    found = (_check(manifest, node) for node in _nodes(manifest, "test"))
    return [spec for spec in found if spec is not None]


def _nodes(manifest: Mapping[str, Any], kind: str) -> Iterator[Node]:
    return (node for node in manifest["nodes"].values() if node["resource_type"] == kind)


def _asset(manifest: Mapping[str, Any], node: Node) -> dg.AssetSpec:
    about, code = manifest["metadata"], node["raw_code"]
    description = node["description"] or f"dbt model {node['name']}"
    sql = textwrap.indent(code, "    ")
    return dg.AssetSpec(
        keys.model_key(node),
        deps=sorted({keys.model_key(parent) for parent in _parents(manifest, node)}),
        description=f"{description}\n\n#### Raw SQL:\n```sql\n{sql}\n```",
        metadata={
            "dagster-dbt/materialization_type": node["config"]["materialized"],
            "dagster/column_schema": _columns(node),
            "dagster/table_name": ".".join((node["database"], node["schema"], node["alias"])),
            "dagster/storage_kind": about["adapter_type"],
            "dagster_dbt/project_id": dg.MetadataValue.text(about["project_id"]),
            _UNIQUE_ID: node["unique_id"],
        },
        skippable=True,
        group_name=keys.model_group(node),
        code_version=hashlib.sha1(code.encode(), usedforsecurity=False).hexdigest(),
        automation_condition=keys.follows_upstream(missing=True),
        owners=keys.model_owners(),
        tags=dict.fromkeys(node["tags"], ""),
        kinds={"dbt", about["adapter_type"]},
    )


def _parents(manifest: Mapping[str, Any], node: Node) -> Iterator[Node]:
    known = manifest["nodes"] | manifest["sources"]
    return (known[name] for name in node["depends_on"]["nodes"] if name in known)


def _columns(node: Node) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(
                column["name"],
                column["data_type"] or "?",
                column["description"],
                tags=dict.fromkeys(column["tags"], ""),
            )
            for column in node["columns"].values()
        ]
    )


def _check(manifest: Mapping[str, Any], test: Node) -> dg.AssetCheckSpec | None:
    parents = {parent["unique_id"]: parent for parent in _parents(manifest, test)}
    stands_at = parents.get(_stands_at(test, parents))
    if stands_at is None or stands_at["resource_type"] != "model":
        return None
    key = keys.model_key(stands_at)
    return dg.AssetCheckSpec(
        test["name"],
        asset=key,
        description=test["meta"].get("description"),
        additional_deps=sorted({keys.model_key(parent) for parent in parents.values()} - {key}),
        metadata={_UNIQUE_ID: test["unique_id"]},
        blocking=(test["config"]["severity"] or "error").lower() == "error",
    )


def _stands_at(test: Node, parents: Mapping[str, Node]) -> str | None:
    """The model that a test is a check of: the one it names, its only one, or where it is declared."""
    named = test["config"]["meta"].get("dagster", {}).get("ref", {}).get("name")
    if named:
        return next(name for name, parent in parents.items() if parent["name"] == named)
    return next(iter(parents)) if len(parents) == 1 else test.get("attached_node")
