"""Dagster's storage for the length of a run: what is stored together is what Dagster stores by itself."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationPlanned,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.errors import DagsterInvariantViolationError
from dagster._core.events import AssetObservationData, DagsterEvent, StepMaterializationData
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from bridge_pipeline.automation import storing
from bridge_pipeline.automation.runs import prepare_instance
from bridge_pipeline.automation.storage import BridgeStorage
from bridge_pipeline.database.engine import Database
from resources.storage import events_together, storage_kept

ROWS = dg.AssetKey("rows")
DAYS = dg.StaticPartitionsDefinition(["a", "b", "c"])
SPECS = [dg.AssetCheckSpec(name, asset="rows") for name in ("many", "few")]
TABLES = ("event_logs", "asset_keys", "asset_event_tags", "asset_check_executions")
# What differs between any two runs.
_ALWAYS_NEW = {"id", "event_id", "run_id", "timestamp", "create_timestamp", "event_timestamp"}
_OF_A_RUN = {"storage_id", "run_id", "pid", "timestamp", "duration_ms", "last_run_id", "log_key"}


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    output_required=False,
    code_version="1",
)
def rows(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    for day in context.partition_keys:
        context.add_asset_metadata({"day": day}, partition_key=day)
    yield dg.MaterializeResult(metadata={"rows": 3}, data_version=dg.DataVersion("1"))


def checks(together: bool) -> dg.AssetChecksDefinition:
    """Two checks of the rows, one of which fails, stored at once or one after the other."""

    @dg.multi_asset_check(name="checks", specs=SPECS)
    def checked(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with events_together(context.instance) if together else nullcontext():
            for spec in SPECS:
                yield dg.AssetCheckResult(
                    check_name=spec.name, passed=spec.name == "many", metadata={"judged": 3}
                )

    return checked


def of_run(run_id: str) -> dg.EventLogEntry:
    """That a run has failed."""
    event = DagsterEvent(dg.DagsterEventType.RUN_FAILURE.value, "job")
    return dg.EventLogEntry(None, "error", "", run_id, 0.0, dagster_event=event, job_name="job")


def materialised(timestamp: float) -> dg.EventLogEntry:
    """That the rows were made."""
    said = StepMaterializationData(dg.AssetMaterialization(ROWS))
    event = DagsterEvent(dg.DagsterEventType.ASSET_MATERIALIZATION.value, "job", event_specific_data=said)
    return dg.EventLogEntry(None, "debug", "", "run", timestamp, dagster_event=event, job_name="job")


@pytest.fixture
def instance(installation) -> Iterator[dg.DagsterInstance]:
    with prepare_instance(installation) as instance:
        yield instance


def run(instance: dg.DagsterInstance, together: bool) -> dg.ExecuteInProcessResult:
    """A run of three days with its checks, whose results are stored together or one by one."""
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    job = dg.define_asset_job("job", executor_def=dg.in_process_executor)
    location = dg.Definitions([rows], jobs=[job], asset_checks=[checks(together)])
    with storage_kept(instance):
        return location.resolve_job_def("job").execute_in_process(instance=instance, tags=tags)


def stored(instance: dg.DagsterInstance, run_id: str) -> dict[str, list[Any]]:
    """What stands in Dagster's tables of a run, without what differs between any two."""
    found = {}
    with instance.event_log_storage.index_connection() as connection:
        of_run = {"run": run_id}
        wheres = {
            "asset_keys": "last_run_id = :run",
            "asset_event_tags": "event_id in (select id from event_logs where run_id = :run)",
        }
        for table in TABLES:
            query = sa.text(f"select * from {table} where {wheres.get(table, 'run_id = :run')} order by id")
            found[table] = [_lasting(dict(row)) for row in connection.execute(query, of_run).mappings()]
    return found


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in _ALWAYS_NEW | _OF_A_RUN}
    return {
        key: _unrun(json.loads(value)) if isinstance(value, str) and value.startswith("{") else _shape(value)
        for key, value in kept.items()
    }


def _unrun(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unrun(each) for key, each in value.items() if key not in _OF_A_RUN}
    if isinstance(value, str):
        return re.sub(r"\d[\d.]*(m?s\b|\))", "some", value)
    return [_unrun(each) for each in value] if isinstance(value, list) else value


def _shape(value: Any) -> Any:
    """Numbers of rows and times only as such."""
    return value if isinstance(value, str | bool | None) else type(value).__name__


