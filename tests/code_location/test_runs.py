"""Runs over a desk: what they materialise, what stops them, and which days the schedule asks for."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from assets import shown
from assets.partitions import CONNECTION_TAG, SCHEDULED_TAG, Scope
from bridge_pipeline import naming
from bridge_pipeline.automation.executing import executing, is_abandoned, written_down
from bridge_pipeline.automation.jobs import DAILY_JOB, range_tags
from bridge_pipeline.automation.runs import PROCESS_TAG, prepare_instance, run_days
from bridge_pipeline.database import ledger
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.registry import UnknownConnection
from bridge_pipeline.definitions import defs
from bridge_pipeline.model import ENTITIES as MODEL
from bridge_pipeline.model import Window
from bridge_pipeline.steps.due import due_spans
from resources.storage import storage_kept
from resources.workspace import WorkspaceResource
from tests.integration.desk import Desk, Request, account, ticket, user
from tests.integration.flow import NAME, arrived, connect, day, execute, land, process, rows

ENTITIES = ("accounts", "users", "tickets")
LAYERS = ("extracted", "tables", "audit")
FIRST, LAST = date(2024, 3, 1), date(2024, 3, 2)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A small instance of its own that knows the connection as a partition."""
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [NAME])
        yield instance


def fill(desk: Desk) -> None:
    """A few records of two days; tickets of them on both."""
    desk.records["accounts"] = [account(1, "2024-03-01T10:00:00Z")]
    desk.records["users"] = [user(1, "2024-03-02T10:00:00Z")]
    desk.records["tickets"] = [
        *(ticket(number, "2024-03-01T10:00:00Z") for number in (1, 2, 3)),
        ticket(4, "2024-03-02T10:00:00Z"),
    ]


def block(desk: Desk) -> None:
    """A hundred tickets, too many of which have no id."""
    desk.page_size = 60
    desk.records["tickets"] = [
        *(ticket(number, "2024-03-01T10:00:00Z") for number in range(1, 91)),
        *(
            json.dumps({"number": number, "updated_at": "2024-03-01T10:00:00Z"}).encode()
            for number in range(10)
        ),
    ]


def keys(*names: str) -> list[dg.AssetKey]:
    return [dg.AssetKey(name.split("/")) for name in names]


ALL = [f"{layer}/{entity}" for layer in LAYERS for entity in ENTITIES]


def materialise(
    instance: dg.DagsterInstance, names: list[str], first: date = FIRST, last: date = LAST, name: str = NAME
) -> dg.ExecuteInProcessResult:
    """Runs some assets with their checks over a range of days, without dbt and report."""
    return defs.resolve_job_def(DAILY_JOB).execute_in_process(
        instance=instance,
        asset_selection=keys(*names),
        tags=range_tags(name, f"{name}|{first}", f"{name}|{last}"),
        raise_on_error=False,
    )


def materialised(result: dg.ExecuteInProcessResult) -> set[str]:
    """The assets that a run materialised."""
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def materialisation(instance: dg.DagsterInstance, name: str, partition: str) -> dict[str, Any]:
    """The metadata of the last materialisation of one partition of an asset."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=keys(name)[0], asset_partitions=[partition]), limit=1
    )
    return dict(found.records[0].asset_materialization.metadata)


def recorded(instance: dg.DagsterInstance, status: str, tags: Mapping[str, str]) -> dg.DagsterRun:
    """A run that the instance knows of, without the snapshot of its job, which takes seconds."""
    run = dg.DagsterRun(DAILY_JOB, status=dg.DagsterRunStatus[status], tags=tags)
    return instance.add_run(run)


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """Counts the connections to a database that are opened meanwhile, by driver; Dagster's is psycopg2."""
    counts: Counter[str] = Counter()

    def count(connection: Any, _record: Any) -> None:
        counts[type(connection).__module__.partition(".")[0]] += 1

    sa.event.listen(sa.Pool, "connect", count)
    try:
        yield counts
    finally:
        sa.event.remove(sa.Pool, "connect", count)


