"""Reviewers are told once of what concerns them, whatever fails on the way."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from bridge_pipeline import cli, logs
from bridge_pipeline import settings as configuration
from bridge_pipeline.database import outbox
from bridge_pipeline.database.outbox import Message
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.announce import Failure, tell_digests, tell_failed_run, tell_report
from bridge_pipeline.steps.certify import Acceptance, certify
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.deliver import Delivered, deliver
from bridge_pipeline.steps.load import EquationBroken, load
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.tables import bring_up_to_date
from bridge_pipeline.steps.tenants import apply_tenants, parse_tenants
from tests.integration.desk import Desk, account, ticket, user
from tests.integration.flow import NAME, day, execute, land, process, rows
from tests.integration.post import Chat, Post, chat_service, post_office

MARIA, OTTO = "maria.canary@acme.example", "otto.canary@acme.example"
SECRET_PATH = "canary-T0ken-of-the-hook"
DAY = "2024-03-01"


@pytest.fixture
def post() -> Iterator[Post]:
    with post_office() as post:
        yield post


@pytest.fixture
def chat() -> Iterator[Chat]:
    with chat_service() as chat:
        yield chat


@pytest.fixture
def workspace(workspace: Workspace, post: Post, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace with the mail server and with a tenant."""
    monkeypatch.setenv("BRIDGE_SMTP_URL", f"smtp://127.0.0.1:{post.port}")
    monkeypatch.setenv("BRIDGE_MAIL_FROM", "Project Bridge <bridge@acme.example>")
    execute(workspace, "insert into bridge.tenants (name) values ('acme')")
    return dataclasses.replace(workspace, settings=configuration.load())


@pytest.fixture
def logged(workspace: Workspace, no_logging: None) -> None:
    """Logging as commands set it up, and as it was afterwards."""
    logs.configure(workspace.settings, workspace.home)


@pytest.fixture
def reviewers(workspace: Workspace, tmp_path) -> Callable[..., None]:
    """Declares who is told, by address or URL."""

    def declare(**events_by_name: list[str] | tuple[str, list[str]]) -> None:
        listed = [
            {"to": f"mailto:{name}.canary@acme.example", "on": events}
            if isinstance(events, list)
            else {"to": events[0], "on": events[1]}
            for name, events in events_by_name.items()
        ]
        path = tmp_path / "tenants.yaml"
        path.write_text(json.dumps({"tenants": [{"name": "acme", "reviewers": listed}]}))
        apply_tenants(workspace, parse_tenants(path, {}))

    return declare


def tell(workspace: Workspace, *abouts: str, event: outbox.Event = "failed") -> None:
    """Writes messages to all who want to be told of such."""
    with workspace.database.engine.begin() as connection:
        for about in abouts:
            message = Message("acme", event, about, f"Title of {about}", f"Body of {about}")
            outbox.tell(connection, message, outbox.wanting(connection, "acme", event))


def at(hours: float) -> Callable[[], datetime]:
    """A clock that is so many hours ahead."""
    return lambda: datetime.now(UTC) + timedelta(hours=hours)


def statuses(workspace: Workspace) -> list[str]:
    query = "select status from bridge.deliveries order by message_id, reviewer"
    return [row["status"] for row in rows(workspace, query)]


def block(desk: Desk) -> None:
    """A hundred tickets, too many of which have no id."""
    desk.page_size = 60
    desk.records["tickets"] = [
        *(ticket(number, f"{DAY}T10:00:00Z") for number in range(1, 91)),
        *(json.dumps({"number": n, "updated_at": f"{DAY}T10:00:00Z"}).encode() for n in range(10)),
    ]


def heal(desk: Desk) -> None:
    desk.records["tickets"] = [ticket(number, f"{DAY}T10:00:00Z") for number in range(1, 91)]


