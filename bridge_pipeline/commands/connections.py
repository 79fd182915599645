"""`bridge connections`: which sources this installation reads, for which tenants."""

import logging
import os
import sys
from collections.abc import Mapping
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
    from bridge_pipeline.steps.probe import Probe
    from bridge_pipeline.steps.tenants import TenantDraft

Test = Annotated[
    bool, typer.Option("--test/--no-test", help="Whether to ask the source before anything is stored.")
]
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
    test: Test = True,
    json_output: Json = False,
) -> None:
    """Bring connections, and who is told of them, to what a file declares; the rest stays as it is.

    Credentials are sealed before they are stored, and the variables they came from are kept from
    every process started later. One that is new or changed is tested first: where its source refuses it,
    it is not stored, the others are, and the command ends with 1. A source that cannot be reached now
    proves nothing: its connection is stored, and that is told.
    """
    from bridge_pipeline.steps.tenants import parse_tenants, variables_of

    # A variable may serve both, and leaves the environment with the connections.
    environment = dict(os.environ)
    drafts = _drafts(file)
    tenants = parse_tenants(file, environment)
    for variable in variables_of(tenants):
        os.environ.pop(variable, None)
    _apply(drafts, tenants, test, json_output)


@app.command(
    epilog=examples(
        "`bridge connections add acme-helpdesk`",
        "`bridge connections add acme-helpdesk --tenant acme --connector helpdesk "
        "--set base_url=https://acme.example.com --secret api_token=ACME_TOKEN`",
    )
)
def add(
    name: ConnectionName,
    tenant: Annotated[
        str | None, typer.Option(help="Whose data it is; a new tenant is made. Asked for if left out.")
    ] = None,
    connector: Annotated[
        str | None, typer.Option(help="Which API it speaks, such as helpdesk. Asked for if left out.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One value of its config.")
    ] = None,
    secrets: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="KEY=VARIABLE", help="A credential, from this environment variable."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its config as JSON; - is stdin, ${VAR} the environment's."),
    ] = None,
    test: Test = True,
    json_output: Json = False,
) -> None:
    """Add or change one connection without a file.

    At a terminal what is left out is asked for, by the form of the connector; `form` shows that as JSON.
    """
    from bridge_pipeline import connectors
    from bridge_pipeline.commands import forms
    from bridge_pipeline.commands.answers import start_logging
    from bridge_pipeline.steps.connect import draft_connection

    start_logging()
    given = _config(config) | dict(_pair(each, "--set") for each in values or [])
    pairs = (_pair(each, "--secret") for each in secrets or [])
    given |= {key: f"${{{variable}}}" for key, variable in pairs}
    asks = sys.stdin.isatty() and not given
    if not asks and not (tenant and connector):
        raise typer.BadParameter("nobody is there to ask: give --tenant, --connector, and --set or --config")
    tenant = tenant or typer.prompt("tenant", err=True)
    if connector is None:
        known = ", ".join(connectors.all_connectors())
        connector = str(typer.prompt(f"connector ({known})", err=True))
    chosen = connectors.get(connector)
    typed = forms.ask(chosen, {}) if asks else {}
    declared = {"name": name, "tenant": tenant, "connector": chosen.name, "config": given}
    _apply([draft_connection(declared, os.environ, connectors.get, typed)], [], test, json_output)


@app.command(epilog=examples("`bridge connections form zendesk --json`"))
def form(
    connector: Annotated[str, typer.Argument(metavar="CONNECTOR", help="Whose form, such as zendesk.")],
    json_output: Json = False,
) -> None:
    """Show what a connector's config consists of: its fields, which are credentials, defaults, choices.

    As JSON it is a JSON Schema, from which a form can be made.
    """
    from bridge_pipeline import connectors
    from bridge_pipeline.commands import forms

    chosen = connectors.get(connector)
    rows = [
        [
            name,
            "credential" if forms.is_secret(field) else None,
            field.is_required(),
            None if field.is_required() else field.default,
            field.description,
        ]
        for name, field in chosen.config.model_fields.items()
    ]
    columns = ["field", "kind", "required", "default", "what it is"]
    answer(forms.document(chosen), json_output, lambda console: console.print(table(columns, rows)))


