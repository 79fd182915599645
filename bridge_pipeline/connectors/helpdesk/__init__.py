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


def _record_url(base: str, entity: str, record_id: str) -> str | None:
    """A ticket's page; its address is that of the vendor's own client (CC-py `get_human_url`)."""
    return f"{base.rstrip('/')}/support/tickets/{record_id}" if entity == "tickets" else None


CONNECTOR = Connector(
    name="helpdesk",
    title="Client Central",
    config=HelpdeskConfig,
    streams=STREAMS,
    open=open_client,
    simulate=_simulate,
    expectations=EXPECTATIONS,
    record_url=_record_url,
)
