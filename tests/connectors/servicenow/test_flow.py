"""An instance goes through the whole flow: extracted, checked, loaded, audited."""

import csv
import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline.connector_kit.simulator import Answer, SimulatorOptions
from bridge_pipeline.connectors.servicenow import CONNECTOR
from bridge_pipeline.connectors.servicenow.simulator import serving
from bridge_pipeline.connectors.servicenow.simulator.habits import HABITS
from bridge_pipeline.connectors.servicenow.simulator.replayed import incident_key
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.certify import certify
from tests.connectors.servicenow.reading import PASSWORD, SECRET, instance, truth
from tests.integration.flow import process, quarantined, rows, table

NAME = "acme-servicenow"
ENTITIES = ("accounts", "users", "tickets", "comments", "assets")
SHARED = Path(os.environ.get("BRIDGE_SHARED", PROJECT_ROOT.parent / "shared"))
LOG = SHARED / "data" / "servicenow-incident-log" / "incident_event_log_2016_q1.csv.gz"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")


def connect(workspace: Workspace, url: str, **more: Any) -> None:
    config = CONNECTOR.config.model_validate(
        {"base_url": url, "allow_private": True, "user": "u", "password": PASSWORD, **more}
    )
    secrets = {"password": PASSWORD, **{k: v for k, v in more.items() if k == "client_secret"}}
    record = ConnectionRecord(
        NAME,
        "acme",
        "servicenow",
        config.model_dump(mode="json", exclude=set(secrets)),
        CONNECTOR.entities,
    )
    boxes = {name: workspace.sealer.seal(secret, "acme", NAME, name) for name, secret in secrets.items()}
    registry.put(workspace.database.engine, record, boxes)


def arrived(workspace: Workspace, entity: str) -> dict[str, str]:
    found = table(workspace, entity, NAME)
    return {
        key: f"{row['updated_at']:%Y-%m-%dT%H:%M:%SZ}" for key, row in found.items() if not row["placeholder"]
    }


@pytest.mark.long
def test_a_hostile_instance_arrives_with_the_parents_of_its_records(workspace: Workspace) -> None:
    days = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 9)}
    window = Window.of_days(date(2025, 1, 1), date(2025, 1, 12))
    habits = replace(HABITS["hostile"], hidden_run=15, cancels_above=25)
    with instance(habits, tickets=70, accounts=10, faults="hostile", seed=6, **days) as (simulator, _):
        connect(workspace, simulator.url, client_id="c", client_secret=SECRET, page_size=30)
        done = process(workspace, window, ENTITIES, NAME)
        held = simulator.truth()
        for entity in ENTITIES:
            batch, _, _ = done[entity]
            assert batch.verdict == "passed"
            landed = batch.landed + batch.outside + batch.quarantined + batch.duplicate
            assert batch.fetched == landed
            assert set(truth(simulator, entity)) - set(arrived(workspace, entity)) == set()
            gone = set(held["deleted"][entity])
            assert set(arrived(workspace, entity)) - set(truth(simulator, entity)) <= gone
        malformed = {m["id"] for m in held["malformed"]}
        assert {json.loads(raw)["sys_id"] for raw in quarantined(workspace, "tickets", NAME)} >= malformed
    known = rows(
        workspace,
        "select count(*) as n from desk.tickets t join desk.accounts a on "
        "(a.connection, a.id) = (t.connection, t.account_id) where not a.placeholder",
    )
    assert known[0]["n"] > 20
    tokens = str(rows(workspace, "select * from bridge.access_tokens"))
    assert tokens.count("nonce") >= 3
    for secret in (PASSWORD, SECRET, "simulated-access", "simulated-refresh"):
        assert secret not in tokens
        for path in workspace.home.root.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes()