def test_a_range_of_days_is_one_run_that_materialises_every_partition(installation, desk):
    fill(desk)
    free: list[bool] = []

    def look(request: Request) -> None:
        with installation.database.engine.begin() as connection:
            free.append(advisory_lock(connection, f"exclusive:run:{NAME}", wait=False))

    desk.before = look
    with opened() as connections:
        outcome = run_days(installation, NAME, FIRST, LAST)
    assert outcome.success, outcome.failures
    assert set(free) == {False}, "another run of the connection could have begun"
    # Dagster would open one for every statement: more than a thousand.
    assert 0 < connections["psycopg2"] < 100
    instance = prepare_instance(installation)
    (run,) = instance.get_runs()
    assert (run.run_id, run.status) == (outcome.run_id, dg.DagsterRunStatus.SUCCESS)
    partitions = {f"{NAME}|{FIRST}", f"{NAME}|{LAST}"}
    for name in (*ALL, "quality/report"):
        assert instance.get_materialized_partitions(keys(name)[0]) == partitions, name
    assert rows(installation, "select count(*)::int as n from marts.fct_tickets") == [{"n": 4}]

    counts = {
        (layer, day): materialisation(instance, f"{layer}/tickets", f"{NAME}|{day}")[
            "dagster/partition_row_count"
        ]
        for layer in ("extracted", "audit")
        for day in (FIRST, LAST)
    }
    assert {key: value.value for key, value in counts.items()} == {
        ("extracted", FIRST): 3, ("extracted", LAST): 1, ("audit", FIRST): 3, ("audit", LAST): 1
    }  # fmt: skip
    shown = materialisation(instance, "extracted/users", f"{NAME}|{LAST}")
    assert (shown["landed"].value, shown["quarantined"].value) == (1, 0)
    assert "| 1 | A… (14 characters) | u… (17 characters) | Agent | active |" in shown["sample"].value
    assert "Lovelace" not in str(shown)
    quota = shown["quota"].value["requests"]
    assert (quota["used"], quota["limit"], quota["left"]) == (shown["requests"].value, None, None)
    assert shown["quota_waited_seconds"].value == 0
    file = materialisation(instance, "audit/tickets", f"{NAME}|{LAST}")["file"].value
    assert file.endswith(f"tickets/{LAST}/v0001.csv")
    assert materialisation(instance, "tables/tickets", f"{NAME}|{FIRST}")["dagster/row_count"].value == 4
    model = instance.get_latest_materialization_event(dg.AssetKey(["models", "fct_tickets"]))
    assert model is not None
    assert model.asset_materialization is not None
    metadata = model.asset_materialization.metadata
    assert metadata["dagster/row_count"].value == 4
    assert "account_name" in {column.name for column in metadata["dagster/column_schema"].value.columns}
    assert metadata["dagster/column_lineage"].value.deps_by_column["ticket_id"]


def test_whoever_starts_a_run_its_steps_share_one_workspace_and_dagsters_connections(installation):
    instance = prepare_instance(installation)
    instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [NAME])
    context = dg.build_init_resource_context(instance=instance)

    def ask() -> int:
        with opened() as connections:
            for _ in range(5):
                instance.get_runs_count()
                assert instance.has_dynamic_partition(naming.CONNECTION_DIMENSION, NAME)
        return connections["psycopg2"]

    with WorkspaceResource().yield_for_execution(context) as resource:
        assert resource.open() is resource.open()
        assert ask() == 2, "one of each of Dagster's storages"
        # As `bridge run` does, which keeps them around the run too.
        with storage_kept(instance):
            assert ask() == 0
        assert ask() == 0
        engine = resource.open().database.engine
        pool = engine.pool
    assert engine.pool is not pool, "what the run held is given back"
    assert ask() > 5, "an instance outside a run keeps no connection"


