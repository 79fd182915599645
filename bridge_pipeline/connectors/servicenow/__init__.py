"""ServiceNow's Table API as a source; see README.md in this folder."""

from typing import TYPE_CHECKING

from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connectors.servicenow.client import METERING, ServiceNowConfig, open_client
from bridge_pipeline.connectors.servicenow.expectations import EXPECTATIONS
from bridge_pipeline.connectors.servicenow.streams import STREAMS

if TYPE_CHECKING:
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions


def _simulate(options: "SimulatorOptions") -> None:
    # The simulator is large and no run needs it.
    from bridge_pipeline.connectors.servicenow.simulator import run

    run(options)


CONNECTOR = Connector(
    name="servicenow",
    title="ServiceNow",
    config=ServiceNowConfig,
    streams=STREAMS,
    open=open_client,
    simulate=_simulate,
    expectations=EXPECTATIONS,
    metering=METERING,
    logins=("user", "client_id"),
)
