"""Which unfinished extraction is resumed, and which is begun anew: what was asked for, and how."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connectors.helpdesk.client import HelpdeskClient
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps import collect
from bridge_pipeline.steps import extract as extraction
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.extract import extract
from tests.integration.desk import serving, ticket
from tests.integration.flow import connect, day

NAME = "acme-desk"
DAY = day("2024-03-01")
# Nothing listens there: an extraction is begun, and ends with its first request.
NOWHERE = {"base_url": "http://127.0.0.1:9", "allow_private": True}
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "helpdesk": ({}, "api_token"),
    "zendesk": ({"email": "bot@example.com"}, "api_token"),
    "freshservice": ({"page_size": 30}, "api_key"),
    "servicenow": ({"user": "bridge", "page_size": 30}, "password"),
}
CHANGES = [
    ("helpdesk", {"base_url": "http://127.0.0.1:9/desk"}),
    ("zendesk", {"email": "other@example.com"}),
    ("freshservice", {"page_size": 100}),
    ("freshservice", {"all_workspaces": True}),
    ("servicenow", {"page_size": 100}),
    ("servicenow", {"user": "other"}),
]


@pytest.fixture
def workspace(workspace: Workspace) -> Workspace:
    """The workspace of all tests, for a client that asks once."""
    return dataclasses.replace(workspace, settings=workspace.settings.model_copy(update={"attempts": 1}))


def begin(workspace: Workspace, connector: str, secret: str = "12-first-Canary-4711", **changes: Any) -> None:
    """Applies a connection, and begins to extract a day of it."""
    config, credential = WAYS[connector]
    record = ConnectionRecord(NAME, "acme", connector, NOWHERE | config | changes, entities=("tickets",))
    box = workspace.sealer.seal(secret, record.tenant, record.name, credential)
    registry.put(workspace.database.engine, record, {credential: box})
    with pytest.raises(SourceError):
        extract(workspace, NAME, "tickets", DAY)


def begun(workspace: Workspace) -> list[str]:
    """The extractions of the day that were begun so far."""
    folder = workspace.home.journal_of("acme", NAME, "tickets", DAY.label)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("connector", "change"), CHANGES, ids=[f"{each}-{next(iter(to))}" for each, to in CHANGES]
)
def test_what_was_asked_by_another_config_is_begun_anew(workspace, connector, change):
    begin(workspace, connector)
    begin(workspace, connector)
    assert begun(workspace) == ["0001"]
    begin(workspace, connector, **change)
    assert begun(workspace) == ["0001", "0002"]


def test_what_was_asked_with_another_padding_is_begun_anew(workspace):
    begin(workspace, "helpdesk")
    settings = workspace.settings.model_copy(update={"window_padding": timedelta(hours=48)})
    begin(dataclasses.replace(workspace, settings=settings), "helpdesk")
    assert begun(workspace) == ["0001", "0002"]


@pytest.mark.parametrize("connector", WAYS)
def test_a_new_credential_goes_on_where_the_old_one_was_refused(workspace, connector):
    begin(workspace, connector)
    begin(workspace, connector, secret="12-second-Canary-4711")
    assert begun(workspace) == ["0001"]


def test_who_cannot_land_ends_its_reading_before_what_that_is_entered_into(workspace, monkeypatch):
    """Requests that are under way are waited for; an error holds all that it came through."""
    ended: list[str] = []
    read, close = HelpdeskClient.read, DiskCensus.close

    def reading(*given):
        try:
            yield from read(*given)
        finally:
            ended.append("reading")

    def full(entity, tables, folder, work):
        landing = tables()
        next(landing)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HelpdeskClient, "read", reading)
    monkeypatch.setattr(DiskCensus, "close", lambda census: ended.append("census") or close(census))
    monkeypatch.setattr(extraction, "land", full)
    monkeypatch.setattr(collect, "_MOST_BYTES", 0)
    with serving() as desk:
        connect(workspace, desk, NAME, entities=("tickets",))
        desk.records["tickets"] = [ticket(1, "2024-03-01T12:00:00Z")]
        with pytest.raises(OSError, match="No space left"):
            extract(workspace, NAME, "tickets", DAY)
    assert ended == ["reading", "census"]
