"""The build of the dbt models by dagster-dbt, in the step that does it: its import takes seconds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, dbt_assets

from assets import keys
from assets.described import described
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.workspace import Workspace
from resources.dbt import in_database, target_folder


class ModelsTranslator(DagsterDbtTranslator):
    """dbt's models and sources as assets: `models/<name>`, read from `tables/<entity>`."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        return keys.model_key(dbt_resource_props)

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return keys.model_group(dbt_resource_props)

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> list[str]:
        return keys.model_owners()

    def get_automation_condition(self, dbt_resource_props: Mapping[str, Any]) -> dg.AutomationCondition:
        return keys.follows_upstream(missing=True)


class _Building(dg.AssetExecutionContext):
    """The context of a step over assets as dagster-dbt knows them."""

    def __init__(self, context: dg.AssetExecutionContext, known: dg.AssetsDefinition) -> None:
        super().__init__(context.op_execution_context)
        self._known = known.subset_for(context.selected_asset_keys, set(context.selected_asset_check_keys))

    @property
    def assets_def(self) -> dg.AssetsDefinition:
        return self._known


def build(
    context: dg.AssetExecutionContext, workspace: Workspace, dbt: DbtCliResource, manifest: Path
) -> Iterator[Any]:
    """Builds and tests the selected models; waits for a build that is under way."""
    building = _Building(context, known_models(manifest))
    with exclusively(workspace, "dbt"), target_folder(workspace) as target:
        # Unit tests test the SQL, not the data; `make test` runs them.
        build = dbt.cli(
            ["build", "--exclude-resource-type", "unit_test"], context=building, target_path=target
        )
        build.manifest = in_database(build.manifest, workspace.database.name)
        yield from described(context, build, workspace.database.engine)


def known_models(manifest: Path) -> dg.AssetsDefinition:
    """The models as dagster-dbt declares them."""
    # Two of dbt's sources are filled by one asset.
    settings = DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True)

    @dbt_assets(manifest=manifest, dagster_dbt_translator=ModelsTranslator(settings), name="models")
    def known() -> Iterator[Any]:
        """Never run: the step that builds is declared in `models`."""
        yield from ()

    return known
