"""From pages to landing tables: parse, sort out, count.

Every record of every page ends in exactly one of `landed`, `outside`, `duplicate` and
`quarantined`; memory holds one page and one chunk of rows. A record that the source lists as
deleted is `outside`: it has no version to land, and would overwrite the last good one. It is
reported, for a lookup to confirm (rule 19).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa

from bridge_pipeline.connector_kit.connector import Page, Stream
from bridge_pipeline.connector_kit.fields import Refused, from_microseconds, microseconds
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import Rejected
from bridge_pipeline.connector_kit.reckoning import state_of
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import Window
from bridge_pipeline.model.entity import TIMESTAMP
from bridge_pipeline.steps.census import DiskCensus, GoneReport, RejectedRecord, Sighting
from bridge_pipeline.steps.inventory import FieldInventory
from bridge_pipeline.steps.parse import RecordParser, Row

# A source whose clock runs ahead by more than this does not tell the time.
_AHEAD = timedelta(hours=24)
# Few records can be as large as many.
_MOST_BYTES = 32_000_000


@dataclass
class Counts:
    """The terms of a batch's equation, and the span of its fetch times.

    `gone` are those of `outside` that the source lists as deleted, whatever the window.
    Of the quarantined records, `elsewhere` say themselves that they changed outside the window, and
    `undated` do not say when.
    """

    fetched: int = 0
    outside: int = 0
    gone: int = 0
    duplicate: int = 0
    quarantined: int = 0
    elsewhere: int = 0
    undated: int = 0
    landed: int = 0
    pages: int = 0
    fetched_from: datetime | None = None
    fetched_to: datetime | None = None


class Collector:
    """Takes the pages of one extraction and gives landing tables."""

    def __init__(
        self, stream: Stream, window: Window | None, census: DiskCensus, journal: Journal | None, chunk: int
    ) -> None:
        self.counts = Counts()
        self.inventory = FieldInventory(stream.keys)
        self._stream = stream
        self._window = window
        self._census = census
        self._journal = journal
        self._chunk = chunk
        self._parser = RecordParser(stream)
        self._schema = stream.entity.landing_schema
        self._changed_at = stream.fields[stream.entity.column_names.index("updated_at")].read
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._exact_page, self._exact_slices = -1, list[bytes]()

    def tables(self, source: Iterator[Page]) -> Iterator[pa.Table]:
        """Consumes all pages and yields tables of about `chunk` rows with the landing schema; of fewer
        where they are large."""
        for page in source:
            self._take(page)
            if len(self._rows) >= self._chunk or self._bytes >= _MOST_BYTES:
                yield self._flush()
        if self._rows:
            yield self._flush()

    def _take(self, page: Page) -> None:
        counts = self.counts
        counts.fetched += len(page.content.records)
        counts.pages += 1
        counts.fetched_from = min(counts.fetched_from or page.fetched_at, page.fetched_at)
        counts.fetched_to = max(counts.fetched_to or page.fetched_at, page.fetched_at)
        digest = page.content.digest
        if digest is not None and (known := self._census.page(digest)):
            # The bytes of a page that was taken already: all of its versions are known.
            self._census.enter(known)
            counts.duplicate += len(known)
        else:
            self._sort_out(page)

    def _sort_out(self, page: Page) -> None:
        """Enters a page of new bytes into the census, and says what becomes of each record."""
        counts, digest = self.counts, page.content.digest
        # Of a deleted record the source may show no more than its id.
        self.inventory.add([record for record in page.content.records if not self._is_gone(record)])
        latest = _micros(page.fetched_at + _AHEAD)
        parsed = [self._parse(page, position, latest) for position in range(len(page.content.records))]
        inside = [self._inside(item, latest) for item in parsed]
        sightings = [_sighting(*pair) for pair in zip(parsed, inside, strict=True)]
        fresh = self._census.enter(sightings)
        # What is rejected may be accepted later: a change time in the future comes.
        if digest is not None and not any(sighting.rejected for sighting in sightings):
            self._census.keep_page(digest, sightings)
        refused: list[RejectedRecord] = []
        gone: list[GoneReport] = []
        for position, (item, within, new) in enumerate(zip(parsed, inside, fresh, strict=True)):
            if not new:
                counts.duplicate += 1
            elif isinstance(item, Rejected):
                counts.quarantined += 1
                counts.elsewhere += within is False
                counts.undated += within is None
                refused.append(_rejected(item, page, position))
            elif self._is_gone(page.content.records[position]):
                counts.outside += 1
                gone.append(_gone(item, page, position))
            elif not within:
                counts.outside += 1
            else:
                self._rows.append(self._landing_row(item, page, position))
                counts.landed += 1
        if refused:
            self._census.reject(refused)
        if gone:
            self._census.report_gone(gone)
            counts.gone += len(gone)

    def _parse(self, page: Page, position: int, latest: int) -> Row | Rejected:
        record = page.content.records[position]
        if isinstance(record, Rejected):
            return record
        try:
            if not isinstance(record, dict):
                raise Refused("not_an_object", "", f"a JSON {type(record).__name__}")
            return self._parser.parse(record, latest)
        except Refused as refused:
            found = record.get("id") if isinstance(record, dict) else None
            record_id = str(found)[:60] if isinstance(found, str | int | float | Decimal) else None
            raw = self._exact(page, position)
            return Rejected(raw, refused.reason, refused.pointer, refused.detail, record_id)

    def _is_gone(self, record: Any) -> bool:
        return state_of(self._stream, record) == "deleted"

    def _exact(self, page: Page, position: int) -> bytes:
        """The bytes of a record as the source sent them."""
        if page.content.exact is not None:
            return page.content.exact[position]
        if self._journal is None:
            raise ValueError("pages of no journal must hold the exact bytes of their records")
        if self._exact_page != page.number:
            body = self._journal.body(page.number)
            self._exact_page, self._exact_slices = page.number, self._stream.exact_records(body)
        return self._exact_slices[position]

    def _inside(self, item: Row | Rejected, latest: int) -> bool | None:
        """Whether a record changed within the window; None of a rejected one that does not say when."""
        if self._window is None:
            return True
        if isinstance(item, Row):
            return item.changed_at is None or self._window.contains(from_microseconds(item.changed_at))
        try:
            moment = self._changed_at(json.loads(item.raw))
        except (ValueError, RecursionError, TypeError, AttributeError):
            return None
        if moment is None or moment > latest:
            return None
        return self._window.contains(from_microseconds(moment))

    def _landing_row(self, row: Row, page: Page, position: int) -> tuple[Any, ...]:
        exact = page.content.exact
        raw = exact[position] if exact else orjson.dumps(page.content.records[position])
        self._bytes += len(raw)
        people = (row.people,) if self._stream.entity.people else ()
        return (
            self.counts.landed,
            *row.values,
            *people,
            row.custom_fields,
            row.content_hash,
            _micros(page.fetched_at),
            page.number,
            position,
            raw.decode(),
        )

    def _flush(self) -> pa.Table:
        reach("land.table")
        columns = zip(*self._rows, strict=True)
        arrays = [_array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._rows, self._bytes = [], 0
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _sighting(item: Row | Rejected, inside: bool | None) -> Sighting:
    if isinstance(item, Row):
        return Sighting(item.id, item.content_hash, inside is True)
    # Of a record that cannot be accepted nothing but its bytes is certain; one that clearly changed
    # elsewhere does not keep the listing from being whole.
    digest = hashlib.sha256(item.raw).hexdigest()
    return Sighting(f"sha256:{digest}", digest, inside is not False, rejected=True)


def _array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    if kind == TIMESTAMP:
        return pa.array(values, pa.int64()).cast(TIMESTAMP)
    return pa.array(values, kind)


def _micros(moment: datetime) -> int:
    result = microseconds(moment.isoformat(), "")
    assert result is not None
    return result


def _gone(item: Row, page: Page, position: int) -> GoneReport:
    return GoneReport(item.id, item.changed_at, _micros(page.fetched_at), page.number, position)


def _rejected(item: Rejected, page: Page, position: int) -> RejectedRecord:
    return RejectedRecord(
        sha256=hashlib.sha256(item.raw).hexdigest(),
        reason=item.reason,
        pointer=item.pointer,
        detail=item.detail,
        record_id=item.record_id,
        raw=item.raw,
        page=page.number,
        position=position,
        fetched_at=page.fetched_at,
    )
