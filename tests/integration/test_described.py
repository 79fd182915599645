"""What is shown of a model that was built, whatever cannot be found out about it."""

from types import SimpleNamespace
from typing import Any

import dagster as dg

from assets.described import described

ACCOUNTS = {
    "unique_id": "model.accounts",
    "name": "accounts",
    "relation_name": '"desk"."accounts"',
    "config": {"materialized": "table"},
    "columns": {"id": {"description": "The source's key."}},
}


def test_a_model_is_shown_although_nobody_knows_what_its_columns_are_made_of(workspace):
    built = dg.Output(None, output_name="accounts", metadata={"unique_id": "model.accounts"})
    manifest = {"nodes": {"model.accounts": ACCOUNTS}, "sources": {}, "parent_map": {}}
    # Of its SQL there is nothing.
    build: Any = SimpleNamespace(manifest=manifest, stream=lambda: iter([built]))
    (event,) = described(dg.build_asset_context(), build, workspace.database.engine)
    assert event.metadata["dagster/row_count"].value == 0
    columns = {each.name: each for each in event.metadata["dagster/column_schema"].value.columns}
    assert (columns["id"].type, columns["id"].description) == ("text", "The source's key.")
    assert columns["updated_at"].type == "timestamp with time zone"
    assert "dagster/column_lineage" not in event.metadata
