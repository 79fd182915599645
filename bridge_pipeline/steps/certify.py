"""The certificate: what a source lists, reckoned against tables and quarantine, each id explained.

What is not explained is fetched again once, through the flow that every record takes. What is gone
is marked as deleted, unless it is too much at once. One transaction marks and lists the certificate;
until then nothing has changed but what was loaded.
"""

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from bridge_pipeline import progress
from bridge_pipeline.connector_kit import reckoning
from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.journal import Journal, begin_extraction
from bridge_pipeline.connector_kit.reckoning import NOT_OFFERED, ListsIds, Outcome
from bridge_pipeline.database import certificates, registry
from bridge_pipeline.database.certificates import Certificate, Coverage
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.masking import masked_statement
from bridge_pipeline.model import Window
from bridge_pipeline.steps import certificate as written
from bridge_pipeline.steps import chain
from bridge_pipeline.steps.announce import tell_certificate
from bridge_pipeline.steps.audit import audit_loaded, audit_records, lock_audit
from bridge_pipeline.steps.blocked import blocked_records
from bridge_pipeline.steps.check import check
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.extract import Source, extract_all, extract_ids, open_source
from bridge_pipeline.steps.listed import IdBook, list_source
from bridge_pipeline.steps.load import BatchBlocked, load, refuse_unreadable
from bridge_pipeline.steps.parents import fetch_missing
from bridge_pipeline.steps.reckon import DOUBTED, PENDING, Comparison, record_deletions
from bridge_pipeline.steps.sightings import sightings

log = structlog.get_logger(__name__)
# Ids that are asked for as one batch.
_AT_ONCE = 1_000
# Up to so many records are always asked for one by one; beyond, reading all of them may be cheaper.
_FEW = 100
# Records that the source lists, asked for to see whether its "not found" can be believed.
_CONTROLS = 3
# Deletions of so long count together, or a source that fails bit by bit would empty the tables.
_RECENTLY = timedelta(days=7)
# What lookups say of records that the source has.
_THERE = ("found", "archived", "forbidden")
_DISTRUSTED = "the source also denies, one by one, records that it lists"


class CannotCertify(ValueError):
    """What was asked for cannot be certified."""


@dataclass(frozen=True)
class Acceptance:
    """Who lets a mass disappearance through, and why."""

    by: str
    reason: str


@dataclass
class _Stock:
    """One entity while it is certified: what the source lists and what it said of single records.

    `unlisted_believed` names the findings that the listing alone may decide: rule 19 asks for a
    lookup or a whole listing, and where lookups cannot be had there is the listing. It is `unvouched`
    where it shows nothing that the table holds, so that nothing says that it works.
    """

    stream: Stream
    book: IdBook
    listings: dict[str, int]
    source_count: int | None
    coverage: Coverage | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    requests: int = 0
    unlisted_believed: tuple[str, ...] = ()
    unvouched: bool = False
    batches: list[int] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def entity(self) -> str:
        return self.stream.entity.name


def certify(
    workspace: Workspace,
    name: str,
    scope: Window | None = None,
    entities: tuple[str, ...] | None = None,
    acceptance: Acceptance | None = None,
    run_id: str | None = None,
) -> Certificate:
    """Reckons a connection against its source and writes the certificate.

    Waits until no other process certifies the same connection.

    Args:
        scope: judge only what changed on these days; None for all that the source lists.
        acceptance: mark what is gone as deleted however much it is.

    Raises:
        UnknownConnection: there is no such connection.
        CannotCertify: it has no such entities, or the days are not over.
        SourceError: the source could not be read whole; nothing is marked and no certificate exists.
    """
    record = registry.get(workspace.database.engine, name)
    wanted = _checked(record, entities, scope)
    with exclusively(workspace, f"certify:{name}"):
        return _Certification(workspace, record, wanted, scope, acceptance, run_id).run()


def newest(workspace: Workspace, name: str) -> Certificate | None:
    """The newest certificate of a connection; None if there is none."""
    with workspace.database.engine.connect() as connection:
        return certificates.newest_certificate(connection, name)


