"""`bridge deliveries`: what reviewers were told, what waits, and sending it by hand."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, note, opened, table

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="See what reviewers are told, and send it.", no_args_is_help=True)
_STATUSES = ("pending", "sent", "failed", "withdrawn")
_SHOWN = 200


@app.command(
    "list", epilog=examples("`bridge deliveries list`", "`bridge deliveries list --status failed --json`")
)
def list_all(
    tenant: Annotated[str | None, typer.Option(help="Only of this one.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only pending, sent, failed or withdrawn (no longer of use) ones.")
    ] = None,
    json_output: Json = False,
) -> None:
    """List the newest messages to reviewers, newest first, with what became of each."""
    from bridge_pipeline.database import outbox

    if status is not None and status not in _STATUSES:
        raise typer.BadParameter(f"--status must be one of {', '.join(_STATUSES)}")
    with opened().database.engine.connect() as connection:
        found = outbox.list_deliveries(connection, tenant, status, _SHOWN)
    answer(found, json_output, lambda console: _show(found, console))


@app.command(epilog=examples("`bridge deliveries send`", "`bridge deliveries send --again`"))
def send(
    again: Annotated[
        bool, typer.Option("--again", help="Also those that were given up or wait for another attempt.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Send what is due now. The daemon of `bridge up` does so by itself, every half minute."""
    from dataclasses import asdict

    from bridge_pipeline.steps.deliver import deliver, revive

    workspace = opened()
    if again:
        revive(workspace)
    done = deliver(workspace, seconds=600.0)
    text = f"{done.sent} sent, {done.postponed} to be tried again, {done.failed} given up"
    answer(asdict(done), json_output, lambda console: console.print(text))
    if done.postponed or done.failed:
        note("`bridge deliveries list` says why")
        raise typer.Exit(1)


@app.command("test", epilog=examples("`bridge deliveries test acme`"))
def probe(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose reviewers are written to.")],
    json_output: Json = False,
) -> None:
    """Send a test message to every reviewer of a tenant, and say who could be reached."""
    from bridge_pipeline.database import outbox
    from bridge_pipeline.steps.announce import tell_test
    from bridge_pipeline.steps.deliver import deliver, utc_now

    workspace = opened()
    about = tell_test(workspace, tenant, utc_now())
    deliver(workspace, seconds=600.0)
    with workspace.database.engine.connect() as connection:
        found = [each for each in outbox.list_deliveries(connection, tenant) if each["about"] == about]
    reached = all(each["status"] == "sent" for each in found)
    document = {"tenant": tenant, "reached": reached, "deliveries": found}
    answer(document, json_output, lambda console: _show(found, console))
    if not reached:
        raise typer.Exit(1)


def _show(found: list[dict[str, Any]], console: "Console") -> None:
    columns = [
        "message",
        "tenant",
        "event",
        "what",
        "to",
        "status",
        "attempts",
        "written",
        "settled",
        "error",
    ]
    rows = [
        [
            str(each["id"]),
            *(each[key] for key in ("tenant", "event", "title", "shown", "status", "attempts")),
            f"{each['created_at']:%F %T}",
            f"{each['settled_at']:%F %T}" if each["settled_at"] else None,
            each["error"],
        ]
        for each in found
    ]
    console.print(table(columns, rows) if rows else "no messages: see `reviewers` in docs/operations.md")