@pytest.mark.parametrize("together", [True, False])
def test_events_are_stored_as_dagster_stores_them_one_by_one(instance, plain, monkeypatch, together):
    monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE")
    alone = run(plain, together=False)
    assert alone.success
    expected = stored(instance, alone.run_id)
    assert len(expected["asset_check_executions"]) == 2
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "500")
    assert stored(instance, run(instance, together).run_id) == expected


def test_a_check_that_breaks_off_keeps_what_it_had_yielded(instance):
    @dg.multi_asset_check(name="checks", specs=SPECS)
    def breaking(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with events_together(context.instance):
            yield dg.AssetCheckResult(check_name="many", passed=True)
            raise RuntimeError("broken")

    job = dg.Definitions(asset_checks=[breaking]).get_implicit_global_asset_job_def()
    with storage_kept(instance):
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    events = [each.dagster_event_type for each in instance.all_logs(result.run_id)]
    kinds = dg.DagsterEventType
    assert events.index(kinds.ASSET_CHECK_EVALUATION) < events.index(kinds.STEP_FAILURE)


def test_a_check_that_dagster_breaks_off_and_the_end_of_its_run_are_told(instance):
    @dg.multi_asset_check(name="checks", specs=SPECS)
    def refused(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with events_together(context.instance):
            yield dg.AssetCheckResult(check_name="many", passed=True)
            yield dg.AssetCheckResult(check_name="unknown", passed=True)

    job = dg.Definitions(asset_checks=[refused]).get_implicit_global_asset_job_def()
    with storage_kept(instance):
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    events = [each.dagster_event_type for each in instance.all_logs(result.run_id)]
    kinds = dg.DagsterEventType
    told = [kinds.ASSET_CHECK_EVALUATION, kinds.STEP_FAILURE, kinds.RUN_FAILURE]
    assert [each for each in events if each in told] == told


def test_what_checks_yield_waits_until_the_end_of_the_block_and_no_longer(instance):
    told = []

    @dg.multi_asset_check(name="checks", specs=SPECS)
    def checked(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        def look() -> None:
            kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
            told.append(len(instance.all_logs(context.run.run_id, of_type=kind)))

        with events_together(context.instance):
            for spec in SPECS:
                yield dg.AssetCheckResult(check_name=spec.name, passed=True)
            look()
        look()

    job = dg.Definitions(asset_checks=[checked]).get_implicit_global_asset_job_def()
    with storage_kept(instance):
        job.execute_in_process(instance=instance)
    assert told == [0, 2]


def test_a_batch_that_cannot_be_stored_whole_is_not_stored_in_part(instance):
    kinds = {dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED, dg.DagsterEventType.ASSET_CHECK_EVALUATION}
    logs = instance.all_logs(run(instance, together=True).run_id, of_type=kinds)
    planned, judged = (entry for entry in logs if "many" in entry.to_json())
    # Dagster refuses what was judged once and planned twice, after it has stored all three.
    batch = [each._replace(run_id="other") for each in (planned, planned, judged)]
    with storage_kept(instance):
        with pytest.raises(DagsterInvariantViolationError, match="duplicate"):
            instance.event_log_storage.store_event_batch(batch)
        assert stored(instance, "other") == {table: [] for table in TABLES}
        instance.event_log_storage.store_event_batch(batch[1:])
        assert len(stored(instance, "other")["event_logs"]) == 2


@pytest.mark.parametrize("kept", [storage_kept, nullcontext])
def test_an_event_that_cannot_be_stored_whole_is_not_stored_at_all(instance, kept):
    planned, judged = of_checks(instance, "other", "many")
    with kept(instance):
        for each in (planned, planned):
            instance.event_log_storage.store_event(each)
        with pytest.raises(DagsterInvariantViolationError, match="duplicate"):
            instance.event_log_storage.store_event(judged)
        assert len(stored(instance, "other")["event_logs"]) == 2


def test_nobody_else_sees_an_event_before_it_is_stored_whole(instance, monkeypatch):
    """Not in the same process either, where one storage serves many threads."""
    planned, judged = of_checks(instance, "other", "many")
    storage, seen = instance.event_log_storage, []
    store_assets = storage._store_assets

    def look() -> None:
        # By both of the storage's ways to ask.
        with storage.index_connection() as connection:
            by_index = connection.scalar(sa.text("select count(*) from event_logs where run_id = 'other'"))
        seen.append((len(instance.all_logs("other")), by_index))

    def meanwhile(*arguments: Any) -> None:
        store_assets(*arguments)
        beside = threading.Thread(target=look)
        beside.start()
        beside.join()

    monkeypatch.setattr(storage, "_store_assets", meanwhile)
    storage.store_event_batch([planned, judged])
    look()
    assert seen == [(0, 0), (2, 2)]


@pytest.mark.parametrize("kept", [storage_kept, nullcontext])
@pytest.mark.parametrize("entry", [of_run("one"), materialised(1.0)])
def test_an_event_has_no_number_before_its_turn(instance, kept, entry):
    """Or it would be seen after those that had their turn before, with a lower one."""
    newest = sa.text("select last_value from event_logs_id_seq")
    waiting = sa.text("""
        select true from pg_locks join pg_database on pg_database.oid = database
        where datname = current_database() and locktype = 'advisory' and not granted
    """)
    with dg.DagsterInstance.from_ref(instance.get_ref()) as other, kept(other):
        beside = threading.Thread(target=other.event_log_storage.store_event, args=[entry])
        with instance.event_log_storage.index_transaction() as connection:
            connection.execute(storing.TURN)
            before = connection.scalar(newest)
            beside.start()
            while not connection.scalar(waiting):
                assert beside.is_alive()
            assert connection.scalar(newest) == before
        beside.join()


def test_whoever_reads_on_after_the_last_failed_run_passes_none_over(instance, monkeypatch):
    storage = instance.event_log_storage
    with dg.DagsterInstance.from_ref(instance.get_ref()) as other:

        def elsewhere() -> None:
            other.event_log_storage.store_event(of_run("two"))
            read.extend(failures(other, 0))

        read, beside = [], threading.Thread(target=elsewhere)
        store_assets = storage._store_assets

        def meanwhile(*arguments: Any) -> None:
            store_assets(*arguments)
            beside.start()
            beside.join(1)

        monkeypatch.setattr(storage, "_store_assets", meanwhile)
        storage.store_event(of_run("one"))
        beside.join()
    read += failures(instance, max(each.storage_id for each in read))
    assert {each.event_log_entry.run_id for each in read} == {"one", "two"}


def test_one_that_is_stopped_while_it_stores_events_does_not_hold_up_the_others(instance, monkeypatch):
    soon = str(storing.TURN).replace(f"{storing._STOPPED}s", "200ms")
    # Nor is this test held up for ever.
    soon = soon.replace("select", "select set_config('lock_timeout', '20s', true),", 1)
    monkeypatch.setattr(storing, "TURN", sa.text(soon))
    storage = instance.event_log_storage

    def stopped() -> None:
        with storage.index_transaction() as connection:
            connection.execute(storing.TURN)
            storage.store_event(of_run("one"))

    with pytest.raises(OperationalError):
        stopped()
    assert len(failures(instance, 0)) == 1


def failures(instance: dg.DagsterInstance, after: int) -> list[dg.EventLogRecord]:
    """The failed runs after a number, as a sensor reads them."""
    wanted = dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_storage_id=after)
    return list(instance.fetch_run_status_changes(wanted, limit=10).records)


def test_of_many_events_of_an_asset_the_last_is_the_newest_whatever_came_between(instance, plain):
    observed = DagsterEvent(
        "ASSET_OBSERVATION", "job", event_specific_data=AssetObservationData(dg.AssetObservation(ROWS))
    )
    between = dg.EventLogEntry(None, "debug", "", "run", 2.0, dagster_event=observed, job_name="job")
    batch, told = [materialised(1.0), between, materialised(3.0)], []
    for each in (plain, instance):
        each.event_log_storage.store_event_batch(batch)
        with each.event_log_storage.index_connection() as connection:
            newest = sa.text("select last_run_id, last_materialization_timestamp from asset_keys")
            told.append(connection.execute(newest).one())
            connection.execute(sa.text("truncate asset_keys"))
    assert told[0] == told[1]


def test_no_events_are_none(instance):
    instance.event_log_storage.store_event_batch([])


def test_an_event_is_stored_when_the_server_takes_connections_again(instance):
    planned, judged = of_checks(instance, "other", "many")
    with storage_kept(instance):
        storage = instance.event_log_storage
        assert isinstance(storage, PostgresEventLogStorage)
        refused = []

        def refuse(*_connection: object) -> None:
            if not refused:
                refused.append(True)
                raise OperationalError("connect", {}, Exception("the database system is starting up"))

        event.listen(storage._engine, "do_connect", refuse)
        storage.store_event_batch([planned, judged])
    assert refused
    assert len(stored(instance, "other")["asset_check_executions"]) == 1


def of_checks(instance: dg.DagsterInstance, run_id: str, *names: str) -> list[dg.EventLogEntry]:
    """What a run of the checks planned and judged, as events of another run."""
    kinds = {dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED, dg.DagsterEventType.ASSET_CHECK_EVALUATION}
    logs = instance.all_logs(run(instance, together=True).run_id, of_type=kinds)
    said = [(each, each.get_dagster_event().event_specific_data) for each in logs]
    return [each._replace(run_id=run_id) for each, what in said if getattr(what, "check_name", "") in names]


def test_a_batch_takes_as_many_statements_however_many_checks_it_tells_of(instance):
    one, two = of_checks(instance, "one", "many"), of_checks(instance, "two", "many", "few")
    assert (len(one), len(two)) == (2, 4)
    with storage_kept(instance):
        taken = [statements(instance, batch) for batch in (one, two)]
    assert len(taken[0]) == len(taken[1]) == 4
    assert len(stored(instance, "two")["asset_check_executions"]) == 2


def statements(instance: dg.DagsterInstance, batch: list[dg.EventLogEntry]) -> list[str]:
    """What the storage asks Postgres to store a batch."""
    storage, asked = instance.event_log_storage, []
    assert isinstance(storage, PostgresEventLogStorage)

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    event.listen(storage._engine, "before_cursor_execute", note)
    storage.store_event_batch(batch)
    event.remove(storage._engine, "before_cursor_execute", note)
    return asked


def test_what_was_judged_without_a_plan_and_what_was_judged_twice_are_each_there_once(instance):
    planned, judged = of_checks(instance, "unplanned", "few")
    again = judged._replace(run_id="twice", timestamp=judged.timestamp + 60)
    batch = [each._replace(run_id="twice") for each in (planned, judged)]
    with storage_kept(instance):
        instance.event_log_storage.store_event_batch([judged])
        instance.event_log_storage.store_event_batch([*batch, again])
    (unplanned,), (twice,) = (
        stored(instance, each)["asset_check_executions"] for each in ("unplanned", "twice")
    )
    assert unplanned == twice
    key = dg.AssetCheckKey(dg.AssetKey("rows"), "few")
    newest, first = instance.event_log_storage.get_asset_check_execution_history(key, limit=2)
    assert newest.run_id == "twice"
    assert newest.event.timestamp == again.timestamp
    assert first.status == newest.status


def test_what_is_planned_and_judged_of_partitions_is_what_dagster_makes_of_it(instance, plain):
    for each in of_partitions("alone"):
        plain.event_log_storage.store_event(each)
    instance.event_log_storage.store_event_batch(of_partitions("together"))
    rows = [executions(instance, run_id) for run_id in ("alone", "together")]
    assert len(rows[0]) == 6
    assert rows[0] == rows[1]


def test_what_was_judged_by_no_run_is_there_as_often_as_it_was(instance):
    judged = of_partitions("")[4]
    with storage_kept(instance):
        for _ in range(2):
            instance.event_log_storage.store_event(judged)
    assert len(executions(instance, "")) == 2


def of_partitions(run_id: str) -> list[dg.EventLogEntry]:
    """Checks that are planned of all rows, one of two partitions, too; those of some are judged, and those
    of a third partition."""
    key, parts = dg.AssetKey("rows"), DAYS.subset_with_partition_keys(["a", "b"])
    said: list[Any] = [
        AssetCheckEvaluationPlanned(asset_key=key, check_name=name, partitions_subset=subset)
        for name, subset in (("many", None), ("few", None), ("never", None), ("many", parts))
    ]
    # Of the materialisation that it judges, any number.
    target = AssetCheckEvaluationTargetMaterializationData(storage_id=77, run_id=run_id, timestamp=1.0)
    said += [
        AssetCheckEvaluation(
            asset_key=key, check_name=name, passed=passed, target_materialization_data=of, partition=part
        )
        for name, passed, of, part in (
            ("many", True, target, None),
            ("few", False, None, None),
            ("many", False, None, "a"),
            ("many", True, target, "c"),
        )
    ]
    kinds = {
        AssetCheckEvaluationPlanned: dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
        AssetCheckEvaluation: dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    }
    events = [DagsterEvent(kinds[type(each)].value, "job", event_specific_data=each) for each in said]
    return [
        dg.EventLogEntry(None, "debug", "", run_id, float(number), dagster_event=each)
        for number, each in enumerate(events)
    ]


def executions(instance: dg.DagsterInstance, run_id: str) -> list[dict[str, Any]]:
    """What stands in Dagster's table of checks of a run, each event by its place among those of the run."""
    query = sa.text("""
        select asset_key, check_name, partition, execution_status, evaluation_event_timestamp as at,
            replace(evaluation_event, run_id, 'run') as event, materialization_event_storage_id as of,
            evaluation_event_storage_id - (select min(id) from event_logs where run_id = :run) as event_number
        from asset_check_executions where run_id = :run order by check_name, partition nulls first
    """)
    with instance.event_log_storage.index_connection() as connection:
        return [dict(row) for row in connection.execute(query, {"run": run_id}).mappings()]


def test_a_partition_that_is_there_is_not_asked_for_again_and_one_that_is_not_is(instance, monkeypatch):
    asked, ask = [], SqlEventLogStorage.has_dynamic_partition

    def counted(storage: SqlEventLogStorage, definition: str, key: str) -> bool:
        asked.append(key)
        return ask(storage, definition, key)

    monkeypatch.setattr(SqlEventLogStorage, "has_dynamic_partition", counted)
    with storage_kept(instance):
        assert [instance.has_dynamic_partition("connection", "a") for _ in range(2)] == [False, False]
        instance.add_dynamic_partitions("connection", ["a"])
        assert [instance.has_dynamic_partition("connection", "a") for _ in range(3)] == [True, True, True]
        assert asked == ["a", "a", "a"]
    instance.delete_dynamic_partition("connection", "a")
    assert not instance.has_dynamic_partition("connection", "a")


def test_a_webserver_goes_on_when_the_server_closed_its_connections(instance):
    instance.optimize_for_webserver(5_000, 3_600, 20)

    def ask() -> None:
        instance.get_runs_count()
        instance.get_dynamic_partitions("connection")
        instance.all_instigator_state()

    ask()
    with instance.run_storage.connect() as connection:
        others = "datname = current_database() and pid <> pg_backend_pid()"
        ended = sa.text(f"select pg_terminate_backend(pid, 10000) from pg_stat_activity where {others}")
        assert len(connection.execute(ended).all()) >= 2
    ask()


MADE = """
select c.relname, (select array_agg(a.attname order by a.attnum) from pg_attribute a where a.attrelid = c.oid)
from pg_class c where c.relnamespace = 'public'::regnamespace order by 1
"""


def made(database: Database) -> list[Any]:
    """Dagster's tables, indexes and sequences, with their columns, and what is noted of them as done."""
    with database.engine.connect() as connection:
        noted = connection.scalars(sa.text("select name from secondary_indexes order by 1")).all()
        versions = connection.scalars(sa.text("select version_num from alembic_version")).all()
        return [connection.execute(sa.text(MADE)).all(), noted, versions]


class Ended(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("statements", [5, 40, 60, 75, 90])
def test_tables_that_a_killed_process_has_not_made_are_made_by_the_next(installation, plain, statements):
    database = installation.dagster_database
    whole, left = made(database), iter(range(statements))
    with database.engine.begin() as connection:
        connection.execute(sa.text("drop schema public cascade"))
        connection.execute(sa.text("create schema public"))

    def end(*_: object) -> None:
        if next(left, None) is None:
            raise Ended

    event.listen(sa.Engine, "before_cursor_execute", end)
    try:
        with pytest.raises(Ended):
            BridgeStorage(database.psycopg2())
    finally:
        event.remove(sa.Engine, "before_cursor_execute", end)
    BridgeStorage(database.psycopg2())
    assert made(database) == whole


def test_of_several_that_find_no_tables_one_makes_them(installation, caplog):
    url = installation.dagster_database.psycopg2()
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(BridgeStorage, [url] * 4))) == 4
    assert "Retrying failed database creation" not in caplog.text
