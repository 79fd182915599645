"""How the tests of the connector read a simulated instance: through the client, with a journal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge_pipeline.connector_kit.connector import Page, Reading
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.session import SourceContext
from bridge_pipeline.connector_kit.simulator import RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.servicenow import CONNECTOR
from bridge_pipeline.connectors.servicenow.client import ServiceNowClient
from bridge_pipeline.connectors.servicenow.simulator import serving
from bridge_pipeline.connectors.servicenow.simulator.dialect import ServiceNow
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from bridge_pipeline.model import Window
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector

PASSWORD = "canary-password-of-servicenow"
SECRET = "canary-client-secret"
BASIC = {"user": "integration", "password": PASSWORD}
CALM = Habits()
OAUTH = {"client_id": "bridge", "client_secret": SECRET}


class Free:
    """A quota that never waits."""

    @contextmanager
    def request(self, path: str, params: Any) -> Iterator[None]:
        yield

    def hold(self, seconds: float) -> None:
        pass


@contextmanager
def instance(habits: Habits | None = CALM, **options: Any) -> Iterator[tuple[RunningSimulator, ServiceNow]]:
    """A simulated instance, small and calm unless told otherwise."""
    with serving(SimulatorOptions(**{"tickets": 240, "faults": "calm"} | options), habits) as served:
        yield served


def open_client(
    url: str, exclude: tuple[str, ...] = (), patience: float = 20, attempts: int = 3, **config: Any
) -> ServiceNowClient:
    """A client that does not wait between attempts; by Basic unless told otherwise."""
    config = {"base_url": url, "allow_private": True, "page_size": 100} | (config or BASIC)
    if not {"user", "api_token", "api_key", "client_id"} & set(config):
        config |= BASIC
    settings = Settings(backoff_initial=0, read_timeout=patience, attempts=attempts)  # type: ignore[call-arg]
    return CONNECTOR.open(
        CONNECTOR.config.model_validate(config), SourceContext("acme", settings, Free(), exclude)
    )  # type: ignore[return-value]


def reading(entity: str, folder: Path, window: Window | None = None) -> Reading:
    """What a client is asked to read; the census is not asked by this one."""
    folder.mkdir(parents=True, exist_ok=True)
    return Reading(CONNECTOR.stream(entity), window, None, Journal(folder))  # type: ignore[arg-type]


def rows(pages: Iterator[Page]) -> dict[str, dict[str, Any]]:
    """The newest version of every row by id."""
    found: dict[str, dict[str, Any]] = {}
    for page in pages:
        for row in page.content.records:
            changed = row.get("sys_updated_on") or row["sys_created_on"]
            if row["sys_id"] not in found or changed >= found[row["sys_id"]][0]:
                found[row["sys_id"]] = (changed, row)
    return {key: row for key, (_, row) in found.items()}


def read(client: ServiceNowClient, entity: str, folder: Path, window: Window | None = None) -> dict[str, Any]:
    """All rows that the client reads, by id."""
    return rows(client.read(reading(entity, folder, window), {}))


def collected(
    client: ServiceNowClient, entity: str, folder: Path, window: Window | None
) -> tuple[dict[str, str], Collector, Journal]:
    """What is landed of a reading: the newest change of each id, the counts, the journal."""
    folder.mkdir(parents=True, exist_ok=True)
    stream, journal = CONNECTOR.stream(entity), Journal(folder)
    census = DiskCensus(folder / "census.sqlite")
    collector = Collector(stream, window, census, journal, 500)
    landed: dict[str, str] = {}
    try:
        for table in collector.tables(client.read(Reading(stream, window, census, journal), {})):
            for row in table.select(["id", "updated_at"]).to_pylist():
                moment = f"{row['updated_at']:%Y-%m-%dT%H:%M:%SZ}"
                landed[row["id"]] = max(moment, landed.get(row["id"], ""))
    finally:
        census.close()
    return landed, collector, journal


def truth(simulator: RunningSimulator, entity: str) -> dict[str, str]:
    """The change of every record that can be read, by id."""
    return {key: version["updated_at"] for key, version in simulator.truth()["entities"][entity].items()}