@pytest.mark.slow
def test_a_certificate_tells_hidden_rows_from_deleted_ones(workspace: Workspace) -> None:
    days = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 4)}
    window = Window.of_days(date(2025, 1, 1), date(2025, 1, 5))
    with instance(replace(HABITS["calm"], hidden_run=3), tickets=30, **days) as (simulator, served):
        connect(workspace, simulator.url)
        process(workspace, window, ("tickets",), NAME)
        held = sorted(truth(simulator, "tickets"))
        incidents = served.world.tables["incident"]
        incidents.remove(incidents.rows[held[0]], "2025-01-06 00:00:00")
        certificate = certify(workspace, NAME, entities=("tickets",))
        hidden = len(simulator.truth()["unlisted"]["tickets"])
    (section,) = certificate.document["entities"]
    assert section["explained"]["deleted"] == 1
    assert {key for key, row in table(workspace, "tickets", NAME).items() if row["deleted_at"]} == {held[0]}
    assert section["source"]["hidden"] == hidden > 0
    assert certificate.verdict == "complete"


@pytest.mark.slow
def test_rows_that_only_lookups_give_are_not_hidden_as_well(workspace: Workspace) -> None:
    days = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 4)}
    window = Window.of_days(date(2025, 1, 1), date(2025, 1, 5))
    with instance(HABITS["calm"], tickets=30, **days) as (simulator, served):
        connect(workspace, simulator.url)
        process(workspace, window, ("tickets",), NAME)
        listed = served._list

        def without_some(*args: Any) -> Answer:
            answer = listed(*args)
            shown = json.loads(answer.body)["result"][3:]
            return replace(answer, body=json.dumps({"result": shown}).encode())

        served._list = without_some
        certificate = certify(workspace, NAME, entities=("tickets",))
    (section,) = certificate.document["entities"]
    assert section["findings"]["hidden"] == 3
    assert section["explained"]["loaded"] == section["source"]["own_count"] == 30
    assert section["source"]["proof"]["hidden_by_access_rules"] == 3
    assert (section["source"]["hidden"], section["source"]["uncounted"]) == (0, 0)


# --- The real log -------------------------------------------------------------------------------


def incidents_at(clock: datetime) -> dict[str, tuple[str, str]]:
    """The newest version of every incident before `clock`, read from the file alone: time and state."""
    newest: dict[str, tuple[tuple[datetime, int], str]] = {}
    with gzip.open(LOG, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            moment = datetime.strptime(row["sys_updated_at"], "%d/%m/%Y %H:%M").replace(tzinfo=UTC)
            version = (moment, int(row["sys_mod_count"]))
            known = newest.get(row["number"])
            if moment < clock and (known is None or version >= known[0]):
                newest[row["number"]] = (version, row["incident_state"])
    return {
        incident_key(number): (f"{version[0]:%Y-%m-%dT%H:%M:%SZ}", state)
        for number, (version, state) in newest.items()
    }


@contextmanager
def replay(clock: datetime, faults: str) -> Iterator[str]:
    with serving(SimulatorOptions(event_log=LOG, clock=clock, faults=faults)) as (simulator, _):
        yield simulator.url


@pytest.mark.long
@pytest.mark.skipif(not LOG.is_file(), reason=f"the real incident log is not at {LOG}")
def test_every_incident_of_the_real_log_arrives_at_two_clock_times(workspace: Workspace) -> None:
    first, second = datetime(2016, 3, 2, tzinfo=UTC), datetime(2016, 3, 7, tzinfo=UTC)
    steps = ((first, date(2016, 2, 29), "calm"), (second, first.date(), "typical"))
    for clock, since, faults in steps:
        with replay(clock, faults) as url:
            connect(workspace, url)
            window = Window.of_days(since, date.fromordinal(clock.toordinal() - 1))
            process(workspace, window, ("users", "tickets"), NAME)
        found = table(workspace, "tickets", NAME)
        kept = {
            key: (f"{row['updated_at']:%Y-%m-%dT%H:%M:%SZ}", row["status"])
            for key, row in found.items()
            if not row["placeholder"]
        }
        assert kept == incidents_at(clock)
        assert all(row["resolved_at"] is None or row["resolved_at"] <= clock for row in found.values())
        assert all(row["created_at"] is not None for row in found.values() if not row["placeholder"])
