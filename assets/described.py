"""What Dagster shows of a model that was built: its columns, what they are made of, and how many rows it has.

dagster-dbt finds the same by an adapter of dbt's in this process, for checks as well, while the thread that
waits for the answers keeps a core busy. Here Postgres is asked, and for models alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster_dbt import DbtCliInvocation
from dagster_dbt.core.dbt_cli_event import EventHistoryMetadata, _build_column_lineage_metadata

from bridge_pipeline.redaction import redact

Node = Mapping[str, Any]
# Column -> its type as Postgres writes it.
Columns = dict[str, str]

_COLUMNS = sa.text(
    """
    select attname as name, format_type(atttypid, atttypmod) as type from pg_attribute
    where attrelid = to_regclass(:relation) and attnum > 0 and not attisdropped order by attnum
    """
)


def described(context: dg.AssetExecutionContext, build: DbtCliInvocation, engine: sa.Engine) -> Iterator[Any]:
    """The events of a build, in order; those of models with what was built, as far as it can be found."""
    nodes = {**build.manifest["nodes"], **build.manifest["sources"]}
    for event in build.stream():
        if not isinstance(event, dg.Output | dg.AssetMaterialization):
            yield event
            continue
        node = nodes[event.metadata["unique_id"].value]
        known: dict[str, Any] = {}
        try:
            for found in _found(build, nodes, node, engine):
                known |= found
        except Exception as error:
            # Whoever parses SQL may fail in many ways, and so may a question to Postgres. The model is built
            # and tested all the same, and dbt would be left alone with the next.
            context.log.warning(
                f"{node['name']}: not all that is shown of it is known: {redact(repr(error))}"
            )
        yield event.with_metadata({**event.metadata, **known})


def _found(
    build: DbtCliInvocation, nodes: Mapping[str, Node], node: Node, engine: sa.Engine
) -> Iterator[dict[str, Any]]:
    """What is shown of a model, what is surest first."""
    parents = [nodes[name] for name in build.manifest["parent_map"].get(node["unique_id"], [])]
    with engine.connect() as connection:
        columns = {each["relation_name"]: _columns(connection, each) for each in (node, *parents)}
        yield {"dagster/column_schema": _schema(node, columns[node["relation_name"]])}
        # Views may be costly to count.
        if node["config"]["materialized"] != "view":
            yield {"dagster/row_count": _rows(connection, node), "dagster/storage_kind": "postgres"}
    yield _lineage(build, node, columns)


def _rows(connection: sa.Connection, node: Node) -> int:
    return connection.execute(sa.text(f"select count(*) from {node['relation_name']}")).scalar_one()


def _columns(connection: sa.Connection, node: Node) -> Columns:
    found = connection.execute(_COLUMNS, {"relation": node["relation_name"]})
    return {row.name: row.type for row in found}


def _schema(node: Node, columns: Columns) -> dg.TableSchema:
    said = {name: column["description"] for name, column in node["columns"].items()}
    return dg.TableSchema([dg.TableColumn(name, kind, said.get(name)) for name, kind in columns.items()])


def _lineage(build: DbtCliInvocation, node: Node, columns: Mapping[str, Columns]) -> dict[str, Any]:
    """By column those that it is made of, from the SQL that was run."""
    types = {
        relation: {name: {"data_type": kind} for name, kind in found.items()}
        for relation, found in columns.items()
    }
    own = types.pop(node["relation_name"])
    return _build_column_lineage_metadata(
        event_history_metadata=EventHistoryMetadata(own, types),
        dbt_resource_props=dict(node),
        manifest=build.manifest,
        dagster_dbt_translator=build.dagster_dbt_translator,
        target_path=build.target_path,
        project=build.project,
    )
