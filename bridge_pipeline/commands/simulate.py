"""`bridge simulate`: a double of a vendor's API on this machine, for trials and tests."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer

from bridge_pipeline.commands.answers import examples, parse_day

_EXAMPLES = examples(
    "`bridge simulate helpdesk --port 8800`",
    "`bridge simulate helpdesk --port 8800 --tickets 1000 --faults hostile --truth truth.json`",
    "`bridge simulate helpdesk --port 8800 --event-log log.csv.gz --clock 2016-03-20T00:00`",
)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; write it as 2016-03-20T00:00") from None


_Connector = Annotated[str, typer.Argument(metavar="CONNECTOR", help="Whose API, such as helpdesk.")]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
_Seed = Annotated[int, typer.Option(help="The same seed gives the same data, changes and faults.")]
_Tickets = Annotated[int, typer.Option(min=0, help="How many tickets there are at the start.")]
_Accounts = Annotated[int | None, typer.Option(min=0, help="How many; default tickets / 100.")]
_Users = Annotated[int | None, typer.Option(min=0, help="How many; default tickets / 10.")]
_First = Annotated[
    date, typer.Option("--from", parser=parse_day, metavar="DAY", help="First day of changes (UTC).")
]
_Last = Annotated[
    date, typer.Option("--to", parser=parse_day, metavar="DAY", help="Last day of changes, included.")
]
_EventLog = Annotated[Path | None, typer.Option(help="Serve a recorded event log instead.")]
_Clock = Annotated[
    datetime | None,
    typer.Option(parser=_moment, metavar="TIME", help="The moment that --event-log is frozen at (UTC)."),
]
_Faults = Annotated[str, typer.Option(help="How it misbehaves: calm, typical or hostile.")]
_Truth = Annotated[Path | None, typer.Option(help="Write every id with its final version here.")]
_RequestLog = Annotated[Path | None, typer.Option(help="Write one JSON line per request here.")]
_Token = Annotated[str | None, typer.Option(help="The only credential accepted; default: any.")]
_PageSize = Annotated[int, typer.Option(min=1, help="Rows per page.")]
_Envelope = Annotated[str, typer.Option(help="paged, named, data or array.")]
_Filter = Annotated[str, typer.Option("--filter", help="faithful, ignored, hiding or local_time.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="A limit that it enforces.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=_EXAMPLES)(simulate)


def simulate(
    context: typer.Context,
    connector: _Connector,
    port: _Port = 0,
    seed: _Seed = 0,
    tickets: _Tickets = 20_000,
    accounts: _Accounts = None,
    users: _Users = None,
    first_day: _First = date(2025, 1, 1),
    last_day: _Last = date(2025, 3, 1),
    event_log: _EventLog = None,
    clock: _Clock = None,
    faults: _Faults = "typical",
    truth: _Truth = None,
    request_log: _RequestLog = None,
    token: _Token = None,
    page_size: _PageSize = 100,
    envelope: _Envelope = "paged",
    filter: _Filter = "faithful",
    requests_per_minute: _Limit = None,
) -> None:
    """Serve a seeded double of an API until it is stopped, and say where it listens."""
    from bridge_pipeline import connectors, logs, settings
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions

    # Nothing of the home is touched: it may serve another machine's trials.
    logs.configure(settings.load(), None)
    served = connectors.get(connector)
    # An option has the name of what it sets.
    chosen = {name: value for name, value in context.params.items() if name != "connector"}
    try:
        options = SimulatorOptions(**chosen)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    served.simulate(options)
