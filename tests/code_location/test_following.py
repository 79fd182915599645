"""What follows upstream: requested where something was materialised alone, at a price that does not grow
with the partitions there are."""

from datetime import date

import dagster as dg
import pytest
from dagster._serdes import serialize_value

from assets import keys
from assets.partitions import CONNECTION_TAG, CONNECTIONS, connection_days

DAY, OTHER = "acme|2024-03-01", "acme|2024-03-02"


def definitions(first_day):
    """Two layers over days, and what is built of all days."""
    days = connection_days(first_day)

    @dg.asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run())
    def extracted() -> None: ...

    @dg.asset(partitions_def=days)
    def never() -> None: ...

    @dg.asset(
        partitions_def=days,
        deps=[extracted],
        automation_condition=keys.follows_upstream(),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def table() -> None: ...

    @dg.asset(
        partitions_def=days, deps=[table, never], automation_condition=keys.follows_upstream(missing=True)
    )
    def report() -> None: ...

    @dg.asset(partitions_def=days, deps=[table, never], automation_condition=keys.follows_upstream())
    def picky() -> None: ...

    @dg.asset(deps=[table], automation_condition=keys.follows_upstream(missing=True))
    def model() -> None: ...

    return dg.Definitions([extracted, never, table, report, picky, model])


class Desk:
    """An instance with one connection, and the daemon's looks at it."""

    def __init__(self, first_day=date(2024, 1, 1), connections=("acme",)):
        self.instance = dg.DagsterInstance.ephemeral()
        self.instance.add_dynamic_partitions(CONNECTIONS.name, list(connections))
        self.defs = definitions(first_day)
        self.cursor = None
        # An instance in which nothing ever happened is none that was looked at.
        self.materialise("never", key=DAY.replace("03-01", "01-01"))
        assert self.look() == {}

    def look(self):
        """The partitions that are requested of each asset."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {
            each.key.to_user_string(): set(each.true_subset.expensively_compute_partition_keys())
            if each.true_subset.is_partitioned
            else {None}
            for each in result.results
            if each.true_subset.size
        }

    def materialise(self, *names, key=DAY, last=None, tags=None):
        asked = {"selection": dg.AssetSelection.assets(*names), "instance": self.instance}
        if last:
            ends = {"dagster/asset_partition_range_start": key, "dagster/asset_partition_range_end": last}
            key, tags = None, ends | (tags or {})
        assert dg.materialize(self.defs.assets, partition_key=key, tags=tags, **asked).success


def test_what_is_materialised_alone_is_followed_for_its_day_only():
    desk = Desk()
    desk.materialise("extracted")
    # The report goes with the table; a model is built of tables that are there.
    assert desk.look() == {"table": {DAY}, "report": {DAY}}
    assert desk.look() == {}
    desk.materialise("table")
    assert desk.look() == {"report": {DAY}, "model": {None}}
    assert desk.look() == {}


def test_a_range_is_followed_day_by_day():
    desk = Desk()
    desk.materialise("extracted", last=OTHER)
    assert desk.look()["table"] == {DAY, OTHER}


@pytest.mark.parametrize("last", [None, OTHER])
def test_runs_through_all_layers_are_not_followed_whatever_becomes_of_them(last):
    desk = Desk()
    # Such as one whose checks blocked the table.
    desk.materialise("extracted", last=last, tags={CONNECTION_TAG: "acme"})
    assert desk.look() == {}
    desk.materialise("extracted", "table", key=OTHER)
    assert "table" not in desk.look()


def test_what_needs_all_of_its_parents_waits_for_them():
    desk = Desk()
    desk.materialise("table")
    assert desk.look() == {"report": {DAY}, "model": {None}}
    assert desk.look() == {}
    desk.materialise("never")
    assert desk.look() == {"report": {DAY}, "picky": {DAY}}


def test_what_a_look_leaves_behind_does_not_grow_with_the_days_or_connections_there_are():
    sizes = set()
    for first_day, connections in ((date(2024, 1, 1), ["acme"]), (date(1990, 1, 1), ["acme", "b", "c"])):
        desk = Desk(first_day, connections)
        desk.materialise("extracted")
        desk.look()
        sizes.add(len(serialize_value(desk.cursor)) // 1_000)
    assert len(sizes) == 1
