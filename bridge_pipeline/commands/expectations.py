"""`bridge expectations`: what is expected of a connection's data, and who says so."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from bridge_pipeline.commands.answers import ConnectionName, Json, answer, examples, opened, table

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.steps.suites import InForce

app = typer.Typer(help="Look at what is expected of the data.", no_args_is_help=True)


@app.command(
    "list",
    epilog=examples(
        "`bridge expectations list acme-helpdesk`", "`bridge expectations list acme-helpdesk --json`"
    ),
)
def list_expectations(connection: ConnectionName, json_output: Json = False) -> None:
    """List the expectations that hold for a connection, with threshold, owner, and who set them.

    A tenant's own thresholds are read from `expectations/<tenant>.yaml` in BRIDGE_HOME.
    """
    from bridge_pipeline.steps.suites import in_force

    found = in_force(opened(), connection)
    answer([asdict(each) for each in found], json_output, lambda console: _show(found, console))


def _show(found: "list[InForce]", console: "Console") -> None:
    columns = ["entity", "expectation", "failing does", "threshold", "source", "owner", "meaning"]
    rows = [
        [
            each.entity,
            each.name,
            each.severity if each.enabled else "off",
            _threshold(each.threshold),
            each.source + (f" (instead of {_threshold(each.replaced)})" if each.replaced else ""),
            each.owner,
            each.sentence + (f" ({each.reason})" if each.reason else ""),
        ]
        for each in found
    ]
    console.print(table(columns, rows))


def _threshold(values: dict[str, object]) -> str:
    shown = {name: value for name, value in values.items() if value is not None and value != 0}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items()) or "–"


def _value(value: object) -> str:
    return " | ".join(map(str, value)) if isinstance(value, list) else str(value)
