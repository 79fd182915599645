"""Sends what is in the outbox: each message to each reviewer once, and again until it is taken.

A delivery is claimed, and the attempt noted, in one transaction; it is sent and entered as sent in
the next, which holds its row. Only a crash between the server's yes and that commit sends it twice,
and then with the same Message-ID. See docs/decisions/0014-outbox.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import structlog

from bridge_pipeline.database import outbox
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.outbox import MAIL, Due, Message
from bridge_pipeline.database.sealing import SealingError
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.redaction import redact
from bridge_pipeline.steps import mail
from bridge_pipeline.steps.announce import tell_digests
from bridge_pipeline.steps.mail import MailPostponed, MailRefused, MailUnreachable, NoMailServer
from bridge_pipeline.steps.notify import NotNotified, notify
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.tenants import ADDRESS

log = structlog.get_logger(__name__)
_FIRST_RETRY, _LONGEST_RETRY = timedelta(minutes=1), timedelta(hours=4)
# Their texts are written to be read; of others only the kind is told.
_TOLD = (MailPostponed, MailRefused, MailUnreachable, NoMailServer, NotNotified, SealingError)


@dataclass
class Delivered:
    """How many deliveries were sent, will be tried again, and were given up."""

    sent: int = 0
    postponed: int = 0
    failed: int = 0


def utc_now() -> datetime:
    """The time now."""
    return datetime.now(UTC)


def deliver(
    workspace: Workspace, clock: Callable[[], datetime] = utc_now, seconds: float = 30.0
) -> Delivered:
    """Sends what is due, oldest first, and writes the weekly digests that are due.

    Any number of processes may do so at once. Nothing is waited for: what cannot be sent now is due
    again later.

    Args:
        seconds: after so many no other delivery is begun.
    """
    tell_digests(workspace, clock())
    with transaction(workspace.database.engine, "deliver.settle") as connection:
        outbox.settle(connection)
    done, held = Delivered(), set[str]()
    until = time.monotonic() + seconds
    while time.monotonic() < until and (due := _claimed(workspace, clock(), held)) is not None:
        _attempt(workspace, due, clock, held, done)
    return done


def revive(workspace: Workspace) -> None:
    """Makes all deliveries that were given up, or wait for another attempt, due now."""
    with transaction(workspace.database.engine, "deliver.revive") as connection:
        outbox.revive(connection, utc_now())


def _claimed(workspace: Workspace, now: datetime, held: set[str]) -> Due | None:
    with transaction(workspace.database.engine, "deliver.claim") as connection:
        return outbox.claim(connection, now, lambda attempts: now + _pause(attempts), held)


def _pause(attempts: int) -> timedelta:
    """How long to wait after so many attempts: a minute, then twice as long each time, up to four hours."""
    # Beyond this exponent the longest is reached, and the product would overflow one day.
    return min(_FIRST_RETRY * 2 ** min(attempts - 1, 10), _LONGEST_RETRY)


def _attempt(
    workspace: Workspace, due: Due, clock: Callable[[], datetime], held: set[str], done: Delivered
) -> None:
    """Sends one claimed delivery while its row is held, and notes how that ended."""
    facts = {"event_kind": due.message.event, "about": due.message.about, "reviewer": due.shown}
    with transaction(workspace.database.engine, "deliver.attempt") as connection:
        if not outbox.hold(connection, due):
            return
        try:
            _send(workspace, due)
        except Exception as error:
            text = redact(str(error)) if isinstance(error, _TOLD) else type(error).__name__
            # A server that does not answer is not asked for each mail.
            held.add(MAIL if isinstance(error, MailUnreachable | NoMailServer) else due.reviewer)
            overdue = clock() - due.created_at >= workspace.settings.delivery_give_up
            given_up = clock() if overdue or isinstance(error, MailRefused) else None
            outbox.mark_failed(connection, due, text, given_up)
            done.failed += given_up is not None
            done.postponed += given_up is None
            log.warning("message not sent", **facts, error=text, given_up=given_up is not None)
        else:
            reach("deliver.sent")
            outbox.mark_sent(connection, due, clock())
            done.sent += 1
            log.info("message sent", **facts, attempts=due.attempts)


def _send(workspace: Workspace, due: Due) -> None:
    address = workspace.sealer.unseal(due.address, due.message.tenant, due.reviewer, ADDRESS)
    if due.channel != MAIL:
        notify(address, mail.one_line(due.message.title, 200), due.message.body)
        return
    # Before the report, which takes a moment and is of no use without a server.
    server = mail.mail_server(workspace.settings)
    attachments = _attachments(workspace, due.message)
    body = due.message.body + ("\n\nThe report is attached." if attachments else "")
    answers = _message_id(workspace, due, "blocked", due.follows_about) if due.follows_about else None
    letter = mail.compose(
        server,
        address,
        due.message.title,
        body,
        _message_id(workspace, due, due.message.event, due.message.about),
        # The same whenever it is sent, like everything else in it.
        format_datetime(due.created_at),
        attachments,
        answers,
    )
    mail.hand_over(server, letter)


def _message_id(workspace: Workspace, due: Due, event: str, about: str) -> str:
    """Names one message to one reviewer, on every attempt alike."""
    parts = (due.message.tenant, due.reviewer, event, about)
    return f"bridge.{workspace.sealer.fingerprint('/'.join(parts))}"


def _attachments(workspace: Workspace, message: Message) -> list[Path]:
    """The report that goes with a message. An alarm goes out even if it cannot be written."""
    if message.connection is None or message.day is None:
        return []
    try:
        report = write_report(workspace, message.connection, message.day)
        return [report.html, *([report.workbook] if report.workbook else [])]
    except Exception as error:
        log.warning(
            "the report to attach could not be written", about=message.about, error=redact(str(error))
        )
        return []