# --- What is told -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_block_is_told_once_with_its_report_and_so_is_its_end(workspace, desk, post, reviewers):
    reviewers(maria=["blocked"], otto=["failed", "daily"])
    block(desk)
    batch = land(workspace, "tickets", day(DAY))
    assert batch.verdict == "blocked"
    check(workspace, batch.id)
    assert deliver(workspace) == Delivered(sent=1)
    assert deliver(workspace) == Delivered()

    (mail,) = post.mails
    assert mail["To"] == MARIA
    assert mail["Subject"] == f"{NAME}: tickets of {DAY} blocked"
    text = mail.get_body(("plain",)).get_content()
    assert text.startswith("Do not rely on this data yet")
    assert "Of 100 records or more, at most 5.0% are rejected. (10 of 100)" in text
    assert f"bridge accept {batch.id} --by NAME" in text
    attached, workbook = mail.iter_attachments()
    assert attached.get_filename() == f"{DAY}.html"
    rejected = workspace.home.rejected_of("acme", NAME, date.fromisoformat(DAY))
    assert (workbook.get_filename(), workbook.get_payload(decode=True)) == (
        rejected.name,
        rejected.read_bytes(),
    )
    page = workspace.home.report_of("acme", NAME, date.fromisoformat(DAY)).read_bytes()
    assert attached.get_payload(decode=True) == page
    assert b"Do not rely on this data yet" in page

    heal(desk)
    assert land(workspace, "tickets", day(DAY)).verdict == "passed"
    assert land(workspace, "tickets", day(DAY)).verdict == "passed"
    assert deliver(workspace) == Delivered(sent=1)
    assert deliver(workspace) == Delivered()
    ended = post.mails[1]
    assert ended["Subject"] == f"{NAME}: tickets of {DAY} no longer blocked"
    assert ended["In-Reply-To"] == mail["Message-ID"]
    assert ended["Message-ID"] != mail["Message-ID"]


def test_a_block_that_ended_before_it_was_told_is_not_told(workspace, desk, post, reviewers):
    reviewers(maria=["blocked"])
    block(desk)
    land(workspace, "tickets", day(DAY))
    post.stop()
    assert deliver(workspace, at(0.01)) == Delivered(postponed=1)
    heal(desk)
    land(workspace, "tickets", day(DAY))
    post.start()
    assert deliver(workspace, at(1)) == Delivered()
    assert statuses(workspace) == ["withdrawn", "withdrawn"]
    assert post.mails == []


def test_an_accepted_batch_ends_its_alarm(workspace, desk, post, reviewers):
    reviewers(maria=["blocked"])
    block(desk)
    batch = land(workspace, "tickets", day(DAY))
    deliver(workspace)
    accept_batch(workspace, batch.id, "Grace Hopper", "the vendor confirmed")
    deliver(workspace)
    assert post.subjects()[1:] == [f"{NAME}: tickets of {DAY} no longer blocked"]
    assert "accepted" in post.mails[1].get_content()
    assert "Grace" not in post.mails[1].as_string()


@pytest.mark.slow
def test_single_records_that_come_do_not_end_a_block(workspace, desk, reviewers):
    reviewers(maria=["blocked", "weekly"])
    execute(workspace, "update bridge.reviewers set created_at = '2024-03-01'")
    desk.page_size = 60
    desk.records["accounts"] = [
        *(account(number, f"{DAY}T10:00:00Z") for number in range(1, 91)),
        *(json.dumps({"number": n, "updated_at": f"{DAY}T10:00:00Z"}).encode() for n in range(10)),
    ]
    assert land(workspace, "accounts", day(DAY)).verdict == "blocked"
    desk.records["tickets"] = [ticket(1, f"{DAY}T10:00:00Z", account={"id": 1, "_type": "Account"})]
    land(workspace, "tickets", day(DAY))
    bring_up_to_date(workspace, NAME, "tickets", day(DAY))
    newest = rows(
        workspace, "select kind, verdict from bridge.batches where entity = 'accounts' order by id"
    )[-1]
    assert newest == {"kind": "lookup", "verdict": "passed"}
    tell_digests(workspace, datetime(2024, 3, 4, 6, tzinfo=UTC))
    alarm, digest = rows(workspace, "select event, body from bridge.messages order by id")
    assert (alarm["event"], digest["event"]) == ("blocked", "weekly")
    assert f"- batch 1: accounts of {NAME}, {DAY}" in digest["body"]


