"""`bridge doctor`: is everything there that this installation needs, and what to do if not."""

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, printable, start_logging, table

if TYPE_CHECKING:
    from bridge_pipeline.database.workspace import Workspace
    from bridge_pipeline.naming import Home
    from bridge_pipeline.settings import Settings

Status = Literal["ok", "warn", "fail"]
_LOW, _TOO_LOW = 5 * 2**30, 2**29
_CLOCK_SECONDS = 5.0
_LONG_WAIT = timedelta(minutes=15)
_OLD_BACKUP = timedelta(days=8)


@dataclass(frozen=True)
class Finding:
    """What one look found; `remedy` says what to do unless all is well."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=examples("`bridge doctor`", "`bridge doctor --json`"))(doctor)


def doctor(json_output: Json = False) -> None:
    """Check Python, packages, home, database, Dagster, dbt, key, port, clock, messages and backup."""
    found = list(_findings())
    rows = [[each.status, each.name, each.detail, each.remedy] for each in found]
    failed = any(each.status == "fail" for each in found)
    document = {"ok": not failed, "findings": [asdict(each) for each in found]}
    answer(document, json_output, lambda console: console.print(table(["", "what", "found", "to do"], rows)))
    if failed:
        raise typer.Exit(1)


def _findings() -> Iterator[Finding]:
    from bridge_pipeline.naming import Home

    yield _python()
    yield _packages()
    settings = start_logging()
    home = Home(settings.home)
    yield _looked("home", lambda: _home(home), "choose another folder with BRIDGE_HOME")
    yield _looked("disk", lambda: _disk(home), "choose another disk with BRIDGE_HOME")
    yield from _database(settings)
    yield _looked("dbt", _dbt, "run: make install")
    yield _looked("key", lambda: _key(settings, home), "run: chmod 600 on it")
    yield _port()


def _looked(name: str, look: Callable[[], Finding], remedy: str) -> Finding:
    """What `look` finds; an error is a finding too."""
    from bridge_pipeline.commands.failures import described
    from bridge_pipeline.redaction import redact

    try:
        return look()
    except Exception as error:
        return Finding(name, "fail", printable(redact(described(error))), remedy)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "ok", version)
    return Finding(
        "python", "fail", version, "install Python 3.11 to 3.13 and run: make install PYTHON=python3.12"
    )


def _packages() -> Finding:
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    wrong = []
    for line in requires("project-bridge") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, needed is {requirement.specifier}")
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong), "run: make install")
    return Finding("packages", "ok", "all that are declared")


def _home(home: "Home") -> Finding:
    from bridge_pipeline.database.workspace import make_folders

    make_folders(home)
    probe = home.work / f"doctor-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    if home.root.stat().st_mode & 0o007 & ~0o001:
        return Finding("home", "warn", f"{home.root} can be read by everyone", f"run: chmod 700 {home.root}")
    return Finding("home", "ok", str(home.root))


def _disk(home: "Home") -> Finding:
    free = shutil.disk_usage(home.root).free
    detail = f"{free / 2**30:.1f} GiB free"
    if free < _LOW:
        status: Status = "fail" if free < _TOO_LOW else "warn"
        return Finding("disk", status, detail, "make room: journal, landing and audit files only grow")
    return Finding("disk", "ok", detail)


def _database(settings: "Settings") -> Iterator[Finding]:
    """Opens the workspace; what cannot be looked at without it is left out."""
    from bridge_pipeline.commands.failures import described
    from bridge_pipeline.database.workspace import open_workspace

    try:
        workspace = open_workspace(settings)
    except Exception as error:
        yield Finding(
            "database", "fail", printable(described(error)), "see logs/postgres.log or BRIDGE_DATABASE_URL"
        )
        return
    yield _looked("database", lambda: _server(workspace), "check that the server is up")
    yield _looked("migrations", lambda: _migrations(workspace), "run: bridge status")
    yield _looked("dagster", lambda: _dagster(workspace), "run: bridge up, and look at logs/dagster.log")
    yield _looked("clock", lambda: _clock(workspace), "set this machine's clock by NTP")
    yield _looked("messages", lambda: _messages(workspace), "set BRIDGE_SMTP_URL and BRIDGE_MAIL_FROM")
    yield _looked("backup", lambda: _backup(workspace), "see docs/operations.md")


def _server(workspace: "Workspace") -> Finding:
    import sqlalchemy as sa

    with workspace.database.engine.connect() as connection:
        version = connection.scalar(sa.text("show server_version"))
    kind = "embedded" if workspace.settings.database_url is None else "your own"
    return Finding(
        "database", "ok", f"Postgres {version}, {kind}: {workspace.database.libpq(show_secrets=False)}"
    )


def _migrations(workspace: "Workspace") -> Finding:
    import sqlalchemy as sa

    from bridge_pipeline.database.migrate import VERSION_TABLE, head
    from bridge_pipeline.naming import BRIDGE_SCHEMA

    with workspace.database.engine.connect() as connection:
        current = connection.scalar(sa.text(f"select version_num from {BRIDGE_SCHEMA}.{VERSION_TABLE}"))
    if current != head():
        return Finding("migrations", "fail", f"at {current}, newest is {head()}", "run: bridge status")
    return Finding("migrations", "ok", f"at {current}, the newest")


def _dagster(workspace: "Workspace") -> Finding:
    from bridge_pipeline.automation.runs import prepare_instance

    count = prepare_instance(workspace).get_runs_count()
    return Finding("dagster", "ok", f"its storage answers; {count} runs")


def _clock(workspace: "Workspace") -> Finding:
    import sqlalchemy as sa

    with workspace.database.engine.connect() as connection:
        server = connection.execute(sa.text("select clock_timestamp()")).scalar_one()
    apart = abs((datetime.now(UTC) - server).total_seconds())
    if apart > _CLOCK_SECONDS:
        return Finding(
            "clock", "warn", f"{apart:.0f} s from the database's", "set this machine's clock by NTP"
        )
    return Finding("clock", "ok", f"{datetime.now(UTC):%F %T} UTC, like the database's")


def _messages(workspace: "Workspace") -> Finding:
    """Whether reviewers can be told, and have been."""
    from bridge_pipeline.database import outbox
    from bridge_pipeline.steps.mail import mail_server

    with workspace.database.engine.connect() as connection:
        counts, waiting = outbox.counts(connection), outbox.waiting_since(connection)
        by_mail = outbox.has_channel(connection, outbox.MAIL)
    if by_mail or workspace.settings.smtp_url is not None:
        mail_server(workspace.settings)
    detail = f"{counts['sent']} sent, {counts['pending']} waiting, {counts['failed']} given up"
    if counts["failed"]:
        return Finding(
            "messages", "fail", detail, "see bridge deliveries list; bridge deliveries send --again"
        )
    if waiting is not None and datetime.now(UTC) - waiting > _LONG_WAIT:
        return Finding("messages", "warn", f"{detail}, since {waiting:%F %T}", "see bridge deliveries list")
    return Finding("messages", "ok", detail)


def _backup(workspace: "Workspace") -> Finding:
    """How old the last backup is; an installation that holds nothing needs none."""
    import sqlalchemy as sa

    from bridge_pipeline.database.tables import batches
    from bridge_pipeline.steps.backup import last_backup

    last = last_backup(workspace.home)
    with workspace.database.engine.connect() as connection:
        newest = connection.scalar(sa.select(sa.func.max(batches.c.created_at)))
    if newest is None:
        return Finding("backup", "ok", "nothing to back up yet")
    remedy = "run: bridge backup FOLDER, on another disk"
    if last is None:
        return Finding("backup", "warn", "none was made", remedy)
    age = datetime.now(UTC) - last["at"]
    detail = f"{last['path']}, {age.days} days old"
    if not last["whole"]:
        return Finding(
            "backup", "warn", f"{detail}; the ledger listed files that were not as they were", remedy
        )
    if newest > last["at"] and age > _OLD_BACKUP:
        return Finding("backup", "warn", detail, remedy)
    return Finding("backup", "ok", detail)


def _dbt() -> Finding:
    import json

    from bridge_pipeline.settings import PROJECT_ROOT

    manifest = PROJECT_ROOT / "dbt_project" / "target" / "manifest.json"
    if not manifest.is_file():
        return Finding("dbt", "fail", f"{manifest} is missing", "run: make install")
    nodes = json.loads(manifest.read_bytes())["nodes"].values()
    models = sum(node["resource_type"] == "model" for node in nodes)
    newest = max(path.stat().st_mtime for path in (PROJECT_ROOT / "dbt_project" / "models").rglob("*.*"))
    if newest > manifest.stat().st_mtime:
        return Finding("dbt", "warn", "the project changed since it was parsed", "run: make install")
    return Finding("dbt", "ok", f"parsed: {models} models")


def _key(settings: "Settings", home: "Home") -> Finding:
    if settings.secret_key is not None:
        return Finding("key", "ok", "from BRIDGE_SECRET_KEY")
    path = home.keys / "secret.key"
    if not path.exists():
        return Finding("key", "ok", "none yet; it is made with the first connection")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding("key", "fail", f"{path} can be read by others ({mode:o})", f"run: chmod 600 {path}")
    return Finding("key", "ok", f"{path}, for its owner only; keep a copy elsewhere")


def _port() -> Finding:
    from bridge_pipeline.processes import is_free

    if is_free(3000):
        return Finding("port 3000", "ok", "free for the UI")
    return Finding(
        "port 3000", "warn", "in use, perhaps by `bridge up`", "choose another: bridge up --port 3001"
    )