def test_a_dead_run_is_ended_and_a_living_one_is_not(installation):
    instance = prepare_instance(installation)
    names = ("dead", "cancelled", "living", "of another home")
    canceling = {"cancelled": "CANCELING"}
    runs = {name: recorded(instance, canceling.get(name, "STARTED"), {}).run_id for name in names}
    for name in ("dead", "cancelled"):
        with suppress(OSError), executing(instance, runs[name]):
            raise OSError
    with executing(instance, runs["living"]):
        instance = prepare_instance(installation)
        assert written_down(instance) == [runs["living"]]
    found = {name: instance.get_run_by_id(run_id).status for name, run_id in runs.items()}
    assert found == {
        "dead": dg.DagsterRunStatus.FAILURE,
        "cancelled": dg.DagsterRunStatus.CANCELED,
        "living": dg.DagsterRunStatus.STARTED,
        "of another home": dg.DagsterRunStatus.STARTED,
    }


def test_a_dead_run_of_which_this_home_knows_nothing_is_ended_and_a_living_one_is_not(installation):
    """Its home went with its container, or the version before began it."""
    instance = prepare_instance(installation)
    tags = {PROCESS_TAG: "renamed-since", CONNECTION_TAG: NAME}
    run_id = recorded(instance, "STARTED", tags).run_id
    # Begun again in the UI, where it gets the tags of the former.
    again = recorded(instance, "STARTED", tags | {".dagster/grpc_info": '{"host": "elsewhere"}'}).run_id
    with exclusively(installation, f"run:{NAME}"):
        instance = prepare_instance(installation)
        assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED
    instance = prepare_instance(installation)
    assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(again).status == dg.DagsterRunStatus.STARTED


def test_a_run_of_the_command_line_is_written_down_while_it_is_under_way(installation, desk):
    fill(desk)
    found: set[tuple[str, bool]] = set()

    def look(request: Request) -> None:
        instance = prepare_instance(installation)
        found.update((run.run_id, is_abandoned(instance, run.run_id)) for run in instance.get_runs())
        assert all(PROCESS_TAG in run.tags for run in instance.get_runs())
        assert written_down(instance) == [run_id for run_id, _ in found]

    desk.before = look
    outcome = run_days(installation, NAME, FIRST, FIRST)
    assert outcome.success, outcome.failures
    assert found == {(outcome.run_id, False)}
    assert written_down(prepare_instance(installation)) == []


def test_a_blocked_check_fails_the_run_and_stops_what_lies_downstream(installation, desk, instance):
    fill(desk)
    block(desk)
    result = materialise(instance, ALL)
    assert not result.success
    assert materialised(result) == set(ALL) - {"tables/tickets", "audit/tickets"}
    assert arrived(installation, "tickets") == set()
    failed = {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}
    assert "quarantined_share" in failed

    by_hand = materialise(instance, ["tables/tickets", "audit/tickets"])
    assert not by_hand.success
    assert materialised(by_hand) == set()
    assert arrived(installation, "tickets") == set()

    (batch,) = rows(installation, "select id from bridge.batches where verdict = 'blocked'")
    with installation.database.engine.begin() as connection:
        ledger.accept(connection, batch["id"], "Grace Hopper", "looked at them")
    assert materialise(instance, ["tables/tickets", "audit/tickets"]).success
    assert len(arrived(installation, "tickets")) == 90


def test_what_a_reviewer_said_is_masked_in_the_ui(installation, desk):
    fill(desk)
    batch = land(installation, "tickets", day("2024-03-01"))
    with installation.database.engine.connect() as connection:
        found = ledger.checks_of(connection, batch.id)[:1]
    said = replace(
        batch, verdict="accepted", accepted_by="Ann Lee", accept_reason="see ada@example.com, +49 170 1234567"
    )
    specs = [dg.AssetCheckSpec(found[0].name, asset="tickets")]
    (shown_check,) = shown.check_results(installation, NAME, MODEL["tickets"], specs, found, said)
    shown_by, reason = (shown_check.metadata[name].value for name in ("accepted_by", "accept_reason"))
    assert (shown_by, reason) == ("Ann Lee", "see a…@…, +…")


