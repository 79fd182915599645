"""A double of Client Central: its records, its query language, its answers (vendor-apis A, F).

Written from what is known of the vendor's API, not from what the connector would like.
What the vendor does not document and is decided here (error texts, order of listings,
null in filters, unknown fields in filters) is said where it is decided.

How answers are sent, spoilt and logged is `connector_kit.simulator`. Writing (POST, PATCH)
is not simulated.
"""

from contextlib import AbstractContextManager

from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.double import Double, Wrong
from bridge_pipeline.connector_kit.simulator import RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator.dialect import ClientCentral


def run(options: SimulatorOptions) -> None:
    """Serves until SIGTERM or SIGINT. Main thread only.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    kit.serve(ClientCentral(options), options)


def serving(options: SimulatorOptions) -> AbstractContextManager[RunningSimulator]:
    """Serves in a background thread until the block ends.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    return kit.serving(ClientCentral(options), options)


def _delete(desk: ClientCentral, entity: str, record_id: str) -> None:
    table = desk.world.tables[entity]
    row = table.row_of(int(record_id))
    assert row is not None
    table.remove(row, desk.world.clock)


_CANARY = "1-canary-of-the-conformance-kit-helpdesk"
DOUBLE = Double(
    dialect=ClientCentral,
    config={"api_token": _CANARY},
    token=_CANARY,
    wrong=(
        Wrong({"api_token": "1-another-token-of-the-same-form-000"}, "HTTP 401"),
        Wrong({"api_token": None}, "config.api_token: Field required"),
        Wrong({"base_url": "https://desk.example/?token=1"}, "credentials have fields of their own"),
    ),
    delete=_delete,
)
