"""What reviewers are told, and of what: alarms, their ends, daily reports and weekly digests.

Everything here only writes to the outbox; `deliver` sends. Texts hold names, counts and sentences
of our own, never a value of a record.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from bridge_pipeline.database import ledger, outbox, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.outbox import Message, about_batch
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.model.window import midnight
from bridge_pipeline.redaction import redact
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.mail import one_line

if TYPE_CHECKING:
    from bridge_pipeline.steps.report import Report

# Mondays, after the daily schedule has read Sunday.
_DIGEST_AT = time(6, 0, tzinfo=UTC)
_ADDRESS = re.compile(r"[^\s<>\"'(),;:]+@[^\s<>\"'(),;:]+")
_OWN_ERROR = re.compile(r"bridge_pipeline\.[\w.]+: *(.+)", re.S)
# From the first quotation mark to the last: what is quoted may hold some itself.
_QUOTED = re.compile(r"['\"].*['\"]", re.S)
_QUERY = re.compile(r"(?<=[^\s?])\?\S+")
_LONGEST_ERROR = 400


class NoReviewers(LookupError):
    """There is nobody to tell."""


@dataclass(frozen=True)
class Failure:
    """One step of a run that failed, and the error as Dagster writes it."""

    step: str
    error: str
    kind: str


# --- Blocked batches ----------------------------------------------------------------------------


def tell_verdict(
    connection: sa.Connection, batch: Batch, results: Sequence[CheckResult], settings: Settings
) -> None:
    """Tells of a batch that its checks blocked, or that it ends the block of earlier ones.

    Call it in the transaction that records the verdict.
    """
    if batch.verdict == "blocked":
        _tell_blocked(connection, batch, results, settings)
    elif batch.readable:
        b = t.batches
        better_read = sa.and_(
            b.c.verdict == "blocked",
            b.c.id < batch.id,
            b.c.connection == batch.connection,
            b.c.entity == batch.entity,
            b.c.window_start >= batch.window_start,
            b.c.window_end <= batch.window_end,
        )
        ended = connection.scalars(sa.select(b.c.id).where(sa.or_(better_read, b.c.id == batch.id)))
        _tell_ended(connection, batch, ended.all(), f"Batch {batch.id} has passed its checks.")


def tell_accepted(connection: sa.Connection, batch: Batch) -> None:
    """Tells those who were told of a block that a reviewer let the batch through."""
    _tell_ended(connection, batch, [batch.id], "A reviewer accepted the batch; the report says who and why.")


def _tell_blocked(
    connection: sa.Connection, batch: Batch, results: Sequence[CheckResult], settings: Settings
) -> None:
    first, last = batch.window_start.date(), _last_day(batch)
    failed = [result for result in results if result.severity == "block" and not result.passed]
    what = f"the {batch.entity} of {batch.connection} for {_days(first, last)}"
    lines = [
        f"Do not rely on this data yet: a check stopped {what}.",
        "Nothing downstream reads it; what was loaded before stays as it was.",
        "",
        "What failed:",
        *(f"- {each.description} ({each.unexpected:,} of {each.evaluated:,})" for each in failed),
        "",
        "What to do:",
        f"- See the report: bridge report {batch.connection} --day {last}",
        f"- Once the source is put right, read it again: bridge run {batch.connection} --from {first} "
        f"--to {last} --entities {batch.entity}",
        f'- If the data is right as it is, let it through: bridge accept {batch.id} --by NAME --reason "…"',
        "",
        _origin(settings, batch.run_id, f"Batch {batch.id}"),
    ]
    title = f"{batch.connection}: {batch.entity} of {_days(first, last)} blocked"
    message = Message(
        batch.tenant,
        "blocked",
        about_batch(batch.id),
        title,
        "\n".join(lines),
        connection=batch.connection,
        day=last,
    )
    outbox.tell(connection, message, outbox.wanting(connection, batch.tenant, "blocked"))


def _tell_ended(connection: sa.Connection, batch: Batch, ended: Sequence[int], why: str) -> None:
    for number, (alarm, recipients) in outbox.open_alarms(connection, batch.tenant, ended).items():
        blocked = ledger.batch(connection, number)
        days = _days(blocked.window_start.date(), _last_day(blocked))
        title = f"{batch.connection}: {batch.entity} of {days} no longer blocked"
        body = (
            f"The {batch.entity} of {batch.connection} for {days} were blocked (batch {number}), "
            f"and that has ended. {why}\nThe data can be used."
        )
        message = Message(batch.tenant, "resolved", about_batch(number), title, body, follows=alarm)
        outbox.tell(connection, message, recipients)


def tell_test(workspace: Workspace, tenant: str, now: datetime) -> str:
    """Writes a test message to all reviewers of a tenant; returns what it is about.

    Raises:
        NoReviewers: it has none.
    """
    about = f"test {now:%Y-%m-%dT%H:%M:%S.%fZ}"
    body = "This is a test. Whoever reads it is told of the data of this tenant."
    with workspace.database.engine.begin() as connection:
        recipients = [reviewer.id for reviewer in outbox.reviewers_of(connection, tenant)]
        if outbox.tell(connection, Message(tenant, "test", about, "Test message", body), recipients) is None:
            raise NoReviewers(
                f"the tenant {tenant!r} has no reviewers; list them with `bridge connections apply`"
            )
    return about


# --- Failed runs --------------------------------------------------------------------------------


def tell_failed_run(
    workspace: Workspace,
    run_id: str,
    name: str | None,
    days: tuple[date, date] | None,
    failures: Sequence[Failure],
    only_blocked: bool,
) -> None:
    """Tells of a run that failed, once however often it is called.

    Args:
        name: the connection; None for a run of all, such as one of the models.
        only_blocked: nothing but blocking checks failed; who is told of those is not told again.
    """
    about = f"run {run_id}"
    whose = f"{name} {_days(*days)}" if name and days else name or "models"
    lines = [
        f"A run failed: {whose}. What it finished stays, and running it again goes on from there.",
        "",
        *(f"- {each.step}: {_told(each)}" for each in failures),
        *([] if failures else ["- The process that executed it ended."]),
        *(
            ["", f"To run it again: bridge run {name} --from {days[0]} --to {days[1]}"]
            if name and days
            else []
        ),
        "",
        _origin(workspace.settings, run_id, "Details are in logs/bridge.jsonl"),
    ]
    with workspace.database.engine.begin() as connection:
        for tenant in _tenants(workspace, connection, name):
            recipients = outbox.wanting(connection, tenant, "failed")
            if only_blocked:
                told = outbox.wanting(connection, tenant, "blocked")
                recipients = [each for each in recipients if each not in told]
            message = Message(tenant, "failed", about, f"{whose}: run failed", "\n".join(lines), name)
            outbox.tell(connection, message, recipients)


def _tenants(workspace: Workspace, connection: sa.Connection, name: str | None) -> list[str]:
    if name is None:
        return outbox.tenants_told(connection)
    try:
        return [registry.get(workspace.database.engine, name).tenant]
    except registry.UnknownConnection:
        # The run failed of just that.
        return []


def _told(failure: Failure) -> str:
    """Our own errors are written to be read; others may quote data and are only named.

    What ours quote may come from the source, and what stands in a URL's query from anywhere.
    """
    own = _OWN_ERROR.match(failure.error.strip())
    if not own:
        return failure.kind
    text = _QUERY.sub("", _QUOTED.sub("…", redact(own[1])))
    return one_line(_ADDRESS.sub("…", text), _LONGEST_ERROR)


# --- Daily and weekly ---------------------------------------------------------------------------


def tell_report(workspace: Workspace, report: "Report", now: datetime | None = None) -> None:
    """Tells of a report if its day is the newest that has settled; of older days nobody is told.

    So neither a backfill nor another reading of an old day sends mail.
    """
    now = now or datetime.now(UTC)
    newest = (now - workspace.settings.settle_lag).date() - timedelta(days=1)
    if report.day != newest:
        return
    name, day = report.connection, report.day
    record = registry.get(workspace.database.engine, name)
    with workspace.database.engine.begin() as connection:
        _, lines = _verdict(connection, record, day)
        said = report.verdict
        body = [f"{said.title}. {said.text}", "", *lines, "", f"The report: bridge report {name} --day {day}"]
        message = Message(record.tenant, "daily", f"{name} {day}", report.subject, "\n".join(body), name, day)
        outbox.tell(connection, message, outbox.wanting(connection, record.tenant, "daily"))


def tell_digests(workspace: Workspace, now: datetime) -> None:
    """Tells each tenant's reviewers of the last week, once it is over and read."""
    due = datetime.combine(now.date() - timedelta(days=now.weekday()), _DIGEST_AT)
    due = due if due <= now else due - timedelta(days=7)
    first, last = due.date() - timedelta(days=7), due.date() - timedelta(days=1)
    about = f"week {first:%G-W%V}"
    with workspace.database.engine.begin() as connection:
        for tenant in outbox.tenants_told(connection):
            # Who is listed later is told of the next week first.
            recipients = outbox.wanting(connection, tenant, "weekly", listed_by=due)
            if recipients and not outbox.was_written(connection, tenant, "weekly", about):
                body = _digest(workspace, connection, tenant, first, last)
                title = f"{tenant}: data of {_days(first, last)}"
                outbox.tell(connection, Message(tenant, "weekly", about, title, body), recipients)


