"""Every record of every page ends in exactly one place, with its exact payload."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.outline import Reader
from bridge_pipeline.connectors.helpdesk.streams import STREAMS
from bridge_pipeline.model import Window
from bridge_pipeline.steps import collect, parse, parser_process
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector

ACCOUNTS, USERS, TICKETS = STREAMS
WINDOW = Window(datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 3, 2, tzinfo=UTC))
FETCHED = datetime(2025, 3, 5, 8, tzinfo=UTC)
INSIDE = "2025-03-01T12:00:00Z"


class Extraction:
    """A collector over bodies that are journalled as a client does it."""

    def __init__(self, folder, stream=TICKETS, window=WINDOW, chunk=1000):
        self.census = DiskCensus(folder / "census.sqlite")
        self.census.begin_sweep()
        self.journal = Journal(folder)
        self.stream = stream
        self.collector = Collector(stream, window, self.census, self.journal, chunk)

    def pages(self, bodies):
        for body in bodies:
            content = pages.parse_list(body, self.stream.names)
            entry, _ = self.journal.write(
                f"p{self.journal.written}", "https://h/", body, body, len(content.records), FETCHED
            )
            yield Page(entry.number, content, FETCHED)

    def read(self, *bodies):
        """The landed rows of the bodies, and the rejected records."""
        tables = list(self.collector.tables(self.pages(bodies)))
        self.tables = tables
        rows = pa.concat_tables(tables).to_pylist() if tables else []
        rejected, self.gone = list(self.census.rejected()), list(self.census.gone())
        self.census.close()
        return rows, rejected


@pytest.fixture
def extraction(tmp_path):
    return Extraction(tmp_path)


def ticket(number=1, updated_at=INSIDE, **fields):
    return {"id": number, "subject": "s", "updated_at": updated_at, **fields}


def body(*records):
    return b"[" + b",".join(r if isinstance(r, bytes) else orjson.dumps(r) for r in records) + b"]"


def enveloped(*records):
    """A body that has an outline."""
    return b'{"data":' + body(*records) + b"}"


def places(counts):
    return counts.outside, counts.duplicate, counts.quarantined, counts.landed


# --- The equation -------------------------------------------------------------------------------

records = st.one_of(
    st.builds(
        ticket,
        st.integers(1, 4),
        st.sampled_from(
            [INSIDE, "2025-03-01T00:00:00+00:00", "2025-03-02T00:00:00Z", "2030-01-01T00:00:00Z", None]
        ),
        tags=st.sampled_from([None, ["a"], "no list", [2**70]]),
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"null",
            b"7",
            b"[]",
            b"{}",
            b"",
            b"NaN",
            b'{"id":"5"}',
            b'{"id":[[[1]]],"updated_at":5}',
            b'{"id":5,"s":"\\u0000","updated_at":"2025-03-01T12:00:00Z"}',
            b'{"id":5,"s":"\\ud800"}',
            b'{"id":5,"n":1e400}',
            b'{"id":5,"a":1,"a":2}',
            b'{"id":5,"s":"\xff"}',
            b'{"id":6,"updated_at":"2025-03-01T12:00:00Z","n":' + b"[" * 300 + b"]" * 300 + b"}",
            b'{"id":7,"updated_at":"2025-03-01T12:00:00Z","assignee":"User:' + b"9" * 5000 + b'"}',
        ]
    ),
)


@settings(max_examples=150)
# One that is rejected as it was before it was rejected otherwise.
@example([[b'{"id":5,"s":"\\ud800"}'], [b'{"id":5,"s":"\\u0000"}', b'{"id":5,"s":"\\ud800"}']], 1)
@given(st.lists(st.lists(records, max_size=5), max_size=5), st.integers(1, 4))
def test_the_equation_holds_for_any_pages(tmp_path_factory, bodies, chunk):
    extraction = Extraction(tmp_path_factory.mktemp("extraction"), chunk=chunk)
    rows, rejected = extraction.read(*(body(*found) for found in bodies))
    counts = extraction.collector.counts
    assert counts.fetched == extraction.journal.records == sum(places(counts))
    assert (counts.landed, counts.quarantined, counts.pages) == (len(rows), len(rejected), len(bodies))
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    assert len({(row["id"], row["content_hash"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (ticket(), "landed"),
        (ticket(updated_at="2025-03-01T00:00:00Z"), "landed"),
        (ticket(updated_at="2025-03-01T23:59:59.999999Z"), "landed"),
        (ticket(updated_at="2025-03-02T01:59:59.999999+02:00"), "landed"),
        (ticket(updated_at="2025-03-02T00:00:00Z"), "outside"),
        (ticket(updated_at="2025-03-01T01:59:59+02:00"), "outside"),
        (ticket(updated_at="2025-02-28T23:59:59.999999Z"), "outside"),
        (ticket(updated_at=None), "change_time_missing"),
        (ticket(updated_at="soon"), "time_invalid"),
        (ticket(updated_at="2025-03-06T08:00:00.000001Z"), "change_time_in_future"),
        (ticket(updated_at="2025-03-06T08:00:00Z"), "outside"),
        (ticket(created_at="yesterday"), "time_invalid"),
        (ticket(number="1"), "id_wrong_type"),
        ({"updated_at": INSIDE}, "id_missing"),
        (b"null", "not_an_object"),
        (b'["id"]', "not_an_object"),
        (b'{"id":1,"n":NaN}', "not_a_number"),
    ],
)
def test_where_a_record_ends(extraction, record, place):
    rows, rejected = extraction.read(body(record))
    counts = extraction.collector.counts
    found = [item.reason for item in rejected] or (["landed"] if rows else ["outside"] * counts.outside)
    assert found == [place]


def test_a_window_without_bounds_takes_everything(tmp_path):
    extraction = Extraction(tmp_path, stream=ACCOUNTS, window=None)
    rows, rejected = extraction.read(body(ticket(1, "1999-01-01T00:00:00Z"), {"id": 2}))
    assert ([row["id"] for row in rows], rejected) == (["1", "2"], [])


def test_what_need_not_tell_when_it_changed_belongs_to_any_window(tmp_path):
    rows, rejected = Extraction(tmp_path, stream=ACCOUNTS).read(body({"id": 2}))
    assert ([row["id"] for row in rows], rejected) == (["2"], [])


def test_the_same_version_again_is_a_duplicate_and_another_one_is_not(extraction):
    rows, _ = extraction.read(
        body(ticket(), ticket(), ticket(subject="new")), body(ticket(), b"null", b"null")
    )
    assert [row["subject"] for row in rows] == ["s", "new"]
    assert places(extraction.collector.counts) == (0, 3, 1, 2)


# --- What is kept of a record -------------------------------------------------------------------


def test_a_rejected_record_keeps_the_exact_bytes_of_its_page(extraction):
    raw = b'{ "id" : 0 ,"s":"\\u00e9 \\/" }'
    _, rejected = extraction.read(b'{"more":false, "data" : [ {"id":"x"} ,\n' + raw + b" ]}")
    assert [(item.raw, item.position, item.pointer, item.record_id) for item in rejected] == [
        (b'{"id":"x"}', 0, "/id", "x"),
        (raw, 1, "/id", "0"),
    ]


@pytest.mark.parametrize(
    ("given", "kept"), [('"x"', "x"), ("0", "0"), ("1.5", "1.5"), ("[[1]]", None), ("{}", None)]
)
def test_an_unusable_id_is_kept_for_show_where_it_is_a_plain_value(extraction, given, kept):
    _, (rejected,) = extraction.read(f'[{{"id":{given},"updated_at":"{INSIDE}"}}]'.encode())
    assert rejected.record_id == kept


def test_the_payload_of_a_landed_record_is_whole(extraction):
    sent = [
        ticket(1, custom={"a": [1.5, None, True, "😀\u2028"], "b": {}}),
        ticket(2, nested=json.loads("[" * 300 + "]" * 300)),
        ticket(3, big=2**70),
    ]
    rows, rejected = extraction.read(*(json.dumps([record]).encode() for record in sent))
    assert [json.loads(row["raw"]) for row in rows] == sent
    assert rejected == []
    assert [(row["page"], row["position"]) for row in rows] == [(0, 0), (1, 0), (2, 0)]
    assert {row["fetched_at"] for row in rows} == {FETCHED}


@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        ("12:00:00.123456Z", False),
        ("12:00:00.1234560Z", False),
        ("12:00:00.1234567Z", True),
        ("12:00:00.00000001Z", True),
    ],
)
def test_a_time_finer_than_its_column_is_kept_as_it_was_sent(extraction, moment, kept):
    ((row,), _) = extraction.read(body(ticket(updated_at=f"2025-03-01T{moment}")))
    assert json.loads(row["custom_fields"]) == ({"updated_at": f"2025-03-01T{moment}"} if kept else {})


def test_fetch_times_span_the_pages(extraction):
    content = pages.parse_list(body(ticket()), TICKETS.names)
    moments = [FETCHED + timedelta(minutes=m) for m in (5, 0, 9)]
    list(extraction.collector.tables(iter(Page(0, content, moment) for moment in moments)))
    counts = extraction.collector.counts
    assert (counts.fetched_from, counts.fetched_to) == (moments[1], moments[2])


# --- What the reader of the listing is told -----------------------------------------------------


@pytest.mark.parametrize(
    ("record", "inside"),
    [
        (b'{"id":"x","updated_at":"2025-03-01T12:00:00Z"}', 1),
        (b'{"id":"x","updated_at":"2020-01-01T00:00:00Z"}', 0),
        (b'{"id":5,"s":"\\u0000","updated_at":"2020-01-01T00:00:00Z"}', 0),
        (b'{"id":5,"n":NaN,"updated_at":"2020-01-01T00:00:00Z"}', 0),
        (b'{"id":5,"updated_at":null}', 1),
        (b'{"id":5,"updated_at":"?"}', 1),
        (b'{"id":5,"updated_at":"2999-01-01T00:00:00Z"}', 1),
        (b'{"id":5,"updated_at":"2020-01-01T00:00:00Z"', 1),
        (b"[]", 1),
        (b"null", 1),
    ],
)
def test_a_bad_record_asks_for_another_sweep_unless_it_clearly_lies_outside(extraction, record, inside):
    """Whose window is not known is not hidden by a filter that leaves it out."""
    page = Page(0, pages.PageContent([pages.parse_record(record)], exact=[record]), FETCHED)
    list(extraction.collector.tables(iter([page])))
    assert extraction.census.unseen == inside
    assert extraction.census.in_window == 0
    counts = extraction.collector.counts
    assert (counts.quarantined, counts.elsewhere) == (1, 1 - inside)


@pytest.mark.parametrize(
    ("bad", "unseen", "missed"),
    [
        ('{"id":6,"subject":5,"updated_at":"2025-03-01T12:00:00Z","url":"%d"}', 0, 0),
        ('{"id":6,"n":NaN,"updated_at":"2025-03-01T12:00:00Z","url":"%d"}', 0, 0),
        ('{"url":%d,"s":"\\ud800","id":6}', 0, 0),
        # Nothing but their bytes says which records these are.
        ('{"id":"6","updated_at":"2025-03-01T12:00:00Z","url":"%d"}', 1, 1),
        ('{"id":6,"id":7,"url":"%d"}', 1, 1),
        ('{"url":"%d"}', 1, 1),
    ],
)
def test_a_bad_record_with_a_value_that_is_new_each_time_is_the_same_by_its_id(
    extraction, bad, unseen, missed
):
    def sweep(number):
        yield from extraction.pages([body(ticket(1), (bad % number).encode())])

    def sweeps():
        yield from sweep(1)
        extraction.census.begin_sweep()
        yield from sweep(2)

    list(extraction.collector.tables(sweeps()))
    census, counts = extraction.census, extraction.collector.counts
    assert (census.unseen, census.missed, census.in_window) == (unseen, missed, 1)
    # Whatever was sent of it is kept.
    assert [item.raw for item in census.rejected()] == [(bad % number).encode() for number in (1, 2)]
    assert (counts.fetched, places(counts)) == (4, (0, 1, 2, 1))


@pytest.mark.parametrize(
    ("record", "name"),
    [(b'{"id":7,"s":1,"s":2}', "7"), (b'{"id":7,"n":NaN}', "7"), (b'{"id":"seven"}', "seven"), (b"{}", None)],
)
def test_what_is_set_aside_is_named_by_its_id_however_unsound_the_rest_is(extraction, record, name):
    _, rejected = extraction.read(body(record))
    assert [item.record_id for item in rejected] == [name]


def test_a_record_that_becomes_acceptable_is_unseen_once(extraction):
    bad, good = ticket(6, subject=5), ticket(6)

    def sweeps():
        for record in (bad, good, bad, good):
            extraction.census.begin_sweep()
            yield from extraction.pages([body(record)])
            found.append(extraction.census.unseen)

    found = []
    (rows,) = extraction.collector.tables(sweeps())
    assert (found, rows.num_rows, extraction.census.in_window) == ([1, 1, 0, 0], 1, 1)


# --- Chunks -------------------------------------------------------------------------------------


def test_tables_hold_about_a_chunk_and_have_the_declared_schema(tmp_path):
    extraction = Extraction(tmp_path, chunk=4)
    extraction.read(*(body(*(ticket(9 * page + n + 1) for n in range(3))) for page in range(5)))
    assert [table.num_rows for table in extraction.tables] == [6, 6, 3]
    assert all(table.schema == TICKETS.entity.landing_schema for table in extraction.tables)


def test_few_large_records_are_handed_on_as_many_small_ones(extraction, monkeypatch):
    monkeypatch.setattr(collect, "_MOST_BYTES", 10_000)
    extraction.read(*(body(ticket(n + 1, description="x" * 4_000)) for n in range(7)))
    assert [table.num_rows for table in extraction.tables] == [3, 3, 1]


# --- Listed as deleted ----------------------------------------------------------------------------


def test_what_the_source_lists_as_deleted_is_reported_and_not_landed(tmp_path):
    stream = replace(TICKETS, state=lambda record: "deleted" if record["subject"] == "gone" else None)
    extraction = Extraction(tmp_path, stream)
    rows, rejected = extraction.read(
        body(ticket(1), ticket(2, subject="gone"), ticket(2, subject="gone")),
        body(ticket(3, "2025-02-01T00:00:00Z", subject="gone"), ticket(1, subject="gone")),
    )
    assert [row["id"] for row in rows] == ["1"]
    assert rejected == []
    assert places(extraction.collector.counts) == (3, 1, 0, 1)
    assert extraction.collector.counts.gone == 3
    assert [(report.id, report.page, report.position) for report in extraction.gone] == [
        ("1", 1, 1),
        ("2", 0, 1),
        ("3", 1, 0),
    ]


def test_a_page_with_the_bytes_of_an_earlier_one_is_counted_and_not_read_again(extraction, monkeypatch):
    reader = Reader(TICKETS.names)
    page = enveloped(ticket(1), ticket(2), ticket(3, "2025-02-01T12:00:00Z"))
    first = Page(0, reader.parse_list(page), FETCHED)
    again = Page(1, reader.parse_list(page), FETCHED + timedelta(minutes=5))

    def sweeps():
        yield first
        extraction.census.begin_sweep()
        monkeypatch.setattr(parser_process, "parse_list", None)
        yield again

    (rows,) = extraction.collector.tables(sweeps())
    counts = extraction.collector.counts
    assert (counts.fetched, counts.pages, places(counts)) == (6, 2, (1, 3, 0, 2))
    assert (rows["id"].to_pylist(), counts.fetched_to) == (["1", "2"], again.fetched_at)
    # As if each record had been read again: the sweep saw all of the window, nothing new, nothing missed.
    census = extraction.census
    assert (census.unseen, census.missed, census.swept_in_window, census.repeats) == (0, 0, 2, 0)


def test_a_page_with_a_rejected_record_is_read_again(extraction):
    reader = Reader(TICKETS.names)
    page = enveloped(ticket(1), ticket(2, "2025-03-08T00:00:00Z"))
    early = Page(0, reader.parse_list(page), FETCHED)
    # By then its change time no longer lies in the future.
    late = Page(1, reader.parse_list(page), FETCHED + timedelta(days=3))
    extraction.journal.write("p0", "https://h/", page, page, 2, early.fetched_at)
    list(extraction.collector.tables(iter([early, late])))
    assert places(extraction.collector.counts) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([("b", "x"), ("a", "y"), ("b", "x"), ("a", "x")], [("a", "x"), ("a", "y"), ("b", "x")]),
        ([('"', "x")], [('"', "x")]),
        ([], []),
    ],
)
def test_people_stand_once_each_in_order(found, kept):
    assert json.loads(parse._linked(found)) == [{"part": part, "user_id": user} for user, part in kept]


def test_people_and_other_fields_are_part_of_what_a_version_is():
    def version(who, **fields):
        stream = replace(TICKETS, people=lambda _: [(who, "cc")], all_people=None)
        return parse.RecordParser(stream).batch([ticket(**fields)], 2**62, [b"{}"])["content_hash"][0].as_py()

    assert len({version("1"), version("2"), version("1", other=1), version("1", other=2)}) == 4
    for number in (1, 2**70):
        assert version("1", a=number, b={"c": 1, "d": 2}) == version("1", b={"d": 2, "c": 1}, a=number)
