"""`models/<name>`: the dbt models over the tables, and their tests as asset checks."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslatorSettings, DbtCliResource, dbt_assets

from assets.keys import ModelsTranslator
from bridge_pipeline.database.exclusive import exclusively
from resources.dbt import in_database, target_folder
from resources.workspace import WorkspaceResource


def model_assets(manifest: Path) -> dg.AssetsDefinition:
    """One asset per model; a build waits for one that is under way."""

    # Two of dbt's sources are filled by one asset.
    settings = DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True)

    @dbt_assets(manifest=manifest, dagster_dbt_translator=ModelsTranslator(settings), name="models")
    def models(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, dbt: DbtCliResource
    ) -> Iterator[Any]:
        opened = workspace.open()
        # The threads of dagster-dbt that read the metadata change the folder, each back to what it found.
        with exclusively(opened, "dbt"), target_folder(opened) as target, chdir(Path.cwd()):
            # Unit tests test the SQL, not the data; `make test` runs them.
            build = dbt.cli(
                ["build", "--exclude-resource-type", "unit_test"], context=context, target_path=target
            )
            build.manifest = in_database(build.manifest, opened.database.name)
            yield from build.stream().fetch_row_counts().fetch_column_metadata()

    return models
