"""An extraction that takes rows of the last one comes out as one that parses everything."""

import hashlib
import json
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.outline import Reader
from bridge_pipeline.steps import inventory, landed_before
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector
from bridge_pipeline.steps.landed_before import opened
from bridge_pipeline.steps.parse import RecordParser
from tests.unit.test_collect import FETCHED, INSIDE, TICKETS, WINDOW

NOON_BEFORE = "2025-02-28T12:00:00Z"
SOON = "2025-03-01T18:00:00.123456789Z"


def ticket(number, updated_at: str | None = INSIDE, **more):
    return {"id": number, "subject": "s", "updated_at": updated_at, **more}


def encoded(record):
    return record if isinstance(record, bytes) else json.dumps(record).encode()


def pages_of(records, size):
    """Bodies of a listing."""
    parts = [records[start : start + size] for start in range(0, len(records), size)]
    return [b'{"data":[%s]}' % b",".join(map(encoded, part)) for part in parts]


def collected(folder, bodies, before=None, fetched=FETCHED):
    """The landed rows of a listing and all else that is kept of it."""
    folder.mkdir(exist_ok=True)
    census, journal = DiskCensus(folder / "census.sqlite"), Journal(folder)
    collector = Collector(TICKETS, WINDOW, census, journal, 4, before=before)
    reader, answers = Reader(TICKETS.names), []

    def listing():
        for sweep in range(2):
            census.begin_sweep()
            for number, body in enumerate(bodies):
                content, moment = reader.parse_list(body), fetched + timedelta(seconds=number)
                count = len(content.records)
                entry, _ = journal.write(f"s{sweep}-p{number}", "https://h/", body, body, count, moment)
                yield Page(entry.number, content, moment)
            answers.append((census.unseen, census.missed, census.in_window, census.repeats))

    tables = list(collector.tables(listing()))
    rows = pa.concat_tables(tables) if tables else TICKETS.entity.landing_schema.empty_table()
    rejected = list(census.rejected())
    census.close()
    return rows.combine_chunks(), rejected, vars(collector.counts), collector.inventory.found, answers


def landed(folder, rows, group=3):
    """Files of a landing, as the ledger lists them."""
    path = folder / "tickets.0.parquet"
    pq.write_table(rows, path, row_group_size=group)
    return [{"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]


def extracted_again(folder, old, new, fetched=FETCHED):
    """What an extraction of `new` comes to after one of `old`, and without it."""
    rows, *_, fields, _ = collected(folder / "old", old)
    with opened(TICKETS, folder, landed(folder, rows), fields.absent) as before:
        found = collected(folder / "again", new, before, fetched)
    return found, collected(folder / "anew", new, None, fetched)


@pytest.fixture
def parsed(monkeypatch):
    """The ids of the records that were parsed."""
    ids, batch = [], RecordParser.batch

    def counting(self, records, *more):
        ids.extend(record.get("id") for record in records)
        return batch(self, records, *more)

    monkeypatch.setattr(RecordParser, "batch", counting)
    return ids


def tickets(first, last, **more):
    return [ticket(number, **more) for number in range(first, last + 1)]


records = st.one_of(
    st.builds(
        ticket,
        st.integers(1, 30),
        st.sampled_from([INSIDE, INSIDE, INSIDE, SOON, NOON_BEFORE, None, "2025-03-08T00:00:00Z"]),
        tags=st.sampled_from([None, ["a"], "no list", [2**70], ["\u00fc"]]),
        cf=st.sampled_from([None, {"deep": [1.5, -0.0, {"x": None}]}, "::", 1e300]),
    ),
    st.builds(lambda number, key: ticket(number, **{key: None}), st.integers(1, 30), st.text(max_size=3)),
    st.sampled_from(
        [
            b"null",
            b"{}",
            b'{"id":"5"}',
            b'{"id":5,"s":"\\u0000","updated_at":"2025-03-01T12:00:00Z"}',
            b'{"id":5,"n":1e400}',
            b'{ "id" : 5 , "updated_at":"2025-03-01T12:00:00Z", "s" : "\\u003a" }',
            b'{"id":6,"updated_at":"2025-03-01T12:00:00Z","n":1.10000000000000000001}',
        ]
    ),
)
# What becomes of a record until it is listed again: how often it stands there, and as what.
fates = st.one_of(
    *[st.just(lambda record: [record])] * 6,
    st.just(lambda _: []),
    st.just(lambda record: [record, record]),
    st.builds(lambda other: lambda _: [other], records),
    st.builds(lambda other: lambda record: [record, other], records),
)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(records, fates), min_size=1, max_size=24),
    st.integers(1, 9),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 3, -5]),
    st.sampled_from([0, 200, 10**6]),
)
def test_it_comes_out_as_if_all_were_parsed(tmp_path_factory, listing, size, size_again, chance, days, held):
    folder = tmp_path_factory.mktemp("again")
    old = [record for record, _ in listing]
    new = [each for record, fate in listing for each in fate(record)]
    if days:
        chance.shuffle(new)
    with pytest.MonkeyPatch.context() as patch:
        # Of so few records as of many.
        patch.setattr(inventory, "_WHOLE", 2)
        patch.setattr(inventory, "_EVERY", 3)
        patch.setattr(landed_before, "_MOST_BYTES", held)
        moment = FETCHED + timedelta(days=days)
        again, anew = extracted_again(folder, pages_of(old, size), pages_of(new, size_again), moment)
    assert again == anew


