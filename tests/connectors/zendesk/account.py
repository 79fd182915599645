"""How the tests of Zendesk set up an account and read it: through the client, a journal and the collector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.connector import Page, Reading
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.session import SourceContext
from bridge_pipeline.connector_kit.simulator import Answer, Request, RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.zendesk import CONNECTOR
from bridge_pipeline.connectors.zendesk.config import ZendeskConfig
from bridge_pipeline.connectors.zendesk.simulator.dialect import Behaviour, ZendeskSupport
from bridge_pipeline.model import Window
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.census import DiskCensus, GoneReport
from bridge_pipeline.steps.collect import Collector, Counts

TOKEN = "canary-Zend3sk-T0ken-never-to-be-found"
EMAIL = "admin@acme.example.com"
FIRST, LAST = date(2025, 1, 1), date(2025, 3, 1)
ALL = Window.of_days(date(2024, 1, 1), date(2025, 12, 31))
ENTITIES = ("accounts", "users", "groups", "tickets", "comments")


class Account(ZendeskSupport):
    """An account of 300 tickets with pages of ten, whose answers a test may replace.

    `before` is called with each request and may answer itself; nothing changes unless the test says so.
    """

    def __init__(self, behaviour: Behaviour | None = None, **options: Any) -> None:
        chosen = {"tickets": 300, "users": 60, "accounts": 30, "faults": "calm"} | options
        self.before: Callable[[Request], Answer | None] = lambda request: None
        super().__init__(SimulatorOptions(**chosen), behaviour or Behaviour(export_page=10, limits=False))

    def answer(self, request: Request) -> Answer:
        return self.before(request) or super().answer(request)


def serving(account: Account) -> Any:
    """Serves an account in a thread until the block ends."""
    return kit.serving(account, account.options)


class Unlimited:
    """A quota without limits."""

    def request(self, path: str, params: object) -> Any:
        return nullcontext()

    def hold(self, seconds: float) -> None:
        """Nobody waits."""


@dataclass
class Extracted:
    """What came of an extraction; `rows` are the landed ones by id, the newest of each."""

    rows: dict[str, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    proof: dict[str, Any] = field(default_factory=dict)
    gone: dict[str, GoneReport] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    journal: Journal | None = None


@contextmanager
def opened(address: RunningSimulator | str, exclude: tuple[str, ...] = (), **config: Any) -> Iterator[Any]:
    """A client for an account, that does not wait between attempts."""
    url = address if isinstance(address, str) else address.url
    settings = Settings(backoff_initial=0)
    chosen = ZendeskConfig(
        **{"base_url": url, "email": EMAIL, "api_token": TOKEN, "allow_private": True} | config
    )
    client = CONNECTOR.open(chosen, SourceContext("acme-zendesk", settings, Unlimited(), exclude))
    try:
        yield client
    finally:
        client.close()


def extract(
    address: RunningSimulator | str,
    entity: str,
    folder: Path,
    window: Window | None = None,
    most: int | None = None,
    **opening: Any,
) -> Extracted:
    """Reads an entity as an extraction does, over the journal in `folder`; stops after `most` pages."""
    folder.mkdir(exist_ok=True)
    stream, journal = CONNECTOR.stream(entity), Journal(folder)
    census = DiskCensus(folder / "census.sqlite")
    collector = Collector(stream, window, census, journal, 1_000)
    found = Extracted(journal=journal)

    def pages(client: Any) -> Iterator[Page]:
        for number, page in enumerate(client.read(Reading(stream, window, census, journal), found.proof)):
            if number == most:
                return
            yield page

    with opened(address, **opening) as client:
        for table in collector.tables(pages(client)):
            for row in table.select(["id", "updated_at"]).to_pylist():
                mark = row["updated_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
                found.rows[row["id"]] = max(mark, found.rows.get(row["id"], ""))
    found.counts, found.gone = collector.counts, {report.id: report for report in census.gone()}
    found.rejected = [record.reason for record in census.rejected()]
    census.close()
    return found


def truth(simulator: RunningSimulator, entity: str, window: Window = ALL) -> dict[str, str]:
    """What the account holds of a window: each id with its change mark."""
    held = simulator.truth()["entities"][entity]
    marks = {key: version["updated_at"] for key, version in held.items()}
    return {key: mark for key, mark in marks.items() if window.contains(instant(mark))}


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def exports(simulator: RunningSimulator, part: str) -> list[str]:
    """The addresses asked for so far that contain `part`."""
    return [line["path"] for line in simulator.requests if part in line["path"]]