@app.command("test", epilog=examples("`bridge connections test acme-helpdesk`"))
def probe(name: ConnectionName, json_output: Json = False) -> None:
    """Ask the source for records of each entity, and say what can be read and what exactly is wrong.

    Ends with 1 if any entity cannot be read.
    """
    from bridge_pipeline import logs
    from bridge_pipeline.steps.probe import probe_connection

    workspace = opened()
    # What went wrong is told by entity, below.
    with logs.console(sys.stderr, logging.CRITICAL):
        found = probe_connection(workspace, name)
    rows = [
        [
            each.entity,
            "readable" if each.readable else "NOT READABLE",
            each.problem,
            "; ".join(filter(None, (each.advice, each.detail))),
        ]
        for each in found.entities
    ]
    answer(
        asdict(found) | {"readable": found.readable, "problem": found.problem},
        json_output,
        lambda console: console.print(table(["entity", "result", "problem", "detail"], rows)),
    )
    if not found.readable:
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
    if not typer.confirm(f"Remove all of {name} for good?", err=True):
        note(f"{name} stays as it is: nothing was removed")
        raise typer.Exit(1)


def _drafts(path: Path) -> "list[ConnectionDraft]":
    """Reads the file before anything is started: nothing may inherit the variables it names."""
    from bridge_pipeline import connectors
    from bridge_pipeline.commands.answers import start_logging
    from bridge_pipeline.steps.connect import parse_connections

    start_logging()
    return parse_connections(path, os.environ, connectors.get)


def _config(source: str | None) -> dict[str, Any]:
    """The JSON object of a file, or of stdin for `-`."""
    import orjson

    if source is None:
        return {}
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        # Its text is not quoted: it may hold a credential.
        raise typer.BadParameter(f"--config {source} holds no JSON object")
    return found


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise typer.BadParameter(f"{option} takes KEY=VALUE, not {text!r}")
    return key, value


def _apply(
    drafts: "list[ConnectionDraft]", declared: "list[TenantDraft]", test: bool, json_output: bool
) -> None:
    from bridge_pipeline.steps import connect
    from bridge_pipeline.steps.tenants import apply_tenants

    workspace = opened()
    probes = _probed(workspace, connect.pending(workspace, drafts)) if test else {}
    refused = {name for name, probe in probes.items() if probe.wrong}
    applied = connect.apply(workspace, [each for each in drafts if each.record.name not in refused])
    tenants = apply_tenants(workspace, declared)
    _note_unreachable(workspace, declared)
    # Dagster takes a second to import; a file that was refused should not wait for it.
    from bridge_pipeline.automation.runs import add_partition

    for each in applied:
        add_partition(workspace, each.name)
    actions = {each.name: each.action for each in applied}
    done = [_outcome(each.record.name, actions, probes.get(each.record.name)) for each in drafts]
    rows = [[f"connection {each['name']}", each["action"]] for each in done]
    rows += [[f"tenant {each.tenant}, {each.reviewers} reviewers", each.action] for each in tenants]
    answer(
        [*done, *(asdict(each) for each in tenants)],
        json_output,
        lambda console: console.print(table(["what", "action"], rows)),
    )
    if refused:
        raise typer.Exit(1)


def _probed(workspace: "Workspace", drafts: "list[ConnectionDraft]") -> "dict[str, Probe]":
    """What the sources say to connections that are to be stored; each problem is told at once."""
    from bridge_pipeline import logs
    from bridge_pipeline.steps.probe import probe_draft

    found = {}
    with logs.console(sys.stderr, logging.CRITICAL):
        for draft in drafts:
            found[draft.record.name] = probe_draft(workspace, draft)
    for name, probe in found.items():
        for problem in dict.fromkeys(each.problem for each in probe.entities if each.problem):
            failed = [each for each in probe.entities if each.problem == problem]
            what = ", ".join(each.entity for each in failed)
            kept = "it is not stored" if probe.wrong else "it is stored all the same"
            note(printable(f"{name}: {problem} ({what}): {failed[0].advice}; {failed[0].detail}; {kept}"))
    return found


def _outcome(name: str, actions: Mapping[str, str], probe: "Probe | None") -> dict[str, Any]:
    unread = [each for each in probe.entities if not each.readable] if probe else []
    return {
        "name": name,
        "action": actions.get(name, "refused"),
        "problem": probe.problem if probe else None,
        "advice": unread[0].advice if unread else None,
        "not_readable": [each.entity for each in unread],
    }


def _note_unreachable(workspace: "Workspace", declared: "list[TenantDraft]") -> None:
    """Says it now if mail is asked for and cannot be sent: messages would wait."""
    from bridge_pipeline.database.outbox import MAIL
    from bridge_pipeline.steps.mail import NoMailServer, mail_server

    if any(each.channel == MAIL for draft in declared for each in draft.reviewers or ()):
        try:
            mail_server(workspace.settings)
        except NoMailServer as error:
            note(f"{error}; until then mail to reviewers waits")
