"""Client Central (clientcentral.io) as a source; see README.md in this folder."""

from typing import TYPE_CHECKING

from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connectors.helpdesk.client import HelpdeskConfig, open_client
from bridge_pipeline.connectors.helpdesk.expectations import EXPECTATIONS
from bridge_pipeline.connectors.helpdesk.streams import STREAMS

if TYPE_CHECKING:
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions


def _simulate(options: "SimulatorOptions") -> None:
    # The simulator is large and no run needs it.
    from bridge_pipeline.connectors.helpdesk.simulator import run

    run(options)


CONNECTOR = Connector(
    name="helpdesk",
    title="Client Central",
    config=HelpdeskConfig,
    streams=STREAMS,
    open=open_client,
    simulate=_simulate,
    expectations=EXPECTATIONS,
)