def test_what_was_checked_is_the_day_of_the_connection_and_not_what_came_last(instance):
    (asset,) = keys("extracted/tickets")
    for partition in (f"{NAME}|{FIRST}", f"{NAME}|{LAST}", f"other|{LAST}"):
        instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
    specs = [dg.AssetCheckSpec("intact", asset=asset, blocking=True)]
    results = [dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, metadata={"judged": 3})]
    scope = Scope(NAME, Window.of_days(FIRST, LAST))
    output, found = shown.evaluations(instance, scope, specs, results)
    assert output.output_name == specs[0].get_python_identifier()
    assert (found.passed, found.blocking, found.severity) == (False, True, dg.AssetCheckSeverity.WARN)
    assert found.metadata["judged"].value == 3
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[f"{NAME}|{LAST}"])
    (record,) = instance.fetch_materializations(wanted, limit=9).records
    assert found.target_materialization_data.storage_id == record.storage_id
    before = Scope(NAME, Window.of_days(FIRST - timedelta(days=1), FIRST - timedelta(days=1)))
    _, found = shown.evaluations(instance, before, specs, results)
    assert found.target_materialization_data is None


@pytest.mark.slow
def test_an_entity_that_the_connection_does_not_have_is_skipped(installation, desk, instance):
    fill(desk)
    connect(installation, desk, entities=("accounts", "tickets"))
    result = materialise(instance, ALL)
    assert result.success
    assert materialised(result) == {name for name in ALL if not name.endswith("/users")}
    assert desk.lists("users") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../etc", "UPPER", "a b", "x" * 42])
def test_a_partition_that_is_no_connection_name_fails_before_anything_is_touched(
    installation, desk, instance, name
):
    instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [name])
    result = materialise(instance, ["extracted/accounts"], name=name)
    assert not result.success
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    assert "is not a valid name" in str(failure.step_failure_data.error)
    assert desk.requests == []
    assert not any(installation.home.journal.iterdir())


@pytest.mark.parametrize(
    ("first", "last", "entities", "told"),
    [
        (LAST, FIRST, None, "lies before the first day"),
        (date(2014, 12, 31), FIRST, None, "BRIDGE_FIRST_DAY"),
        (FIRST, datetime.now(UTC).date(), None, "is not over yet"),
        (FIRST, LAST, ("tickets", "problems"), "has no problems; it has: accounts, users, tickets"),
    ],
)
def test_days_and_entities_that_cannot_be_asked_for_are_refused(
    installation, desk, first, last, entities, told
):
    with pytest.raises(ValueError, match=told):
        run_days(installation, NAME, first, last, entities)
    assert desk.requests == []


def test_an_unknown_connection_is_refused(installation):
    with pytest.raises(UnknownConnection, match="there is no connection 'nobody'"):
        run_days(installation, "nobody", FIRST, LAST)


# --- The schedule -------------------------------------------------------------------------------

# Two hours after midnight the day before has settled.
SETTLED, NOT_YET = datetime(2024, 3, 6, 2, 0, tzinfo=UTC), datetime(2024, 3, 6, 1, 59, tzinfo=UTC)


def tick(instance: dg.DagsterInstance, moment: datetime = SETTLED) -> list[dg.RunRequest]:
    """What the schedule requests at a moment; a tick that requests nothing says why."""
    repository = defs.get_repository_def()
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=moment, repository_def=repository
    )
    told = repository.get_schedule_def("settled_days").evaluate_tick(context)
    assert told.run_requests or "complete or being extracted" in (told.skip_message or "")
    return list(told.run_requests or [])


