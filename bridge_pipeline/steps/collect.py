"""From pages to landing tables: parse, sort out, count.

Every record of every page ends in exactly one of `landed`, `outside`, `duplicate` and
`quarantined`; memory holds a few pages and one chunk of rows. Pages are taken column by column, and those
of a long listing are parsed by another process too while the next are asked for.

A record that the source lists as deleted is `outside`: it has no version to land, and would
overwrite the last good one. It is reported, for a lookup to confirm (rule 19).
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import compress
from operator import and_, gt
from typing import Any

import pyarrow as pa

from bridge_pipeline.connector_kit.connector import Page, Stream
from bridge_pipeline.connector_kit.fields import Refused, microseconds
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import Rejected
from bridge_pipeline.connector_kit.reckoning import state_of
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import Window
from bridge_pipeline.model.entity import TIMESTAMP
from bridge_pipeline.steps.census import DiskCensus, GoneReport, RejectedRecord, Sighting
from bridge_pipeline.steps.inventory import FieldInventory, look_at
from bridge_pipeline.steps.landed_before import LandedBefore
from bridge_pipeline.steps.parse import RecordParser
from bridge_pipeline.steps.parser_process import Parsed, ParserProcess, parsed_page

# A source whose clock runs ahead by more than this does not tell the time.
_AHEAD = timedelta(hours=24)
# Few records can be as large as many.
_MOST_BYTES = 32_000_000
# Of pages that were read and are not entered yet: enough that neither of the two who parse ever waits.
_MOST_WAITING = 8_000_000


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
        self,
        stream: Stream,
        window: Window | None,
        census: DiskCensus,
        journal: Journal | None,
        chunk: int,
        helper: ParserProcess | None = None,
        before: LandedBefore | None = None,
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
        changed = stream.entity.column_names.index("updated_at")
        self._changed_at = stream.fields[changed].read
        self._span = (_micros(window.start), _micros(window.end)) if window else None
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._exact_page, self._exact_slices = -1, list[bytes]()
        self._helper = helper
        self._before = before
        # Pages that are not entered yet, in the order of reading.
        self._waiting: deque[_Taken] = deque()
        census.settle = self.settle

    def tables(self, source: Iterator[Page]) -> Iterator[pa.Table]:
        """Consumes all pages and yields tables of about `chunk` rows with the landing schema; of fewer
        where they are large."""
        for page in source:
            self._take(page)
            rows = sum(batch.num_rows for batch in self._batches)
            if rows >= self._chunk or self._bytes >= _MOST_BYTES:
                yield self._flush()
        self.settle()
        if self._batches:
            yield self._flush()

    def settle(self) -> None:
        """Enters all pages that were given so far; the helper parses some of them, this process others."""
        while self._waiting:
            self._work()

    def _take(self, page: Page) -> None:
        """Counts a page and has it parsed while the next is asked for, or enters it."""
        taken = _Taken(page, self.counts.fetched)
        self._count(page)
        self._waiting.append(taken)
        if self._is_of_rows(page) and self._before:
            taken.parsed = self._before.parsed(page, _latest(page), taken.first, self.inventory.unseen)
            taken.done = taken.parsed is not None
        if not taken.done and not self._is_for_helper(page):
            # It is looked into when it is entered, which is now.
            taken.done = True
            self.settle()
        self._enter_done()
        while len(self._waiting) > 1 and sum(each.size for each in self._waiting) > _MOST_WAITING:
            self._work()

    def _is_of_rows(self, page: Page) -> bool:
        """Whether a page is new and may be parsed without looking into it; of records that may be deleted
        not each has a row."""
        content = page.content
        if content.body is None or content.digest is None or self._stream.state:
            return False
        return not self._census.knows(content.digest)

    def _is_for_helper(self, page: Page) -> bool:
        """Whether a helper may parse a page."""
        helper, content = self._helper, page.content
        if helper is None or content.body is None or not self._is_of_rows(page):
            return False
        # Of a listing that was read before, most pages need no helper.
        helper.expect(len(content.body), 1 if self._before else content.total_pages or 1)
        return helper.running

    def _work(self) -> None:
        """Parses a page that nobody parses yet, or waits for one that the helper has."""
        idle = [each for each in self._waiting if not each.given and not each.done]
        if idle:
            self._parse(idle[0])
        elif not self._waiting[0].done:
            self._receive()
        self._enter_done()

    def _parse(self, taken: "_Taken") -> None:
        page, stream = taken.page, self._stream
        assert page.content.body is not None
        taken.parsed = parsed_page(self._parser, stream, page.content.body, _latest(page), taken.first)
        taken.done = True

    def _enter_done(self) -> None:
        """Takes what the helper has parsed, enters what can be entered in order, and lets none wait."""
        while self._helper and self._helper.answering and any(each.given for each in self._waiting):
            self._receive()
        self._give()
        while self._waiting and self._waiting[0].done:
            taken = self._waiting.popleft()
            self._enter(taken.page, taken.first, taken.parsed)

    def _receive(self) -> None:
        """Waits for the first page that the helper has under way."""
        assert self._helper
        given = [each for each in self._waiting if each.given]
        given[0].parsed = self._helper.result()
        given[0].given, given[0].done = False, True
        if not self._helper.running:
            # Nobody parses them any more.
            for each in given:
                each.given = False

    def _give(self) -> None:
        """Gives the helper what it takes, the oldest first."""
        if self._helper is None or self._journal is None:
            return
        for taken in self._waiting:
            if taken.given or taken.done:
                continue
            path = self._journal.path(taken.page.number)
            if not self._helper.give(path, _latest(taken.page), taken.first):
                return
            taken.given = True

    def _count(self, page: Page) -> None:
        counts = self.counts
        counts.fetched += len(page.content.records)
        counts.pages += 1
        counts.fetched_from = min(counts.fetched_from or page.fetched_at, page.fetched_at)
        counts.fetched_to = max(counts.fetched_to or page.fetched_at, page.fetched_at)

    def _enter(self, page: Page, first: int, parsed: Parsed | None) -> None:
        """Enters a page into the census; `parsed` it is where all of its records can be accepted.

        Args:
            first: how many records were read before it.
        """
        digest = page.content.digest
        if digest is not None and (known := self._census.enter_again(digest)):
            self.counts.duplicate += known
        elif parsed is None:
            self._sort_out_parsing(page, first)
        else:
            self.inventory.add(parsed.look)
            accepted = _Accepted(list(range(parsed.batch.num_rows)), parsed.batch)
            self._sort_out(page, accepted, [], set())

    def _sort_out_parsing(self, page: Page, first: int) -> None:
        records = page.content.records
        gone = self._gone(records)
        # Of a deleted record the source may show no more than its id.
        shown = [each for place, each in enumerate(records) if place not in gone] if gone else records
        self.inventory.add(look_at(shown, first, self._stream.keys))
        self._sort_out(page, *self._parsed(page, _latest(page)), gone)

    def _sort_out(
        self, page: Page, accepted: "_Accepted", rejected: list[tuple[int, Rejected]], gone: set[int]
    ) -> None:
        """Enters a page of new bytes into the census, and says what becomes of each record."""
        inside = self._all_within(accepted.changes)
        refused_inside = [self._rejected_within(item, _latest(page)) for _, item in rejected]
        sightings = [
            *map(Sighting, accepted.ids, accepted.versions, inside),
            *(
                self._unaccepted(item, within)
                for (_, item), within in zip(rejected, refused_inside, strict=True)
            ),
        ]
        # What is rejected may be accepted later: a change time in the future comes.
        fresh = self._census.enter(sightings, None if rejected else page.content.digest)
        self.counts.duplicate += fresh.count(False)
        new, new_rejected = fresh[: len(inside)], fresh[len(inside) :]
        self._keep_accepted(page, accepted, inside, new, gone)
        self._keep_rejected(page, rejected, refused_inside, new_rejected)

    def _keep_accepted(
        self, page: Page, accepted: "_Accepted", inside: list[bool], new: list[bool], gone: set[int]
    ) -> None:
        landing = list(map(and_, new, inside))
        if gone:
            reported = [position in gone for position in accepted.positions]
            landing = list(map(gt, landing, reported))
            self._report_gone(page, accepted.of(list(map(and_, new, reported))))
        self.counts.outside += sum(new) - sum(landing)
        if any(landing):
            self._land(page, accepted if all(landing) else accepted.of(landing))

    def _report_gone(self, page: Page, accepted: "_Accepted") -> None:
        seen = _micros(page.fetched_at)
        told = zip(accepted.ids, accepted.changes, accepted.positions, strict=True)
        reports = [GoneReport(name, changed, seen, page.number, position) for name, changed, position in told]
        self._census.report_gone(reports)
        self.counts.gone += len(reports)

    def _keep_rejected(
        self,
        page: Page,
        rejected: "list[tuple[int, Rejected]]",
        inside: list[bool | None],
        new: list[bool],
    ) -> None:
        found = [each for each, is_new in zip(zip(rejected, inside, strict=True), new, strict=True) if is_new]
        if not found:
            return
        self.counts.quarantined += len(found)
        self.counts.elsewhere += sum(within is False for _, within in found)
        self.counts.undated += sum(within is None for _, within in found)
        self._census.reject([self._set_aside(item, page, position) for (position, item), _ in found])

    def _set_aside(self, item: Rejected, page: Page, position: int) -> RejectedRecord:
        return RejectedRecord(
            sha256=hashlib.sha256(item.raw).hexdigest(),
            reason=item.reason,
            pointer=item.pointer,
            detail=item.detail,
            # What is no proper id is shown as it stands there.
            record_id=self._stream.id_in(item.raw) or item.record_id,
            raw=item.raw,
            page=page.number,
            position=position,
            fetched_at=page.fetched_at,
        )

    def _parsed(self, page: Page, latest: int) -> "tuple[_Accepted, list[tuple[int, Rejected]]]":
        """The records of a page that can be accepted, and the others with their positions."""
        records, exact = page.content.records, page.content.exact
        rejected = self._no_objects(page)
        unsound = {position for position, _ in rejected}
        parts: list[_Accepted] = []
        pending = [[position for position in range(len(records)) if position not in unsound]]
        while pending:
            positions = pending.pop()
            try:
                raw = [exact[i] for i in positions] if exact else None
                batch = self._parser.batch([records[i] for i in positions], latest, raw)
                parts.append(_Accepted(positions, batch))
            except Refused as refused:
                if len(positions) == 1:
                    rejected.append((positions[0], self._refused(page, positions[0], refused)))
                else:
                    # It is one of many, and a half without it is parsed at once.
                    half = len(positions) // 2
                    pending += [positions[half:], positions[:half]]
        if not parts:
            parts.append(_Accepted([], self._parser.batch([], latest, None)))
        return _Accepted.joined(parts), sorted(rejected, key=lambda each: each[0])

    def _no_objects(self, page: Page) -> list[tuple[int, Rejected]]:
        """What stands among the records of a page and is no JSON object, or could not be read as one."""
        found: list[tuple[int, Rejected]] = []
        for position, record in enumerate(page.content.records):
            if isinstance(record, Rejected):
                found.append((position, record))
            elif type(record) is not dict:
                refused = Refused("not_an_object", "", f"a JSON {type(record).__name__}")
                found.append((position, self._refused(page, position, refused)))
        return found

    def _refused(self, page: Page, position: int, refused: Refused) -> Rejected:
        record = page.content.records[position]
        found = record.get("id") if isinstance(record, dict) else None
        record_id = str(found)[:60] if isinstance(found, str | int | float | Decimal) else None
        raw = self._exact(page, position)
        return Rejected(raw, refused.reason, refused.pointer, refused.detail, record_id)

    def _gone(self, records: Sequence[Any]) -> set[int]:
        """The places of records that the source lists as deleted."""
        if self._stream.state is None:
            return set()
        states = (state_of(self._stream, record) for record in records)
        return {position for position, state in enumerate(states) if state == "deleted"}

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

    def _all_within(self, moments: list[int | None]) -> list[bool]:
        if self._span is None:
            return [True] * len(moments)
        first, end = self._span
        return [moment is None or first <= moment < end for moment in moments]

    def _within(self, moment: int | None) -> bool:
        """Whether a record that changed then belongs to the window; one without a time belongs to any."""
        return self._all_within([moment])[0]

    def _rejected_within(self, item: Rejected, latest: int) -> bool | None:
        """Whether a rejected record changed within the window; None where it does not say when."""
        if self._span is None:
            return True
        try:
            moment = self._changed_at(json.loads(item.raw))
        except (ValueError, RecursionError, TypeError, AttributeError):
            return None
        return None if moment is None or moment > latest else self._within(moment)

    def _unaccepted(self, item: Rejected, inside: bool | None) -> Sighting:
        # By its id where it has one: a value that is new in each answer would make it another record each
        # time, and the listing never whole. One that clearly changed elsewhere does not keep it from that.
        digest = hashlib.sha256(item.raw).hexdigest()
        found = self._stream.id_in(item.raw)
        name = f"sha256:{digest}" if found is None else f"rejected:{found}"
        return Sighting(name, digest, inside is not False, rejected=True)

    def _land(self, page: Page, accepted: "_Accepted") -> None:
        """Adds rows to the next table."""
        count, batch = len(accepted.positions), accepted.batch
        places = {
            "seq": pa.array(range(self.counts.landed, self.counts.landed + count), pa.int64()),
            "fetched_at": pa.array([_micros(page.fetched_at)] * count, pa.int64()).cast(TIMESTAMP),
            "page": pa.array([page.number] * count, pa.int64()),
            "position": pa.array(accepted.positions, pa.int64()),
        }
        arrays = [places[name] if name in places else batch.column(name) for name in self._schema.names]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._bytes += batch.column("raw").nbytes
        self.counts.landed += count

    def _flush(self) -> pa.Table:
        reach("land.table")
        table = pa.Table.from_batches(self._batches, schema=self._schema)
        self._batches, self._bytes = [], 0
        return table


@dataclass
class _Taken:
    """A page, and how many records were read before it.

    The helper was `given` it and has not answered; or it is `done`: `parsed`, or to be looked into when it is
    entered.
    """

    page: Page
    first: int
    given: bool = False
    done: bool = False
    parsed: Parsed | None = None

    @property
    def size(self) -> int:
        """Bytes of the page, where they are known."""
        return len(self.page.content.body or b"")


@dataclass(frozen=True)
class _Accepted:
    """Rows of a page in the entity's `content_schema`, and where on it their records stand."""

    positions: list[int]
    batch: pa.RecordBatch

    @classmethod
    def joined(cls, parts: "list[_Accepted]") -> "_Accepted":
        if len(parts) == 1:
            return parts[0]
        positions = [position for part in parts for position in part.positions]
        return cls(positions, pa.concat_batches([part.batch for part in parts]))

    def of(self, wanted: list[bool]) -> "_Accepted":
        """Those that are wanted."""
        mask = pa.array(wanted, pa.bool_())
        return _Accepted(list(compress(self.positions, wanted)), self.batch.filter(mask))

    @property
    def ids(self) -> list[str]:
        return self.batch.column("id").to_pylist()

    @property
    def versions(self) -> list[str]:
        return self.batch.column("content_hash").to_pylist()

    @property
    def changes(self) -> list[int | None]:
        """When the records changed, in µs since 1970."""
        return self.batch.column("updated_at").cast(pa.int64()).to_pylist()


def _latest(page: Page) -> int:
    """µs since 1970 after which no record of a page can have changed."""
    return _micros(page.fetched_at + _AHEAD)


def _micros(moment: datetime) -> int:
    result = microseconds(moment.isoformat(), "")
    assert result is not None
    return result
