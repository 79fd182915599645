"""The sensor that lets downstream assets follow upstream ones that were materialised by hand."""

import dagster as dg


def follow_upstream_sensor() -> dg.AutomationConditionSensorDefinition:
    """Requests assets whose automation condition holds; runs as soon as the daemon does."""
    return dg.AutomationConditionSensorDefinition(
        "follow_upstream",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description="Materialises what lies downstream of assets that were materialised alone.",
    )
