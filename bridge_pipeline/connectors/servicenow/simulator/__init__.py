"""A double of ServiceNow's Table API: its tables, its query language, its answers (vendor-apis D, F).

Written from what is known of the vendor's API, not from what the connector would like. How answers
are sent, spoilt and logged is `connector_kit.simulator`; writing is not simulated. Here a client
chooses its pages and every filter is honoured, so the options `envelope`, `filter` and `page_size`
say nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.double import PAGE_SIZE, Double, Wrong
from bridge_pipeline.connector_kit.simulator import Refusals, RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.servicenow.simulator.dialect import ServiceNow, Throttling, server_error
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from bridge_pipeline.connectors.servicenow.simulator.world import written


def _refusals(options: SimulatorOptions) -> Refusals:
    return Refusals(Throttling(options), server_error)


def run(options: SimulatorOptions) -> None:
    """Serves until SIGTERM or SIGINT. Main thread only.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    kit.serve(ServiceNow(options), options, _refusals(options))


@contextmanager
def serving(
    options: SimulatorOptions, habits: Habits | None = None
) -> Iterator[tuple[RunningSimulator, ServiceNow]]:
    """Serves in a background thread until the block ends; `habits` instead of those of the profile.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    dialect = ServiceNow(options, habits)
    with kit.serving(dialect, options, refusals=_refusals(options)) as simulator:
        yield simulator, dialect


def _delete(instance: ServiceNow, entity: str, record_id: str) -> None:
    table = instance.table_of(entity)
    table.remove(table.rows[record_id], written(instance.world.clock))


_CANARY = "canary-of-the-conformance-kit-servicenow"
DOUBLE = Double(
    dialect=lambda options: ServiceNow(options, Habits()),
    config={"user": "integration", "password": _CANARY, "page_size": PAGE_SIZE},
    token=_CANARY,
    wrong=(
        Wrong({"password": "another-password"}, "HTTP 401"),
        Wrong({"password": None}, "user and password belong together"),
        Wrong({"user": None, "password": None}, "needs user and password"),
        Wrong({"client_id": "bridge"}, "client_id needs client_secret"),
    ),
    delete=_delete,
    refusals=Refusals(server_error=server_error),
)