def test_of_an_unchanged_listing_nothing_is_parsed(tmp_path, parsed):
    bodies = pages_of(tickets(1, 40), 7)
    again, anew = extracted_again(tmp_path, bodies, pages_of(tickets(1, 40), 9))
    assert again == anew
    assert again[0].num_rows == 40
    # By the first extraction, and by the one that is compared with.
    assert len(parsed) == 80


@pytest.mark.parametrize("numbers", [(1, 2, 2, 4), (1, 3, 2, 4), (2, 1), (3, 3)])
def test_rows_are_those_of_the_records_in_whatever_order_they_come(tmp_path, parsed, numbers):
    new = pages_of([ticket(number) for number in numbers], 4)
    rows, *_, fields, _ = collected(tmp_path / "old", pages_of(tickets(1, 4), 4))
    del parsed[:]
    with opened(TICKETS, tmp_path, landed(tmp_path, rows, 4), fields.absent) as before:
        again = collected(tmp_path / "again", new, before)
    assert parsed == []
    assert again == collected(tmp_path / "anew", new)


@pytest.mark.parametrize("bad", [ticket(50, tags="no list"), b"7", b'{"id":50,"n":1e400}'])
def test_what_cannot_be_accepted_is_set_aside_from_among_rows_that_landed(tmp_path, bad):
    old = pages_of(tickets(1, 9), 9)
    again, anew = extracted_again(tmp_path, old, pages_of([*tickets(1, 8), bad, ticket(9)], 10))
    assert again == anew
    assert (len(again[1]), again[0].num_rows) == (1, 9)


def test_a_page_without_records_is_one_of_a_landing_too(tmp_path):
    again, anew = extracted_again(
        tmp_path, pages_of(tickets(1, 9), 3), [b'{"data":[]}', *pages_of(tickets(1, 9), 3)]
    )
    assert again == anew


def test_what_is_new_is_parsed_alone(tmp_path, parsed):
    old = tickets(1, 40)
    new = [*tickets(1, 9), ticket(10, subject="changed"), *tickets(12, 30), ticket(50), *tickets(31, 40)]
    rows, *_, fields, _ = collected(tmp_path / "old", pages_of(old, 7))
    del parsed[:]
    with opened(TICKETS, tmp_path, landed(tmp_path, rows), fields.absent) as before:
        again = collected(tmp_path / "again", pages_of(new, 8), before)
    assert parsed == [10, 50]
    assert again == collected(tmp_path / "anew", pages_of(new, 8))


