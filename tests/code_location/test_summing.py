"""Summaries of partitions that are made quickly are those that Dagster makes."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.partitions.definition import multi
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue
from sqlalchemy.exc import DBAPIError

from assets.partitions import CONNECTIONS, connection_days
from bridge_pipeline import naming
from bridge_pipeline.automation.dimensions import by_dimension
from bridge_pipeline.automation.runs import prepare_instance
from bridge_pipeline.automation.storage import EventLog
from resources.storage import storage_kept

DAY = date(2024, 1, 1)
DAYS = connection_days(DAY)
KEY, OTHER = dg.AssetKey(["extracted", "tickets"]), dg.AssetKey(["extracted", "users"])
FIRST, SECOND = "acme|2024-03-01", "acme|2024-03-02"
# The last five are none: days outside, a connection that went, and no keys of two dimensions at all.
KEYS = (
    FIRST, SECOND, "gl_obex|2024-03-01", "gl_obex|2024-01-01",
    "acme|2023-12-31", "acme|2999-01-01", "gone|2024-03-01", "acme", "acme|2024-03-01|x",
)  # fmt: skip
ATTEMPTS = "get_latest_asset_partition_materialization_attempts_without_materializations"
FAILURE, STARTED, SUCCESS = (
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.SUCCESS,
)


@pytest.fixture
def instance(installation) -> Iterator[dg.DagsterInstance]:
    with prepare_instance(installation) as instance, storage_kept(instance):
        instance.add_dynamic_partitions(naming.CONNECTION_DIMENSION, ["acme", "gl_obex"])
        yield instance


def summary(instance, key=KEY, partitions: dg.PartitionsDefinition = DAYS) -> AssetStatusCacheValue | None:
    """The asset's summary as the UI asks for it."""
    storage = instance.event_log_storage
    (found,) = storage.get_asset_status_cache_values([(key, partitions)], LoadingContextForTest(instance))
    return found


def anew(instance, key=KEY, partitions: dg.PartitionsDefinition = DAYS) -> AssetStatusCacheValue | None:
    """The summary that is made of the whole log."""
    instance.event_log_storage.wipe_asset_cached_status(key)
    return summary(instance, key, partitions)


def stored(instance, key: dg.AssetKey) -> AssetStatusCacheValue | None:
    """The summary that was left where somebody asked last."""
    return next((record.asset_entry.cached_status for record in instance.get_asset_records([key])), None)


def store(instance, key: dg.AssetKey, summary: AssetStatusCacheValue | None) -> None:
    if summary is None:
        instance.event_log_storage.wipe_asset_cached_status(key)
    else:
        instance.update_asset_cached_status_data(key, summary)


def subsets(summary: AssetStatusCacheValue | None) -> list[set[str]]:
    """The materialised partitions, those that failed, and those in progress."""
    assert summary is not None
    found = (
        summary.deserialize_materialized_partition_subsets(DAYS),
        summary.deserialize_failed_partition_subsets(DAYS),
        summary.deserialize_in_progress_partition_subsets(DAYS),
    )
    return [set(each.get_partition_keys()) for each in found]


def test_it_is_the_storage_that_dagster_has(instance):
    assert isinstance(instance.event_log_storage, EventLog)


def test_a_summary_tells_what_became_of_each_partition(instance):
    happens(instance, KEY, FIRST, "materialised")
    happens(instance, KEY, FIRST, STARTED)
    happens(instance, KEY, SECOND, FAILURE)
    assert subsets(anew(instance)) == [{FIRST}, {SECOND}, {FIRST}]


# What may happen to a partition: to come without a plan, or to be planned for a run that has come so far.
HAPPENS = ("materialised", FAILURE, STARTED, SUCCESS, None)


