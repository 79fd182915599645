"""What reviewers use: `bridge show`, `bridge accept` and `bridge report`."""

import json
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_pipeline.commands.answers import (
    ConnectionName,
    Json,
    answer,
    examples,
    opened,
    parse_day,
    printable,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.steps.history import RecordHistory
    from bridge_pipeline.steps.report import Report


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog=examples("`bridge show acme-helpdesk tickets 4711`"))(show)
    app.command(
        epilog=examples('`bridge accept 17 --by "Ann Lee" --reason "the vendor confirmed the drop"`')
    )(accept)
    app.command(
        epilog=examples("`bridge report acme-helpdesk`", "`bridge report acme-helpdesk --day 2025-03-01`")
    )(report)


def show(
    connection: ConnectionName,
    entity: Annotated[str, typer.Argument(help="Such as tickets, users or accounts.")],
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The source's key of the record.")],
    json_output: Json = False,
) -> None:
    """Show one record: its row, what the source sent, and its versions with their batches."""
    from bridge_pipeline.steps.history import find_record

    found = find_record(opened(), connection, entity, record_id)
    document = asdict(found) | {
        "payload": json.loads(found.payload) if found.payload is not None else None,
        "versions": [
            {key: value for key, value in asdict(version).items() if key != "raw"}
            for version in found.versions
        ],
    }
    answer(document, json_output, lambda console: _show(found, console))


def _show(found: "RecordHistory", console: "Console") -> None:
    console.print(f"{found.entity} {printable(found.id)} of {found.connection}", style="bold")
    if found.row is None:
        console.print("It is in no table: it was not loaded.")
    else:
        console.print(table(["column", "value"], found.row.items()))
    if found.payload is not None:
        console.print("Payload", style="bold")
        console.print(printable(json.dumps(json.loads(found.payload), indent=2, ensure_ascii=False)) + "\n")
    columns = ["batch", "window", "verdict", "updated_at", "fetched_at", "content_hash", "rejected by"]
    rows = [
        [str(v.batch), v.window, v.verdict, v.updated_at, v.fetched_at, v.content_hash[:12], v.rejected_by]
        for v in found.versions
    ]
    console.print(table(columns, rows, "Versions, oldest first"))
    for each in found.quarantined:
        console.print(
            printable(f"in quarantine: {each['reason']} at {each['pointer'] or 'the whole record'}; ")
            + f"bridge quarantine show {each['sha256'][:12]}"
        )
    for path in found.damaged:
        console.print(printable(f"{path} is missing or not the file that the ledger lists: it was not read"))


def accept(
    batch: Annotated[int, typer.Argument(metavar="BATCH", help="Number of the blocked batch.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who accepts it.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stands in the report.")],
    json_output: Json = False,
) -> None:
    """Let a blocked batch through, on a reviewer's word.

    Name and reason are kept in the ledger and shown in the report. The batch is loaded and audited;
    the marts follow with the next run.
    """
    from bridge_pipeline.database.ledger import NotBlocked
    from bridge_pipeline.steps.accept import accept_batch

    by, reason = by.strip(), reason.strip()
    if not by or not reason:
        raise typer.BadParameter("--by and --reason must say something")
    workspace = opened()
    try:
        accepted = accept_batch(workspace, batch, by, reason)
    except NotBlocked as error:
        raise typer.BadParameter(str(error)) from error
    document = {
        "batch": accepted.id,
        "connection": accepted.connection,
        "entity": accepted.entity,
        "window": str(accepted.window),
        "verdict": accepted.verdict,
        "accepted_by": accepted.accepted_by,
        "reason": accepted.accept_reason,
    }
    place = f"{accepted.connection} {accepted.entity} {accepted.window}"
    text = f"batch {accepted.id} of {place} is accepted, loaded and audited"
    answer(document, json_output, lambda console: console.print(text))


def report(
    connection: ConnectionName,
    day: Annotated[
        date | None,
        typer.Option(parser=parse_day, metavar="DAY", help="The day; by default the last one extracted."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Write the data-quality report of a connection: one HTML page that needs nothing else.

    Beside it lies a workbook of the rejected records, where there are any.
    """
    from bridge_pipeline.steps.report import last_day_read, write_report

    if day and day > datetime.now(UTC).date():
        raise typer.BadParameter(f"{day} has not come yet")
    workspace = opened()
    written = write_report(workspace, connection, day or last_day_read(workspace, connection))
    answer(written.document(), json_output, lambda console: _show_report(written, console))


def _show_report(written: "Report", console: "Console") -> None:
    console.print(f"{written.verdict.title}. {written.verdict.text}", style="bold")
    console.print(str(written.html))
    if written.workbook:
        console.print(f"rejected records: {written.workbook}")