def _digest(workspace: Workspace, connection: sa.Connection, tenant: str, first: date, last: date) -> str:
    engine = workspace.database.engine
    records = [each for each in registry.list_connections(engine) if each.tenant == tenant]
    lines: list[str] = []
    for record in records:
        lines += [record.name, *_days_of_week(connection, record, first, last)]
        lines += [f"- {_quarantine_growth(connection, record.name, first, last)}", ""]
    counts = outbox.counts(connection, tenant)
    lines += ["Blocked batches that wait for a reviewer:", *(_open_blocks(connection, records) or ["- none"])]
    lines += ["", f"Messages not sent: {counts['pending']} waiting, {counts['failed']} given up"]
    return "\n".join(lines or ["There is no connection."])


def _days_of_week(connection: sa.Connection, record: ConnectionRecord, first: date, last: date) -> list[str]:
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [f"- {day:%a %Y-%m-%d}: {_verdict(connection, record, day)[0]}" for day in days]


def _quarantine_growth(connection: sa.Connection, name: str, first: date, last: date) -> str:
    q = t.quarantine
    new = q.c.first_seen.between(midnight(first), midnight(last + timedelta(days=1)))
    query = sa.select(sa.func.count(), sa.func.count().filter(new)).where(q.c.connection == name)
    total, grown = connection.execute(query).one()
    return f"quarantine: {grown:,} records more, {total:,} in all"