def test_it_is_dagsters_own_whatever_became_of_a_partition(instance, plain):
    pasts = [*itertools.product(HAPPENS), *itertools.product(HAPPENS, HAPPENS)]
    days = [f"acme|{DAY + timedelta(days=number)}" for number in range(len(pasts))]
    for step in range(2):
        for day, past in zip(days, pasts, strict=True):
            if len(past) > step:
                happens(instance, KEY, day, past[step])
        equal_to_dagsters(instance, plain, KEY, DAYS)
    found = anew(instance)
    assert [len(each) for each in subsets(found)] == [10, 6, 6]
    newest = instance.event_log_storage.get_maximum_record_id()
    for event in range(0, newest, 5):
        ours, dagsters = (getattr(each.event_log_storage, ATTEMPTS)(KEY, event) for each in (instance, plain))
        assert ours == dagsters


def test_keys_that_are_no_partitions_are_left_out(instance, plain):
    for number, key in enumerate(KEYS):
        for what in ("materialised", FAILURE)[: 1 + number % 2]:
            happens(instance, KEY, key, what)
    assert anew(instance) == anew(plain)
    assert subsets(anew(instance)) == [set(KEYS[:4]), {SECOND, KEYS[3]}, set()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_it_is_dagsters_own_after_whatever_happened(instance, plain, seed):
    chance = random.Random(seed)
    running: list[str] = []
    for _ in range(10):
        for _ in range(8):
            happen(instance, chance, running)
        equal_to_dagsters(instance, plain, KEY, DAYS)
        equal_to_dagsters(instance, plain, OTHER, CONNECTIONS)


def equal_to_dagsters(instance, plain, key: dg.AssetKey, partitions: dg.PartitionsDefinition) -> None:
    """Both come to the same from what was summed up before, and from nothing."""
    before = stored(instance, key)
    ours = summary(instance, key, partitions)
    store(instance, key, before)
    assert ours == summary(plain, key, partitions)
    assert anew(instance, key, partitions) == anew(plain, key, partitions)


def happens(instance, key: dg.AssetKey, partition: str, what: str | dg.DagsterRunStatus | None) -> str | None:
    """Lets one thing happen to a partition; the run that it was planned for."""
    if what == "materialised":
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))
        return None
    run_id = str(uuid4())
    if isinstance(what, dg.DagsterRunStatus):
        instance.add_run(dg.DagsterRun("job", run_id=run_id, status=what))
    event = DagsterEvent.build_asset_materialization_planned_event(
        "job", "step", AssetMaterializationPlannedData(key, partition=partition)
    )
    instance.report_dagster_event(event, run_id)
    return run_id


def happen(instance, chance: random.Random, running: list[str]) -> None:
    """Lets one thing happen to a partition, to all of an asset, or to a run."""
    key, kind = chance.choice((KEY, KEY, OTHER)), chance.random()
    if kind < 0.85:
        what = chance.choice(HAPPENS)
        run_id = happens(instance, key, chance.choice(KEYS), what)
        running += [run_id] if run_id and what is STARTED else []
    elif kind < 0.97 and running:
        instance.report_run_failed(instance.get_run_by_id(running.pop()))
    elif kind >= 0.97:
        instance.wipe_assets([key])


def test_one_that_was_wiped_begins_anew(instance, plain):
    happens(instance, KEY, FIRST, "materialised")
    happens(instance, KEY, SECOND, FAILURE)
    instance.wipe_assets([KEY])
    happens(instance, KEY, SECOND, "materialised")
    found = anew(instance)
    assert found == anew(plain)
    assert subsets(found) == [{SECOND}, set(), set()]


def test_partitions_of_a_connection_that_went_are_none(instance, plain):
    happens(instance, KEY, FIRST, "materialised")
    happens(instance, KEY, "gl_obex|2024-03-01", "materialised")
    assert summary(instance) == anew(plain)
    instance.delete_dynamic_partition(naming.CONNECTION_DIMENSION, "acme")
    found = summary(instance)
    assert found == anew(plain)
    assert subsets(found) == [{"gl_obex|2024-03-01"}, set(), set()]


