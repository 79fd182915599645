"""The whole flow over Zendesk: windows, parents, what is listed as deleted, and nothing done twice."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from bridge_pipeline.connectors.zendesk.simulator.dialect import Behaviour
from bridge_pipeline.connectors.zendesk.simulator.world import DELETED, LIVE, SCRUBBED
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.certify import certify
from tests.connectors.zendesk.account import EMAIL, ENTITIES, TOKEN, Account, serving, truth
from tests.integration import flow

NAME = "acme-zendesk"
DAYS = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 4)}
WEEK = Window.of_days(date(2025, 1, 1), date(2025, 1, 4))
LATER = Window.of_days(date(2025, 1, 6), date(2025, 1, 6))
LATER_AT = int(LATER.start.timestamp()) + 3_600


@pytest.fixture
def account(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    account = Account(Behaviour(export_page=20, limits=False), tickets=80, users=20, **DAYS)
    with serving(account) as simulator:
        config = {"base_url": simulator.url, "email": EMAIL, "allow_private": True}
        record = ConnectionRecord(NAME, "acme", "zendesk", config, entities=ENTITIES)
        box = workspace.sealer.seal(TOKEN, record.tenant, record.name, "api_token")
        registry.put(workspace.database.engine, record, {"api_token": box})
        account.simulator = simulator
        yield account


def process(workspace, window, *entities):
    return flow.process(workspace, window, entities or ENTITIES, NAME)


def held(workspace, entity):
    """Id and change mark of what a table holds, placeholders and deleted rows left out."""
    found = flow.table(workspace, entity, NAME)
    return {
        key: row["updated_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        for key, row in found.items()
        if not row["placeholder"] and row["deleted_at"] is None
    }


def reports(workspace):
    query = "select entity, record_id, batch_id, seen_at, reported_at from bridge.gone_reports"
    return {(row["entity"], row["record_id"]): row for row in flow.rows(workspace, query)}


@pytest.mark.long
def test_the_flow_brings_the_truth_and_doing_it_again_changes_nothing(workspace, account):
    done = process(workspace, WEEK)
    for entity in ENTITIES:
        assert held(workspace, entity) == truth(account.simulator, entity, WEEK)
        batch, update, _ = done[entity]
        terms = ("loaded", "unchanged", "superseded")
        sums = sum(update.total(term) for term in terms) + batch.outside + batch.quarantined + batch.duplicate
        assert batch.fetched == sums
        assert batch.proof.get("listed_as_deleted", 0) == len(
            account.simulator.truth()["deleted"].get(entity, {}) if entity != "groups" else {}
        )
    tickets = flow.table(workspace, "tickets", NAME)
    assert {row["status"] for row in tickets.values()} >= {"New", "Solved", "On-hold"}
    assert all(row["custom_fields"]["updated_at"] for row in tickets.values() if not row["placeholder"])
    parts = {row["part"] for row in flow.rows(workspace, "select distinct part from desk.ticket_users")}
    assert parts == {"requester", "creator", "assignee", "watcher"}
    before = {entity: flow.table(workspace, entity, NAME) for entity in ENTITIES}
    again = process(workspace, WEEK, "tickets")
    assert {entity: flow.table(workspace, entity, NAME) for entity in ENTITIES} == before
    assert all(update.total("loaded") == 0 for _, update, _ in again.values())


@pytest.mark.slow
def test_what_is_deleted_later_never_overwrites_the_good_row(workspace, account):
    process(workspace, WEEK, "tickets")
    good = flow.table(workspace, "tickets", NAME)
    tickets = account.world.tables["tickets"]
    soft, scrubbed = (int(row) for row in np.flatnonzero(tickets.states == LIVE)[:2])
    tickets.remove(soft, LATER_AT, DELETED)
    tickets.remove(scrubbed, LATER_AT, SCRUBBED)
    batch, update, _ = process(workspace, LATER, "tickets")["tickets"]
    gone = {str(tickets.ids[soft]), str(tickets.ids[scrubbed])}
    after = flow.table(workspace, "tickets", NAME)
    for key in gone:
        content = {name: value for name, value in good[key].items() if name != "deleted_at"}
        assert {name: after[key][name] for name in content} == content
        assert after[key]["subject"] != "SCRUBBED"
        report = reports(workspace)["tickets", key]
        assert report["batch_id"] == batch.id
        assert report["reported_at"].timestamp() == LATER_AT
    assert (batch.landed, batch.outside, batch.fetched) == (0, 2, 2)
    assert update.total("loaded") == 0
    certificate = certify(workspace, NAME, entities=("tickets",))
    assert certificate.verdict == "complete"
    (section,) = certificate.document["entities"]
    assert {each["id"]: each["finding"] for each in section["named"]} == dict.fromkeys(gone, "gone")
    marked = {key for key, row in flow.table(workspace, "tickets", NAME).items() if row["deleted_at"]}
    assert marked == gone
    assert flow.rows(workspace, "select distinct reason from bridge.deletions") == [{"reason": "lookup"}]


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_a_ticket_that_is_asked_for_by_its_id_has_the_mark_that_the_export_shows(workspace, account, marked):
    account.behaviour = replace(account.behaviour, marked_lookups=marked)
    process(workspace, WEEK, "tickets")
    tickets = account.world.tables["tickets"]
    by_system, by_agent = (int(row) for row in np.flatnonzero(tickets.states == LIVE)[:2])
    # Both became visible after their day was read.
    tickets.touch(by_system, int(WEEK.end.timestamp()) - 3_600, system=True)
    tickets.touch(by_agent, int(WEEK.end.timestamp()) - 3_000)
    for _ in range(2):
        assert certify(workspace, NAME, entities=("tickets",)).verdict == "complete"
    assert held(workspace, "tickets") == truth(account.simulator, "tickets", WEEK)
    asked = [line for line in account.simulator.requests if "/api/v2/tickets/" in line["path"]]
    assert len(asked) == 2
    before = flow.table(workspace, "tickets", NAME)
    _, update, _ = process(workspace, WEEK, "tickets")["tickets"]
    assert (flow.table(workspace, "tickets", NAME), update.total("loaded")) == (before, 0)


@pytest.mark.slow
def test_parents_that_no_listing_brought_are_fetched_by_id(workspace, account):
    process(workspace, WEEK, "tickets")
    query = "select distinct user_id from desk.ticket_users where connection = :name"
    people = {row["user_id"] for row in flow.rows(workspace, query, name=NAME)}
    # Inactive users are users; deleted organizations are gone, and what refers to them keeps a placeholder.
    assert set(held(workspace, "users")) == people
    accounts = flow.table(workspace, "accounts", NAME)
    missing = {key for key, row in accounts.items() if row["placeholder"]}
    assert missing == set(accounts) & set(account.simulator.truth()["deleted"]["accounts"])
    assert missing
    assert missing < set(accounts)
    asked = [line for line in account.simulator.requests if "organizations" in line["path"]]
    assert [line["status"] for line in asked].count(404) == len(missing)
