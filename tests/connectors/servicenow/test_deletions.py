"""What an instance wrote down as deleted is reported, where it may be read; it changes nothing else."""

from dataclasses import replace
from datetime import date

import pytest

from bridge_pipeline.connector_kit.connector import Reading
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connector_kit.simulator import Answer
from bridge_pipeline.connectors.servicenow import CONNECTOR
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from bridge_pipeline.model import Window
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector
from tests.connectors.servicenow.reading import BASIC, instance, open_client

DAYS = Window.of_days(date(2025, 3, 4), date(2025, 3, 6))
WITHIN, BEFORE = "2025-03-05 10:00:00", "2025-03-01 10:00:00"


class Read:
    """A reading of tickets as an extraction does it: what was landed, what was reported as deleted."""

    def __init__(self, simulator, folder, window=DAYS, entity="tickets"):
        folder.mkdir(parents=True, exist_ok=True)
        stream, journal, self.proof = CONNECTOR.stream(entity), Journal(folder), {}
        census = DiskCensus(folder / "census.sqlite")
        collector = Collector(stream, window, census, journal, 500)
        client = open_client(simulator.url, **BASIC)
        pages = client.read(Reading(stream, window, census, journal), self.proof)
        tables = list(collector.tables(pages))
        self.landed = {key for table in tables for key in table.column("id").to_pylist()}
        self.gone = {report.id: report for report in census.gone()}
        self.counts, self.fields = collector.counts, collector.inventory.found
        census.close()
        counts = self.counts
        parts = counts.outside + counts.duplicate + counts.quarantined + counts.landed
        assert journal.records == counts.fetched == parts


def audited(simulator):
    return [line["path"] for line in simulator.requests if "/table/sys_audit_delete" in line["path"]]


def deleting(dialect, table="incident"):
    """Deletes a row within the days and one before them, and changes a third; gives their keys."""
    rows = list(dialect.world.tables[table].rows.values())[:3]
    dialect.world.tables[table].remove(rows[0], WITHIN)
    dialect.world.tables[table].remove(rows[1], BEFORE)
    dialect.world.tables[table].touch(rows[2], WITHIN)
    return [row.id for row in rows]


def test_deletions_of_a_window_are_reported_and_land_nowhere(tmp_path):
    with instance() as (simulator, dialect):
        gone, earlier, changed = deleting(dialect)
        deleting(dialect, "problem")
        found = Read(simulator, tmp_path / "one")
        assert set(found.gone) == {gone}
        assert (found.counts.gone, found.proof["deletions"]) == (1, "sys_audit_delete")
        assert found.landed == {changed}
        # A tombstone has no fields, and is no sign that the source has lost them.
        assert found.fields.records == found.counts.fetched - 1
        assert "/sys_audit_delete" not in found.fields.fields
        assert earlier not in found.gone
        assert len(audited(simulator)) == 1
        again = Read(simulator, tmp_path / "one")
        assert (set(again.gone), len(audited(simulator))) == ({gone}, 1)


@pytest.mark.parametrize(
    ("habits", "said"),
    [
        (Habits(forbidden=("sys_audit_delete",)), "not readable"),
        (Habits(unaudited=("incident",)), "sys_audit_delete"),
    ],
    ids=["not readable", "not written down"],
)
def test_where_no_deletion_can_be_seen_the_reading_is_as_whole_as_ever(habits, said, tmp_path):
    with instance(habits) as (simulator, dialect):
        _, _, changed = deleting(dialect)
        found = Read(simulator, tmp_path)
        assert (found.landed, found.gone, found.proof["deletions"]) == ({changed}, {}, said)


def test_an_instance_that_drops_the_terms_of_the_query_reports_no_other_deletions(tmp_path, monkeypatch):
    with instance() as (simulator, dialect):
        gone, _, _ = deleting(dialect)
        deleting(dialect, "problem")
        found = dialect._found
        monkeypatch.setattr(
            dialect, "_found", lambda table, text: found(table, "" if "tablename" in text else text)
        )
        assert set(Read(simulator, tmp_path).gone) == {gone}


def test_more_deletions_than_a_page_holds_are_all_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge_pipeline.connectors.servicenow.client._MOST_ROWS", 10)
    with instance() as (simulator, dialect):
        table = dialect.world.tables["incident"]
        rows = list(table.rows.values())[:25]
        for row in rows:
            table.remove(row, WITHIN)
        assert set(Read(simulator, tmp_path).gone) == {row.id for row in rows}
        assert len(audited(simulator)) == 3


def test_a_gateway_that_gives_fewer_deletions_than_asked_for_leaves_none_out(tmp_path, monkeypatch):
    with instance() as (simulator, dialect):
        table, answer = dialect.world.tables["incident"], dialect.answer
        rows = list(table.rows.values())[:25]
        for row in rows:
            table.remove(row, WITHIN)

        def capped(request):
            return answer(replace(request, query={**request.query, "sysparm_limit": "10"}))

        monkeypatch.setattr(dialect, "answer", capped)
        assert set(Read(simulator, tmp_path).gone) == {row.id for row in rows}
        assert len(audited(simulator)) == 3


def test_a_whole_reading_and_comments_ask_for_no_deletions(tmp_path):
    with instance() as (simulator, dialect):
        deleting(dialect)
        Read(simulator, tmp_path / "whole", None)
        Read(simulator, tmp_path / "comments", DAYS, "comments")
        assert audited(simulator) == []


def test_a_key_that_is_none_goes_to_quarantine_and_not_into_the_reports(tmp_path):
    with instance() as (simulator, dialect):
        table = dialect.world.tables["incident"]
        table.deleted["not a key"] = WITHIN
        table.changes += 1
        found = Read(simulator, tmp_path)
        assert (found.gone, found.counts.quarantined) == ({}, 1)


def test_deletions_that_an_answer_counts_and_hides_are_told_of(tmp_path, monkeypatch):
    with instance() as (simulator, dialect):
        table, answer = dialect.world.tables["incident"], dialect.answer
        for row in list(table.rows.values())[:60]:
            table.remove(row, WITHIN)

        def hiding(request):
            found = answer(request)
            return replace(found, body=b'{"result":[]}') if "sys_audit_delete" in request.path else found

        monkeypatch.setattr(dialect, "answer", hiding)
        read = Read(simulator, tmp_path)
    assert (read.gone, read.proof["deletions"]) == ({}, "sys_audit_delete, some hidden")


def test_a_refusal_of_something_on_the_way_is_an_error_and_no_word_on_deletions(tmp_path, monkeypatch):
    with instance() as (simulator, dialect):
        answer = dialect.answer
        refusal = Answer(403, b"<html>Blocked by the proxy</html>", "text/html")
        monkeypatch.setattr(
            dialect, "answer", lambda request: refusal if "sys_audit" in request.path else answer(request)
        )
        with pytest.raises(SourceError, match="Blocked by the proxy"):
            Read(simulator, tmp_path)
