"""Freshservice as a source; see README.md in this folder."""

from typing import TYPE_CHECKING

from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connectors.freshservice.client import open_client
from bridge_pipeline.connectors.freshservice.config import FreshserviceConfig
from bridge_pipeline.connectors.freshservice.expectations import EXPECTATIONS
from bridge_pipeline.connectors.freshservice.limits import METERING
from bridge_pipeline.connectors.freshservice.streams import STREAMS

if TYPE_CHECKING:
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions


def _simulate(options: "SimulatorOptions") -> None:
    # The simulator is large and no run needs it.
    from bridge_pipeline.connectors.freshservice.simulator import run

    run(options)


CONNECTOR = Connector(
    name="freshservice",
    title="Freshservice",
    config=FreshserviceConfig,
    streams=STREAMS,
    open=open_client,
    simulate=_simulate,
    expectations=EXPECTATIONS,
    metering=METERING,
    plan_words=("require_feature",),
)