def _open_blocks(connection: sa.Connection, records: Sequence[ConnectionRecord]) -> list[str]:
    """Blocked batches of which no later one brought the days in."""
    b, later = t.batches, t.batches.alias("later")
    better = sa.exists().where(
        later.c.connection == b.c.connection,
        later.c.entity == b.c.entity,
        later.c.id > b.c.id,
        later.c.window_start <= b.c.window_start,
        later.c.window_end >= b.c.window_end,
        # A later batch that is blocked too speaks for both.
        later.c.verdict != "pending",
    )
    names = [record.name for record in records]
    found = ledger.list_batches(
        connection, sa.and_(b.c.connection.in_(names), b.c.verdict == "blocked", ~better)
    )
    return [
        f"- batch {each.id}: {each.entity} of {each.connection}, "
        f"{_days(each.window_start.date(), _last_day(each))}"
        for each in found
    ]


# --- Words --------------------------------------------------------------------------------------


def _verdict(connection: sa.Connection, record: ConnectionRecord, day: date) -> tuple[str, list[str]]:
    """What to think of a day, and why, entity by entity."""
    levels, lines = [], []
    for entity in entities_of(record):
        batch = ledger.newest_batch(connection, record.name, entity, Window.of_days(day, day))
        level, words = _of_batch(connection, batch)
        levels.append(level)
        lines.append(f"- {entity}: {words}")
    verdicts = ["Complete and good", "Complete and usable, with remarks", "Do not rely on this data yet"]
    return verdicts[max(levels, default=0)], lines


def _of_batch(connection: sa.Connection, batch: Batch | None) -> tuple[int, str]:
    if batch is None:
        return 2, "not extracted"
    if batch.verdict == "blocked":
        return 2, f"blocked (batch {batch.id})"
    if batch.verdict == "pending":
        return 2, "not checked"
    checks = ledger.checks_of(connection, batch.id)
    found = sum(not check.passed for check in checks)
    quarantined = batch.quarantined + batch.rejected
    words = f"{batch.landed - batch.rejected:,} records of the window landed, {quarantined:,} in quarantine"
    if batch.verdict == "accepted":
        return 1, f"accepted by a reviewer; {words}"
    if found or quarantined:
        return 1, f"{found} of {len(checks)} checks found something; {words}"
    return 0, f"all {len(checks)} checks passed; {words}"


def _days(first: date, last: date) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _last_day(batch: Batch) -> date:
    return (batch.window_end - timedelta(microseconds=1)).date()


def _origin(settings: Settings, run_id: str | None, words: str) -> str:
    if run_id is None:
        return f"{words}, by hand."
    link = f": {settings.public_url.rstrip('/')}/runs/{run_id}" if settings.public_url else ""
    return f"{words}, run {run_id}{link}"
