"""How the tests of Freshservice set up an account and read it: by client, journal and collector."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from bridge_pipeline.connector_kit.connector import Page, Reading
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.session import NothingLanded, SourceContext
from bridge_pipeline.connector_kit.simulator import Answer, Request, RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.freshservice import CONNECTOR
from bridge_pipeline.connectors.freshservice.simulator import serving as serving
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.dialect import Freshservice
from bridge_pipeline.model import Window
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.census import DiskCensus, GoneReport
from bridge_pipeline.steps.collect import Collector, Counts

KEY = "canary-Fresh5ervice-Key-never-to-be-found"
ALL = Window.of_days(date(2024, 1, 1), date(2026, 12, 31))
ENTITIES = CONNECTOR.entities


class Account(Freshservice):
    """An account of 250 tickets without limits, whose answers a test may replace.

    `before` is called with each request and may answer itself; nothing changes unless the test says so.
    """

    def __init__(self, behaviour: Behaviour | None = None, **options: Any) -> None:
        chosen = {"tickets": 250, "users": 60, "accounts": 12, "faults": "calm"} | options
        self.before: Callable[[Request], Answer | None] = lambda request: None
        super().__init__(SimulatorOptions(**chosen), behaviour or Behaviour(limits=False))

    def answer(self, request: Request) -> Answer:
        return self.before(request) or super().answer(request)


class Unlimited:
    """A quota without limits."""

    def request(self, path: str, params: object) -> Any:
        return nullcontext()

    def hold(self, seconds: float) -> None:
        """Nobody waits."""


@dataclass
class Held:
    """What was landed before: by id, as `Landed` gives it."""

    raw: dict[str, bytes] = field(default_factory=dict)

    def newest(self, entity: str, shown: Mapping[str, datetime | None]) -> Mapping[str, bytes]:
        return {key: self.raw[key] for key in shown if key in self.raw}


@dataclass
class Extracted:
    """What came of an extraction; `rows` are the landed ones by id, the newest of each."""

    rows: dict[str, str] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    proof: dict[str, Any] = field(default_factory=dict)
    gone: dict[str, GoneReport] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    journal: Journal | None = None


@contextmanager
def opened(
    address: RunningSimulator | str,
    exclude: tuple[str, ...] = (),
    landed: Held | None = None,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Iterator[Any]:
    """A client for an account, that does not wait between attempts."""
    url = address if isinstance(address, str) else address.url
    chosen = CONNECTOR.config(**{"base_url": url, "api_key": KEY, "allow_private": True} | config)
    context = SourceContext(
        "acme-freshservice",
        Settings(**{"backoff_initial": 0} | (settings or {})),
        Unlimited(),
        exclude,
        landed=landed or NothingLanded(),
    )
    client = CONNECTOR.open(chosen, context)
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
    folder.mkdir(exist_ok=True, parents=True)
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
            for row in table.select(["id", "updated_at", "raw"]).to_pylist():
                mark = row["updated_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
                if mark >= found.rows.get(row["id"], ""):
                    found.rows[row["id"]], found.raw[row["id"]] = mark, row["raw"].encode()
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


def asked(simulator: RunningSimulator, part: str) -> list[str]:
    """The addresses asked for so far that contain `part`."""
    return [line["path"] for line in simulator.requests if part in line["path"]]


def balanced(found: Extracted) -> bool:
    """Whether every record of the journal is accounted for."""
    counts = found.counts
    sums = counts.landed + counts.outside + counts.quarantined + counts.duplicate
    return counts.fetched == sums == found.journal.records
