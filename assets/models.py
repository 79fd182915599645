"""`models/<name>`: the dbt models over the tables, and their tests as asset checks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import orjson

from assets.manifest import SELECTED, asset_specs, check_specs
from bridge_pipeline.imports import hidden, made_to_stay
from bridge_pipeline.steps import gx_worker
from resources.dbt import DbtResource
from resources.workspace import WorkspaceResource


def model_assets(manifest: Path) -> dg.AssetsDefinition:
    """One asset per model; a build waits for one that is under way."""
    parsed = orjson.loads(manifest.read_bytes())

    @dg.multi_asset(
        name="models",
        specs=asset_specs(parsed),
        check_specs=check_specs(parsed),
        can_subset=True,
        op_tags=SELECTED,
        allow_arbitrary_check_specs=True,
    )
    def models(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, dbt: DbtResource
    ) -> Iterator[Any]:
        # dagster-dbt's import takes seconds, so only a build pays for it; and memory, which who judged before
        # need not hold any longer. Without dbt itself, which its own process imports, it does all that is
        # asked of it.
        gx_worker.dismiss()
        with made_to_stay(), hidden("dbt"):
            from assets.building import build

            command = dbt.open()
        yield from build(context, workspace.open(), command, manifest)

    return models
