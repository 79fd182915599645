"""`bridge tenants`: whose data this installation holds, and the logins that may read it."""

from typing import TYPE_CHECKING, Annotated

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, opened, table

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.database.readers import Login

app = typer.Typer(help="Say whose data is held, and who may read it.", no_args_is_help=True)
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]


@app.command("list", epilog=examples("`bridge tenants list --json`"))
def list_all(json_output: Json = False) -> None:
    """List the tenants, their connections, and whether they have a login."""
    from bridge_pipeline.database import readers, registry

    workspace = opened()
    engine = workspace.database.engine
    connections: dict[str, list[str]] = {name: [] for name in registry.list_tenants(engine)}
    for record in registry.list_connections(engine):
        connections[record.tenant].append(record.name)
    with engine.connect() as connection:
        found = [
            {"tenant": name, "connections": of_tenant, "login": _role(connection, readers.role_of(name))}
            for name, of_tenant in connections.items()
        ]
    rows = [[each["tenant"], ", ".join(each["connections"] or []) or None, each["login"]] for each in found]
    columns = ["tenant", "connections", "login"]
    answer(found, json_output, lambda console: console.print(table(columns, rows)))


@app.command(epilog=examples("`bridge tenants add acme`"))
def add(name: TenantName, json_output: Json = False) -> None:
    """Add a tenant with a read-only login that sees its rows alone.

    The password is shown once and kept nowhere. Running it again keeps the tenant and gives the
    login another password.
    """
    from bridge_pipeline.database import readers, registry

    workspace = opened()
    role = readers.role_of(name)
    registry.add_tenant(workspace.database.engine, name)
    _tell(readers.make_login(workspace.database, role), json_output)


@app.command(epilog=examples("`bridge tenants remove acme`"))
def remove(name: TenantName, json_output: Json = False) -> None:
    """Remove a tenant that has no connections left: its login, its reviewers and what they were told.

    Its audit chain and the record of what was purged stay; adding it again goes on with that chain.
    """
    from bridge_pipeline.steps.tenants import remove_tenant

    remove_tenant(opened(), name)
    answer(
        {"tenant": name, "removed": True},
        json_output,
        lambda console: console.print(f"{name} is removed, with its login and its reviewers"),
    )


@app.command(epilog=examples("`bridge tenants analyst`"))
def analyst(json_output: Json = False) -> None:
    """Give the read-only login `bridge_analyst`, which sees the rows of all tenants.

    The password is shown once and kept nowhere; running it again gives another one.
    """
    from bridge_pipeline.database import readers

    _tell(readers.make_login(opened().database, readers.ANALYST), json_output)


def _role(connection: object, role: str) -> str | None:
    from bridge_pipeline.database import readers

    return role if readers.exists(connection, role) else None  # type: ignore[arg-type]


def _tell(login: "Login", json_output: bool) -> None:
    """Shows a login; here alone a password is meant to be seen."""
    document = {"role": login.role, "password": login.password, "database_url": login.address}

    def show(console: "Console") -> None:
        console.print(f"login     {login.role}\npassword  {login.password}\naddress   {login.address}")
        console.print("The password is not kept anywhere: store it now.", style="bold")

    answer(document, json_output, show)
