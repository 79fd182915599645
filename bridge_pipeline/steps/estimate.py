"""What a run would cost: requests and time, from what earlier extractions took.

The estimate is as good as its history, and says what that is. Only where there is none is the source
asked, for its own count of the records: one request an entity, within the quota. Lookups of single
records, such as missing parents, and requests that have to be repeated are not in it.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

import sqlalchemy as sa
import structlog

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connector_kit.reckoning import count
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.quota import REQUESTS
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.extract import open_source
from bridge_pipeline.steps.metering import quota_of

log = structlog.get_logger(__name__)

# The newest batches of an entity that count.
_HISTORY = 50


@dataclass(frozen=True)
class EntityEstimate:
    """What reading one entity would cost; `records` and `calls` are None where no history tells.

    `buckets` are units by bucket, `seconds` what the answers alone would take.
    """

    entity: str
    reads: str
    records: int | None
    calls: int | None
    buckets: dict[str, int]
    seconds: float | None
    rests_on: str


@dataclass(frozen=True)
class BucketEstimate:
    """What a run would take of one bucket; `seconds` is how long that lasts by its limit."""

    bucket: str
    units: int
    limit: int | None
    left: int | None
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run would cost; `complete` says whether every entity has a history to go by."""

    connection: str
    first: date
    last: date
    entities: tuple[EntityEstimate, ...]
    buckets: tuple[BucketEstimate, ...]

    @property
    def complete(self) -> bool:
        """Whether there is a number for every entity."""
        return all(each.calls is not None for each in self.entities)

    @property
    def calls(self) -> int:
        """Requests, of the entities that have a number."""
        return sum(each.calls or 0 for each in self.entities)

    @property
    def seconds(self) -> float:
        """Time to extract: what the answers take, or what the limits make of it, whichever is longer."""
        answers = sum(each.seconds or 0.0 for each in self.entities)
        return max([answers, *(bucket.seconds for bucket in self.buckets)])

    def document(self) -> dict[str, Any]:
        """The estimate as JSON."""
        return {
            "connection": self.connection,
            "from": self.first,
            "to": self.last,
            "calls": self.calls,
            "seconds": round(self.seconds, 1),
            "complete": self.complete,
            "entities": [asdict(each) for each in self.entities],
            "buckets": [asdict(each) for each in self.buckets],
        }


def estimate(
    workspace: Workspace, record: ConnectionRecord, first: date, last: date, entities: Iterable[str]
) -> Estimate:
    """Estimates the extraction of days, both included. Nothing is changed, at the source or in the tables."""
    connector, window = connectors.get(record.connector), Window.of_days(first, last)
    with workspace.database.engine.connect() as connection:
        known = [_entity(connection, record, connector, entity, window) for entity in entities]
        filled = _records_per_request(connection, record.name)
    counts = _counts(workspace, record.name, [each.entity for each in known if each.calls is None])
    found = tuple(
        _counted(each, counts[each.entity], filled) if each.entity in counts else each for each in known
    )
    return Estimate(record.name, first, last, found, tuple(_buckets(workspace, record, found)))


def _counts(workspace: Workspace, name: str, entities: list[str]) -> dict[str, int]:
    """The source's own counts of entities, as far as it gives any."""
    found = {}
    try:
        if entities:
            with open_source(workspace, name) as source:
                for entity in entities:
                    found[entity] = count(source.client, source.connector.stream(entity))
    except SourceError as error:
        log.warning("the source gives no count", error=str(error))
    return {entity: number for entity, number in found.items() if number is not None}


def _counted(each: EntityEstimate, records: int, filled: float | None) -> EntityEstimate:
    """An entity without history, by the source's count of all its records: at most these are read."""
    why = f"the source's count of all {each.entity}"
    if filled is None:
        return replace(each, records=records, rests_on=f"{why}; nothing tells how many a request brings")
    calls = max(1, math.ceil(records / filled))
    why = f"{why}, and {filled:.0f} records a request as in the fullest extraction of others"
    return replace(each, records=records, calls=calls, buckets={REQUESTS: calls}, rests_on=why)


