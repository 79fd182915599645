"""What the UI knows of partitions: summed up before somebody looks, and only where something changed."""

from datetime import date

import dagster as dg
import pytest
import yaml
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue

from assets.partitions import CONNECTIONS, connection_days
from bridge_pipeline.automation import summaries
from bridge_pipeline.automation.summaries import Look, add_connection, look
from bridge_pipeline.definitions import defs
from bridge_pipeline.settings import PROJECT_ROOT

DAYS = connection_days(date(2024, 1, 1))
FIRST, SECOND = "acme|2024-03-01", "acme|2024-03-02"


@dg.asset(partitions_def=DAYS)
def one() -> None: ...


@dg.asset(partitions_def=DAYS)
def other() -> None: ...


ASSETS = summaries.partitioned(dg.Definitions([one, other]).resolve_asset_graph())


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(CONNECTIONS.name, ["acme"])
        yield instance


def materialise(instance, asset, key):
    assert dg.materialize([asset], partition_key=key, instance=instance).success


def known(instance, asset):
    """The partitions that the stored summary of an asset has; None where there is no summary."""
    (record,) = instance.get_asset_records([asset.key])
    status = record.asset_entry.cached_status
    return status and set(status.deserialize_materialized_partition_subsets(DAYS).get_partition_keys())


def test_a_summary_is_there_before_anybody_looks(instance):
    materialise(instance, one, FIRST)
    materialise(instance, other, FIRST)
    assert known(instance, one) is None
    done = look(instance, ASSETS, Look())
    assert (done.made, done.due) == (2, [])
    assert known(instance, one) == known(instance, other) == {FIRST}


def test_one_that_fails_keeps_no_other_waiting(instance, monkeypatch):
    materialise(instance, one, FIRST)
    materialise(instance, other, FIRST)
    make = summaries.get_and_update_asset_status_cache_value

    def failing(instance, key, *more):
        if key == one.key:
            raise RuntimeError("statement timeout")
        return make(instance, key, *more)

    monkeypatch.setattr(summaries, "get_and_update_asset_status_cache_value", failing)
    first = look(instance, ASSETS, Look(), budget=0)
    assert (known(instance, other), first.due) == (None, ["other", "one"])
    second = look(instance, ASSETS, first, budget=0)
    assert (known(instance, other), second.due) == ({FIRST}, ["one"])


def test_only_what_was_materialised_since_is_summed_up_again(instance):
    materialise(instance, one, FIRST)
    materialise(instance, other, FIRST)
    done = look(instance, ASSETS, Look())
    assert look(instance, ASSETS, Look.of(done.cursor)).made == 0
    materialise(instance, one, SECOND)
    done = look(instance, ASSETS, Look.of(done.cursor))
    assert done.made == 1
    assert known(instance, one) == {FIRST, SECOND}


def test_another_connection_makes_all_of_them_due(instance):
    materialise(instance, one, FIRST)
    done = look(instance, ASSETS, Look())
    instance.add_dynamic_partitions(CONNECTIONS.name, ["globex"])
    done = look(instance, ASSETS, Look.of(done.cursor))
    assert done.made == 2
    (record,) = instance.get_asset_records([one.key])
    assert record.asset_entry.cached_status.partitions_def_id in done.partitions


def computed(instance, asset):
    """What Dagster comes to for an asset without its summary, and with it."""
    kept = instance.get_asset_records([asset.key])[0].asset_entry.cached_status
    with_it = summaries.get_and_update_asset_status_cache_value(instance, asset.key, DAYS, instance)
    instance.event_log_storage.update_asset_cached_status_data(asset.key, AssetStatusCacheValue(0))
    without = summaries.get_and_update_asset_status_cache_value(instance, asset.key, DAYS, instance)
    return without, with_it, kept


def test_a_new_connection_leaves_the_summaries_true(instance, monkeypatch):
    materialise(instance, one, FIRST)
    materialise(instance, other, SECOND)
    # As the beginning of another's name, and as what stands for any sign in a pattern.
    instance.add_dynamic_partitions(CONNECTIONS.name, ["ac_me-2"])
    materialise(instance, one, "ac_me-2|2024-03-01")
    look(instance, ASSETS, Look())
    for name in ("ac", "acxme-2", "globex"):
        add_connection(instance, name, DAYS)
    assert known(instance, one) == {FIRST, "ac_me-2|2024-03-01"}
    with monkeypatch.context() as patched:
        # Nothing is read from the log for it.
        patched.setattr(type(instance.event_log_storage), "get_materialized_partitions", None)
        summaries.get_and_update_asset_status_cache_value(instance, one.key, DAYS, instance)
    for asset in (one, other):
        without, with_it, kept = computed(instance, asset)
        assert without == with_it == kept
    materialise(instance, one, "globex|2024-03-01")
    without, with_it, _ = computed(instance, one)
    assert without == with_it
    assert len(known(instance, one)) == 3


def test_one_that_comes_back_is_summed_up_with_what_it_had(instance):
    materialise(instance, one, FIRST)
    instance.delete_dynamic_partition(CONNECTIONS.name, "acme")
    instance.add_dynamic_partitions(CONNECTIONS.name, ["globex"])
    look(instance, ASSETS, Look())
    assert known(instance, one) == set()
    add_connection(instance, "acme", DAYS)
    without, with_it, _ = computed(instance, one)
    assert without == with_it
    assert known(instance, one) == {FIRST}


def test_one_that_is_there_changes_nothing(instance):
    materialise(instance, one, FIRST)
    look(instance, ASSETS, Look())
    before = instance.get_asset_records([one.key])
    add_connection(instance, "acme", DAYS)
    assert instance.get_asset_records([one.key]) == before
    assert instance.get_dynamic_partitions(CONNECTIONS.name) == ["acme"]


def test_what_takes_too_long_goes_on_with_the_next_look(instance):
    materialise(instance, one, FIRST)
    materialise(instance, other, FIRST)
    done = look(instance, ASSETS, Look(), budget=0)
    assert (done.made, done.due) == (1, ["other"])
    assert known(instance, other) is None
    done = look(instance, ASSETS, Look.of(done.cursor), budget=0)
    assert (done.made, done.due) == (1, [])
    assert known(instance, other) == {FIRST}


def test_other_sensors_do_not_wait_for_it():
    declared = yaml.safe_load((PROJECT_ROOT / "dagster.yaml").read_text())
    with dg.instance_for_test({"sensors": declared["sensors"]}) as instance:
        assert instance.get_sensor_settings()["use_threads"]


def test_the_sensor_remembers_its_last_look(instance):
    sensor = defs.get_repository_def().get_sensor_def("partition_summaries")
    with dg.build_sensor_context(instance, definitions=defs) as context:
        first = sensor.evaluate_tick(context)
    with dg.build_sensor_context(instance, definitions=defs, cursor=first.cursor) as context:
        again = sensor.evaluate_tick(context)
    assert not first.skip_message.startswith("0 ")
    assert again.skip_message == "0 brought up to date, 0 to follow"
