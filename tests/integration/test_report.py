"""The report: it names every fault in words, is safe and masked, and is the same for the same data."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import openpyxl
import pytest

from bridge_pipeline import redaction
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database.certificates import Certificate, add_certificate
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.model import Window
from bridge_pipeline.steps import chain
from bridge_pipeline.steps.certificate import verdict_words
from bridge_pipeline.steps.certify import certify, newest
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.summary import summarise_connection, summarise_run
from tests.integration.desk import TOKEN, account, ticket, user
from tests.integration.flow import NAME, beside, connect, day, execute, land, process, rows
from tests.integration.planted import (
    DAY,
    HOSTILE,
    failed,
    passed,
    plant,
    plant_history,
    plant_hostile,
    rejected,
)

FIRST = "2024-03-01"
ADDRESS, NUMBER = "ada.lovelace@example.com", "+49 170 1234567"
PERSONAL = ("lovelace", "170 1234567", "<script")


def spoil(desk) -> None:
    """A day with one fault of each kind, and personal values where nobody expects them."""
    at = f"{FIRST}T01:00:00Z"
    desk.records["accounts"] = [account(1, at)]
    desk.records["users"] = [
        user(1, at),
        user(2, at, email=None),
        user(3, at, status=f"away, ask {ADDRESS} or {NUMBER}"),
        user(4, at, email="<script>alert('x')</script>"),
    ]
    good = [
        ticket(number, at, priority={"name": "Whenever"} if number == 9 else {"name": "High"})
        for number in range(1, 97)
    ]
    desk.records["tickets"] = [
        *good,
        ticket(97, at, account={"id": 5, "_type": "Account"}),
        ticket(98, f"call {ADDRESS}"),
        ticket(ADDRESS, at),
        ticket(100, "2999-01-01T00:00:00Z"),
        ticket(101, at, subject=["a list"]),
        b'{"id":102,"subject":"a\\u0000b","updated_at":"' + at.encode() + b'"}',
        b'{"id":103,"subject":"\\ud83d","updated_at":"' + at.encode() + b'"}',
        b'{"id":104,"score":NaN,"updated_at":"' + at.encode() + b'"}',
        b'"not a ticket"',
    ]


@pytest.fixture
def spoilt(desk, workspace):
    spoil(desk)
    for entity in ("accounts", "users"):
        process(workspace, day(FIRST), [entity])
    land(workspace, "tickets", day(FIRST))
    return workspace


def texts(page: str) -> str:
    """What a reader reads, without tags."""
    plain = re.sub(r"<[^>]+>", " ", page.split("</head>")[1])
    return " ".join(plain.replace("&#34;", '"').replace("&#39;", "'").split())


@pytest.mark.slow
def test_the_report_of_a_spoilt_day_names_every_fault_in_words(spoilt):
    report = write_report(spoilt, NAME, day(FIRST).start.date())
    said = texts(report.html.read_text())
    assert report.verdict.level == "bad"
    assert report.subject == f"{NAME} {FIRST}: Do not rely on this data yet"
    for fault in (
        "Not yet. All 110 records that the service desk sent are kept, but those of tickets have not reached",
        "Every user has an e-mail address. Not so for 1 of 4 (25 %)",
        "Users are active or locked. Not so for 1 of 4",
        "E-mail addresses look like name@host.domain. Not so for 1 of 4",
        "The priority is one of those known for Client Central. Not so for 1 of 97 (1 %)",
        "A date or time of the record does not exist or cannot be read",
        "does not look like the ids of this service desk",
        "claims to have been changed in the future",
        "A field of the record holds another kind of value than it should",
        "an invisible NUL character",
        "half a character",
        "not a number (NaN or infinity)",
        "Something that is no record stood in the list",
        "holds the data back until somebody decides",
        "data-platform, who run the pipeline: Decide about the blocked tickets",
        f"bridge run {NAME} --from {FIRST} --to {FIRST} --entities tickets",
        'bridge accept 3 --by "YOUR NAME" --reason "WHY"',
        "bridge quarantine show",
        f"bridge quarantine replay {NAME}",
        f"bridge report {NAME} --day {FIRST}",
        "The sum holds: every record that was fetched is accounted for.",
    ):
        assert fault in said, fault
    assert "Every user has an e-mail address." in report.markdown
    assert "an invisible NUL character" in report.markdown


@pytest.mark.slow
def test_no_form_of_the_report_shows_a_person_or_asks_anything_of_elsewhere(spoilt, desk):
    redaction.remember(TOKEN)
    report = write_report(spoilt, NAME, day(FIRST).start.date())
    assert report.workbook is not None
    cells = [cell for row in openpyxl.load_workbook(report.workbook).active.values for cell in row]
    for form in (report.html.read_text(), report.markdown, repr(cells)):
        assert not [value for value in (*PERSONAL, TOKEN) if value in form.lower()]
    assert "away, ask a…@… or +…" in report.html.read_text()
    page = report.html.read_text()
    links = set(re.findall(r'href="([^"#]+)"', page))
    assert f"{desk.url}/support/tickets/9" in links
    assert all(re.fullmatch(rf"{desk.url}/support/tickets/\d+", link) for link in links)
    assert not re.search(r"<script|<img|<link|<iframe|@import|url\(|src=", page)
    execute(spoilt, "update bridge.tenants set show_personal_data = true")
    assert registry.shows_personal_data(spoilt.database.engine, "acme")
    asked = write_report(spoilt, NAME, day(FIRST).start.date())
    cells = [cell for row in openpyxl.load_workbook(asked.workbook).active.values for cell in row]
    assert ADDRESS in repr(cells)
    assert "Values are shown as they are" in asked.html.read_text()


def without_facts(page: str) -> list[str]:
    lines = page.splitlines()
    kept = [line for line in lines if 'class="fact"' not in line and 'fact">' not in line]
    assert len(kept) < len(lines)
    return kept


@pytest.mark.slow
def test_the_same_data_gives_the_same_report_but_for_the_run_facts(workspace, desk):
    spoil(desk)
    desk.records["tickets"] = desk.records["tickets"][90:102]
    process(workspace, day(FIRST), ["tickets"])
    first = write_report(workspace, NAME, day(FIRST).start.date())
    kept = (first.html.read_bytes(), first.workbook.read_bytes(), first.markdown)
    again = write_report(workspace, NAME, day(FIRST).start.date())
    assert (again.html.read_bytes(), again.workbook.read_bytes(), again.markdown) == kept
    process(workspace, day(FIRST), ["tickets"])
    second = write_report(workspace, NAME, day(FIRST).start.date()).html.read_text()
    process(workspace, day(FIRST), ["tickets"])
    third = write_report(workspace, NAME, day(FIRST).start.date()).html.read_text()
    assert third != second
    assert without_facts(third) == without_facts(second)
    assert "This is the first report of this connection" in third, "reading the same again is no change"


@pytest.fixture
def planted(workspace):
    connect(workspace, "https://desk.example.com")
    return workspace


def test_a_report_says_what_is_new_and_what_was_mended_since_the_day_before(planted):
    before = DAY - timedelta(days=1)
    for entity in ("accounts", "users", "tickets"):
        old = [failed("colour", "warn", "Everything has a colour.", 3, 400)] if entity == "users" else []
        plant(planted, entity, [*old, passed("name", "Everything has a name.", 400)], day=before)
    assert "first report" in texts(write_report(planted, NAME, before).html.read_text())
    for entity in ("accounts", "users", "tickets"):
        plant(planted, entity, [failed("name", "warn", "Everything has a name.", 4, 400)])
    for _ in range(2):
        said = texts(write_report(planted, NAME, DAY).html.read_text())
        assert f"Compared with the report of {before}" in said
        assert "Mended · users: Everything has a colour. None failing any more, before 3." in said
        assert "New · tickets: Everything has a name. 4 failing." in said
    plant(planted, "tickets", [passed("name", "Everything has a name.", 400)])
    said = texts(write_report(planted, NAME, DAY).html.read_text())
    assert "Compared with the report of this day as it was before" in said
    assert "Mended · tickets: Everything has a name." in said
    assert "users: Everything" not in said.split("Scorecard")[1].split("What the checks found")[0]


def test_two_never_write_the_reports_of_a_connection_at_once(planted):
    with ThreadPoolExecutor(1) as threads:
        with planted.database.engine.begin() as writing:
            advisory_lock(writing, f"report:{NAME}")
            second = beside(threads, planted, write_report, planted, NAME, day(FIRST).last_day)
            assert not second.done()
        assert second.result().html.is_file()


def test_a_day_that_was_never_extracted_has_a_report_that_says_what_to_do(planted):
    report = write_report(planted, NAME, DAY)
    said = texts(report.html.read_text())
    assert (report.verdict.level, report.workbook) == ("bad", None)
    assert "No. Accounts, users and tickets were never fetched for this day." in said
    assert f"bridge run {NAME} --from {DAY} --to {DAY} --entities accounts,users,tickets" in said


def test_blocked_and_accepted_batches_are_told_apart(planted):
    fault = failed("equation", "block", "Every record is accounted for.", 1, 400)
    batch = plant(planted, "tickets", [fault])
    next_day = DAY + timedelta(days=1)
    assert f"bridge report {NAME} --day {DAY}" in texts(
        write_report(planted, NAME, next_day).html.read_text()
    )
    with planted.database.engine.begin() as connection:
        ledger.accept(connection, batch.id, "Ann <b>Lee</b>", f"confirmed by {ADDRESS}")
    page = write_report(planted, NAME, DAY).html.read_text()
    assert "Ann &lt;b&gt;Lee&lt;/b&gt;" in page
    assert "confirmed by a…@…" in page
    assert f"bridge accept {batch.id}" not in page
    later = texts(write_report(planted, NAME, next_day).html.read_text()).split("To write this")[0]
    assert f"--day {DAY}" not in later


def test_a_batch_that_lost_records_is_never_called_complete(planted):
    plant(planted, "tickets", [passed("name", "Everything has a name.", 400)], fetched=501)
    said = texts(write_report(planted, NAME, DAY).html.read_text())
    assert "THE SUM DOES NOT HOLD" in said
    assert "Find out why tickets do not add up" in said


def test_records_of_a_batch_between_the_first_and_the_last_are_counted(planted):
    bad = [rejected("nul_character", b'{"id":1,"s":"\\u0000"}', record_id="1")]
    days = [DAY + timedelta(days=n) for n in range(3)]
    for each in days:
        plant(planted, "tickets", [], bad, day=each, run_id=f"run-{each}")
    for each in days:
        assert "1 record . Have it corrected" in texts(write_report(planted, NAME, each).html.read_text())
        (found,) = summarise_run(planted, f"run-{each}").quarantine
        assert (found.entity, found.reason, found.records) == ("tickets", "nul_character", 1)
    assert rows(planted, "select count(*) as n from bridge.quarantine") == [{"n": 1}]
    assert [each.records for each in summarise_connection(planted, NAME).quarantine] == [1]


def test_nothing_in_the_workbook_can_run(planted):
    plant_hostile(planted)
    execute(planted, "update bridge.tenants set show_personal_data = true")
    report = write_report(planted, NAME, DAY)
    book = openpyxl.load_workbook(report.workbook)
    cells = [cell for row in book.active.iter_rows() for cell in row if cell.value is not None]
    assert {cell.data_type for cell in cells} == {"s"}
    assert HOSTILE[3] in {cell.value for cell in cells}
    assert not any(cell.hyperlink for cell in cells)
    assert len(list(book.active.iter_rows())) == 1 + len(HOSTILE)


def test_the_trend_is_that_of_the_audit_files(planted):
    batch = plant(planted, "tickets", [passed("name", "Everything has a name.", 400)])
    plant_history(planted, batch, [7, None, 30, 12])
    said = texts(write_report(planted, NAME, DAY).html.read_text())
    assert "lowest 7, highest 30, this day 12; 27 of 30 days without data" in said


@pytest.mark.slow
def test_a_certificate_that_is_not_complete_is_not_contradicted_above_it(desk, workspace):
    connect(workspace, desk, entities=("tickets",))
    at = f"{FIRST}T01:00:00Z"
    desk.records["tickets"] = [ticket(number, at) for number in range(1, 11)]
    process(workspace, day(FIRST), ["tickets"])
    gone = desk.records["tickets"][4:]
    del desk.records["tickets"][4:]
    assert certify(workspace, NAME).verdict == "blocked"
    report = write_report(workspace, NAME, day(FIRST).start.date())
    said = texts(report.html.read_text())
    assert (report.verdict.level, report.verdict.text) == ("bad", "Certificate 1: held back.")
    for line in (
        "Is it complete? No. By certificate 1: 6 of 10 tickets are gone from the source all at once.",
        "What is wrong? certificate 1, held back: 6 of 10 tickets are gone",
        "Find out why records are gone from the service desk.",
        f'bridge certify {NAME} --accept-deletions --by "YOUR NAME" --reason "WHY"',
    ):
        assert line in said, line
    assert "Is it complete?** No" in report.markdown

    desk.records["tickets"] += gone
    assert certify(workspace, NAME).complete
    assert "Is it complete? Yes." in texts(
        write_report(workspace, NAME, day(FIRST).start.date()).html.read_text()
    )


def test_a_certificate_of_other_days_says_nothing_of_this_one(planted):
    for each in (DAY, DAY + timedelta(days=1)):
        for entity in ("accounts", "users", "tickets"):
            plant(planted, entity, [passed("name", "Everything has a name.", 400)], day=each)
    before = write_report(planted, NAME, DAY).verdict
    window = Window.of_days(DAY + timedelta(days=1), DAY + timedelta(days=1))
    with planted.database.engine.begin() as connection:
        add_certificate(
            connection,
            Certificate(
                connection=NAME, number=1, tenant="acme", window_start=window.start, window_end=window.end,
                verdict="incomplete", listings={}, path="-", sha256="-", page_sha256="-",
                document={
                    "verdict": "incomplete", "command": "bridge certify", "entities": [],
                    "scope": {"from": str(window.start.date()), "to": str(window.start.date())},
                },
            ),
        )  # fmt: skip
    assert write_report(planted, NAME, DAY).verdict == before
    assert write_report(planted, NAME, window.start.date()).verdict.level == "bad"


@pytest.mark.slow
def test_the_report_names_the_newest_certificate_and_the_head_of_the_chain(desk, workspace):
    at = f"{FIRST}T01:00:00Z"
    desk.records["accounts"], desk.records["users"] = [account(1, at)], [user(1, at)]
    desk.records["tickets"] = [ticket(number, at) for number in (1, 2)]
    process(workspace, day(FIRST))
    before = write_report(workspace, NAME, day(FIRST).start.date())
    assert "No certificate yet" in texts(before.html.read_text())
    desk.records["tickets"].append(ticket(3, "2024-02-01T00:00:00Z", subject="before the days read"))
    desk.records["accounts"].clear()
    certify(workspace, NAME)
    after = write_report(workspace, NAME, day(FIRST).start.date())
    said = texts(after.html.read_text())
    title, text = verdict_words(newest(workspace, NAME).document)
    assert f"{title} Certificate 1 , the full reckoning" in said
    assert text in said
    assert f"{title}." in after.markdown
    with workspace.database.engine.connect() as connection:
        head = chain.head(connection, "acme")
    assert f"ended, when this was written, with entry {head.sequence}: {head.sha256}" in said
