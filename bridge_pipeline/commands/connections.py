"""`bridge connections`: which sources this installation reads, for which tenants."""

import logging
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import (
    ConnectionName,
    Json,
    answer,
    examples,
    note,
    opened,
    printable,
    table,
)

if TYPE_CHECKING:
    from bridge_pipeline.database.workspace import Workspace
    from bridge_pipeline.steps.connect import ConnectionDraft
    from bridge_pipeline.steps.extract import Source
    from bridge_pipeline.steps.tenants import TenantDraft

app = typer.Typer(help="Say which sources are read, for which tenants.", no_args_is_help=True)


@app.command("list", epilog=examples("`bridge connections list --json`"))
def list_all(
    removed: Annotated[bool, typer.Option("--removed", help="Also those that were removed.")] = False,
    json_output: Json = False,
) -> None:
    """List the connections, without their credentials."""
    from bridge_pipeline.database import registry

    records = registry.list_connections(opened().database.engine, include_removed=removed)
    columns = ["name", "tenant", "connector", "entities", "requests a minute", "removed"]
    rows = [
        [r.name, r.tenant, r.connector, ", ".join(r.entities), r.requests_per_minute, r.removed_at]
        for r in records
    ]
    answer([asdict(r) for r in records], json_output, lambda console: console.print(table(columns, rows)))


@app.command(epilog=examples("`ACME_TOKEN=… bridge connections apply connections.yaml`"))
def apply(
    file: Annotated[
        Path, typer.Argument(help="YAML with lists `connections` and `tenants`; ${VAR} is the environment's.")
    ],
    json_output: Json = False,
) -> None:
    """Bring connections, and who is told of them, to what a file declares; the rest stays as it is.

    Credentials are sealed before they are stored, and the variables they came from are kept from
    every process started later.
    """
    from bridge_pipeline.steps.tenants import parse_tenants, variables_of

    # A variable may serve both, and leaves the environment with the connections.
    environment = dict(os.environ)
    drafts = _drafts(file)
    tenants = parse_tenants(file, environment)
    for variable in variables_of(tenants):
        os.environ.pop(variable, None)
    _apply(drafts, tenants, json_output)


