"""Zendesk Support as a source; see README.md in this folder."""

from typing import TYPE_CHECKING

from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connectors.zendesk.client import open_client
from bridge_pipeline.connectors.zendesk.config import ZendeskConfig
from bridge_pipeline.connectors.zendesk.expectations import EXPECTATIONS
from bridge_pipeline.connectors.zendesk.limits import METERING
from bridge_pipeline.connectors.zendesk.streams import STREAMS

if TYPE_CHECKING:
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions


def _simulate(options: "SimulatorOptions") -> None:
    # The simulator is large and no run needs it.
    from bridge_pipeline.connectors.zendesk.simulator import run

    run(options)


CONNECTOR = Connector(
    name="zendesk",
    title="Zendesk Support",
    config=ZendeskConfig,
    streams=STREAMS,
    open=open_client,
    simulate=_simulate,
    expectations=EXPECTATIONS,
    metering=METERING,
    logins=("email", "client_id"),
)
