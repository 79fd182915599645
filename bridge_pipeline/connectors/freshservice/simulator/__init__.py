"""A double of Freshservice: its lists, single records, conversations, limits and errors (vendor-apis B, F).

Written from what is known of the vendor's API, not from what the connector would like. Writing is not
simulated. Sending, faults and logs are `connector_kit.simulator`. A client chooses its pages here, so the
options `envelope`, `filter` and `page_size` say nothing.
"""

from contextlib import AbstractContextManager

from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.double import PAGE_SIZE, Double, Wrong
from bridge_pipeline.connector_kit.simulator import (
    Answer,
    Refusals,
    Request,
    RunningSimulator,
    SimulatorOptions,
)
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.dialect import Freshservice, kind_of
from bridge_pipeline.connectors.freshservice.simulator.limits import Misled, refused
from bridge_pipeline.connectors.freshservice.simulator.world import ERASED

_HTML = b"<!DOCTYPE html><html><body><h1>We're sorry, but something went wrong.</h1></body></html>"


def _server_error(request: Request, variant: int) -> Answer:
    """Those that clients have seen (vendor-apis B.7)."""
    return Answer((500, 502, 503, 504)[variant % 4], _HTML, "text/html")


def _refusals(behaviour: Behaviour) -> Refusals:
    return Refusals(Misled() if behaviour.misleading else refused, _server_error)


def run(options: SimulatorOptions) -> None:
    """Serves until SIGTERM or SIGINT. Main thread only.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
        ValueError: an event log is given, and Freshservice has none to replay.
    """
    if options.event_log:
        raise ValueError("the simulated Freshservice replays no event log")
    behaviour = Behaviour.of(options)
    kit.serve(Freshservice(options, behaviour), options, _refusals(behaviour))


def serving(account: Freshservice) -> AbstractContextManager[RunningSimulator]:
    """Serves an account in a background thread until the block ends.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    return kit.serving(account, account.options, refusals=_refusals(account.behaviour))


def _delete(account: Freshservice, entity: str, record_id: str) -> None:
    row = account.world.find(kind_of(entity), int(record_id))
    assert row is not None
    row.state = ERASED


_CANARY = "canary-of-the-conformance-kit-freshservice"
DOUBLE = Double(
    dialect=lambda options: Freshservice(options, Behaviour(limits=False)),
    config={"api_key": _CANARY, "page_size": PAGE_SIZE, "lookups_at_once": 1},
    token=_CANARY,
    wrong=(
        Wrong({"api_key": "another-key"}, "HTTP 401"),
        Wrong({"api_key": None}, "config.api_key: Field required"),
        Wrong({"plan": "platinum"}, "config.plan: Input should be"),
    ),
    delete=_delete,
    refusals=_refusals(Behaviour()),
    looked_up=r"/tickets/\d+\b",
)
