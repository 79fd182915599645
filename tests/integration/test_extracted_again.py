"""A window that is extracted again takes rows of its last landing, where that is certain to be right."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps import extract as extracting
from bridge_pipeline.steps.extract import extract, landing_of
from bridge_pipeline.steps.land import read_landed
from bridge_pipeline.steps.parse import RecordParser
from tests.integration.desk import Desk, ticket
from tests.integration.flow import NAME, connect, day

DAY = day("2024-03-01")
NOON = "2024-03-01T12:00:00Z"
# Of one record read twice these differ.
RUN_FACTS = ("fetched_at",)


@pytest.fixture
def desk(workspace: Workspace, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    # The true one is none while somebody edits the program.
    monkeypatch.setattr(extracting, "fingerprint", lambda _: "this")
    connect(workspace, desk, entities=("tickets",))
    desk.records["tickets"] = [ticket(number, NOON) for number in range(1, 36)]
    return desk


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the records that are parsed."""
    ids, batch = list[int](), RecordParser.batch

    def counting(self, records, *more):
        ids.extend(record["id"] for record in records)
        return batch(self, records, *more)

    monkeypatch.setattr(RecordParser, "batch", counting)
    return ids


def landed(workspace: Workspace, batch: Batch) -> pa.Table:
    found = pa.concat_tables(read_landed(landing_of(workspace, batch), batch.files, batch.entity))
    return found.drop_columns(list(RUN_FACTS)).combine_chunks()


def test_only_what_changed_is_parsed(workspace, desk, parsed):
    first = extract(workspace, NAME, "tickets", DAY)
    assert sorted(parsed) == list(range(1, 36))
    del parsed[:]

    second = extract(workspace, NAME, "tickets", DAY)
    assert parsed == []
    assert landed(workspace, second) == landed(workspace, first)

    desk.records["tickets"][7] = ticket(8, "2024-03-01T13:00:00Z", subject="changed")
    del desk.records["tickets"][20], desk.records["tickets"][11]
    third = extract(workspace, NAME, "tickets", DAY)
    assert parsed == [8]
    assert landed(workspace, third)["id"].to_pylist() == [str(n) for n in range(1, 36) if n not in (12, 21)]
    with workspace.database.engine.connect() as connection:
        fields = [ledger.inventory_of(connection, batch.id) for batch in (first, second, third)]
    assert fields[0] == fields[1]
    assert [found.records for found in fields if found] == [35, 35, 33]


def test_another_program_parses_everything(workspace, desk, parsed, monkeypatch):
    first = extract(workspace, NAME, "tickets", DAY)
    monkeypatch.setattr(extracting, "fingerprint", lambda _: "another")
    second = extract(workspace, NAME, "tickets", DAY)
    third = extract(workspace, NAME, "tickets", DAY)
    assert sorted(parsed) == sorted([*range(1, 36)] * 2)
    assert landed(workspace, first) == landed(workspace, second) == landed(workspace, third)


def test_a_program_that_changed_under_its_process_parses_everything(workspace, desk, parsed, monkeypatch):
    monkeypatch.setattr(extracting, "fingerprint", lambda _: None)
    extract(workspace, NAME, "tickets", DAY)
    extract(workspace, NAME, "tickets", DAY)
    assert sorted(parsed) == sorted([*range(1, 36)] * 2)


def test_a_program_that_changes_during_an_extraction_is_not_what_made_its_rows(
    workspace, desk, parsed, monkeypatch
):
    """The process beside it, which parses too, may have started after that."""
    monkeypatch.setattr(extracting, "fingerprint", lambda _: None if desk.requests else "this")
    first = extract(workspace, NAME, "tickets", DAY)
    monkeypatch.setattr(extracting, "fingerprint", lambda _: "this")
    second = extract(workspace, NAME, "tickets", DAY)
    assert [[file["program"] for file in batch.files] for batch in (first, second)] == [[None], ["this"]]
    assert sorted(parsed) == sorted([*range(1, 36)] * 2)


def _forged(path: Path) -> None:
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("subject")
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array(["forged"] * len(rows))), path)


@pytest.mark.parametrize("harm", [_forged, Path.unlink])
def test_rows_of_a_landing_that_was_harmed_are_made_anew(
    workspace, desk, parsed, harm: Callable[[Path], None]
):
    first = extract(workspace, NAME, "tickets", DAY)
    rows = landed(workspace, first)
    harm(landing_of(workspace, first) / first.files[0]["path"])
    second = extract(workspace, NAME, "tickets", DAY)
    assert landed(workspace, second) == rows
    assert sorted(parsed) == sorted([*range(1, 36)] * 2)
