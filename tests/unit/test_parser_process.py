"""Pages are parsed by another process while the next is asked for; nothing depends on it."""

import os
import select
import signal
import subprocess
import sys
from dataclasses import replace

import orjson
import psutil
import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.outline import Reader
from bridge_pipeline.connectors.helpdesk.streams import STREAMS
from bridge_pipeline.steps import collect, parser_process
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector
from bridge_pipeline.steps.parser_process import ParserProcess
from tests.unit.test_collect import FETCHED, WINDOW

TICKETS = STREAMS[2]
OWNER = """
import sys
from bridge_pipeline.steps import parser_process
parser_process._WORTHWHILE = 0
helper = parser_process.ParserProcess("helpdesk", "tickets")
helper.expect(0, 1)
print(helper._worker.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def helper(monkeypatch):
    """A process that is ready for the first page."""
    monkeypatch.setattr(parser_process, "_WORTHWHILE", 0)
    helper = ParserProcess("helpdesk", "tickets")
    helper.expect(0, 1)
    assert helper._worker.receive() == b""
    helper._ready = True
    yield helper
    helper.close()


def ticket(number, updated_at="2025-03-01T12:00:00Z", **fields):
    return {"id": number, "subject": f"s{number}", "updated_at": updated_at, **fields}


# Three pages that can be accepted, one again, one with a repeated record, and two that cannot whole.
LISTING = [
    [ticket(n, tags=["a"], account={"id": 5}, cf_floor=n) for n in range(1, 40)],
    [ticket(n, "2025-03-05T00:00:00.123456789Z") for n in range(40, 60)],
    [ticket(7, subject="other"), ticket(60, assignee={"id": 9, "_type": "User"})],
    [ticket(n, tags=["a"], account={"id": 5}, cf_floor=n) for n in range(1, 40)],
    [ticket(61, "2031-01-01T00:00:00Z"), ticket(62)],
    [ticket(63, tags="no list"), 7, ticket(64)],
    [],
    [ticket(65, description="ü\\u0041\n", due=1.5)],
]


# After which of them a census is asked for what; after the last one nobody asks.
ASKED = {1: "in_window", 2: "unseen", 4: "swept_in_window", 6: "repeats"}


def collected(folder, helper, stream=TICKETS):
    """What becomes of the listing, and what a census answers after each of its pages."""
    folder.mkdir()
    census, journal = DiskCensus(folder / "census.sqlite"), Journal(folder)
    census.begin_sweep()
    collector = Collector(stream, WINDOW, census, journal, 25, helper)
    reader, answers = Reader(TICKETS.names), []

    def listing():
        for number, records in enumerate(LISTING):
            body = orjson.dumps({"data": records})
            content = reader.parse_list(body)
            journal.write(f"p{number}", "https://h/", body, body, len(records), FETCHED)
            yield Page(number, content, FETCHED)
            waiting = list(collector._waiting)
            assert len(waiting) < 2 or sum(each.size for each in waiting) <= collect._MOST_WAITING
            if number in ASKED:
                answers.append(getattr(census, ASKED[number]))

    table = pa.concat_tables(list(collector.tables(listing())))
    rejected = list(census.rejected())
    gone = list(census.gone())
    census.close()
    return table, rejected, gone, vars(collector.counts), collector.inventory.found, answers


@pytest.mark.parametrize("waiting", [0, collect._MOST_WAITING])
def test_what_it_parses_is_the_same(tmp_path, helper, monkeypatch, waiting):
    monkeypatch.setattr(collect, "_MOST_WAITING", waiting)
    given = []
    give = helper.give
    helper.give = lambda *page: given.append(give(*page)) or given[-1]
    with_it, without = collected(tmp_path / "with", helper), collected(tmp_path / "without", None)
    assert with_it == without
    assert without[0].num_rows > 40
    # It takes what it is given, as long as it has not enough to do.
    assert given.count(True) > 2


def test_where_records_may_be_deleted_it_parses_none(tmp_path, helper):
    stream = replace(TICKETS, state=lambda record: "deleted" if record["id"] == 7 else None)
    with_it = collected(tmp_path / "with", helper, stream)
    assert with_it == collected(tmp_path / "without", None, stream)
    assert [report.id for report in with_it[2]] == ["7"]


def test_it_takes_none_before_it_has_said_that_it_is_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(parser_process, "_WORTHWHILE", 0)
    helper = ParserProcess("helpdesk", "tickets")
    helper.expect(0, 1)
    assert not helper.give(tmp_path / "page", 0, 0)
    assert select.select([helper._worker.answers], [], [], 60)[0]
    assert helper.give(tmp_path / "page", 0, 0)
    helper.close()


def test_it_takes_one_page_and_the_next(tmp_path, helper):
    helper._worker.process.send_signal(signal.SIGSTOP)
    assert [helper.give(tmp_path / "page", 0, 0) for _ in range(3)] == [True, True, False]
    helper._worker.process.send_signal(signal.SIGCONT)
    assert [helper.result() for _ in range(2)] == [None, None]
    assert helper.give(tmp_path / "page", 0, 0)


@pytest.mark.parametrize("under_way", [False, True])
def test_an_extraction_goes_on_when_it_is_killed(tmp_path, helper, under_way):
    give, given = helper.give, []

    def killing(*page):
        given.append(page)
        taken = give(*page) if under_way or len(given) != 3 else None
        if len(given) == 3:
            process = helper._worker.process
            process.kill()
            process.wait()
        return give(*page) if taken is None else taken

    helper.give = killing
    with capture_logs() as logs:
        assert collected(tmp_path / "with", helper) == collected(tmp_path / "without", None)
    assert [entry["event"].split(";")[0] for entry in logs if entry["log_level"] == "warning"] == [
        "there is no process that parses pages"
    ]


def test_an_extraction_goes_on_when_it_no_longer_answers(tmp_path, helper, monkeypatch):
    monkeypatch.setattr(helper._worker, "_patience", 0.1)
    monkeypatch.setattr(collect, "_MOST_WAITING", 0)
    helper._worker.process.send_signal(signal.SIGSTOP)
    assert collected(tmp_path / "with", helper) == collected(tmp_path / "without", None)
    assert helper._worker is None


def test_an_extraction_goes_on_when_it_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(parser_process, "_WORTHWHILE", 0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    assert collected(tmp_path / "with", ParserProcess("helpdesk", "tickets")) == collected(
        tmp_path / "without", None
    )


def test_it_is_not_started_for_a_short_listing(tmp_path):
    helper = ParserProcess("helpdesk", "tickets")
    collected(tmp_path / "with", helper)
    assert helper._worker is None


def test_it_is_started_with_the_first_page_that_tells_of_many(tmp_path):
    helper = ParserProcess("helpdesk", "tickets")
    census, body = DiskCensus(tmp_path / "census.sqlite"), b'{"data":[],"total_pages":%d}'
    census.begin_sweep()
    collector = Collector(TICKETS, WINDOW, census, None, 25, helper)
    started = []
    for number, pages in enumerate((2, 10**6)):
        page = Page(number, Reader(TICKETS.names).parse_list(body % pages), FETCHED)
        list(collector.tables(iter([page])))
        started.append(helper._worker is not None)
    helper.close()
    census.close()
    assert started == [False, True]


def test_it_ends_with_the_process_that_started_it():
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    helper = psutil.Process(int(owner.stdout.readline()))
    assert helper.is_running()
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert psutil.wait_procs([helper], timeout=60)[0]


def test_it_is_told_no_secret(helper, monkeypatch):
    monkeypatch.setenv("BRIDGE_SECRET_KEY", "s3cret-key")
    monkeypatch.setenv("DESK_TOKEN", "4711-token")
    another = ParserProcess("helpdesk", "tickets")
    another.expect(0, 1)
    told = psutil.Process(another._worker.process.pid).environ()
    assert not {"BRIDGE_SECRET_KEY", "DESK_TOKEN"} & set(told)
    another.close()
