"""The certificate as Dagster runs it: the asset with its check, the schedule, and the command."""

import json
from datetime import UTC, datetime

import dagster as dg
import pytest

from bridge_pipeline import cli, naming
from bridge_pipeline.automation.jobs import CERTIFY_JOB
from bridge_pipeline.definitions import defs
from tests.integration.desk import account, ticket, user
from tests.integration.flow import NAME, day, process, table

DAY = "2024-03-01"
AT = f"{DAY}T10:00:00Z"


@pytest.fixture
def extracted(installation, desk):
    """A desk of which a day was extracted."""
    desk.records["accounts"], desk.records["users"] = [account(1, AT)], [user(1, AT)]
    desk.records["tickets"] = [ticket(number, AT) for number in range(1, 31)]
    process(installation, day(DAY))
    return desk


def document(capsys):
    """The JSON document of a command; logging is not set up here, so its lines may stand before it."""
    out = capsys.readouterr().out
    return json.loads(out[out.index("{\n") :])


def certified(name=NAME):
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [name])
        return defs.resolve_job_def(CERTIFY_JOB).execute_in_process(
            instance=instance, partition_key=name, raise_on_error=False
        )


def verdict(result):
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation.passed, evaluation.description


def test_the_asset_writes_a_certificate_and_its_check_says_the_verdict(installation, extracted):
    result = certified()
    assert result.success
    passed, said = verdict(result)
    assert passed, said
    (event,) = result.get_asset_materialization_events()
    page = installation.home.audit / "acme" / NAME / "certificates" / "c0001.html"
    assert event.materialization.metadata["certificate"].value == str(page)
    assert page.is_file()


@pytest.mark.slow
def test_a_mass_disappearance_is_no_success(installation, extracted):
    del extracted.records["tickets"][:20]
    passed, said = verdict(certified())
    assert not passed
    assert "20 of 30 tickets are gone from the source all at once" in said
    assert all(row["deleted_at"] is None for row in table(installation, "tickets").values())


@pytest.mark.slow
def test_the_schedule_asks_for_every_connection_that_was_read(installation, desk):
    schedule = defs.get_repository_def().get_schedule_def("certificates")

    def requested():
        with dg.instance_for_test() as instance:
            instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, [NAME])
            context = dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=datetime(2024, 3, 4, tzinfo=UTC),
                repository_def=defs.get_repository_def(),
            )
            return [request.partition_key for request in schedule.evaluate_tick(context).run_requests]

    assert requested() == []
    desk.records["tickets"] = [ticket(1, AT)]
    process(installation, day(DAY))
    assert requested() == [NAME]


@pytest.mark.slow
def test_the_command_accepts_deletions_on_record_and_the_audit_still_verifies(
    installation, extracted, capsys, monkeypatch
):
    monkeypatch.setattr("bridge_pipeline.logs.configure", lambda *_: None)
    del extracted.records["tickets"][:20]
    assert cli.execute(["certify", NAME, "--json"]) == 1
    assert document(capsys)["verdict"] == "blocked"
    accepting = ["--accept-deletions", "--by", "Ann Lee", "--reason", "the vendor purged them"]
    assert cli.execute(["certify", NAME, *accepting, "--json"]) == 0
    assert document(capsys)["verdict"] == "complete"
    gone = [row for row in table(installation, "tickets").values() if row["deleted_at"]]
    assert len(gone) == 20
    assert cli.execute(["audit", "verify", "--json"]) == 0
    assert document(capsys)["findings"] == []
