"""`bridge quarantine`: records that could not be accepted, with their exact bytes."""

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, opened, printable, table

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.steps.quarantine import QuarantinedRecord

app = typer.Typer(help="Look at records that could not be accepted.", no_args_is_help=True)
_SHOWN = 200


@app.command(
    "list",
    epilog=examples(
        "`bridge quarantine list`", "`bridge quarantine list acme-helpdesk --reason lone_surrogate --json`"
    ),
)
def list_records(
    connection: Annotated[
        str | None, typer.Argument(metavar="[CONNECTION]", help="Only of this one.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    json_output: Json = False,
) -> None:
    """List quarantined records, last seen first."""
    from bridge_pipeline.steps.quarantine import list_quarantined

    found = list_quarantined(opened(), connection, reason)
    answer([asdict(record) for record in found], json_output, lambda console: _show_list(found, console))


def _show_list(found: "list[QuarantinedRecord]", console: "Console") -> None:
    columns = ["sha256", "connection", "entity", "reason", "where", "id", "seen", "last seen"]
    rows = [
        [
            r.sha256[:12],
            r.connection,
            r.entity,
            r.reason,
            r.pointer,
            r.record_id,
            r.times_seen,
            f"{r.last_seen:%F %T}",
        ]
        for r in found[:_SHOWN]
    ]
    console.print(table(columns, rows))
    more = f", {_SHOWN} are shown; --json lists all" if len(found) > _SHOWN else ""
    console.print(f"{len(found):,} records{more}")


@app.command("show", epilog=examples("`bridge quarantine show 9f86d081`"))
def show_record(
    sha256: Annotated[str, typer.Argument(metavar="SHA256", help="Its SHA-256, or the beginning of it.")],
    json_output: Json = False,
) -> None:
    """Show a quarantined record: why it is there, where in it, and its exact bytes.

    Bytes that are no printable text are shown as escapes; `--json` has them in base64 too.
    """
    from bridge_pipeline.steps.quarantine import find_quarantined

    found = find_quarantined(opened(), sha256)
    document = [
        asdict(record) | {"raw": _as_text(raw), "raw_base64": base64.b64encode(raw).decode()}
        for record, raw in found
    ]
    answer(document, json_output, lambda console: _show_records(found, console))


def _show_records(found: "list[tuple[QuarantinedRecord, bytes]]", console: "Console") -> None:
    for record, raw in found:
        console.print(table(["field", "value"], asdict(record).items()))
        console.print(_as_text(raw))


def _as_text(raw: bytes) -> str:
    return printable(raw.decode("utf-8", "backslashreplace"))
