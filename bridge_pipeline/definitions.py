"""The one file Dagster loads: assembles assets, checks, jobs, schedules, sensors and resources.

Loads without a secret, a database or Great Expectations.
"""

import warnings
from pathlib import Path

import dagster as dg

from bridge_pipeline.imports import made_to_stay

# What is imported stays: a quarter of the time went into looking whether it may go.
with made_to_stay():
    from assets import partitions
    from assets.audit import audit_asset
    from assets.checks import entity_checks
    from assets.extracted import extracted_asset
    from assets.models import model_assets
    from assets.quality import certificate_asset, report_asset
    from assets.tables import table_asset
    from bridge_pipeline import logs, settings
    from bridge_pipeline.automation.jobs import certify_job, daily_job
    from bridge_pipeline.automation.schedules import certify_schedule, daily_schedule
    from bridge_pipeline.automation.sensors import (
        deliveries_sensor,
        failed_runs_sensor,
        follow_upstream_sensor,
        summaries_sensor,
    )
    from bridge_pipeline.model import ENTITIES
    from resources.dbt import MANIFEST, DbtResource
    from resources.workspace import WorkspaceResource


def build_definitions(
    configuration: settings.Settings | None = None, manifest: Path = MANIFEST
) -> dg.Definitions:
    """Fresh definitions for the given settings.

    Raises:
        FileNotFoundError: dbt's manifest is missing; `make install` builds it.
    """
    # Single-run backfills are in beta; that is known and tested for.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    configuration = configuration or settings.load()
    logs.configure_for_dagster(configuration)
    days = partitions.connection_days(configuration.first_day)
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} is missing; build it with: make install")
    entities = ENTITIES.values()
    return dg.Definitions(
        assets=[
            *(extracted_asset(entity, days) for entity in entities),
            *(table_asset(entity, days) for entity in entities),
            *(audit_asset(entity, days) for entity in entities),
            report_asset(days),
            certificate_asset(),
            model_assets(manifest),
        ],
        asset_checks=[entity_checks(entity) for entity in entities],
        jobs=[daily_job(), certify_job()],
        schedules=[daily_schedule(configuration), certify_schedule(configuration)],
        sensors=[follow_upstream_sensor(), failed_runs_sensor(), deliveries_sensor(), summaries_sensor()],
        resources={"workspace": WorkspaceResource(), "dbt": DbtResource()},
        executor=dg.in_process_executor,
    )


with made_to_stay():
    defs = build_definitions()
