"""What reviewers are told, and of what: alarms, their ends, daily reports and weekly digests.

Everything here only writes to the outbox; `deliver` sends. Texts hold names, counts and sentences
of our own, never a value of a record.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge_pipeline.database import ledger, outbox, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.outbox import Message
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model.window import midnight
from bridge_pipeline.redaction import redact
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.certificate import verdict_words
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.findings import Findings, Part, findings_of, last_day
from bridge_pipeline.steps.mail import one_line
from bridge_pipeline.steps.verdict import overall, verdict_of

if TYPE_CHECKING:
    from bridge_pipeline.steps.report import Report

# Mondays, after the daily schedule has read Sunday.
_DIGEST_AT = time(6, 0, tzinfo=UTC)
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
            b.c.connection == batch.connection,
            b.c.entity == batch.entity,
            b.c.verdict == "blocked",
            ledger.replaced(),
        )
        ended = connection.scalars(sa.select(b.c.id).where(sa.or_(better_read, b.c.id == batch.id)))
        _tell_ended(connection, batch, ended.all(), f"Batch {batch.id} has passed its checks.")


def tell_accepted(connection: sa.Connection, batch: Batch) -> None:
    """Tells those who were told of a block that a reviewer let the batch through."""
    _tell_ended(connection, batch, [batch.id], "A reviewer accepted the batch; the report says who and why.")


def _tell_blocked(
    connection: sa.Connection, batch: Batch, results: Sequence[CheckResult], settings: Settings
) -> None:
    first, last = batch.window_start.date(), last_day(batch)
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
        outbox.about_block(connection, batch.tenant, batch.id),
        title,
        "\n".join(lines),
        connection=batch.connection,
        day=last,
    )
    outbox.tell(connection, message, outbox.wanting(connection, batch.tenant, "blocked"))


def _tell_ended(connection: sa.Connection, batch: Batch, ended: Sequence[int], why: str) -> None:
    for alarm in outbox.open_alarms(connection, batch.tenant, ended):
        blocked = ledger.batch(connection, alarm.batch)
        days = _days(blocked.window_start.date(), last_day(blocked))
        title = f"{batch.connection}: {batch.entity} of {days} no longer blocked"
        body = (
            f"The {batch.entity} of {batch.connection} for {days} were blocked (batch {alarm.batch}), "
            f"and that has ended. {why}\nThe data can be used."
        )
        message = Message(
            batch.tenant, "resolved", alarm.about, title, body, batch.connection, follows=alarm.message_id
        )
        outbox.tell(connection, message, alarm.recipients)


def tell_certificate(connection: sa.Connection, certificate: Certificate) -> None:
    """Tells those who are told of blocks of a certificate that is not complete.

    Call it in the transaction that lists the certificate.
    """
    if certificate.complete:
        return
    name, number = certificate.connection, certificate.number
    title, text = verdict_words(certificate.document)
    sections = certificate.document["entities"]
    lines = [
        f"Certificate {number} of {name} does not prove that nothing is missing. {title}: {text}",
        "",
        *(f"- {line}" for section in sections for line in _open_questions(section)),
        "",
        "What to do:",
        f"- Look which records they are: audit/{certificate.path}",
        f"- Once the source is put right, certify again: {certificate.document['command']}",
    ]
    if certificate.verdict == "blocked":
        lines.append(
            f'- If they may be deleted: bridge certify {name} --accept-deletions --by NAME --reason "…"'
        )
    about, heading = f"certificate {name} {number}", f"{name}: certificate {number} is {certificate.verdict}"
    message = Message(certificate.tenant, "blocked", about, heading, "\n".join(lines), name)
    outbox.tell(connection, message, outbox.wanting(connection, certificate.tenant, "blocked"))


def _open_questions(section: dict[str, Any]) -> Iterator[str]:
    """What keeps the certificate of one entity from being complete."""
    entity, gone = section["entity"], section["disappeared"]
    if gone["blocked"]:
        yield f"{entity}: {gone['rows']:,} of {gone['of']:,} gone from the source, not marked as deleted"
    if section["unexplained"]:
        yield f"{entity}: {section['unexplained']:,} not accounted for"
    if not section["batches"]["holds"]:
        yield f"{entity}: what was fetched does not add up"


def tell_test(workspace: Workspace, tenant: str, now: datetime) -> str:
    """Writes a test message to all reviewers of a tenant; returns what it is about.

    Raises:
        NoReviewers: it has none.
    """
    about = f"test {now:%Y-%m-%dT%H:%M:%S.%fZ}"
    body = "This is a test. Whoever reads it is told of the data of this tenant."
    with transaction(workspace.database.engine, "announce.test") as connection:
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
    with transaction(workspace.database.engine, "announce.failed") as connection:
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
    return one_line(_QUERY.sub("", _QUOTED.sub("…", redact(own[1]))), _LONGEST_ERROR)


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
    with transaction(workspace.database.engine, "announce.report") as connection:
        lines = [_of_part(part) for part in _found(workspace, connection, record, day).parts]
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
    with transaction(workspace.database.engine, "announce.digests") as connection:
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
        lines += [record.name, *_days_of_week(workspace, connection, record, first, last)]
        lines += [f"- {_quarantine_growth(connection, record.name, first, last)}", ""]
    counts = outbox.counts(connection, tenant)
    lines += ["Blocked batches that wait for a reviewer:", *(_open_blocks(connection, records) or ["- none"])]
    lines += ["", f"Messages not sent: {counts['pending']} waiting, {counts['failed']} given up"]
    return "\n".join(lines or ["There is no connection."])


def _days_of_week(
    workspace: Workspace, connection: sa.Connection, record: ConnectionRecord, first: date, last: date
) -> Iterator[str]:
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        found = _found(workspace, connection, record, day)
        said = overall(found.parts, found.shortfall)
        yield f"- {day:%a %Y-%m-%d}: {said.title}. {said.text}"


def _quarantine_growth(connection: sa.Connection, name: str, first: date, last: date) -> str:
    q = t.quarantine
    new = q.c.first_seen.between(midnight(first), midnight(last + timedelta(days=1)))
    query = sa.select(sa.func.count(), sa.func.count().filter(new)).where(q.c.connection == name)
    total, grown = connection.execute(query).one()
    return f"quarantine: {grown:,} records more, {total:,} in all"


def _open_blocks(connection: sa.Connection, records: Sequence[ConnectionRecord]) -> list[str]:
    """Blocked batches of which no later one brought the days in."""
    b = t.batches
    mine = b.c.connection.in_([record.name for record in records])
    # A later batch that is blocked too speaks for both.
    waits = ~ledger.replaced(by=(*ledger.READABLE, "blocked"))
    found = ledger.list_batches(connection, sa.and_(mine, b.c.verdict == "blocked", waits))
    return [
        f"- batch {each.id}: {each.entity} of {each.connection}, "
        f"{_days(each.window_start.date(), last_day(each))}"
        for each in found
    ]


# --- Words --------------------------------------------------------------------------------------


def _found(workspace: Workspace, connection: sa.Connection, record: ConnectionRecord, day: date) -> Findings:
    """What the report of a day speaks of, so that no message says anything else."""
    return findings_of(workspace, connection, record, list(entities_of(record)), day)


def _of_part(part: Part) -> str:
    said = verdict_of(part)
    return f"- {part.entity}: {said.title}. {said.text}"


def _days(first: date, last: date) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _origin(settings: Settings, run_id: str | None, words: str) -> str:
    if run_id is None:
        return f"{words}, by hand."
    link = f": {settings.public_url.rstrip('/')}/runs/{run_id}" if settings.public_url else ""
    return f"{words}, run {run_id}{link}"
