"""How the kit reads a connector: through its client, a journal and the collector, without a database.

Also the small desk that every case reads, and the truth of it.
"""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit import simulator as kit
from bridge_pipeline.connector_kit.connector import Client, Connector, Page, Reading
from bridge_pipeline.connector_kit.double import PAGE_SIZE, Double
from bridge_pipeline.connector_kit.journal import abandon, open_extraction
from bridge_pipeline.connector_kit.session import Contradictory, SourceContext
from bridge_pipeline.connector_kit.simulator import Answer, Request, RunningSimulator, SimulatorOptions
from bridge_pipeline.database.ledger import Inventory
from bridge_pipeline.model import Window
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.census import DiskCensus
from bridge_pipeline.steps.collect import Collector, Counts

CONNECTION = "acme-conformance"
FIRST, LAST = date(2025, 1, 1), date(2025, 1, 3)
# Related records may be older than the tickets that they belong to.
ALL = Window.of_days(date(2020, 1, 1), date(2025, 12, 31))
# Tickets fill three pages at least.
SMALL = {"tickets": 8, "accounts": 4, "users": 5, "page_size": PAGE_SIZE}
# Of simulators, since the test began.
DEFECTS: list[Exception] = []
HOW = "see docs/adding-a-connector.md"


@dataclass(frozen=True)
class Subject:
    """A connector under test, its simulator's declaration, and the entity whose pages are counted."""

    connector: Connector
    double: Double

    @property
    def entity(self) -> str:
        """Tickets; of a connector without them, its last entity."""
        entities = self.connector.entities
        return "tickets" if "tickets" in entities else entities[-1]


def subject_of(name: str) -> Subject:
    """The connector of that name with the `DOUBLE` of its simulator."""
    connector = connectors.get(name)
    module = importlib.import_module(f"bridge_pipeline.connectors.{name}.simulator")
    double = getattr(module, "DOUBLE", None)
    if not isinstance(double, Double):
        pytest.fail(f"connectors/{name}/simulator must export DOUBLE = Double(…): {HOW}", pytrace=False)
    return Subject(connector, double)


@contextmanager
def desk(subject: Subject, **options: Any) -> Iterator[tuple[RunningSimulator, Any]]:
    """The subject's small, calm desk, which accepts one credential; with its dialect."""
    chosen = {"faults": "calm", "first_day": FIRST, "last_day": LAST, "token": subject.double.token}
    complete = SimulatorOptions(**{**SMALL, **chosen, **options})
    dialect = subject.double.dialect(complete)
    with kit.serving(_Watched(dialect), complete, refusals=subject.double.refusals) as simulator:
        yield simulator, dialect


@dataclass
class _Watched:
    """A dialect whose own defects are kept: over the wire they are only connections that break off."""

    dialect: Any

    @property
    def records(self) -> int:
        return self.dialect.records

    @property
    def changes(self) -> int:
        return self.dialect.changes

    def answer(self, request: Request) -> Answer:
        try:
            return self.dialect.answer(request)
        except Exception as defect:
            DEFECTS.append(defect)
            raise

    def truth(self) -> Iterable[bytes]:
        return self.dialect.truth()


class CountedQuota:
    """Permits every request at once; counts those permitted, and keeps how long the source held."""

    def __init__(self) -> None:
        self.permitted, self.under_way = 0, 0
        self.held: list[float] = []

    @contextmanager
    def request(self, path: str, params: Mapping[str, str]) -> Iterator[None]:
        self.permitted += 1
        self.under_way += 1
        yield
        self.under_way -= 1

    def hold(self, seconds: float) -> None:
        self.held.append(seconds)


@cache
def _settings() -> Settings:
    """An impatient client's; reading them anew takes longer than a small desk."""
    return Settings(backoff_initial=0, retry_after_budget=5, max_body_bytes=1_000_000)  # type: ignore[call-arg]


def config_of(subject: Subject, url: str, **changes: Any) -> dict[str, Any]:
    """The values of a connection's config; a change to None leaves the field out."""
    values = {"base_url": url, "allow_private": True, **subject.double.config, **changes}
    return {name: value for name, value in values.items() if value is not None}


def secrets_of(config: BaseModel) -> dict[str, str]:
    """The clear values of a config's secrets, by field."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    return {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}


@contextmanager
def opened(
    subject: Subject,
    url: str,
    quota: CountedQuota | None = None,
    exclude: tuple[str, ...] = (),
    read_timeout: float | None = None,
    **changes: Any,
) -> Iterator[Client]:
    """A client of the desk at `url` that does not wait between attempts."""
    config = subject.connector.config.model_validate(config_of(subject, url, **changes))
    settings = _settings().model_copy(update={"read_timeout": read_timeout} if read_timeout else {})
    context = SourceContext(CONNECTION, settings, quota or CountedQuota(), exclude)
    client = subject.connector.open(config, context)
    try:
        yield client
    finally:
        client.close()


@dataclass
class Extracted:
    """What came of an extraction: `rows` are the landed ones by id with their newest change mark."""

    rows: dict[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    proof: dict[str, Any] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    rejected: list[str] = field(default_factory=list)
    inventory: Inventory = field(default_factory=lambda: Inventory(0, 0, [], {}))
    custom_fields: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    records: int = 0


def extract(
    subject: Subject,
    url: str,
    entity: str,
    folder: Path,
    window: Window | None = ALL,
    most: int | None = None,
    **opening: Any,
) -> Extracted:
    """Reads an entity as an extraction does, over the journal in `folder`; killed after `most` pages."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = subject.connector.stream(entity)
    _, journal = open_extraction(folder, 0, entity, timedelta(hours=1))
    census = DiskCensus(folder / "census.sqlite")
    collector = Collector(stream, window, census, journal, 1_000)
    found = Extracted()

    def pages(client: Client) -> Iterator[Page]:
        reading = Reading(stream, window, census, journal)
        for number, page in enumerate(client.read(reading, found.proof)):
            if number == most:
                return
            yield page

    try:
        with opened(subject, url, **opening) as client:
            for table in collector.tables(pages(client)):
                for row in table.select(["id", "updated_at", "custom_fields"]).to_pylist():
                    mark: datetime = row["updated_at"]
                    found.custom_fields[row["id"]] = row["custom_fields"]
                    found.rows[row["id"]] = max(mark, found.rows.get(row["id"], mark))
        found.gone = {report.id for report in census.gone()}
        found.rejected = [record.reason for record in census.rejected()]
    except Contradictory:
        abandon(journal.folder)
        raise
    finally:
        census.close()
    found.inventory = collector.inventory.found
    found.counts, found.asked, found.records = collector.counts, journal.written, journal.records
    return found


def truth(simulator: RunningSimulator, entity: str, window: Window = ALL) -> dict[str, datetime]:
    """What the desk holds of a window: each id with its change mark."""
    held = simulator.truth()["entities"].get(entity, {})
    marks = {key: datetime.fromisoformat(each["updated_at"]).astimezone(UTC) for key, each in held.items()}
    return {key: mark for key, mark in marks.items() if window.contains(mark)}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: the journal waits for the disk with every page."""
    memory = Path("/dev/shm")
    fast = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="bridge-conformance-", dir=fast))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
