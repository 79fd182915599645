"""Reads Freshservice: lists in sweeps, and the details of tickets that are not held yet (vendor-apis B).

A ticket of the list lacks what only its own address gives, and that is the dearest call of all. So it is
asked for once: what an earlier extraction landed is landed again for as long as the list shows the same.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Page, Reading, Stream
from bridge_pipeline.connector_kit.fields import Refused, from_microseconds
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.listing import NeverWhole
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.session import (
    Contradictory,
    Journalled,
    Question,
    Session,
    SourceContext,
    SourceError,
    journalled,
    journalled_together,
)
from bridge_pipeline.connectors.freshservice.config import FreshserviceConfig, credentials_of
from bridge_pipeline.connectors.freshservice.paging import EPOCH, Repeats, Walk, links_on, written
from bridge_pipeline.connectors.freshservice.streams import STREAMS

# The lists of an entity, one after the other: people are in two, with one space of ids. A requester
# who becomes an agent meanwhile is then seen twice, and one who was an agent by the next sweep.
_LISTS = {"users": ("/api/v2/requesters", "/api/v2/agents")}
_BY_DETAIL, _BY_TICKET = "tickets", "comments"
_TICKETS = next(stream for stream in STREAMS if stream.entity.name == _BY_DETAIL)
_GONE = (404, 410)
_NOT_OFFERED = 405
_ALL_WORKSPACES = "0"
Record = dict[str, Any]


@dataclass
class _Sweep:
    """One reading of all lists of an entity.

    Attributes:
        name: what its journal keys begin with.
        live: whether the source answered for all pages of its lists during this sweep, and the journal for
            none. Details and conversations belong to the version of a ticket, whichever sweep lists it.
        listed: rows of those pages.
        nameless: those without a usable id.
        absent: what was listed and is gone, one text each.
        asked: details that were asked for.
        kept: details that were taken over from an earlier extraction.
    """

    name: str
    live: bool = True
    listed: int = 0
    nameless: int = 0
    absent: list[str] = field(default_factory=list)
    asked: int = 0
    kept: int = 0


@dataclass
class _Told:
    """One reading of what was said in some tickets.

    Attributes:
        tickets: their keys in the journal, by id.
        long: those whose conversations took several answers, or may have.
        fresh: those that brought what no reading before had.
        origins: whether the answers of a ticket were asked of the source now, each way that occurred.
    """

    tickets: dict[str, str]
    fresh: set[str] = field(default_factory=set)
    long: set[str] = field(default_factory=set)
    origins: dict[str, set[bool]] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the journal answered for none of it."""
        return all(origins == {True} for origins in self.origins.values())

    def is_torn(self, record_id: str) -> bool:
        """Whether a ticket's reading was begun by an extraction that was killed, and ended by this one."""
        return len(self.origins[record_id]) > 1


