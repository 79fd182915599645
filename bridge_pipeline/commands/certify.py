"""`bridge certify`: reckons a connection against its source, and says whether anything is missing."""

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

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

    from bridge_pipeline.database.certificates import Certificate
    from bridge_pipeline.model import Window
    from bridge_pipeline.steps.certify import Acceptance

_EXAMPLES = examples(
    "`bridge certify acme-helpdesk`",
    "`bridge certify acme-helpdesk --from 2025-03-01 --to 2025-03-07 --entities tickets --json`",
    '`bridge certify acme-helpdesk --accept-deletions --by "Ann Lee" --reason "the vendor purged 2019"`',
)
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=_EXAMPLES)(certify)


def certify(
    connection: ConnectionName,
    first: Annotated[
        date | None,
        typer.Option(
            "--from", parser=parse_day, metavar="DAY", help="Judge only changes since this day (UTC)."
        ),
    ] = None,
    last: Annotated[
        date | None,
        typer.Option(
            "--to", parser=parse_day, metavar="DAY", help="The last day, included; goes with --from."
        ),
    ] = None,
    entities: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these entities; by default all of the connection.")
    ] = None,
    accept_deletions: Annotated[
        bool, typer.Option("--accept-deletions", help="Mark what is gone as deleted, however much it is.")
    ] = False,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who accepts the deletions.")] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why; it stands in the certificate.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Prove that nothing is missing: account for every record that the source has.

    Lists all the source's ids, compares them with tables and quarantine, fetches once what is not
    explained, and marks what is gone as deleted. Exit code 1 if anything stays unexplained, or if so
    much is gone at once that somebody has to accept it first.
    """
    from bridge_pipeline.commands import working
    from bridge_pipeline.steps.certify import certify as make

    scope, names = _scope(first, last), _names(entities)
    acceptance = _acceptance(accept_deletions, by, reason)
    workspace = opened()
    with working.shown(f"certify {connection}"):
        certificate = make(workspace, connection, scope, names, acceptance)
    path = workspace.home.audit / certificate.path
    document = certificate.document | {
        "files": {"json": str(path), "page": str(path.with_suffix(".html"))},
        "sha256": certificate.sha256,
    }
    answer(document, json_output, lambda console: _show(certificate, document, console))
    if not certificate.complete:
        note(f"certificate {certificate.number} of {connection} is {certificate.verdict}")
        raise typer.Exit(1)


def _scope(first: date | None, last: date | None) -> "Window | None":
    from bridge_pipeline.model import Window

    if first is None and last is None:
        return None
    if first is None or last is None:
        raise typer.BadParameter("--from and --to go together")
    if last < first:
        raise typer.BadParameter(f"the last day {last} lies before the first day {first}")
    return Window.of_days(first, last)


def _names(entities: str | None) -> tuple[str, ...] | None:
    if entities is None:
        return None
    if not (names := tuple(name.strip() for name in entities.split(",") if name.strip())):
        raise typer.BadParameter("--entities must name at least one entity, such as tickets")
    return names


def _acceptance(accept: bool, by: str | None, reason: str | None) -> "Acceptance | None":
    from bridge_pipeline.steps.certify import Acceptance

    by, reason = (by or "").strip(), (reason or "").strip()
    if accept and not (by and reason):
        raise typer.BadParameter("--accept-deletions needs --by and --reason, and they must say something")
    if not accept and (by or reason):
        raise typer.BadParameter("--by and --reason go with --accept-deletions")
    return Acceptance(by, reason) if accept else None


def _show(certificate: "Certificate", document: dict[str, Any], console: "Console") -> None:
    from bridge_pipeline.steps.certificate import verdict_words
    from bridge_pipeline.steps.reckon import EXPLANATIONS

    title, text = verdict_words(document)
    good = certificate.complete
    console.print(title, style="bold green" if good else "bold red")
    console.print(text)
    rows = [
        [each["entity"], each["source"]["listed"]]
        + [each["unexplained"] if name == "unexplained" else each["explained"][name] for name in EXPLANATIONS]
        for each in document["entities"]
    ]
    console.print(table(["what", "listed", *EXPLANATIONS], rows))
    for each in document["entities"]:
        _show_lost(each, console)
        for remark in each["remarks"]:
            console.print(printable(f"{each['entity']}: {remark}"))
    console.print(f"certificate {certificate.number}: {document['files']['page']}")
    console.print(f"to do it again: {document['command']}")


def _show_lost(section: dict[str, Any], console: "Console") -> None:
    lost = [each for each in section["named"] if each["explanation"] == "unexplained"]
    for each in lost[:_SHOWN]:
        evidence = f" ({each['evidence']})" if each["evidence"] else ""
        console.print(printable(f"{section['entity']} {each['id']}: {each['words']}{evidence}"))
    unnamed = section["unnamed"]["unexplained"]
    if more := len(lost[_SHOWN:]) + unnamed:
        names = f"{more - unnamed:,} of them" if unnamed else "them"
        console.print(f"{more:,} more {section['entity']}; the certificate names {names}")
    if section["disappeared"]["blocked"]:
        console.print(
            'if they may be deleted: bridge certify … --accept-deletions --by NAME --reason "…"', style="bold"
        )