def spans(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    """The ranges of days asked for."""
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    return [(request.tags[ends[0]], request.tags[ends[1]]) for request in requests]


def of(first: int, last: int, name: str = NAME) -> tuple[str, str]:
    return f"{name}|2024-03-{first:02}", f"{name}|2024-03-{last:02}"


def test_the_schedule_requests_exactly_the_settled_days_that_the_ledger_lacks(installation, desk, instance):
    fill(desk)
    connect(installation, desk, first_day=FIRST)
    assert spans(tick(instance, NOT_YET)) == [of(1, 4)]
    assert spans(tick(instance)) == [of(1, 5)]
    process(installation, day("2024-03-03"))
    assert spans(tick(instance)) == [of(1, 2), of(4, 5)]
    # One entity alone does not make a day complete, nor does one that is not audited.
    process(installation, day("2024-03-05"), ["tickets"])
    process(installation, day("2024-03-01"))
    execute(
        installation, "delete from bridge.audits where batch_id = (select max(batch_id) from bridge.audits)"
    )
    assert spans(tick(instance)) == [of(1, 2), of(4, 5)]
    process(installation, day("2024-03-01", "2024-03-05"))
    assert tick(instance) == []


@pytest.mark.slow
def test_a_day_extracted_before_it_settled_is_requested_again(installation, desk, instance):
    connect(installation, desk, first_day=date(2024, 3, 4))
    process(installation, day("2024-03-04", "2024-03-05"))
    assert tick(instance) == []
    execute(
        installation, "update bridge.batches set fetched_from = '2024-03-06T01:00:00Z' where entity = 'users'"
    )
    assert spans(tick(instance)) == [of(5, 5)]


def test_nothing_is_requested_while_a_run_of_the_connection_is_active_and_again_after_it_failed(
    installation, desk, instance
):
    connect(installation, desk, first_day=FIRST)
    connect(installation, desk, "other-desk", first_day=date(2024, 3, 5))
    connect(installation, desk, "by-hand-only", first_day=FIRST, scheduled=False)
    assert spans(tick(instance)) == [of(1, 5), of(5, 5, "other-desk")]
    (request, _) = tick(instance)
    for status in ("NOT_STARTED", "STARTING", "STARTED", "CANCELING"):
        run = recorded(instance, status, request.tags)
        assert spans(tick(instance)) == [of(5, 5, "other-desk")], status
        instance.report_run_failed(run)
    again, _ = tick(instance, SETTLED + timedelta(minutes=1))
    assert spans([again]) == [of(1, 5)]
    assert again.run_key != request.run_key


def test_a_run_that_never_came_into_the_queue_keeps_no_day_from_being_requested(installation, desk, instance):
    connect(installation, desk, first_day=FIRST)
    (request,) = tick(instance)
    run = dg.DagsterRun(DAILY_JOB, tags=request.tags)
    instance.run_storage.add_historical_run(run, datetime.now(UTC) - timedelta(hours=2))
    assert spans(tick(instance)) == [of(1, 5)]
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


@pytest.mark.slow
def test_a_request_of_the_schedule_can_be_run_and_then_is_complete(installation, desk, instance):
    fill(desk)
    connect(installation, desk, first_day=date(2024, 3, 5), entities=("accounts", "tickets"))
    (request,) = tick(instance)
    assert request.tags[SCHEDULED_TAG] == SETTLED.isoformat()
    asked = {key.to_user_string() for key in request.asset_selection or []}
    assert {name for name in asked if name.split("/")[0] in LAYERS} == {
        f"{layer}/{entity}" for layer in LAYERS for entity in ("accounts", "tickets")
    }
    assert {"quality/report", "models/fct_tickets"} <= asked
    result = defs.resolve_job_def(DAILY_JOB).execute_in_process(
        instance=instance,
        asset_selection=[key for key in request.asset_selection or [] if key.path[0] in LAYERS],
        tags=request.tags,
    )
    assert result.success
    assert tick(instance) == []


def test_days_before_the_first_partition_are_not_requested_and_a_tick_has_its_limit(installation, desk):
    record = connect(installation, desk, first_day=date(2012, 1, 1))
    (span,) = due_spans(installation, record, SETTLED)
    assert span == (date(2015, 1, 1), date(2015, 1, 1) + timedelta(days=399))
