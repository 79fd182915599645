"""A connector's records through the whole flow: windows in any order, doing it again, deletion, quota."""

from datetime import datetime, timedelta

import pytest

from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.extract import extract
from tests.conformance.reading import FIRST, LAST, Subject, config_of, desk, secrets_of, truth
from tests.integration import flow

NAME = "acme-conformance"
DAYS = [FIRST + timedelta(days=number) for number in range((LAST - FIRST).days + 1)]
# The last day first.
ANY_ORDER = [Window.of_days(day, day) for day in (DAYS[-1], DAYS[0], *DAYS[1:-1])]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed requests are tried again at once."""
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")


@pytest.fixture
def workspace(impatient: None, workspace: Workspace) -> Workspace:
    """The workspace of all tests, for an impatient client."""
    return workspace


def connect(workspace: Workspace, subject: Subject, url: str, requests_per_minute: int | None = None) -> None:
    """Registers the desk at `url` as a connection."""
    config = subject.connector.config.model_validate(config_of(subject, url))
    secrets = secrets_of(config)
    values = config.model_dump(mode="json", exclude=set(secrets))
    record = ConnectionRecord(
        NAME,
        "acme",
        subject.connector.name,
        values,
        (subject.entity,),
        requests_per_minute=requests_per_minute,
    )
    boxes = {name: workspace.sealer.seal(secret, "acme", NAME, name) for name, secret in secrets.items()}
    registry.put(workspace.database.engine, record, boxes)


def held(workspace: Workspace, entity: str) -> dict[str, datetime]:
    """Ids and change marks of what is loaded and not deleted."""
    return {
        key: row["updated_at"]
        for key, row in flow.table(workspace, entity, NAME).items()
        if not row["placeholder"] and row["deleted_at"] is None
    }


@pytest.mark.long
def test_windows_in_any_order_and_a_deletion_bring_the_truth(workspace, subject):
    entity = subject.entity
    with desk(subject) as (simulator, dialect):
        connect(workspace, subject, simulator.url)
        for window in ANY_ORDER:
            flow.process(workspace, window, [entity], NAME)
        assert held(workspace, entity) == truth(simulator, entity)
        before = flow.table(workspace, entity, NAME)
        again = flow.process(workspace, ANY_ORDER[0], [entity], NAME)
        assert flow.table(workspace, entity, NAME) == before
        assert again[entity][1].total("loaded") == 0
        gone = sorted(before)[0]
        subject.double.delete(dialect, entity, gone)
        certificate = certify(workspace, NAME, entities=(entity,))
        assert certificate.verdict == "complete"
        assert held(workspace, entity) == truth(simulator, entity)
        assert {key for key, row in flow.table(workspace, entity, NAME).items() if row["deleted_at"]} == {
            gone
        }
        assert flow.table(workspace, entity, NAME)[gone]["content_hash"] == before[gone]["content_hash"]


@pytest.mark.long
def test_no_minute_holds_more_requests_than_the_quota_of_the_connection(workspace, subject):
    entity, window = subject.entity, Window.of_days(FIRST, LAST)
    with desk(subject) as (simulator, _):
        connect(workspace, subject, simulator.url)
        extract(workspace, NAME, entity, window)
        limit = len(simulator.requests) // 2 + 1
        simulator.requests.clear()
        connect(workspace, subject, simulator.url, requests_per_minute=limit)
        batch = extract(workspace, NAME, entity, window)
        moments = [datetime.fromisoformat(line["time"]) for line in simulator.requests]
        assert batch.landed == len(truth(simulator, entity, window))
    assert len(moments) > limit
    for first, over in zip(moments, moments[limit:], strict=False):
        assert over - first > timedelta(seconds=60)
