"""`bridge backup`, `bridge restore`, `bridge upgrade`: an installation as one file, in a new place, and
on a new Postgres."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, opened, printable

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.steps.backup import Backup
    from bridge_pipeline.steps.restore import Restored

_SHA256 = re.compile(r"[0-9a-f]{64}")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        epilog=examples("`bridge backup /backups/`", "`bridge backup acme.backup --without-keys --json`")
    )(backup)
    app.command(
        epilog=examples(
            "`bridge restore /backups/bridge-20260101T030000Z.backup --into /srv/bridge`",
            "`bridge restore acme.backup --check`",
            "`BRIDGE_DATABASE_URL=postgresql://… bridge restore acme.backup --into /srv/bridge`",
        )
    )(restore)
    app.command(epilog=examples("`bridge upgrade`", "`bridge upgrade --discard-old`"))(upgrade)


def backup(
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE|FOLDER", help="The new file, or a folder for one named by the time."),
    ],
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Leave the keys and passwords out; keep them elsewhere.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Write everything of this installation that cannot be made again into one file, and read it again.

    Runs may go on meanwhile: it is the state of one instant. The file holds the keys, so whoever
    has it can read the credentials, unless --without-keys. Ends with 1 if the ledger lists something that
    is not as it should be; the file is written all the same.
    """
    from bridge_pipeline.commands.working import shown
    from bridge_pipeline.steps.backup import backup as make

    workspace = opened()
    with shown("backup"):
        done = make(workspace, target, with_keys=not without_keys)
    answer(asdict(done), json_output, lambda console: _show_backup(done, console))
    if done.problems:
        raise typer.Exit(1)


def _show_backup(done: "Backup", console: "Console") -> None:
    console.print(printable(f"written and verified: {done.path}"))
    console.print(f"{done.files:,} files, {done.content:,} bytes, packed {done.size:,}")
    console.print(f"SHA-256 {done.sha256}")
    if done.keys:
        console.print("It holds the keys: guard it like a password.", style="bold")
    _show_problems(done.problems, console)


def restore(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What `bridge backup` wrote.")
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="HOME", help="The folder to restore into; by default BRIDGE_HOME. Must be empty."
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A copy of BRIDGE_HOME/keys, for a backup without.")
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Restore although keys are missing.")
    ] = False,
    sha256: Annotated[
        str | None, typer.Option(metavar="SHA256", help="The SHA-256 that `bridge backup` told.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read and verify the file.")] = False,
    json_output: Json = False,
) -> None:
    """Make an installation of a backup, in an empty home and an empty database.

    Every SHA-256 is checked before anything is used. The database is the embedded one, or that of
    BRIDGE_DATABASE_URL. Stopped anywhere, the same command begins anew. Ends with 1 if something is
    not as it should be, which is told.
    """
    if sha256 is not None and not _SHA256.fullmatch(sha256.lower()):
        raise typer.BadParameter(f"--sha256 takes 64 hexadecimal digits, not {sha256!r}")
    if check:
        _check(file, json_output)
        return
    from bridge_pipeline import logs, settings
    from bridge_pipeline.commands.working import shown
    from bridge_pipeline.steps.restore import restore as make

    configuration = settings.load(**({"home": into} if into is not None else {}))
    # The home is not there yet, so nothing is logged into it.
    logs.configure(configuration, None)
    with shown("restore"):
        done = make(configuration, file, _settle, keys, without_keys, sha256 and sha256.lower())
    answer(asdict(done), json_output, lambda console: _show_restored(done, console))
    if done.problems:
        raise typer.Exit(1)


def _settle(workspace: object) -> None:
    # Dagster takes a second to import.
    from bridge_pipeline.automation.runs import end_restored_runs

    end_restored_runs(workspace)  # type: ignore[arg-type]


def _check(file: Path, json_output: bool) -> None:
    from bridge_pipeline.steps import archive

    header, seal = archive.header_of(file), archive.read(file)
    document = {"path": str(file), "header": header} | asdict(seal)
    text = f"whole: {seal.members:,} files, {seal.size:,} bytes, made at {header['made_at']}"
    answer(document, json_output, lambda console: console.print(f"{text}\nSHA-256 {seal.sha256}"))


def _show_restored(done: "Restored", console: "Console") -> None:
    console.print(printable(f"restored into {done.home}: the state of {done.at:%F %T} UTC"))
    console.print(f"{done.rows:,} rows and {done.files:,} files, each as it was; the audit was verified")
    for role, same in done.logins.items():
        tail = "with its password" if same else "without a password: give it one with `bridge tenants`"
        console.print(f"login {role} was made again, {tail}")
    _show_problems(done.problems, console)


def upgrade(
    old_programs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the programs of the older Postgres lie, if not found."),
    ] = None,
    discard_old: Annotated[
        bool, typer.Option("--discard-old", help="Remove the data of before, which is kept until then.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Bring the database to this installation: the embedded Postgres's data, and the tables.

    What an older Postgres wrote is dumped by its own programs and loaded into the new one; every
    table is compared. Stopped anywhere, run it again. The tables are brought up to date by any command.
    """
    from bridge_pipeline.commands.answers import start_logging
    from bridge_pipeline.commands.working import shown
    from bridge_pipeline.database import upgrade as major
    from bridge_pipeline.database.migrate import head
    from bridge_pipeline.database.workspace import open_workspace
    from bridge_pipeline.naming import Home

    settings = start_logging()
    home, done, gone = Home(settings.home), None, []
    with shown("upgrade"):
        if settings.database_url is None:
            done = major.upgrade(home, old_programs)
        open_workspace(settings)
        if discard_old:
            gone = major.discard_old(home)
    document = {"schema": head(), "embedded": done and asdict(done), "discarded": gone}

    def show(console: "Console") -> None:
        console.print(f"the tables are at version {document['schema']}, the newest")
        if done is not None and done.before:
            console.print(f"{done.rows:,} rows were brought from Postgres {done.before} to {done.version}")
        for folder in done.kept if done is not None and not gone else ():
            console.print(printable(f"the old data is kept in {folder}: `bridge upgrade --discard-old`"))

    answer(document, json_output, show)


def _show_problems(problems: list[str], console: "Console") -> None:
    if problems:
        console.print(f"{len(problems)} things are not as they should be:", style="bold red")
    for text in problems:
        console.print(printable(f"  {text}"))