@pytest.mark.parametrize("known", [{FIRST}, set()])
def test_a_summary_made_while_an_event_is_stored_leaves_none_out(instance, monkeypatch, known):
    """What comes after is summed up from where the summary ended."""
    for partition in known:
        happens(instance, KEY, partition, "materialised")
        summary(instance)
    with dg.DagsterInstance.from_ref(instance.get_ref()) as other, storage_kept(other):

        def elsewhere():
            happens(other, KEY, "gl_obex|2024-03-01", "materialised")
            summary(other)

        beside = meanwhile(instance, monkeypatch, "_store_asset_event_tags", elsewhere)
        happens(instance, KEY, SECOND, "materialised")
        beside.join()
    assert subsets(summary(instance))[0] == known | {SECOND, "gl_obex|2024-03-01"}


def test_a_run_launched_while_an_event_is_stored_lets_no_summary_leave_it_out(instance, monkeypatch):
    """Whoever launches has a storage that is not kept."""
    happens(instance, KEY, FIRST, "materialised")
    with (
        dg.DagsterInstance.from_ref(instance.get_ref()) as launching,
        dg.DagsterInstance.from_ref(instance.get_ref()) as reading,
    ):
        launched = meanwhile(
            instance, monkeypatch, "_store_asset_event_tags", lambda: happens(launching, KEY, FIRST, STARTED)
        )
        read = meanwhile(instance, monkeypatch, "_store_asset_event", lambda: summary(reading))
        happens(instance, KEY, SECOND, "materialised")
        launched.join()
        read.join()
    assert subsets(summary(instance)) == [{FIRST, SECOND}, set(), {FIRST}]


@pytest.mark.parametrize("known", [(KEY, OTHER), ()])
def test_events_of_the_same_assets_are_stored_side_by_side_in_whatever_order(instance, monkeypatch, known):
    failed = []
    for key in known:
        happens(instance, key, FIRST, "materialised")
    with dg.DagsterInstance.from_ref(instance.get_ref()) as other, storage_kept(other):

        def elsewhere():
            try:
                other.event_log_storage.store_event_batch([planned(OTHER), planned(KEY)])
            except DBAPIError as error:
                failed.append(error)

        beside = meanwhile(instance, monkeypatch, "_store_asset_event", elsewhere)
        instance.event_log_storage.store_event_batch([planned(KEY), planned(OTHER)])
        beside.join()
    assert not failed


def planned(key: dg.AssetKey) -> dg.EventLogEntry:
    said = AssetMaterializationPlannedData(key, partition=FIRST)
    event = DagsterEvent.build_asset_materialization_planned_event("job", "step", said)
    return dg.EventLogEntry(None, "debug", "", "run", 0.0, dagster_event=event, job_name="job")


def meanwhile(instance, monkeypatch, name: str, what: Callable[[], object]) -> threading.Thread:
    """Lets something happen elsewhere after the storage has called a method once, as far as it can."""
    storage, beside = instance.event_log_storage, threading.Thread(target=what)
    method = getattr(storage, name)

    def called(*arguments: Any) -> None:
        method(*arguments)
        monkeypatch.setattr(storage, name, method)
        beside.start()
        beside.join(1)

    monkeypatch.setattr(storage, name, called)
    return beside


def test_other_partitions_and_none_at_all_are_dagsters(instance, plain):
    happens(instance, KEY, "acme", "materialised")
    static = dg.StaticPartitionsDefinition(["acme", "globex"])
    for partitions in (CONNECTIONS, static, dg.DailyPartitionsDefinition("2024-01-01")):
        assert by_dimension(partitions) is partitions
        assert anew(instance, KEY, partitions) == anew(plain, KEY, partitions)
    storage = instance.event_log_storage
    asked = [(KEY, None), (dg.AssetKey("never"), DAYS)]
    without, never = storage.get_asset_status_cache_values(asked, LoadingContextForTest(instance))
    assert without is not None
    assert (without.partitions_def_id, never) == (None, None)


def test_it_reads_no_event_and_makes_no_object_of_each_partition(instance, monkeypatch):
    happens(instance, KEY, FIRST, "materialised")
    happens(instance, KEY, SECOND, FAILURE)
    monkeypatch.setattr(SqlEventLogStorage, ATTEMPTS, None)
    monkeypatch.setattr(multi, "MultiPartitionKey", None)
    assert subsets(anew(instance)) == [{FIRST}, {SECOND}, set()]
