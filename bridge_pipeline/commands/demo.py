"""`bridge demo`: a simulated helpdesk, a month of it extracted, and what came of that."""

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, note, opened, printable

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.database.workspace import Workspace
    from bridge_pipeline.steps.summary import Summary

NAME, TENANT, CONNECTOR = "demo-helpdesk", "demo", "helpdesk"
FIRST_DAY, LAST_DAY = date(2025, 1, 31), date(2025, 3, 1)
_TICKETS, _ACCOUNTS, _USERS, _SEED = 20_000, 200, 2_000, 20_250_101
_START_SECONDS = 120.0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=examples("`bridge demo`", "`BRIDGE_HOME=/tmp/trial bridge demo --json`"))(demo)


def demo(json_output: Json = False) -> None:
    """Extract a month from a simulated helpdesk with typical faults, and show what came of it.

    Once the days are complete, it only shows the summary. If it was interrupted, it goes on.
    """
    from bridge_pipeline.database.locks import file_lock
    from bridge_pipeline.steps.summary import summarise_connection

    workspace = opened()
    workspace.home.demo.mkdir(mode=0o700, exist_ok=True)
    failures: tuple[str, ...] = ()
    with file_lock(workspace.home.demo / "demo.lock"):
        if not _is_complete(workspace):
            failures = _extract(workspace)
        summary = summarise_connection(workspace, NAME)
    complete = not failures
    document = summary.document() | {"complete": complete, "failures": list(failures), "next": "make up"}
    answer(document, json_output, lambda console: _show(workspace, summary, console))
    for failure in failures:
        note(f"failed: {printable(failure)}")
    if not complete:
        raise typer.Exit(1)


def _show(workspace: "Workspace", summary: "Summary", console: "Console") -> None:
    from bridge_pipeline.commands.summaries import show_summary

    show_summary(summary, console)
    console.print(f"the truth        {workspace.home.demo / 'truth.json'} (what the simulated helpdesk held)")
    console.print("\nNext: make up – Dagster's UI over this data, at http://127.0.0.1:3000", style="bold")


def _is_complete(workspace: "Workspace") -> bool:
    from bridge_pipeline import connectors
    from bridge_pipeline.database import ledger

    entities = connectors.get(CONNECTOR).entities
    days = {FIRST_DAY + timedelta(days=n) for n in range((LAST_DAY - FIRST_DAY).days + 1)}
    with workspace.database.engine.connect() as connection:
        done = ledger.complete_days(connection, NAME, entities, workspace.settings.settle_lag)
    return days <= done


def _extract(workspace: "Workspace") -> tuple[str, ...]:
    """Serves the helpdesk, connects it and runs the days; returns what failed."""
    from bridge_pipeline.commands import working

    with working.shown(f"{NAME} {FIRST_DAY} to {LAST_DAY}"), _simulator(workspace) as address:
        _connect(workspace, address)
        # Dagster takes seconds to import.
        from bridge_pipeline.automation.runs import run_days

        outcome = run_days(workspace, NAME, FIRST_DAY, LAST_DAY)
    return outcome.failures or (() if outcome.success else (f"run {outcome.run_id} failed",))


def _connect(workspace: "Workspace", address: str) -> None:
    """Applies the connection; one that an interrupted demo made keeps its credential."""
    from bridge_pipeline import connectors
    from bridge_pipeline.database import registry
    from bridge_pipeline.database.registry import ConnectionRecord
    from bridge_pipeline.steps import connect

    try:
        credentials = registry.secrets(workspace.database.engine, workspace.sealer, NAME)
    except registry.UnknownConnection:
        # The form of this vendor's tokens: digits, a dash, then letters and digits.
        credentials = {"api_token": f"{secrets.randbelow(9000) + 1000}-{secrets.token_hex(16)}"}
    record = ConnectionRecord(
        name=NAME,
        tenant=TENANT,
        connector=CONNECTOR,
        config={"base_url": address, "allow_private": True},
        entities=connectors.get(CONNECTOR).entities,
        # Its server lives as long as the demo, so the schedule would only fail.
        scheduled=False,
    )
    connect.apply(workspace, [connect.ConnectionDraft(record, credentials)])


@contextmanager
def _simulator(workspace: "Workspace") -> Iterator[str]:
    """A simulated helpdesk in a process of its own; gives its address."""
    from bridge_pipeline import processes

    # That of a killed demo may still be about to end, and holds the port until then.
    processes.stop_recorded(workspace.home, "simulator")
    folder = workspace.home.demo
    log = folder / "simulator.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(_port(workspace)), str(folder)],
            env=processes.child_environment(workspace),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # Ctrl-C is for the demo, which stops it after its last request.
            start_new_session=True,
        )
    try:
        with processes.recorded(workspace.home, "simulator", process.pid):
            yield _address(process, log)
    finally:
        process.terminate()
        process.wait()


def _serve(port: int, folder: Path) -> None:
    """The program of the simulator's process."""
    # First of all: whoever started it may be gone by now.
    threading.Thread(target=_end_with_input, daemon=True).start()
    from bridge_pipeline import connectors, logs, settings
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions

    logs.configure(settings.load(), None)
    options = SimulatorOptions(
        port=port,
        seed=_SEED,
        tickets=_TICKETS,
        accounts=_ACCOUNTS,
        users=_USERS,
        first_day=date(2025, 1, 1),
        last_day=LAST_DAY,
        faults="typical",
        truth=folder / "truth.json",
        request_log=folder / "requests.jsonl",
    )
    connectors.get(CONNECTOR).simulate(options)


def _end_with_input() -> None:
    """Ends this process once its input ends, which it does with the demo's process, however that ends."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Waits for the line that says where the simulator listens."""
    impatience = threading.Timer(_START_SECONDS, process.kill)
    impatience.start()
    line = process.stdout.readline() if process.stdout else ""
    impatience.cancel()
    if not line.startswith("listening on "):
        raise SimulatorFailed(f"the simulated helpdesk did not start; see {log}")
    return line.removeprefix("listening on ").strip()


class SimulatorFailed(RuntimeError):
    """The demo has no source to read."""


def _port(workspace: "Workspace") -> int:
    """The port of an interrupted demo, whose pages count for the same address only; or a free one."""
    from bridge_pipeline import processes
    from bridge_pipeline.database import registry

    try:
        known = urlsplit(registry.get(workspace.database.engine, NAME).config["base_url"]).port or 0
    except registry.UnknownConnection:
        return 0
    return known if processes.is_free(known) else 0


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
