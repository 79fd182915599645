"""What is shown of a model that was built, whatever cannot be found out about it."""

from types import SimpleNamespace
from typing import Any

import dagster as dg

from assets.described import described
from bridge_pipeline.database.engine import Database

ACCOUNTS = {
    "unique_id": "model.accounts",
    "name": "accounts",
    "relation_name": '"desk"."accounts"',
    "config": {"materialized": "table"},
    "columns": {"id": {"description": "The source's key."}},
}


def shown(engine):
    """The event of a model that was built, of whose SQL there is nothing."""
    built = dg.Output(None, output_name="accounts", metadata={"unique_id": "model.accounts"})
    manifest = {"nodes": {"model.accounts": ACCOUNTS}, "sources": {}, "parent_map": {}}
    build: Any = SimpleNamespace(manifest=manifest, stream=lambda: iter([built]))
    (event,) = described(dg.build_asset_context(), build, engine)
    return event


def test_a_model_is_shown_although_nobody_knows_what_its_columns_are_made_of(workspace):
    event = shown(workspace.database.engine)
    assert event.metadata["dagster/row_count"].value == 0
    columns = {each.name: each for each in event.metadata["dagster/column_schema"].value.columns}
    assert (columns["id"].type, columns["id"].description) == ("text", "The source's key.")
    assert columns["updated_at"].type == "timestamp with time zone"
    assert "dagster/column_lineage" not in event.metadata


def test_a_model_is_built_although_nobody_can_look_at_it(tmp_path):
    nowhere = Database.of(f"postgresql://nobody@/none?host={tmp_path}")
    assert set(shown(nowhere.engine).metadata) == {"unique_id"}