def _records_per_request(connection: sa.Connection, name: str) -> float | None:
    """Of a connection's extractions the most records that came with a request, on average."""
    b = t.batches.c
    most = sa.func.max(sa.cast(b.landed, sa.Float) / b.requests)
    query = sa.select(most).where(b.connection == name, b.requests > 0, b.kind.not_in(ledger.SINGLE))
    found = connection.scalar(query)
    return float(found) if found else None


def _entity(
    connection: sa.Connection, record: ConnectionRecord, connector: Connector, entity: str, window: Window
) -> EntityEstimate:
    stream = connector.stream(entity)
    whole = stream.entity.reference and not ledger.was_read_whole(connection, record.name, entity)
    kind = "whole" if whole else "window"
    history = _history(connection, record.name, entity, kind)
    if not history:
        why = f"nothing: no earlier extraction of {entity} of this kind"
        return EntityEstimate(entity, kind, None, None, {}, None, why)
    days = len(list(window.days()))
    records = math.ceil(_records_per_day(history) * days)
    calls = _calls(history, records)
    requests = sum(batch.requests for batch in history)
    answers = sum(_answering(batch) for batch in history) / requests
    rests_on = f"{len(history)} earlier extractions, {requests} requests"
    units = _units(history, connector, stream.path, calls)
    return EntityEstimate(entity, kind, records, calls, units, round(answers * calls, 1), rests_on)


def _history(connection: sa.Connection, name: str, entity: str, kind: str) -> list[Batch]:
    """The newest batches that asked the source anything; a resumed one asked for a part only."""
    b = t.batches.c
    found = ledger.list_batches(connection, sa.and_(b.connection == name, b.entity == entity, b.kind == kind))
    return [batch for batch in found if batch.requests][-_HISTORY:]


def _records_per_day(history: list[Batch]) -> float:
    days = sum(len(list(batch.window.days())) for batch in history)
    return sum(batch.landed for batch in history) / days


def _calls(history: list[Batch], records: int) -> int:
    """Requests for so many records: by the line through the earlier extractions, if these differ in size.

    Reading nothing takes requests too, so that these do not grow in proportion.
    """
    sizes, requests = [batch.landed for batch in history], [batch.requests for batch in history]
    size, request = sum(sizes) / len(sizes), sum(requests) / len(requests)
    spread = sum((each - size) ** 2 for each in sizes)
    if spread:
        pairs = zip(sizes, requests, strict=True)
        slope = max(0.0, sum((x - size) * (y - request) for x, y in pairs) / spread)
    else:
        slope = request / size if size else 0.0
    return max(min(requests), math.ceil(request + slope * (records - size)))


def _answering(batch: Batch) -> float:
    """Seconds from the first page to the last, without the waits for quota."""
    waited = sum(spent["waited"] for spent in batch.quota.values())
    return max(0.0, (batch.fetched_to - batch.fetched_from).total_seconds() - waited)


def _units(history: list[Batch], connector: Connector, path: str, calls: int) -> dict[str, int]:
    """Units by bucket, as earlier requests took them; without such, as the connector counts its listing."""
    metered = [batch for batch in history if batch.quota]
    if not metered:
        costs = connector.metering.cost(path, {}) if connector.metering else {}
        return {name: cost * calls for name, cost in ({REQUESTS: 1} | dict(costs)).items()}
    requests = sum(batch.quota[REQUESTS]["used"] for batch in metered)
    names = sorted({name for batch in metered for name in batch.quota})
    taken = {name: sum(batch.quota.get(name, {}).get("used", 0) for batch in metered) for name in names}
    return {name: math.ceil(units * calls / requests) for name, units in taken.items()}


def _buckets(
    workspace: Workspace, record: ConnectionRecord, entities: tuple[EntityEstimate, ...]
) -> Iterable[BucketEstimate]:
    now = {level["bucket"]: level for level in quota_of(workspace, record)}
    for name in sorted({name for each in entities for name in each.buckets}):
        units = sum(each.buckets.get(name, 0) for each in entities)
        level = now.get(name)
        if level is None or level["limit"] is None:
            yield BucketEstimate(name, units, None, None, 0.0)
            continue
        usable = max(1, math.floor(level["limit"] * (1 - record.quota_reserve)))
        windows = math.ceil(max(0, units - level["left"]) / usable)
        yield BucketEstimate(name, units, level["limit"], level["left"], windows * level["seconds"])
