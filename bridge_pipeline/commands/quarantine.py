"""`bridge quarantine`: records that could not be accepted, with their exact bytes."""

import base64
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import (
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

    from bridge_pipeline.steps.quarantine import QuarantinedRecord, Selection
    from bridge_pipeline.steps.replay import Replayed

app = typer.Typer(help="Look at records that could not be accepted, and replay them.", no_args_is_help=True)
_SHOWN = 200
# Of a record on a terminal; a file or JSON takes all.
_SHOWN_LETTERS = 100_000
_HEX_LINE = 16

Connection = Annotated[
    str | None, typer.Argument(metavar="[CONNECTION]", help="Only records of this connection.")
]
EntityName = Annotated[str | None, typer.Option("--entity", help="Only of this entity, such as tickets.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason.")]
Day = Annotated[
    date | None,
    typer.Option(
        "--day",
        parser=parse_day,
        metavar="DAY",
        help="Only those rejected when this day (UTC) was extracted.",
    ),
]


@app.command(
    "list",
    epilog=examples(
        "`bridge quarantine list`",
        "`bridge quarantine list acme-helpdesk --reason lone_surrogate --json`",
        "`bridge quarantine list acme-helpdesk --entity tickets --day 2025-03-01 --rejected`",
    ),
)
def list_records(
    connection: Connection = None,
    entity: EntityName = None,
    reason: Reason = None,
    day: Day = None,
    replayed: Annotated[
        bool | None,
        typer.Option(
            "--replayed/--rejected", help="Only those a replay has loaded, or those still rejected."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """List quarantined records, last seen first; by default also those that were replayed since."""
    from bridge_pipeline.steps.quarantine import Selection, list_quarantined

    selection = Selection(connection, _known(entity), reason, day, replayed=replayed)
    found = list_quarantined(opened(), selection)
    answer([asdict(record) for record in found], json_output, lambda console: _show_list(found, console))


def _known(entity: str | None) -> str | None:
    """The entity, if there is one of that name: a misspelt one would look like an empty quarantine."""
    from bridge_pipeline.model import ENTITIES

    if entity is not None and entity not in ENTITIES:
        raise typer.BadParameter(f"there is no entity {entity!r}; there are: {', '.join(ENTITIES)}")
    return entity


def _show_list(found: "list[QuarantinedRecord]", console: "Console") -> None:
    columns = ["sha256", "connection", "entity", "reason", "where", "id", "seen", "last seen", "replayed"]
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
            f"batch {r.replay_batch}" if r.replayed_at else None,
        ]
        for r in found[:_SHOWN]
    ]
    console.print(table(columns, rows))
    more = f", {_SHOWN} are shown; --json lists all" if len(found) > _SHOWN else ""
    console.print(f"{len(found):,} records{more}")


@app.command(
    "show",
    epilog=examples(
        "`bridge quarantine show 9f86d081`", "`bridge quarantine show 9f86d081 --raw record.json`"
    ),
)
def show_record(
    sha256: Annotated[str, typer.Argument(metavar="SHA256", help="Its SHA-256, or the beginning of it.")],
    raw: Annotated[
        Path | None,
        typer.Option("--raw", metavar="FILE", help="Write the exact bytes to this file, which must be new."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Show a quarantined record: why it is there, where in it, and its exact bytes.

    What is no printable text is shown as escapes, bytes that are not UTF-8 in hexadecimal; `--json` has
    them in base64 too. The same bytes may have been sent by several connections.
    """
    from bridge_pipeline.steps.quarantine import find_quarantined

    found = find_quarantined(opened(), sha256)
    if raw is not None:
        _write_new(raw, found[0][1])
    document = [asdict(record) | _bytes_of(exact) for record, exact in found]
    answer(document, json_output, lambda console: _show_records(found, console))


def _write_new(path: Path, exact: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(exact)
    except FileExistsError:
        raise typer.BadParameter(f"{path} exists already; name a new file") from None
    note(f"{len(exact):,} bytes written to {path}")


def _bytes_of(exact: bytes) -> dict[str, Any]:
    return {"raw": printable(_as_text(exact)), "raw_base64": base64.b64encode(exact).decode()}


def _show_records(found: "list[tuple[QuarantinedRecord, bytes]]", console: "Console") -> None:
    for record, _ in found:
        console.print(table(["field", "value"], asdict(record).items()))
    text = _as_text(found[0][1])
    console.print(printable(text[:_SHOWN_LETTERS]))
    if len(text) > _SHOWN_LETTERS:
        console.print("… and more: --raw FILE writes all of it")


def _as_text(exact: bytes) -> str:
    """The text of a record; a hexadecimal table where it is none."""
    try:
        return exact.decode()
    except UnicodeDecodeError:
        lines = range(0, len(exact), _HEX_LINE)
        return "\n".join(_hex_line(start, exact[start : start + _HEX_LINE]) for start in lines)


def _hex_line(start: int, part: bytes) -> str:
    letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
    return f"{start:08x}  {part.hex(' '):<47}  {letters}"


@app.command(
    "replay",
    epilog=examples(
        "`bridge quarantine replay acme-helpdesk --entity tickets --reason time_without_zone`",
        "`bridge quarantine replay --sha 9f86d081 --sha 60303ae2`",
        "`bridge quarantine replay --all --json`",
    ),
)
def replay_records(
    connection: Connection = None,
    entity: EntityName = None,
    reason: Reason = None,
    day: Day = None,
    sha: Annotated[
        list[str] | None, typer.Option("--sha", metavar="SHA256", help="Only this record; may be repeated.")
    ] = None,
    record_id: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only records of this id; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is in quarantine.")] = False,
    json_output: Json = False,
) -> None:
    """Load quarantined records again, after a mapping, a suite or a threshold was mended.

    They are parsed, checked, loaded and audited like any other batch, from their exact bytes and without
    asking the source; a newer version in the tables stays. What is refused again stays in quarantine and
    says why. The marts follow with the next run.
    """
    from bridge_pipeline.commands import working
    from bridge_pipeline.steps.quarantine import Selection
    from bridge_pipeline.steps.replay import replay

    selection = Selection(connection, _known(entity), reason, day, tuple(sha or ()), tuple(record_id or ()))
    if everything == bool(selection.conditions()):
        raise typer.BadParameter("say which records: a CONNECTION, an option such as --reason, or --all")
    workspace = opened()
    with working.shown("replay from quarantine"):
        done = replay(workspace, selection)
    answer(_document(workspace, selection, done), json_output, lambda console: _show_replays(done, console))
    blocked = [each.batch.id for each in done if each.load is None]
    for batch in blocked:
        note(f'a check blocks batch {batch}; bridge accept {batch} --by NAME --reason "…" lets it through')
    if blocked:
        raise typer.Exit(1)


def _document(workspace: Any, selection: "Selection", done: "list[Replayed]") -> dict[str, Any]:
    from dataclasses import replace

    from bridge_pipeline.steps.quarantine import list_quarantined

    left = list_quarantined(workspace, replace(selection, replayed=False))
    kept = ("sha256", "connection", "entity", "reason", "pointer", "detail", "record_id")
    return {
        "batches": [each.document() for each in done],
        "accepted": sum(each.accepted for each in done),
        "still_rejected": [{name: getattr(record, name) for name in kept} for record in left],
    }


def _show_replays(done: "list[Replayed]", console: "Console") -> None:
    if not done:
        console.print("no such record is in quarantine")
        return
    columns = ["batch", "connection", "entity", "verdict", "fetched", "loaded", "unchanged", "superseded"]
    documents = [each.document() for each in done]
    console.print(table(columns, [[document[name] for name in columns] for document in documents]))
    for document in documents:
        for reason, count in document["still_rejected"].items():
            console.print(f"batch {document['batch']}: {count:,} still rejected: {printable(reason)}")
        if changed := document["partitions"]:
            console.print(f"batch {document['batch']}: partitions changed: {', '.join(changed)}")
        if unread := document["days_without_audit"]:
            days = ", ".join(unread)
            console.print(f"batch {document['batch']}: days never extracted, so without audit: {days}")