@pytest.mark.slow
def test_a_load_that_does_not_add_up_is_told_and_so_is_the_next_block_after_its_end(
    workspace, desk, post, reviewers
):
    reviewers(maria=["blocked"])
    heal(desk)
    batch = land(workspace, "tickets", day(DAY))
    # A row that got lost on its way, which only the load notices.
    execute(workspace, "insert into bridge.rejections values (:id, 0, 'nobody')", id=batch.id)
    for _ in range(2):
        with pytest.raises(EquationBroken):
            load(workspace, batch)
        check(workspace, batch.id)
        deliver(workspace)
    told = rows(workspace, "select event, about, follows from bridge.messages order by id")
    assert [tuple(row.values()) for row in told] == [
        ("blocked", f"batch {batch.id}", None),
        ("resolved", f"batch {batch.id}", 1),
        ("blocked", f"batch {batch.id}, block 2", None),
        ("resolved", f"batch {batch.id}, block 2", 3),
    ]


@pytest.mark.slow
def test_a_certificate_that_is_not_complete_is_told_to_who_is_told_of_blocks(workspace, desk, reviewers):
    reviewers(maria=["blocked"], otto=["daily"])
    heal(desk)
    process(workspace, day(DAY))
    desk.records["tickets"] = desk.records["tickets"][:50]
    assert certify(workspace, NAME).verdict == "blocked"
    query = "select m.* from bridge.messages m join bridge.deliveries d on d.message_id = m.id"
    (told,) = rows(workspace, query)
    assert (told["event"], told["about"]) == ("blocked", f"certificate {NAME} 1")
    assert "- tickets: 40 of 90 gone from the source, not marked as deleted" in told["body"]
    assert f"bridge certify {NAME} --accept-deletions" in told["body"]
    assert certify(workspace, NAME, acceptance=Acceptance("Ann Lee", "purged")).complete
    assert len(rows(workspace, query)) == 1