@app.command(
    epilog=examples(
        "`bridge connections add acme-helpdesk --tenant acme --connector helpdesk "
        "--set base_url=https://acme.example.com --secret api_token=ACME_TOKEN`"
    )
)
def add(
    name: ConnectionName,
    tenant: Annotated[str, typer.Option(help="Whose data it is; a new tenant is made.")],
    connector: Annotated[str, typer.Option(help="Which API it speaks, such as helpdesk.")],
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One value of its config.")
    ] = None,
    secrets: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="KEY=VARIABLE", help="A credential, from this environment variable."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Add or change one connection without a file."""
    config = dict(_pair(each, "--set") for each in values or [])
    config |= {
        key: f"${{{variable}}}" for key, variable in (_pair(each, "--secret") for each in secrets or [])
    }
    declared = {"name": name, "tenant": tenant, "connector": connector, "config": config}
    _apply(_declared(declared), [], json_output)


@app.command("test", epilog=examples("`bridge connections test acme-helpdesk`"))
def probe(name: ConnectionName, json_output: Json = False) -> None:
    """Ask the source for one page of each entity, and say what can be read and what is wrong."""
    from bridge_pipeline import logs
    from bridge_pipeline.database import registry
    from bridge_pipeline.steps.due import entities_of
    from bridge_pipeline.steps.extract import open_source

    workspace = opened()
    entities = entities_of(registry.get(workspace.database.engine, name))
    # What went wrong is told by entity, below.
    with logs.console(sys.stderr, logging.CRITICAL), open_source(workspace, name) as source:
        results = [_probe(source, entity) for entity in entities]
    rows = [
        [each["entity"], "readable" if each["readable"] else "NOT READABLE", each["detail"]]
        for each in results
    ]
    answer(
        {"connection": name, "readable": all(each["readable"] for each in results), "entities": results},
        json_output,
        lambda console: console.print(table(["entity", "result", "detail"], rows)),
    )
    if not all(each["readable"] for each in results):
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "`bridge connections remove acme-helpdesk`",
        "`bridge connections remove acme-helpdesk --purge --by jo --reason 'contract ended'`",
    )
)
def remove(
    name: ConnectionName,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove its rows, files, reports and credentials for good.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="Who purges it; kept on record.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is purged; kept on record.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without asking.")] = False,
    json_output: Json = False,
) -> None:
    """Stop reading a connection. Its rows and files stay, and applying it again brings it back.

    With --purge they are removed, from marts too, and only a record of that stays: who, when, why, and how
    much. Stopped in the middle, the same command goes on.
    """
    from bridge_pipeline.database import registry

    if purge:
        _purge(name, by, reason, yes, json_output)
        return
    if by or reason or yes:
        raise typer.BadParameter("--by, --reason and --yes go with --purge")
    workspace = opened()
    registry.remove(workspace.database.engine, name)
    text = f"{name} is removed: it is not read any more. Its rows, files and reports stay."
    answer(
        {"connection": name, "removed": True, "data": "kept"},
        json_output,
        lambda console: console.print(text),
    )


def _purge(name: str, by: str | None, reason: str | None, yes: bool, json_output: bool) -> None:
    from bridge_pipeline.automation import purging

    if not by or not reason:
        raise typer.BadParameter("--purge needs --by NAME and --reason TEXT, which are kept on record")
    workspace = opened()
    if not yes:
        _confirm(workspace, name)
    done = purging.purge(workspace, name, by, reason)
    document = asdict(done) | {"removed": True, "data": "purged"}
    rows, files = (sum((counts or {}).values()) for counts in (done.rows, done.files))
    text = (
        f"{name} is purged: {rows:,} rows and {files:,} files are removed, by {done.by} ({done.reason}), "
        f"finished {done.finished_at:%F %T} UTC. The audit chain and this record stay."
    )
    answer(document, json_output, lambda console: console.print(printable(text)))


def _confirm(workspace: "Workspace", name: str) -> None:
    """Asks on the terminal; what is no terminal cannot answer."""
    from bridge_pipeline.database import registry
    from bridge_pipeline.steps.purge import extent

    with workspace.database.engine.connect() as connection:
        if not registry.exists(connection, name):
            return
    rows, files = extent(workspace, name)
    for kind, counts in (("rows", rows), ("files", files)):
        for place, count in counts.items():
            note(f"{count:>12,} {kind} in {place}")
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to confirm it: give --yes")
    typer.confirm(f"Remove all of {name} for good?", abort=True, err=True)


def _probe(source: "Source", entity: str) -> dict[str, Any]:
    from bridge_pipeline.connector_kit.session import SourceError
    from bridge_pipeline.logs import run_context

    try:
        with run_context(connection=source.record.name, entity=entity):
            records = source.client.check(source.connector.stream(entity))
    except SourceError as error:
        return {"entity": entity, "readable": False, "records": None, "detail": printable(str(error))}
    empty = "; it answered with an empty list" if not records else ""
    detail = f"{records} records on the first page{empty}"
    return {"entity": entity, "readable": True, "records": records, "detail": detail}


def _drafts(path: Path) -> "list[ConnectionDraft]":
    """Reads the file before anything is started: nothing may inherit the variables it names."""
    from bridge_pipeline import connectors
    from bridge_pipeline.commands.answers import start_logging
    from bridge_pipeline.steps.connect import parse_connections

    start_logging()
    return parse_connections(path, os.environ, connectors.get)


def _declared(connection: dict[str, Any]) -> "list[ConnectionDraft]":
    import yaml

    # The file has no secret in it, only the names of variables.
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({"connections": [connection]}, file)
        file.flush()
        return _drafts(Path(file.name))


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise typer.BadParameter(f"{option} takes KEY=VALUE, not {text!r}")
    return key, value


def _apply(drafts: "list[ConnectionDraft]", declared: "list[TenantDraft]", json_output: bool) -> None:
    from bridge_pipeline.steps import connect
    from bridge_pipeline.steps.tenants import apply_tenants

    workspace = opened()
    applied = connect.apply(workspace, drafts)
    tenants = apply_tenants(workspace, declared)
    _note_unreachable(workspace, declared)
    # Dagster takes a second to import; a file that was refused should not wait for it.
    from bridge_pipeline.automation.runs import add_partition

    for each in applied:
        add_partition(workspace, each.name)
    rows = [[f"connection {each.name}", each.action] for each in applied]
    rows += [[f"tenant {each.tenant}, {each.reviewers} reviewers", each.action] for each in tenants]
    answer(
        [asdict(each) for each in (*applied, *tenants)],
        json_output,
        lambda console: console.print(table(["what", "action"], rows)),
    )


def _note_unreachable(workspace: "Workspace", declared: "list[TenantDraft]") -> None:
    """Says it now if mail is asked for and cannot be sent: messages would wait."""
    from bridge_pipeline.database.outbox import MAIL
    from bridge_pipeline.steps.mail import NoMailServer, mail_server

    if any(each.channel == MAIL for draft in declared for each in draft.reviewers or ()):
        try:
            mail_server(workspace.settings)
        except NoMailServer as error:
            note(f"{error}; until then mail to reviewers waits")
