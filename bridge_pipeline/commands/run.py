"""`bridge run`: materialises days of a connection through Dagster, in this process."""

from contextlib import suppress
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_pipeline.commands.answers import (
    ConnectionName,
    Json,
    answer,
    examples,
    note,
    opened,
    parse_day,
    printable,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.automation.runs import RunOutcome
    from bridge_pipeline.database.workspace import Workspace
    from bridge_pipeline.steps.estimate import Estimate

_EXAMPLES = examples(
    "`bridge run acme-helpdesk --from 2025-01-31 --to 2025-03-01`",
    "`bridge run acme-helpdesk --from 2025-03-01 --to 2025-03-01 --entities tickets --json`",
    "`bridge run acme-helpdesk --from 2020-01-01 --to 2024-12-31 --dry-run`",
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=_EXAMPLES)(run)


def run(
    connection: ConnectionName,
    first: Annotated[date, typer.Option("--from", parser=parse_day, metavar="DAY", help="First day (UTC).")],
    last: Annotated[date, typer.Option("--to", parser=parse_day, metavar="DAY", help="Last day, included.")],
    entities: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these entities; by default all of the connection.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate requests and time; nothing is extracted.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Extract, check, load, model and audit days of a connection, in one Dagster run.

    Both days are included. Running days again fetches them anew; what has not changed stays as it is.
    """
    from bridge_pipeline.imports import made_to_stay

    # Seconds of imports, longer where the collector looks at all that stays.
    with made_to_stay():
        from bridge_pipeline.commands.summaries import show_summary
        from bridge_pipeline.steps.summary import NothingExtracted, summarise_run

        workspace = opened()
    names = _names(entities)
    if dry_run:
        _estimate(workspace, connection, first, last, names, json_output)
        return
    outcome = _materialised(workspace, connection, first, last, names)
    summary = None
    with suppress(NothingExtracted):
        summary = summarise_run(workspace, outcome.run_id)
    document = {
        "run_id": outcome.run_id,
        "success": outcome.success,
        "failures": list(outcome.failures),
        "summary": summary.document() if summary else None,
    }
    answer(document, json_output, lambda console: show_summary(summary, console) if summary else None)
    for failure in outcome.failures:
        note(f"failed: {printable(failure)}")
    if not outcome.success:
        note(f"run {outcome.run_id} failed; what it finished stays, and running it again goes on from there")
        raise typer.Exit(1)


def _materialised(
    workspace: "Workspace", connection: str, first: date, last: date, entities: tuple[str, ...] | None
) -> "RunOutcome":
    from bridge_pipeline.commands import working
    from bridge_pipeline.imports import made_to_stay
    from bridge_pipeline.steps import gx_worker

    # It imports for longer than Dagster takes to, so it begins before.
    with working.shown(f"{connection} {first} to {last}"), gx_worker.ready():
        with made_to_stay():
            from bridge_pipeline.automation.runs import run_days

        try:
            return run_days(workspace, connection, first, last, entities)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


def _names(entities: str | None) -> tuple[str, ...] | None:
    if entities is None:
        return None
    names = tuple(name.strip() for name in entities.split(",") if name.strip())
    if not names:
        raise typer.BadParameter("--entities must name at least one entity, such as tickets")
    return names


def _estimate(
    workspace: "Workspace",
    connection: str,
    first: date,
    last: date,
    entities: tuple[str, ...] | None,
    json_output: bool,
) -> None:
    from bridge_pipeline.database import registry
    from bridge_pipeline.steps.due import checked_request
    from bridge_pipeline.steps.estimate import estimate

    record = registry.get(workspace.database.engine, connection)
    try:
        wanted = checked_request(workspace, record, first, last, entities)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    found = estimate(workspace, record, first, last, wanted)
    answer(found.document(), json_output, lambda console: _show_estimate(found, console))


def _show_estimate(found: "Estimate", console: "Console") -> None:
    entities = [
        [each.entity, each.reads, each.records, each.calls, each.seconds, each.rests_on]
        for each in found.entities
    ]
    console.print(table(["entity", "reads", "records", "calls", "s to answer", "rests on"], entities))
    buckets = [[each.bucket, each.units, each.limit, each.left, each.seconds] for each in found.buckets]
    if buckets:
        console.print(table(["bucket", "units", "limit", "left now", "s by its limit"], buckets))
    about = "about" if found.complete else "at least"
    console.print(
        f"{about} {found.calls:,} requests and {timedelta(seconds=round(found.seconds))} to extract"
    )
