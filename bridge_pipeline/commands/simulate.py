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


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=_EXAMPLES)(simulate)


def simulate(
    connector: Annotated[str, typer.Argument(metavar="CONNECTOR", help="Whose API, such as helpdesk.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data, changes and faults.")] = 0,
    tickets: Annotated[int, typer.Option(min=0, help="How many tickets there are at the start.")] = 20_000,
    accounts: Annotated[int | None, typer.Option(min=0, help="How many; default tickets / 100.")] = None,
    users: Annotated[int | None, typer.Option(min=0, help="How many; default tickets / 10.")] = None,
    first: Annotated[
        date, typer.Option("--from", parser=parse_day, metavar="DAY", help="First day of changes (UTC).")
    ] = date(2025, 1, 1),
    last: Annotated[
        date, typer.Option("--to", parser=parse_day, metavar="DAY", help="Last day of changes, included.")
    ] = date(2025, 3, 1),
    event_log: Annotated[Path | None, typer.Option(help="Serve a recorded event log instead.")] = None,
    clock: Annotated[
        str | None, typer.Option(metavar="TIME", help="The moment that --event-log is frozen at (UTC).")
    ] = None,
    faults: Annotated[str, typer.Option(help="How it misbehaves: calm, typical or hostile.")] = "typical",
    truth: Annotated[Path | None, typer.Option(help="Write every id with its final version here.")] = None,
    request_log: Annotated[Path | None, typer.Option(help="Write one JSON line per request here.")] = None,
    token: Annotated[str | None, typer.Option(help="The only credential accepted; default: any.")] = None,
    page_size: Annotated[int, typer.Option(min=1, help="Rows per page.")] = 100,
    envelope: Annotated[str, typer.Option(help="paged, named, data or array.")] = "paged",
    filter_mode: Annotated[
        str, typer.Option("--filter", help="faithful, ignored, hiding or local_time.")
    ] = "faithful",
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="A limit that it enforces.")] = None,
) -> None:
    """Serve a seeded double of an API until it is stopped, and say where it listens."""
    from bridge_pipeline import connectors, logs, settings
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions

    # Nothing of the home is touched: it may serve another machine's trials.
    logs.configure(settings.load(), None)
    served = connectors.get(connector)
    try:
        options = SimulatorOptions(
            port=port,
            seed=seed,
            tickets=tickets,
            first_day=first,
            last_day=last,
            event_log=event_log,
            clock=_moment(clock),
            faults=faults,
            truth=truth,
            request_log=request_log,
            token=token,
            page_size=page_size,
            accounts=accounts,
            users=users,
            envelope=envelope,
            filter=filter_mode,
            requests_per_minute=requests_per_minute,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    served.simulate(options)


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; write it as 2016-03-20T00:00") from None