def test_a_verdict_and_its_alarm_are_written_together_or_not_at_all(workspace, desk, reviewers, monkeypatch):
    reviewers(maria=["blocked"])
    block(desk)
    monkeypatch.setattr("bridge_pipeline.steps.announce.outbox.tell", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        land(workspace, "tickets", day(DAY))
    assert rows(workspace, "select verdict from bridge.batches") == [{"verdict": "pending"}]
    assert statuses(workspace) == []


@pytest.mark.slow
def test_only_the_newest_settled_day_is_told_and_once(workspace, desk, post, reviewers):
    reviewers(maria=["daily"])
    desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z")]
    desk.records["users"] = [user(1, f"{DAY}T10:00:00Z")]
    desk.records["tickets"] = [ticket(1, f"{DAY}T10:00:00Z")]
    process(workspace, day(DAY))
    newest, settled = date.fromisoformat(DAY), datetime(2024, 3, 2, 3, 30, tzinfo=UTC)
    for back in (1, 2, 28):
        tell_report(workspace, write_report(workspace, NAME, newest - timedelta(days=back)), settled)
    # The day is over and has not settled.
    tell_report(workspace, write_report(workspace, NAME, newest), settled.replace(hour=1))
    assert statuses(workspace) == []
    for _ in range(3):
        tell_report(workspace, write_report(workspace, NAME, newest), settled)
    assert deliver(workspace) == Delivered(sent=1)
    (mail,) = post.mails
    assert mail["Subject"] == write_report(workspace, NAME, newest).subject
    assert "- tickets: Usable, with remarks. " in mail.get_body(("plain",)).get_content()
    (attached,) = mail.iter_attachments()
    assert attached.get_payload(decode=True) == write_report(workspace, NAME, newest).html.read_bytes()


def test_a_failed_run_is_told_once_in_words_without_values(workspace, desk, post, reviewers):
    reviewers(maria=["failed"], otto=["blocked", "failed"])
    failures = [
        Failure(
            "extracted__tickets",
            "bridge_pipeline.x.SourceError: 401 for ann@acme.example at https://h/t?x=words: 'it\n isn't for "
            "Ann Lee'; check the token\n",
            "SourceError",
        ),
        Failure("tables__tickets", "psycopg.Error: Key (subject)=(secret words) exists", "UniqueViolation"),
    ]
    days = (date(2024, 3, 1), date(2024, 3, 2))
    for _ in range(2):
        tell_failed_run(workspace, "run-1", NAME, days, failures, False)
    # Of a blocking check those who asked for blocks are told as such.
    tell_failed_run(workspace, "run-2", NAME, days, [], True)
    tell_failed_run(workspace, "run-3", "unknown", days, failures, False)
    deliver(workspace)
    assert sorted(mail["To"] for mail in post.mails) == [MARIA, MARIA, OTTO]
    text = post.mails[0].get_content()
    assert f"bridge run {NAME} --from 2024-03-01 --to 2024-03-02" in text
    assert "- extracted__tickets: 401 for a…@… at https://h/t …; check the token" in text
    assert "- tables__tickets: UniqueViolation" in text
    assert "words" not in text
    assert "Ann" not in text


@pytest.mark.slow
def test_the_weekly_digest_is_told_once_when_its_week_is_over(workspace, desk, post, reviewers):
    reviewers(maria=["weekly"])
    execute(workspace, "update bridge.reviewers set created_at = '2024-03-01'")
    block(desk)
    land(workspace, "tickets", day(DAY))
    heal(desk)
    land(workspace, "tickets", day("2024-03-02"))
    sunday, early, monday = (datetime(2024, 3, *moment, tzinfo=UTC) for moment in ((3, 23), (4, 5), (4, 6)))
    execute(workspace, "update bridge.quarantine set first_seen = '2024-03-02'")
    for moment in (sunday, early):
        tell_digests(workspace, moment)
        # That of the week before, in which nobody was listed yet.
        assert statuses(workspace) == []
    for moment in (monday, monday + timedelta(days=2)):
        tell_digests(workspace, moment)
    assert statuses(workspace) == ["pending"]
    body = rows(workspace, "select body from bridge.messages")[0]["body"]
    assert "- Fri 2024-03-01: Do not rely on this data yet" in body
    assert "- quarantine: 10 records more, 10 in all" in body
    assert "- batch 1: tickets of acme-helpdesk, 2024-03-01" in body
    assert "Messages not sent: 0 waiting, 0 given up" in body
    reviewers(maria=["weekly"], otto=["weekly"])
    tell_digests(workspace, monday + timedelta(days=7))
    assert [row["about"] for row in rows(workspace, "select about from bridge.messages order by id")] == [
        "week 2024-W09",
        "week 2024-W10",
    ]


@pytest.mark.slow
def test_the_digest_says_of_a_day_what_its_report_says(workspace, desk, reviewers):
    reviewers(maria=["weekly"])
    execute(workspace, "update bridge.reviewers set created_at = '2024-03-01'")
    heal(desk)
    tickets, _, _ = process(workspace, day(DAY))["tickets"]
    execute(workspace, "update bridge.loads set loaded = loaded - 1 where batch_id = :id", id=tickets.id)
    land(workspace, "tickets", day("2024-03-02"))
    tell_digests(workspace, datetime(2024, 3, 4, 6, tzinfo=UTC))
    body = rows(workspace, "select body from bridge.messages")[0]["body"]
    for named in (DAY, "2024-03-02"):
        said = write_report(workspace, NAME, date.fromisoformat(named)).verdict
        assert said.level == "bad"
        assert f"{named}: {said.title}. {said.text}" in body
    assert "Tickets: not accounted for." in body


# --- Sending ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_lost_or_sent_twice_while_the_mail_server_is_down_for_an_hour(workspace, post, reviewers):
    reviewers(maria=["failed"], otto=["failed"])
    post.stop()
    for minute in range(0, 60, 5):
        if minute < 20:
            tell(workspace, f"run {minute}")
        done = deliver(workspace, at(0.01 + minute / 60))
        # A server that does not answer is asked once, not for every mail.
        assert (done.sent, done.failed, done.postponed) in {(0, 0, 0), (0, 0, 1)}
    assert set(statuses(workspace)) == {"pending"}
    post.start()
    for minute in range(60, 95, 5):
        deliver(workspace, at(0.01 + minute / 60))
    assert set(statuses(workspace)) == {"sent"}
    told = sorted((mail["To"], mail["Subject"]) for mail in post.mails)
    assert told == sorted((to, f"Title of run {m}") for to in (MARIA, OTTO) for m in (0, 5, 10, 15))


def sender(fate: str) -> subprocess.Popen[bytes]:
    """A process that sends what is due."""
    command = [sys.executable, "-m", "tests.integration.post", fate]
    return subprocess.Popen(command, cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_two_that_send_at_once_send_each_message_once(workspace, post, reviewers):
    reviewers(maria=["failed"])
    tell(workspace, *(f"run {number}" for number in range(8)))
    post.together = 2
    senders = [sender("lives"), sender("lives")]
    assert [each.wait(300) for each in senders] == [0, 0]
    assert sorted(post.subjects()) == [f"Title of run {number}" for number in range(8)]
    assert statuses(workspace) == ["sent"] * 8


def test_a_delivery_that_is_being_sent_is_taken_by_nobody_else(workspace, post, reviewers):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    post.together = 2
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(deliver, workspace)
        assert post.under_way.wait(60)
        # Even when it would be due again, because the server takes very long.
        assert deliver(workspace, at(1)) == Delivered()
        post.together = 1
        assert sending.result(60) == Delivered(sent=1)
    assert len(post.mails) == 1


@pytest.mark.slow
def test_a_crash_between_sending_and_noting_sends_the_very_same_mail_again_later(workspace, post, reviewers):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    assert sender("dies").wait(300) == -9
    assert len(post.mails) == 1
    assert statuses(workspace) == ["pending"]
    # Not at once: what killed one process would kill the next.
    assert deliver(workspace) == Delivered()
    assert deliver(workspace, at(1)) == Delivered(sent=1)
    first, second = post.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert post.raw[0] == post.raw[1]


@pytest.mark.parametrize("place", [MARIA, "data"])
def test_a_mail_that_is_refused_for_good_is_given_up_at_once(workspace, post, reviewers, place):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    post.refused[place] = f"550 5.1.1 <{MARIA}>: no such user"
    assert deliver(workspace) == Delivered(failed=1)
    assert deliver(workspace, at(100)) == Delivered()


@pytest.mark.slow
def test_what_was_given_up_is_told_loudly_and_can_be_tried_again(workspace, post, reviewers, logged, capsys):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    post.refused[MARIA] = f"550 5.1.1 <{MARIA}>: no such user"
    assert cli.execute(["deliveries", "send"]) == 1
    assert "0 sent, 0 to be tried again, 1 given up" in capsys.readouterr().out
    assert cli.execute(["status"]) == 0
    assert "1 messages to reviewers were given up" in capsys.readouterr().out
    assert cli.execute(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [each["status"] for each in findings if each["name"] == "messages"] == ["fail"]
    assert cli.execute(["deliveries", "list", "--status", "failed", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["shown"] == "m…@acme.example"
    assert "550" in listed["error"]
    assert MARIA not in str(listed)
    post.refused.clear()
    assert cli.execute(["deliveries", "send", "--again", "--json"]) == 0
    assert post.subjects() == ["Title of run 1"]


def test_a_mail_that_is_refused_for_now_is_tried_for_days_and_holds_nobody_else_back(
    workspace, post, reviewers
):
    reviewers(maria=["failed"], otto=["failed"])
    tell(workspace, "run 1")
    reviewers(maria=["blocked"], otto=["failed"])
    tell(workspace, "run 2")
    post.refused[MARIA] = "450 4.2.2 mailbox full"
    assert deliver(workspace, at(0.01)) == Delivered(sent=2, postponed=1)
    tried = [hour for hour in range(1, 25) if deliver(workspace, at(hour)).postponed]
    assert tried == [1, 2, 3, 4, 5, 6, 8, 11, 15, 19, 23]
    assert deliver(workspace, at(119)) == Delivered(postponed=1)
    assert deliver(workspace, at(125)) == Delivered(failed=1)
    assert deliver(workspace, at(130)) == Delivered()


def test_any_apprise_url_is_told_in_plain_text(workspace, chat, reviewers):
    reviewers(chat=(f"json://127.0.0.1:{chat.port}/{SECRET_PATH}", ["failed"]))
    tell(workspace, "run <b>1</b>")
    chat.status = 500
    assert deliver(workspace, at(0.01)) == Delivered(postponed=1)
    assert rows(workspace, "select error from bridge.deliveries") == [{"error": "the service answered 500"}]
    chat.status = 200
    assert deliver(workspace, at(1)) == Delivered(sent=1)
    assert deliver(workspace, at(9)) == Delivered()
    (message,) = chat.messages
    assert (message["title"], message["message"]) == ("Title of run <b>1</b>", "Body of run <b>1</b>")


def test_without_a_mail_server_messages_wait_and_say_why(workspace, reviewers):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    settings = workspace.settings.model_copy(update={"smtp_url": None})
    assert deliver(dataclasses.replace(workspace, settings=settings)) == Delivered(postponed=1)
    ((error,),) = (row.values() for row in rows(workspace, "select error from bridge.deliveries"))
    assert "set BRIDGE_SMTP_URL" in error
    assert deliver(workspace, at(1)) == Delivered(sent=1)


# --- Who is told --------------------------------------------------------------------------------


def test_a_reviewer_who_is_removed_is_forgotten_and_told_nothing_more(workspace, post, reviewers):
    reviewers(maria=["failed"], otto=["failed"])
    tell(workspace, "run 1")
    reviewers(otto=["failed"])
    assert deliver(workspace) == Delivered(sent=1)
    assert sorted(statuses(workspace)) == ["sent", "withdrawn"]
    assert rows(workspace, "select address from bridge.reviewers where removed_at is not null") == [
        {"address": None}
    ]
    reviewers(maria=["failed"], otto=["failed"])
    tell(workspace, "run 2")
    assert deliver(workspace) == Delivered(sent=2)


def test_an_address_opens_only_for_its_own_tenant(workspace, reviewers, post):
    reviewers(maria=["failed"])
    tell(workspace, "run 1")
    execute(workspace, "insert into bridge.tenants (name) values ('other')")
    columns = "id, address, channel, shown, events"
    copied = f"select 'other', {columns} from bridge.reviewers"
    execute(workspace, f"insert into bridge.reviewers (tenant, {columns}) {copied}")
    execute(workspace, "update bridge.deliveries set tenant = 'other'")
    execute(workspace, "update bridge.messages set tenant = 'other'")
    assert deliver(workspace) == Delivered(postponed=1)
    assert post.mails == []


def test_applying_a_file_tells_what_changed_and_takes_the_variables_away(
    workspace, tmp_path, logged, capsys, monkeypatch, chat
):
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("BRIDGE_DAGSTER_STORAGE_URL", "")
    path = tmp_path / "connections.yaml"
    listed = "[{to: 'mailto:${WHO}', on: [daily]}, {to: '${HOOK}', on: [blocked]}]"
    path.write_text(f"tenants: [{{name: new, reviewers: {listed}}}]")
    answers = []
    for _ in range(2):
        monkeypatch.setenv("WHO", MARIA)
        monkeypatch.setenv("HOOK", f"json://127.0.0.1:{chat.port}/{SECRET_PATH}")
        assert cli.execute(["connections", "apply", str(path), "--json"]) == 0
        answers += json.loads(capsys.readouterr().out)
    assert "HOOK" not in os.environ
    assert answers == [
        {"tenant": "new", "action": "created", "reviewers": 2},
        {"tenant": "new", "action": "unchanged", "reviewers": 2},
    ]
    assert cli.execute(["deliveries", "test", "new", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reached"] is True
    assert len(chat.messages) == 1
    assert cli.execute(["deliveries", "test", "nobody"]) == 2


def test_no_address_is_in_the_database_in_a_log_or_in_an_answer(
    workspace, desk, post, chat, reviewers, logged, capsys
):
    hook = f"json://user:{SECRET_PATH}@127.0.0.1:{chat.port}/{SECRET_PATH}?token={SECRET_PATH}"
    reviewers(maria=["blocked", "failed"], chat=(hook, ["blocked", "failed"]))
    post.refused[MARIA] = f"450 not now, {MARIA}"
    chat.status = 403
    block(desk)
    land(workspace, "tickets", day(DAY))
    deliver(workspace)
    cli.execute(["deliveries", "list"])
    cli.execute(["deliveries", "list", "--json"])
    cli.execute(["status", "--json"])
    seen = [*capsys.readouterr(), *(path.read_text() for path in workspace.home.logs.iterdir())]
    assert "message not sent" in "".join(seen)
    with workspace.database.engine.connect() as connection:
        for table in ("reviewers", "messages", "deliveries"):
            seen += connection.scalars(sa.text(f"select to_jsonb(x)::text from bridge.{table} x")).all()
    for text in seen:
        assert "canary" not in text.lower()
