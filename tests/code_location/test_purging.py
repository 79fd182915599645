"""A purge takes partition, runs and events out of Dagster, and stops at a run that is not over."""

from datetime import date

import dagster as dg
import pytest

from assets.partitions import CONNECTION_TAG
from bridge_pipeline import naming
from bridge_pipeline.automation.jobs import DAILY_JOB, range_tags
from bridge_pipeline.automation.purging import purge
from bridge_pipeline.automation.runs import add_partition, prepare_instance
from bridge_pipeline.database import registry
from bridge_pipeline.definitions import defs
from bridge_pipeline.steps.purge import ConnectionBusy
from tests.integration.desk import account
from tests.integration.flow import NAME, connect

DAY = date(2024, 3, 1)
WHO = ("jo", "the contract ended")


def partitions(instance):
    return instance.get_dynamic_partitions(naming.CONNECTION_DIMENSION)


@pytest.mark.slow
def test_partition_and_runs_go_and_those_of_others_stay(installation, desk):
    desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z")]
    connect(installation, desk, "acme-other")
    add_partition(installation, "acme-other")
    add_partition(installation, NAME)
    instance = prepare_instance(installation)
    stays = instance.create_run_for_job(
        dg.job(name="other")(lambda: None), tags={CONNECTION_TAG: "acme-other"}
    )
    instance.report_run_failed(stays)
    run = defs.resolve_job_def(DAILY_JOB).execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(["extracted", "accounts"])],
        tags=range_tags(NAME, f"{NAME}|{DAY}", f"{NAME}|{DAY}"),
    )
    assert run.success
    done = purge(installation, NAME, *WHO)
    assert done.rows["bridge.batches"] == 1
    assert partitions(instance) == ["acme-other"]
    assert instance.get_run_by_id(run.run_id) is None
    assert instance.all_logs(run.run_id) == []
    assert instance.get_run_by_id(stays.run_id) is not None


@pytest.mark.slow
@pytest.mark.parametrize("tag", [CONNECTION_TAG, "dagster/partition/connection"])
def test_a_run_that_is_not_over_stops_it(installation, desk, tag):
    add_partition(installation, NAME)
    instance = prepare_instance(installation)
    run = instance.create_run_for_job(dg.job(name="any")(lambda: None), tags={tag: NAME})
    with pytest.raises(ConnectionBusy, match=run.run_id):
        purge(installation, NAME, *WHO)
    assert registry.get(installation.database.engine, NAME).removed_at is None
    instance.report_run_failed(run)
    assert purge(installation, NAME, *WHO).finished_at is not None
    assert partitions(instance) == []
