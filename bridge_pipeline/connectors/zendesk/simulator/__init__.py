"""A double of Zendesk Support: its exports, lists, single records, limits and errors (vendor-apis C, F).

Written from what is known of the vendor's API, not from what the connector would like. Writing is not
simulated. Sending, faults and logs are `connector_kit.simulator`.
"""

from contextlib import AbstractContextManager

from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.double import Double, Wrong
from bridge_pipeline.connector_kit.simulator import (
    Answer,
    Refusals,
    Request,
    RunningSimulator,
    SimulatorOptions,
)
from bridge_pipeline.connectors.zendesk.simulator.dialect import Behaviour, ZendeskSupport
from bridge_pipeline.connectors.zendesk.simulator.limits import refused

_HTML = b"<!DOCTYPE html><html><body><h1>We're sorry, but something went wrong</h1></body></html>"


def _server_error(request: Request, variant: int) -> Answer:
    """A gateway's words, or Zendesk's own (vendor-apis C.1, C.10)."""
    return (
        Answer(500, _HTML, "text/html"),
        Answer(502, _HTML, "text/html"),
        Answer(503, b'{"error":"ServiceUnavailable"}'),
        Answer(504, b"upstream request timeout", "text/plain"),
    )[variant % 4]


_REFUSALS = Refusals(refused, _server_error)


def run(options: SimulatorOptions) -> None:
    """Serves until SIGTERM or SIGINT. Main thread only.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
        ValueError: an event log is given, and Zendesk has none to replay.
    """
    kit.serve(_account(options, Behaviour.of(options)), options, _REFUSALS)


def serving(
    options: SimulatorOptions, behaviour: Behaviour | None = None
) -> AbstractContextManager[RunningSimulator]:
    """Serves in a background thread until the block ends; by default without limits.

    Raises:
        OSError: the port is taken, or a file cannot be read or written.
    """
    account = _account(options, behaviour or Behaviour(limits=False))
    return kit.serving(account, options, refusals=_REFUSALS)


def _account(options: SimulatorOptions, behaviour: Behaviour) -> ZendeskSupport:
    if options.event_log:
        raise ValueError("the simulated Zendesk replays no event log")
    return ZendeskSupport(options, behaviour)


def _small(options: SimulatorOptions) -> ZendeskSupport:
    return _account(options, Behaviour(export_page=options.page_size, limits=False))


def _delete(account: ZendeskSupport, entity: str, record_id: str) -> None:
    table = account.world.tables[entity]
    row = table.row_of(int(record_id))
    assert row is not None
    table.remove(row, account.world.clock)


_CANARY = "canary-of-the-conformance-kit-zendesk"
DOUBLE = Double(
    dialect=_small,
    config={"email": "admin@acme.example.com", "api_token": _CANARY},
    token=_CANARY,
    wrong=(
        Wrong({"api_token": "another-token"}, "HTTP 401"),
        Wrong({"api_token": None, "email": None}, "give one of api_token"),
        Wrong({"email": None}, "api_token needs email"),
        Wrong({"access_token": _CANARY}, "give one of api_token"),
    ),
    delete=_delete,
    refusals=_REFUSALS,
)