@pytest.mark.parametrize(
    "new",
    [
        tickets(100, 400) + tickets(1, 200),
        tickets(60, 200),
        tickets(1, 150, subject="changed") + tickets(151, 200),
        tickets(101, 200) + tickets(1, 100),
    ],
    ids=["much is new", "much has left", "much has changed", "in another order"],
)
def test_a_landing_is_followed_though_little_of_it_is_held(tmp_path, parsed, monkeypatch, new):
    monkeypatch.setattr(landed_before, "_MOST_BYTES", 9_000)
    rows, *_, fields, _ = collected(tmp_path / "old", pages_of(tickets(1, 200), 10))
    known = {raw.as_py() for raw in rows["raw"]}
    most = []
    read = landed_before._Landing._read

    def reading(own, number):
        most.append(sum(own._groups[each].size for each in (*own._held, number)))
        return read(own, number)

    monkeypatch.setattr(landed_before._Landing, "_read", reading)
    del parsed[:]
    with opened(TICKETS, tmp_path, landed(tmp_path, rows, 20), fields.absent) as before:
        again = collected(tmp_path / "again", pages_of(new, 10), before)
    alike = sum(json.dumps(each) in known for each in new)
    assert alike > 20
    assert len(parsed) <= len(new) - alike // 2
    assert 6_000 < max(most) <= 9_000
    assert again == collected(tmp_path / "anew", pages_of(new, 10))


@pytest.mark.parametrize("key", ["closed_at", "responded_at"])
def test_which_columns_have_no_key_is_known_of_rows_that_are_not_parsed(tmp_path, monkeypatch, key):
    monkeypatch.setattr(inventory, "_WHOLE", 10)
    old = [*tickets(1, 30), ticket(31, **{key: None}), *tickets(32, 60)]
    added = [*old[:44], ticket(61, resolved_at=None), *old[44:]]
    for name, new in {"again": old, "added": added, "left": old[:30]}.items():
        (tmp_path / name).mkdir()
        again, anew = extracted_again(tmp_path / name, pages_of(old, 10), pages_of(new, 10))
        assert again == anew
        assert (key in again[3].absent) == (name == "left")
        assert ("resolved_at" in again[3].absent) == (name != "added")


def test_a_change_that_is_in_the_future_again_is_refused_again(tmp_path):
    """The clock of this machine may have been set back."""
    bodies = pages_of(tickets(1, 5), 5)
    again, anew = extracted_again(tmp_path, bodies, bodies, FETCHED - timedelta(days=5))
    assert again == anew
    assert [item.reason for item in again[1]] == ["change_time_in_future"] * 5


def _flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _forged(path):
    """Another subject beside the same bytes."""
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("subject")
    forged = pa.array(["forged"] * rows.num_rows)
    pq.write_table(rows.set_column(place, rows.schema.field(place), forged), path)


@pytest.mark.parametrize(
    "harm",
    [_flipped, _forged, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()],
)
def test_a_landing_that_is_not_what_the_ledger_lists_is_not_used(tmp_path, harm):
    rows, *_, fields, _ = collected(tmp_path / "old", pages_of(tickets(1, 9), 3))
    files = landed(tmp_path, rows)
    harm(tmp_path / files[0]["path"])
    with capture_logs() as logs, opened(TICKETS, tmp_path, files, fields.absent) as before:
        assert before is None
    assert [entry["log_level"] for entry in logs] == ["warning"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_landing_that_goes_while_it_is_read_does_no_harm(tmp_path, parsed, replaced):
    bodies = pages_of(tickets(1, 40), 7)
    rows, *_, fields, _ = collected(tmp_path / "old", bodies)
    files = landed(tmp_path, rows)
    path = tmp_path / files[0]["path"]
    with opened(TICKETS, tmp_path, files, fields.absent) as before:
        path.unlink() if replaced else path.write_bytes(b"")
        del parsed[:]
        with capture_logs() as logs:
            again = collected(tmp_path / "again", bodies, before)
        assert [entry["log_level"] for entry in logs] == ["warning"] * (not replaced)
        # Whoever takes its name away takes nothing from whoever has opened it.
        assert (parsed == []) == replaced
    assert again == collected(tmp_path / "anew", bodies)


def test_a_landing_without_rows_is_none_to_take_from(tmp_path):
    with opened(TICKETS, tmp_path, [], []) as before:
        assert before is None
