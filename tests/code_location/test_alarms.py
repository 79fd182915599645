"""Runs that fail are told of, once, whether the daemon or the command line executed them."""

import json
import sys
from contextlib import suppress
from itertools import pairwise

import dagster as dg
import pytest
from dagster._utils.error import SerializableErrorInfo, serializable_error_info_from_exc_info

from bridge_pipeline.automation import runs as automation
from bridge_pipeline.automation.alarms import told_of
from bridge_pipeline.automation.executing import executing
from bridge_pipeline.automation.jobs import DAILY_JOB, range_tags
from bridge_pipeline.automation.runs import prepare_instance
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.definitions import defs
from bridge_pipeline.steps.tenants import apply_tenants, parse_tenants
from bridge_pipeline.workers import WorkerEnded
from tests.integration.desk import Answer, Desk, ticket
from tests.integration.flow import NAME, rows
from tests.integration.post import post_office

DAY = "2024-03-01"


@pytest.fixture
def told(installation: Workspace, tmp_path) -> Workspace:
    """The installation with reviewers."""
    path = tmp_path / "tenants.yaml"
    listed = [
        {"to": "mailto:maria@acme.example", "on": ["blocked", "failed"]},
        {"to": "mailto:otto@acme.example", "on": ["failed"]},
    ]
    path.write_text(json.dumps({"tenants": [{"name": "acme", "reviewers": listed}]}))
    apply_tenants(installation, parse_tenants(path, {}))
    return installation


def run(instance: dg.DagsterInstance, *names: str) -> dg.DagsterRun:
    """A run of some assets with their checks that fails."""
    instance.add_dynamic_partitions("connection", [NAME])
    result = defs.resolve_job_def(DAILY_JOB).execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name.split("/")) for name in names],
        tags=range_tags(NAME, f"{NAME}|{DAY}", f"{NAME}|{DAY}"),
        raise_on_error=False,
    )
    assert not result.success
    return result.dagster_run


def sense(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """What the daemon does when it finds the failed run."""
    repository = defs.get_repository_def()
    failure = next(
        entry.get_dagster_event()
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    )
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs", dagster_instance=instance, dagster_run=run, dagster_event=failure
    )
    repository.get_sensor_def("failed_runs")(context.for_run_failure())


def messages(workspace: Workspace) -> list[tuple[str, str, int]]:
    """Event, body and number of recipients of each message."""
    query = """
        select event, body, (select count(*)::int from bridge.deliveries d where d.message_id = m.id) as n
        from bridge.messages m order by id"""
    return [tuple(row.values()) for row in rows(workspace, query)]


@pytest.mark.slow
def test_a_run_that_failed_is_told_with_the_reason(told, desk: Desk, monkeypatch):
    desk.before = lambda request: Answer(401, b'{"error": "no"}')
    sensor = defs.get_repository_def().get_sensor_def("deliveries")
    with dg.instance_for_test() as instance, post_office() as post:
        monkeypatch.setenv("BRIDGE_SMTP_URL", f"smtp://127.0.0.1:{post.port}")
        monkeypatch.setenv("BRIDGE_MAIL_FROM", "bridge@acme.example")
        failed = run(instance, "extracted/accounts")
        sense(instance, failed)
        sense(instance, failed)
        said = sensor.evaluate_tick(dg.build_sensor_context(instance=instance)).skip_message
    ((event, body, recipients),) = messages(told)
    assert (event, recipients) == ("failed", 2)
    assert "- extracted__accounts: " in body
    assert "401" in body
    assert f"bridge run {NAME} --from {DAY} --to {DAY}" in body
    assert failed.run_id in body
    assert said == "2 sent, 0 to be tried again, 0 given up"
    assert [mail["Subject"] for mail in post.mails] == [f"{NAME} {DAY}: run failed"] * 2


@pytest.mark.slow
def test_a_blocked_check_is_told_as_a_failed_run_only_to_who_is_not_told_of_blocks(told, desk: Desk):
    desk.page_size = 60
    desk.records["tickets"] = [
        *(ticket(number, f"{DAY}T10:00:00Z") for number in range(1, 91)),
        *(json.dumps({"number": number, "updated_at": f"{DAY}T10:00:00Z"}).encode() for number in range(10)),
    ]
    with dg.instance_for_test() as instance:
        sense(instance, run(instance, "extracted/tickets"))
    (blocked, failed) = messages(told)
    assert (blocked[0], blocked[2]) == ("blocked", 1)
    assert (failed[0], failed[2]) == ("failed", 1)


@pytest.mark.slow
def test_runs_of_the_command_line_are_told_too(told, desk: Desk, monkeypatch):
    desk.before = lambda request: Answer(401, b'{"error": "no"}')
    monkeypatch.setattr(automation, "keys_for", lambda *_: [dg.AssetKey(["extracted", "accounts"])])
    days = automation.date.fromisoformat(DAY)
    assert not automation.run_days(told, NAME, days, days).success
    # One that died is told by whoever finds it.
    instance = prepare_instance(told)
    job = defs.resolve_job_def(DAILY_JOB)
    tags = range_tags(NAME, f"{NAME}|{DAY}", f"{NAME}|{DAY}")
    died = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    with suppress(OSError), executing(instance, died.run_id):
        raise OSError
    prepare_instance(told)
    assert [message[0] for message in messages(told)] == ["failed", "failed"]
    assert "The process that executed it ended." in messages(told)[1][1]


def chain(*errors: Exception) -> SerializableErrorInfo:
    """Errors as Dagster keeps them, each the cause of the one before."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    try:
        raise errors[0]
    except Exception:
        return serializable_error_info_from_exc_info(sys.exc_info())


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((RuntimeError("step"), WorkerEnded("lost; run it again"), WorkerEnded("ended"), EOFError()), "lost"),
        ((RuntimeError("step"), KeyError("around"), OSError("no space")), "no space"),
        ((RuntimeError("step"),), "step"),
    ],
)
def test_of_a_chain_of_errors_that_is_told_which_says_what_to_do(errors, words):
    found = told_of(chain(*errors))
    assert found is not None
    assert words in found.message
    assert told_of(None) is None