def _checked(
    record: ConnectionRecord, entities: tuple[str, ...] | None, scope: Window | None
) -> tuple[str, ...]:
    offered = entities_of(record)
    unknown = [entity for entity in entities or () if entity not in offered]
    if unknown or not offered:
        has = ", ".join(offered) or "nothing"
        raise CannotCertify(f"{record.name} has no {', '.join(unknown) or 'entities'}; it has: {has}")
    if scope is not None and scope.end > datetime.now(UTC):
        raise CannotCertify(f"{scope} is not over yet (days are UTC); ask for days before today")
    return tuple(entity for entity in offered if not entities or entity in entities)


class _Certification:
    """One certificate in the making, under its connection's lock."""

    def __init__(
        self,
        workspace: Workspace,
        record: ConnectionRecord,
        entities: tuple[str, ...],
        scope: Window | None,
        acceptance: Acceptance | None,
        run_id: str | None,
    ) -> None:
        self._workspace = workspace
        self._record = record
        self._entities = entities
        self._scope = scope
        self._acceptance = acceptance
        self._run_id = run_id
        # One folder per connection: the lock is ours, so what lies there is a killed one's.
        self._work = workspace.home.work / f"certify-{record.name}"

    def run(self) -> Certificate:
        started_at = datetime.now(UTC)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        try:
            with ExitStack() as books:
                stocks = [self._take_stock(entity, books) for entity in self._entities]
                return self._conclude(stocks, started_at)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _take_stock(self, entity: str, books: ExitStack) -> _Stock:
        """Lists the source's ids, and asks once for those that are not explained."""
        with open_source(self._workspace, self._record.name) as source:
            stream = source.connector.stream(entity)
            before = reckoning.count(source.client, stream)
            book, listings = self._list(source, stream)
            books.callback(book.close)
            after = reckoning.count(source.client, stream) if before is not None else None
        stock = _Stock(
            stream,
            book,
            listings,
            # Records come and go while the source is read.
            None if before is None or after is None else min(before, after),
            self._coverage(entity),
            requests=book.requests,
        )
        reach("certify.listed")
        self._ask(stock)
        reach("certify.asked")
        return stock

    def _list(self, source: Source, stream: Stream) -> tuple[IdBook, dict[str, int]]:
        """The narrow listing if the client has one and it says enough, else the whole one."""
        if isinstance(source.client, ListsIds):
            number, journal = self._journal(source, stream, "ids")
            book = list_source(source.client, stream, self._work, journal, narrow=True)
            if book.usable:
                return book, {f"{stream.entity.name}/ids": number}
            book.close()
        number, journal = self._journal(source, stream, "whole")
        book = list_source(source.client, stream, self._work, journal, narrow=False)
        return book, {f"{stream.entity.name}/whole": number}

    def _journal(self, source: Source, stream: Stream, kind: str) -> tuple[int, Journal]:
        record, entity = self._record, stream.entity.name
        with self._workspace.database.engine.connect() as connection:
            last = certificates.last_listing(connection, record.name, f"{entity}/{kind}")
        # Never resumed: what an interrupted listing has seen may be gone by now.
        return begin_extraction(
            self._workspace.home.journal_of(record.tenant, record.name, entity, f"certificate--{kind}"),
            last,
            hashlib.sha256(
                repr((source.config, stream.path, stream.select, kind, record.exclude)).encode()
            ).hexdigest(),
        )

    def _coverage(self, entity: str) -> Coverage | None:
        lag = self._workspace.settings.settle_lag
        with self._workspace.database.engine.connect() as connection:
            return certificates.coverage(connection, self._record.name, entity, lag)

    # --- Asking again ---------------------------------------------------------------------------

    def _ask(self, stock: _Stock) -> None:
        """Asks for what the listing lacks, and fetches again what the table lacks: once."""
        most = self._workspace.settings.certify_lookups
        with self._workspace.database.engine.connect() as connection:
            comparison = self._compare(connection, stock)
            counts = comparison.counts()
            missing = comparison.ids(DOUBTED, most)
            # What was refused before will mostly be so again, and makes no whole reading worth its cost.
            waiting = comparison.count(PENDING, refused=False)
            pending = comparison.ids(PENDING, most, refused=False)
            pending += comparison.ids(PENDING, most - len(pending), refused=True)
            controls = comparison.ids(["current"], _CONTROLS) if missing or pending else []
            lost = comparison.nameless()[1]
        first = controls if missing else []
        self._look_up(stock, first + missing)
        told = self._weigh(stock, first, missing, sum(counts.get(finding, 0) for finding in DOUBTED))
        blocked = counts.get("blocked", 0)
        dear = waiting > max(_FEW, stock.book.requests) or waiting > most
        if told and (blocked or not dear):
            self._look_up(stock, pending)
            self._doubt_denials(stock, pending, controls)
        asked = [stock.outcomes[each] for each in pending if each in stock.outcomes]
        refused = (pending and not told) or any(outcome.state == "failed" for outcome in asked)
        if blocked:
            # Reading all would bring them past the check that holds them back (rule 15).
            stock.remarks.append(
                f"{blocked:,} are held back by blocked batches, and not asked for: look at the report, then "
                'extract these days again or run: bridge accept BATCH --by NAME --reason "…"'
            )
        elif dear or refused or lost:
            self._fetch_all(stock)

    def _look_up(self, stock: _Stock, ids: list[str]) -> None:
        """Asks for records one by one; those that come take the way of every batch."""
        for start in range(0, len(ids), _AT_ONCE):
            chunk, outcomes = ids[start : start + _AT_ONCE], dict[str, Outcome]()
            batch = extract_ids(
                self._workspace,
                self._record.name,
                stock.entity,
                chunk,
                self._home_window(stock),
                self._run_id,
                outcomes,
                stock.book.marks(chunk),
            )
            stock.outcomes |= outcomes
            stock.requests += len(outcomes)
            if batch is not None:
                self._let_through(stock, batch)
            if len(outcomes) < len(chunk):
                return

    def _weigh(self, stock: _Stock, controls: list[str], missing: list[str], all_missing: int) -> bool:
        """Decides whether the lookups can be believed, and whether the listing may speak for the rest.

        Returns:
            Whether lookups tell anything.
        """
        asked = {key: stock.outcomes[key] for key in missing if key in stock.outcomes}
        denied = [key for key in controls if key in stock.outcomes and _denied(stock.outcomes[key])]
        all_denied = len(denied) == len([key for key in controls if key in stock.outcomes])
        # Where the source lists none of what the table holds, there is nobody else to ask for.
        refused = [stock.outcomes[key] for key in denied] if controls else list(asked.values())
        if all_denied and refused and all(outcome.status in NOT_OFFERED for outcome in refused):
            stock.unlisted_believed = (*DOUBTED, "silent")
            stock.unvouched = not controls
            stock.remarks.append("The source gives no single records; its whole listing decides alone.")
            return False
        if controls and all_denied:
            self._distrust(stock, asked)
            stock.remarks.append(f"No deletion is believed: {_DISTRUSTED}.")
            return False
        if len(missing) < all_missing and all(outcome.state == "deleted" for outcome in asked.values()):
            stock.unlisted_believed = DOUBTED
            stock.remarks.append(
                f"{len(asked):,} of {all_missing:,} records that seem to be gone were asked for by id, "
                "and all are gone; the whole listing decides about the others."
            )
        return True

    def _doubt_denials(self, stock: _Stock, listed: list[str], controls: list[str]) -> None:
        """Believes that listed records are gone only if others that are listed are found."""
        gone = [each for each in listed if each in stock.outcomes and stock.outcomes[each].state == "deleted"]
        if not gone:
            return
        self._look_up(stock, [each for each in controls if each not in stock.outcomes])
        if all(_denied(stock.outcomes[each]) for each in controls if each in stock.outcomes):
            self._distrust(stock, gone)

    def _distrust(self, stock: _Stock, ids: Iterable[str]) -> None:
        for each in ids:
            stock.outcomes[each] = replace(stock.outcomes[each], state="failed", evidence=_DISTRUSTED)

    def _fetch_all(self, stock: _Stock) -> None:
        """Reads the entity whole: cheaper than many lookups, and the only way to records without an id."""
        window = self._home_window(stock)
        batch = extract_all(self._workspace, self._record.name, stock.entity, window, self._run_id)
        stock.requests += batch.requests
        self._let_through(stock, batch)

    def _let_through(self, stock: _Stock, batch: Batch) -> None:
        """Checks and loads a batch; one that is blocked stays outside, and is told of."""
        checked = check(self._workspace, batch.id).batch
        stock.batches.append(checked.id)
        reach("certify.fetched")
        try:
            refuse_unreadable(checked)
            load(self._workspace, checked, self._run_id)
            window = self._home_window(stock)
            fetch_missing(self._workspace, self._record.name, stock.entity, window, self._run_id)
        except BatchBlocked as error:
            stock.remarks.append(str(error))

    def _home_window(self, stock: _Stock) -> Window:
        """The day that batches fetched for a certificate are listed under: the last that was extracted."""
        if self._scope is not None:
            last = self._scope.last_day
        else:
            last = stock.coverage.last_day if stock.coverage else datetime.now(UTC).date() - timedelta(days=1)
        return Window.of_days(last, last)

    def _compare(self, connection: sa.Connection, stock: _Stock) -> Comparison:
        place = (self._workspace, connection, self._record.name, stock.entity)
        return Comparison(
            connection,
            self._record.name,
            stock.entity,
            stock.book,
            self._scope,
            stock.coverage,
            stock.outcomes,
            blocked_records(*place, stock.batches),
            sightings(*place, stock.book.began) if stock.book.began else (),
            marked=stock.stream.listed_mark is None,
        )

    # --- Concluding -----------------------------------------------------------------------------

    def _conclude(self, stocks: list[_Stock], started_at: datetime) -> Certificate:
        """Compares once more, marks what is gone, and lists the certificate: in one transaction."""
        record = self._record
        with transaction(self._workspace.database.engine, "certify") as connection:
            advisory_lock(connection, f"load:{record.name}", long=True)
            lock_audit(connection, record.name, (stock.entity for stock in stocks))
            previous = certificates.newest_certificate(connection, record.name)
            number = previous.number + 1 if previous else 1
            sections = [self._section(connection, stock) for stock in stocks]
            reach("certify.judged")
            document = written.document(connection, record, self._scope, sections, previous, number)
            document |= self._run_facts(stocks, sections, started_at)
            listings = {key: listing for stock in stocks for key, listing in stock.listings.items()}
            accepted = vars(self._acceptance) if "accepted" in document and self._acceptance else {}
            certificate = replace(
                written.write(self._workspace, document, listings, self._scope),
                accepted_by=accepted.get("by"),
                accept_reason=accepted.get("reason"),
                run_id=self._run_id,
            )
            reach("certify.written")
            certificates.add_certificate(connection, certificate)
            record_deletions(connection, record.tenant, record.name, number, accepted.get("by"))
            reach("certify.marked")
            chain.append(self._workspace, connection, record.tenant, [written.chain_entry(certificate)])
            tell_certificate(connection, certificate)
        chain.export_chain(self._workspace, record.tenant)
        progress.report("certify", record.name, certificate.number, "certificates", finished=True)
        log.info("certificate written", number=certificate.number, verdict=certificate.verdict)
        return certificate

    def _run_facts(
        self, stocks: list[_Stock], sections: list[dict[str, Any]], started_at: datetime
    ) -> dict[str, Any]:
        """Who accepted what, and what differs between two runs over the same data."""
        run = {
            "run_id": self._run_id,
            "started_at": started_at,
            "ended_at": datetime.now(UTC),
            "source_requests": sum(stock.requests for stock in stocks),
        }
        if self._acceptance and any(section["disappeared"]["accepted"] for section in sections):
            said = {key: masked_statement(value) for key, value in vars(self._acceptance).items()}
            return {"run": run, "accepted": said}
        return {"run": run}

    def _audit(self, connection: sa.Connection, stock: _Stock, gone: list[str]) -> None:
        """Writes tombstones of what is gone, and rows of what was fetched or restored."""
        place = (self._workspace, connection, self._record.name, stock.entity)
        if gone:
            audit_records(*place, gone)
        fetched = certificates.fetched_since(connection, self._record.name, stock.entity)
        audit_loaded(*place, fetched)

    def _section(self, connection: sa.Connection, stock: _Stock) -> dict[str, Any]:
        comparison = self._compare(connection, stock)
        if stock.unlisted_believed and stock.book.began:
            comparison.believe_the_listing(stock.unlisted_believed, stock.book.began)
        live, gone = comparison.live, comparison.counts().get("gone", 0)
        recently = comparison.deleted_since(datetime.now(UTC) - _RECENTLY)
        mass = self._is_mass(live, gone, recently) or (stock.unvouched and gone > 0)
        if mass and not self._acceptance:
            comparison.hold()
        counts = comparison.counts()
        kept, lost = comparison.nameless()
        section = written.section(stock.entity, counts, comparison.named(), live, kept)
        section |= {
            "without_id": {"in_quarantine": kept, "lost": [_place(entry) for entry in lost]},
            "source": self._source_facts(stock, kept + len(lost)),
            "disappeared": {
                "rows": gone,
                "of": live,
                "recently": recently,
                "blocked": mass and not self._acceptance,
                "accepted": mass and self._acceptance is not None,
            },
            "remarks": stock.remarks,
        }
        self._audit(connection, stock, comparison.mark())
        section["table"] = written.table_digest(connection, self._record.name, stock.entity)
        return section

    def _is_mass(self, live: int, gone: int, recently: int) -> bool:
        """Whether so much is gone at once that a fault of the source is likelier than deletions.

        What was deleted `recently` without anybody's word counts as gone at once.
        """
        settings = self._workspace.settings
        nothing_left = self._scope is None and gone == live and live > 1
        together = gone + recently
        many = together > settings.max_disappeared_share * (live + recently)
        return gone > 0 and (nothing_left or (many and together >= settings.disappeared_minimum))

    def _given(self, stock: _Stock) -> int:
        """Records that the listing lacks, and of which lookups say that the source has them."""
        there = [key for key, outcome in stock.outcomes.items() if outcome.state in _THERE]
        return sum(not stock.book.lists(key) for key in there)

    def _hidden(self, stock: _Stock) -> int:
        """Records that nobody can name, because the source counts them and hides them from the credential."""
        return max(0, stock.book.proof.get("hidden_by_access_rules", 0) - self._given(stock))

    def _source_facts(self, stock: _Stock, nameless: int) -> dict[str, Any]:
        book, coverage = stock.book, stock.coverage
        facts: dict[str, Any] = {
            "listed": book.ids,
            "listed_without_id": nameless,
            "own_count": stock.source_count,
            "hidden": self._hidden(stock),
            "uncounted": 0,
            "proof": book.proof,
            "requests": stock.requests,
            "from": book.began,
            "to": book.ended,
            "extracted_from": coverage and coverage.start,
            "extracted_to": coverage and coverage.end,
        }
        if stock.source_count is not None and self._scope is None:
            known = book.ids + nameless + self._given(stock) + facts["hidden"]
            facts["uncounted"] = max(0, stock.source_count - known)
        return facts


def _denied(outcome: Outcome) -> bool:
    return outcome.state in ("deleted", "forbidden", "failed")


def _place(entry: tuple[str, int, int]) -> dict[str, Any]:
    return dict(zip(("sha256", "page", "position"), entry, strict=True))