class FreshserviceClient:
    """Reads one connection; see `connector_kit.connector.Client`."""

    def __init__(self, config: FreshserviceConfig, context: SourceContext) -> None:
        self._config = config
        self._context = context
        self._credentials = credentials_of(config)
        self._sessions = [self._open()]
        # Some account may not sort its tickets, or not begin where it is told to.
        self._ordered = True

    def read(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields the pages of sweeps until one has brought nothing new."""
        yield from self._read(reading, proof, details=True)

    def list_ids(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """The whole listing without the details of tickets."""
        yield from self._read(reading, proof, details=False)

    def read_one(self, stream: Stream, record_id: str, journal: Journal) -> Page | None:
        """The record at its own address, or None for 404; of comments there is none."""
        if stream.entity.name == _BY_TICKET:
            raise SourceError(
                f"{self._context.connection}: Freshservice gives no single comments", _NOT_OFFERED
            )
        for number, path in enumerate(_LISTS.get(stream.entity.name, (stream.path,))):
            try:
                entry, (record, raw), fetched_at, _ = journalled(
                    self._sessions[0],
                    journal,
                    f"one-{record_id}" + (f"-{number}" if number else ""),
                    f"{path}/{record_id}",
                    _included(stream),
                    lambda body: stream.single_record(body, record_id),
                    lambda body: self._context.without_excluded(stream.entity, body),
                    lambda _: 1,
                )
            except SourceError as error:
                if error.status not in _GONE:
                    raise
            else:
                return Page(entry, PageContent([record], exact=[raw]), fetched_at)
        return None

    def check(self, stream: Stream) -> int:
        """Asks for the first record of each list, and of comments for those of the first ticket."""
        if stream.entity.name == _BY_TICKET:
            first = self._first(_TICKETS, _TICKETS.path)
            ids = [found for record in first if (found := _id(_TICKETS, record))]
            return len(self._first(stream, f"{stream.path}/{ids[0]}/conversations")) if ids else 0
        return sum(len(self._first(stream, path)) for path in _LISTS.get(stream.entity.name, (stream.path,)))

    def close(self) -> None:
        """Closes the connections to the source."""
        for session in self._sessions:
            session.close()

    # --- Sweeps -----------------------------------------------------------------------------------

    def _read(self, reading: Reading, proof: dict[str, Any], details: bool) -> Iterator[Page]:
        most, census = self._context.settings.max_sweeps, reading.census
        since = self._since(reading)
        again, asked, live_sweeps = False, 0, 0
        for number in count(1):
            census.begin_sweep()
            sweep = _Sweep(f"s{number}")
            try:
                yield from self._sweep(reading, sweep, since, details)
            except NeverWhole as error:
                name = f"{self._context.connection}: {reading.stream.entity.name}"
                raise Contradictory(f"{name}: {error}") from None
            asked, live_sweeps = asked + sweep.asked, live_sweeps + sweep.live
            proof |= {"method": "by change" if since else "whole listing", "sweeps": number}
            if reading.stream.entity.name == _BY_DETAIL and details:
                proof |= {"listed": sweep.listed, "details_asked": asked, "details_kept": sweep.kept}
            if sweep.nameless:
                proof["tickets_without_id"] = sweep.nameless
            if number > 1 and sweep.live and not census.unseen and not sweep.absent:
                if census.missed and not again:
                    # A sweep that missed what another saw was disturbed itself and proves little.
                    again = True
                elif sweep.listed or since in (None, EPOCH) or not self._hides(reading, sweep, since, proof):
                    return
                else:
                    since = EPOCH
            if live_sweeps >= most:
                raise self._never_whole(reading, sweep, number)

    def _since(self, reading: Reading) -> datetime | None:
        """From which change on tickets are listed; without any it would be those of 30 days (B.2)."""
        if reading.stream.entity.name not in (_BY_DETAIL, _BY_TICKET):
            return None
        return (reading.window.start - self._context.settings.window_padding) if reading.window else EPOCH

    def _sweep(
        self, reading: Reading, sweep: _Sweep, since: datetime | None, details: bool
    ) -> Iterator[Page]:
        stream = reading.stream

        def own(content: PageContent) -> int:
            return _own_records(reading, content.records, details)

        for part, path in enumerate(_LISTS.get(stream.entity.name, (stream.path,)), 1):
            walk, before = Walk(since, self._ordered, self._config.page_size), count(1)
            while not walk.ended:
                key = f"{sweep.name}-l{part}-p{next(before)}"
                try:
                    page, live, linked = self._list(reading, key, path, walk.params, own)
                except SourceError as error:
                    if not (walk.ordered and walk.since and _refuses_order(error)):
                        raise
                    walk.give_up_order()
                    continue
                sweep.live &= live
                sweep.listed += len(page.content.records)
                yield from self._records(reading, sweep, key, page, details)
                marks = [mark for record in page.content.records if (mark := _mark(_listed(stream), record))]
                walk.take(page.content.records, marks, linked)
                if walk.ordered and since and self._beyond(reading, marks):
                    break
            self._ordered &= walk.ordered

    def _beyond(self, reading: Reading, marks: list[datetime]) -> bool:
        """Whether all that follows changed after the window. A comment of it may be in any later ticket."""
        if reading.window is None or reading.stream.entity.name == _BY_TICKET or not marks:
            return False
        return min(marks) >= reading.window.end + self._context.settings.window_padding

    def _hides(self, reading: Reading, sweep: _Sweep, since: datetime | None, proof: dict[str, Any]) -> bool:
        """Whether tickets changed since, though none were listed: an empty list is not believed at once."""
        params = Walk(EPOCH, size=self._config.page_size).params | {"order_type": "desc"}
        if not self._ordered:
            del params["order_by"], params["order_type"]
        content = self._list(reading, f"{sweep.name}-newest", _TICKETS.path, params, lambda _: 0)[0].content
        proof["confirmed_empty"] = {"records": len(content.records)}
        marks = (_mark(_TICKETS, record) for record in content.records)
        return any(mark >= since for mark in marks if mark and since)

    def _never_whole(self, reading: Reading, sweep: _Sweep, sweeps: int) -> Contradictory:
        name = f"{self._context.connection}: {reading.stream.entity.name}"
        if sweep.absent:
            return Contradictory(
                f"{name}: {', '.join(sweep.absent[:5])} are listed, and asked for by their id they are not "
                f"found, in {sweeps} readings; the key's agent may not see them, or the list is stale"
            )
        return Contradictory(
            f"{name}: the listing was read {sweeps} times, and the last reading still differed from those "
            f"before ({reading.census.unseen} unseen records); the source changes faster than it can be read"
        )

    # --- Records of a page ------------------------------------------------------------------------

    def _records(
        self, reading: Reading, sweep: _Sweep, key: str, page: Page, details: bool
    ) -> Iterator[Page]:
        """What a page of a list stands for: its records, their details, or what was said in them."""
        entity = reading.stream.entity.name
        if entity == _BY_TICKET:
            yield from self._conversations(reading, sweep, page)
        elif entity != _BY_DETAIL or not details:
            yield page
        else:
            yield from self._nameless(reading, page)
            wanted = [r for r in page.content.records if _id(_TICKETS, r) and _within(reading, r)]
            kept = self._kept(reading, f"{key}-kept", page, wanted)
            known = set[str | None]()
            if kept is not None:
                known = {_id(_TICKETS, record) for record in kept.content.records}
                sweep.kept += len(known)
                yield kept
            yield from self._details(
                reading, sweep, [record for record in wanted if _id(_TICKETS, record) not in known]
            )

    def _nameless(self, reading: Reading, page: Page) -> Iterator[Page]:
        """Those of a page of tickets that nobody can ask for; they are for quarantine."""
        records = page.content.records
        chosen = [place for place, record in enumerate(records) if _is_nameless(reading, record)]
        if chosen:
            exact = reading.stream.exact_records(reading.journal.body(page.number))
            content = PageContent([records[place] for place in chosen], exact=[exact[p] for p in chosen])
            yield replace(page, content=content)

    def _kept(self, reading: Reading, key: str, page: Page, wanted: list[Record]) -> Page | None:
        """The wanted tickets that are held as the list shows them, journalled as one answer."""
        journal, stream = reading.journal, reading.stream
        if not (found := journal.find(key)):
            listed = {
                record_id: record
                for record in wanted
                if (record_id := _id(stream, record)) and _key("d", record) not in journal
            }
            shown = {record_id: _mark(stream, record) for record_id, record in listed.items()}
            held = self._context.landed.newest(_BY_DETAIL, shown) if shown else {}
            same = [raw for record_id, raw in held.items() if _shows_the_same(listed[record_id], raw)]
            if not same:
                return None
            body = b'{"tickets":[%b]}' % b",".join(same)
            found = journal.write(key, "landed:tickets", body, body, len(same), page.fetched_at, asked=False)
        entry, body = found
        # The list has shown at this moment that they are still so.
        content = pages.parse_list(body, stream.names)
        return Page(entry.number, replace(content, exact=stream.exact_records(body)), entry.fetched_at)

    def _details(self, reading: Reading, sweep: _Sweep, wanted: list[Record]) -> Iterator[Page]:
        stream = reading.stream
        # A page that shifted may bring a ticket twice.
        asked = {_key("d", record): (str(_id(stream, record)), _mark(stream, record)) for record in wanted}
        questions = [
            Question(
                key,
                f"{stream.path}/{record_id}",
                _included(stream),
                partial(_detail, record_id=record_id, listed=mark),
            )
            for key, (record_id, mark) in asked.items()
        ]
        answers = journalled_together(
            self._several(len(questions)),
            reading.journal,
            questions,
            lambda body: self._context.without_excluded(stream.entity, body),
            lambda _: 1,
        )
        with closing(answers):
            for (record_id, _), answer in zip(asked.values(), answers, strict=True):
                if isinstance(answer, SourceError):
                    sweep.absent.append(_absent(record_id, answer))
                    continue
                number, (record, raw), fetched_at, live = answer
                sweep.asked += live
                yield Page(number, PageContent([record], exact=[raw]), fetched_at)

    def _conversations(self, reading: Reading, sweep: _Sweep, page: Page) -> Iterator[Page]:
        """What was said in the tickets of a page.

        One answer is a snapshot. Between two of them something may be deleted, and what follows moves up over
        their border: conversations of several pages are read again until that brings nothing unseen.
        """
        listed = [_readable(record) for record in page.content.records]
        sweep.nameless += sum(_id(_TICKETS, record) is None for record in listed)
        tickets = {
            record_id: _key("c", record)
            for record in listed
            if (record_id := _id(_TICKETS, record)) and self._may_speak(reading, record)
        }
        live_readings = 0
        for number in count(1):
            told = _Told({record_id: _nth(key, number) for record_id, key in tickets.items()})
            yield from self._told(reading, sweep, told)
            if not told.long:
                return
            tickets = {
                record_id: key
                for record_id, key in tickets.items()
                # Each is confirmed once; what a killed extraction began to read once more had its reason.
                if record_id in told.long
                and (
                    number == 1
                    or record_id in told.fresh
                    or told.is_torn(record_id)
                    or f"{_nth(key, number + 1)}-p1" in reading.journal
                )
            }
            if not tickets:
                return
            live_readings += told.live
            if live_readings >= self._context.settings.max_sweeps:
                raise NeverWhole(
                    f"what was said in {', '.join(list(tickets)[:5])} was read {number} times, and the last "
                    "reading still brought what none before had; it changes faster than it can be read"
                )

    def _told(self, reading: Reading, sweep: _Sweep, told: _Told) -> Iterator[Page]:
        """One reading of what was said: the first pages of all tickets, then the second ones, and so on."""
        tickets = told.tickets
        seen, repeats = dict.fromkeys(tickets, 0), {record_id: Repeats() for record_id in tickets}
        for number in count(1):
            further = {}
            with closing(self._spoken(reading, tickets, number)) as answers:
                for record_id, answer in zip(tickets, answers, strict=True):
                    if isinstance(answer, SourceError):
                        sweep.absent.append(_absent(record_id, answer))
                        told.long.discard(record_id)
                        continue
                    entry, content, fetched_at, live = answer
                    before = reading.census.unseen
                    yield Page(entry, content, fetched_at)
                    if reading.census.unseen != before:
                        told.fresh.add(record_id)
                    told.origins.setdefault(record_id, set()).add(live)
                    seen[record_id] += len(content.records)
                    repeats[record_id].see(content.records)
                    linked = links_on(reading.journal.headers(entry).get("link", ""))
                    if content.records and (
                        linked or _more(content, seen[record_id], self._config.page_size)
                    ):
                        further[record_id] = tickets[record_id]
            if not further:
                return
            told.long |= further.keys()
            tickets = further

    def _spoken(
        self, reading: Reading, tickets: dict[str, str], number: int
    ) -> Generator[Journalled[PageContent] | SourceError, None, None]:
        """One page of the conversations of each ticket; `tickets` gives their keys in the journal."""
        stream = reading.stream
        questions = [
            Question(
                f"{key}-p{number}",
                f"{stream.path}/{record_id}/conversations",
                {"page": str(number), "per_page": str(self._config.page_size)},
                lambda body: pages.parse_list(body, stream.names),
            )
            for record_id, key in tickets.items()
        ]
        return journalled_together(
            self._several(len(questions)),
            reading.journal,
            questions,
            lambda body: self._context.without_excluded(stream.entity, body),
            lambda content: len(content.records),
            ("link",),
        )

    def _may_speak(self, reading: Reading, record: Record) -> bool:
        """Whether something may have been said in a ticket within the window: it must have been there."""
        if reading.window is None:
            return True
        created = _mark(_TICKETS, record, "created_at")
        return created is None or created < reading.window.end + self._context.settings.window_padding

    # --- Requests ---------------------------------------------------------------------------------

    def _list(
        self,
        reading: Reading,
        key: str,
        path: str,
        params: dict[str, str],
        own: Callable[[PageContent], int],
    ) -> tuple[Page, bool, bool]:
        """A page of a list, whether it was asked of the source now, and whether it links a next one.

        `own` says how many records of the extraction it holds itself.
        """
        stream = _listed(reading.stream)
        if stream is not _TICKETS:
            params = params | _included(stream)
        elif self._config.all_workspaces:
            params = params | {"workspace_id": _ALL_WORKSPACES}
        number, content, fetched_at, live = journalled(
            self._sessions[0],
            reading.journal,
            key,
            path,
            params,
            lambda body: pages.parse_list(body, stream.names),
            lambda body: self._context.without_excluded(stream.entity, body),
            own,
            ("link",),
        )
        linked = links_on(reading.journal.headers(number).get("link", ""))
        return Page(number, content, fetched_at), live, linked

    def _first(self, stream: Stream, path: str) -> Sequence[Any]:
        params = {"page": "1", "per_page": "1"}
        if path == _TICKETS.path:
            # An account may have had no ticket for 30 days.
            params["updated_since"] = written(EPOCH)
        answer = self._sessions[0].get(path, params, lambda body: pages.parse_list(body, stream.names))
        return answer.content.records

    def _several(self, wanted: int) -> list[Session]:
        """As many sessions as may ask at once, and no more than there are questions."""
        most = max(1, min(wanted, self._config.lookups_at_once))
        while len(self._sessions) < most:
            self._sessions.append(self._open())
        return self._sessions[:most]

    def _open(self) -> Session:
        config = self._config
        return Session(self._context, config.base_url, {}, config.allow_private, self._credentials)


def open_client(config: FreshserviceConfig, context: SourceContext) -> FreshserviceClient:
    """A client for one connection; nothing is sent yet.

    Raises:
        AddressRefused: the address is not allowed.
    """
    return FreshserviceClient(config, context)


def _listed(stream: Stream) -> Stream:
    """What the lists of an entity hold: comments are found by their tickets."""
    return _TICKETS if stream.entity.name in (_BY_DETAIL, _BY_TICKET) else stream


def _included(stream: Stream) -> dict[str, str]:
    return {"include": stream.select} if stream.select else {}


def _own_records(reading: Reading, records: Sequence[Any], details: bool) -> int:
    """How many of the listed records are records of the extraction as they stand in the list.

    Of tickets the list is a list of what to ask for: those outside the window are not fetched, and count
    for nothing.
    """
    entity = reading.stream.entity.name
    if entity == _BY_TICKET:
        return 0
    if entity != _BY_DETAIL or not details:
        return len(records)
    return sum(_is_nameless(reading, record) for record in records)


def _within(reading: Reading, record: Any) -> bool:
    """Whether a listed ticket may be one of the window: it does not say clearly that it changed elsewhere."""
    mark = _mark(_TICKETS, record)
    return mark is None or reading.window is None or reading.window.contains(mark)


def _is_nameless(reading: Reading, record: Any) -> bool:
    return _id(_TICKETS, record) is None and _within(reading, record)


def _detail(body: bytes, record_id: str, listed: datetime | None) -> tuple[Any, bytes]:
    """The ticket of an answer, and its exact bytes; `listed` is the change time that the list showed before.

    Raises:
        UnreadableBody: there is none, or it is older than the list showed it, as caches and copies that lag
            behind give it. It is asked for again, as whatever cannot be used.
    """
    record, raw = _TICKETS.single_record(body, record_id)
    mark = _mark(_TICKETS, record)
    if mark and listed and mark < listed:
        raise pages.UnreadableBody(
            f"it is the ticket as of {written(mark)}, and the list has shown it as of {written(listed)}"
        )
    return record, raw


def _shows_the_same(listed: Record, raw: bytes) -> bool:
    """Whether a held ticket is still as the list shows it: the change time, and all else that both have."""
    held = pages.parse_record(raw)
    if not isinstance(held, dict) or "updated_at" not in listed:
        return False
    return all(held.get(key) == value for key, value in listed.items() if key in held or key == "updated_at")


def _readable(record: Any) -> Any:
    """A listed ticket; of one that cannot be accepted, as far as it says which it is and when it changed."""
    if not isinstance(record, pages.Rejected):
        return record
    said = {key: pages.values_under(record.raw, key) for key in ("id", "updated_at", "created_at")}
    return {key: values[0] for key, values in said.items() if len(values) == 1}


def _id(stream: Stream, record: Any) -> str | None:
    """The id that a record can be asked for by."""
    try:
        return str(stream.fields[0].read(record)) if isinstance(record, dict) else None
    except Refused:
        return None


def _mark(stream: Stream, record: Any, column: str = "updated_at") -> datetime | None:
    """A time of a record, where it has one that can be read."""
    read = stream.fields[stream.entity.column_names.index(column)].read
    try:
        found = read(record) if isinstance(record, dict) else None
    except Refused:
        return None
    return None if found is None else from_microseconds(found)


def _key(kind: str, record: Any) -> str:
    """What of a ticket is named in the journal: by its id and version, as it was listed."""
    mark = _mark(_TICKETS, record)
    version = f"{mark:%Y%m%dT%H%M%S%f}" if mark else "undated"
    return f"{kind}-{_id(_TICKETS, record)}-{version}"


def _nth(key: str, reading: int) -> str:
    """What the n-th reading of a ticket's conversations is called in the journal."""
    return key if reading == 1 else f"{key}-r{reading}"


def _absent(record_id: str, error: SourceError) -> str:
    """The id of a listed ticket that is not found: deleted since, and on no list of the next sweep."""
    if error.status not in _GONE:
        raise error
    return record_id


def _more(content: PageContent, seen: int, size: int) -> bool:
    """Whether there is more, though nothing links it: a full page, or a count beyond what was seen."""
    meta = content.envelope.get("meta")
    total = meta.get("count") if isinstance(meta, dict) else None
    return len(content.records) >= size or (type(total) is int and total > seen)


def _refuses_order(error: SourceError) -> bool:
    """Whether the parameters of the order are what the API did not take."""
    return error.status == 400 and "order_" in str(error)
