"""Reading a table by keys until it is provably whole (vendor-apis D.2, D.4).

Offsets over rows that change lose some, so pages follow each other by `(changed, sys_id)`: a row
that changes while it is read moves to the end and is met again. The limit of a page counts before
access rules do, so a short or empty page says nothing; `X-Total-Count`, which counts before them
too, says whether the server has looked at the last row.

Then the keys alone are listed by `sys_id`, an order in which nothing moves, and what was not seen,
or not in this version, is fetched by its key. Terms of a query that the server does not understand
are dropped without a word, so every answer is compared with what was asked. Nor need it give as many
rows as it was asked for: how far the keys were listed, only rows and counts say.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import structlog

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.pages import Rejected

log = structlog.get_logger("bridge.source")
ID = "sys_id"
# A URL holds about 10,000 characters (D.2).
_IDS_AT_ONCE = 100
# Whatever a gateway allows, it is not less than this.
FEWEST_LOOKED_AT = 10
_ANY_ID = "0" * 32
# Before any row.
_EPOCH = "1970-01-01 00:00:00"
_ORDERED = re.compile(r"[0-9a-f]{32}")
Key = tuple[str, str]


class NotObeyed(RuntimeError):
    """The server answered something else than what was asked."""


class NeverWhole(RuntimeError):
    """Listings of the keys kept bringing rows that were not read as they are."""


@dataclass(frozen=True)
class Ask:
    """One request for rows; `key` is its name in the journal. `counting` wants no rows but their number."""

    key: str
    query: str
    offset: int = 0
    only_keys: bool = False
    counting: bool = False


@dataclass(frozen=True)
class Part:
    """Its answer: `size` rows were asked for, of `total` that match before access rules."""

    page: Page
    total: int
    size: int
    live: bool

    @property
    def shown(self) -> int:
        """How many rows it holds."""
        return len(self.page.content.records)

    def ends(self, offset: int) -> bool:
        """Whether it holds all rows from `offset` on, and could have held more."""
        return offset + self.shown == self.total and self.shown < self.size


@dataclass(frozen=True)
class Span:
    """Which rows are read: those with the terms `only` that changed in `[start, end)`, as texts.

    `changed` is the column with the time of the change. Without `start` and `end` all rows.
    """

    only: str
    changed: str
    start: str = ""
    end: str = ""

    @property
    def bounded(self) -> bool:
        """Whether not all rows are asked for."""
        return bool(self.start)

    def query(self, *terms: str, order: Iterable[str] = ()) -> str:
        """An encoded query; a server that does not order gives rows twice or not at all."""
        until = f"{self.changed}<{self.end}" if self.end else ""
        ordered = [f"ORDERBY{column}" for column in order]
        return "^".join(filter(None, (self.only, *terms, until, *ordered)))

    def first(self) -> str:
        """All of its rows, by change."""
        since = f"{self.changed}>={self.start}" if self.start else ""
        return self.query(since, order=(self.changed, ID))

    def after(self, key: Key) -> str:
        """Those behind a row: changed later, or in the same second with a larger id."""
        moment, record_id = key
        later = self.query(f"{self.changed}>{moment}")
        # `^NQ` begins an alternative; `^OR` would bind only to the term before it (D.4).
        same = self.query(f"{self.changed}={moment}", f"{ID}>{record_id}", order=(self.changed, ID))
        return f"{later}^NQ{same}"

    def keys(self, after: str) -> str:
        """Its rows by id, behind one of them."""
        since = f"{self.changed}>={self.start}" if self.start else ""
        return self.query(since, f"{ID}>{after}" if after else "", order=(ID,))

    def chosen(self, ids: list[str]) -> str:
        """Rows by their ids, whenever they changed."""
        return "^".join(filter(None, (self.only, f"{ID}IN{','.join(ids)}", f"ORDERBY{ID}")))


class _Seen:
    """The newest change of each row that was read; on disk once it is large, and gone with the process."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("create table seen (id text primary key, changed text) without rowid")

    def add(self, keys: Iterable[Key]) -> None:
        statement = """insert into seen values (?, ?)
            on conflict (id) do update set changed = max(changed, excluded.changed)"""
        self._db.execute("begin")
        self._db.executemany(statement, [(record_id, changed) for changed, record_id in keys])
        self._db.execute("commit")

    def state(self, key: Key) -> str | None:
        """`unseen`, `older` or None for a row that was read as it is."""
        found = self._db.execute("select changed from seen where id = ?", (key[1],)).fetchone()
        return "unseen" if found is None else "older" if found[0] < key[0] else None

    def close(self) -> None:
        self._db.close()


@dataclass
class _Reach:
    """How many rows one answer was seen to cover, shown or hidden.

    A gateway may allow fewer than were asked for: no more than these are passed over where none shows.
    """

    rows: int = 0
    # Of the answer behind whose last row the next one was asked for: its count, offset and size.
    _turned: tuple[int, int, int] | None = None

    def turn(self, part: Part, offset: int) -> None:
        """Keeps an answer with rows, until the next one tells how many are left."""
        self.rows = max(self.rows, part.shown)
        self._turned = part.total, offset, part.size

    def learn(self, part: Part) -> None:
        """Takes the count of the next answer."""
        if self._turned:
            total, offset, size = self._turned
            self.rows = max(self.rows, min(size, total - part.total - offset))
            self._turned = None

    def step(self, size: int) -> int:
        """How many rows an answer without any has covered."""
        return min(size, max(self.rows, FEWEST_LOOKED_AT)) if self.rows else size


@dataclass
class _Walk:
    """How far a listing of keys has come: behind the key `after`, past `offset` rows that do not show.

    `leapt` is set where these were passed over before any answer showed a row.
    """

    reach: _Reach
    after: str = ""
    offset: int = 0
    leapt: bool = False
    _miscounted: int = 0

    def go_on(self, part: Part, ids: list[str]) -> bool:
        """Moves behind an answer; False where nothing can follow (D.4, 2).

        Raises:
            NotObeyed: that cannot be known, because its counts are too low.
        """
        self.reach.learn(part)
        if part.ends(self.offset):
            return False
        if ids:
            # One more than was counted may have been written after the count.
            self._miscounted = max(self._miscounted, self.offset + part.shown - part.total)
            self.reach.turn(part, self.offset)
            self.after, self.offset = ids[-1], 0
            return True
        if self._miscounted and part.total > self.offset:
            raise NotObeyed(
                f"an answer held {self._miscounted} rows more than its X-Total-Count says, and answer "
                f"{part.page.number} none of {part.total} counted rows: whether rows follow cannot be known"
            )
        self.leapt |= not self.reach.rows
        self.offset += self.reach.step(part.size)
        return self.offset < part.total


@dataclass
class Keyset:
    """One reading of a table; `proof` says afterwards how it was found whole.

    Args:
        fetch: gets one answer.
        rounds: listings of the keys at most.
    """

    fetch: Callable[[Ask], Part]
    span: Span
    rounds: int
    proof: dict[str, Any] = field(default_factory=dict)
    _reach: _Reach = field(default_factory=_Reach)
    _empty: bool = False
    _unseen: int = 0
    _stale: int = 0
    _live: bool = True

    def pages(self) -> Iterator[Page]:
        """Yields pages of rows until a listing of the keys brings none that was not read as it is.

        Raises:
            NotObeyed: the server does not even list keys as it was asked, or counts what is not there.
            NeverWhole: still such rows after the last listing.
        """
        seen = _Seen()
        try:
            yield from self._rows_or_none("s1", seen)
            if self._empty and self.span.bounded and self._hides_by_time():
                log.warning("the source finds no row by its change; reading all of the table")
                self.proof["filter_refused"] = True
                self.span = Span(self.span.only, self.span.changed)
                yield from self._rows_or_none("s2", seen)
            round_ = live = 0
            while live < self.rounds:
                round_ += 1
                yield from self._confirm(f"k{round_}", seen)
                live += self._live
                if self._live and not self._unseen and not self._stale:
                    self.proof |= {"method": "keyset, confirmed by keys", "sweeps": 1 + round_}
                    return
        finally:
            seen.close()
        raise NeverWhole(
            f"its keys were listed {round_} times, and the last listing still brought {self._unseen} unseen "
            f"rows, and {self._stale} newer than the source gives them by their ids; it changes faster than "
            "it can be read, or answers from copies that are not up to date"
        )

    def listed(self, name: str = "k1") -> Iterator[Part]:
        """Answers that together hold the keys of all rows, in an order in which nothing moves.

        Raises:
            NotObeyed: they cannot be what was asked for, or the counts are not true.
        """
        walk = _Walk(self._reach)
        for number in count(1):
            part = self.fetch(
                Ask(f"{name}-p{number}", self.span.keys(walk.after), walk.offset, only_keys=True)
            )
            ids = self._keys_asked_for(part, walk.after)
            if walk.leapt and ids:
                # More may have been passed over than the answers covered; nothing was shown so far.
                self._reach.turn(part, walk.offset)
                self._reach.learn(self.fetch(Ask(f"{name}-b", self.span.keys(ids[-1]), counting=True)))
                walk = _Walk(self._reach)
                continue
            yield part
            if not walk.go_on(part, ids):
                return
            self._doubt_counts(part, walk.offset)

    def _keys_asked_for(self, part: Part, after: str) -> list[str]:
        """The ids of an answer."""
        # Rows beyond those of an answer to another question would pass for hidden by access rules.
        self._demand(all(_only(row, {ID, self.span.changed}) for row in part.page.content.records), part)
        ids = [record_id for _, record_id in self._keys(part.page)]
        self._demand(all(record_id > after for record_id in ids if _plain(record_id, after)), part)
        self._demand(after not in ids, part)
        return ids

    def _doubt_counts(self, part: Part, offset: int) -> None:
        """Before many requests are spent on rows that only the count knows of: does it follow the query?

        Raises:
            NotObeyed: it does not.
        """
        if not 0 < offset < part.total - part.size:
            return
        counted = self.fetch(Ask("c1", self.span.chosen([_ANY_ID]), counting=True)).total
        if counted > 1:
            raise NotObeyed(
                f"X-Total-Count says {part.total} in answer {part.page.number}, which holds no row, and "
                f"{counted} where one id is asked for, which at most one row has: it does not count what is "
                "asked for; does a proxy change headers?"
            )

    def _rows_or_none(self, name: str, seen: _Seen) -> Iterator[Page]:
        """As far as pages by change come; the listing of keys brings the rest, slowly."""
        try:
            yield from self._rows(name, seen)
        except NotObeyed as error:
            log.warning("the source does not page by change; reading row by row", reason=str(error))
            self.proof["cursor_refused"] = True

    def _rows(self, name: str, seen: _Seen) -> Iterator[Page]:
        """Pages of all rows by `(changed, sys_id)`."""
        query, offset, number = self.span.first(), 0, 0
        last: Key | None = None
        while True:
            number += 1
            part = self.fetch(Ask(f"{name}-p{number}", query, offset))
            keys = [key for key in self._keys(part.page) if key[0]]
            self._count_outside(keys)
            seen.add(keys)
            # Refused or not, it was read, and is counted.
            yield part.page
            self._demand(last is None or all(key != last and _behind(key, last) for key in keys), part)
            self._empty = number == 1 and not part.total
            self._reach.learn(part)
            if offset + part.size >= part.total:
                return
            if keys:
                self._reach.turn(part, offset)
                last, offset = keys[-1], 0
                query = self.span.after(last)
            else:
                # All of these are hidden by access rules, or without a time.
                offset += part.size
                self._doubt_counts(part, offset)

    def _confirm(self, name: str, seen: _Seen) -> Iterator[Page]:
        """Lists the keys and fetches what was not seen, or not in this version."""
        self._unseen, self._stale, self._live = 0, 0, True
        visible, total, numbers = 0, None, count(1)
        for part in self.listed(name):
            self._live &= part.live
            total = part.total if total is None else total
            keys = self._keys(part.page)
            visible += len(keys)
            wanted = {key: state for key in keys if (state := seen.state(key))}
            self._unseen += sum(state == "unseen" for state in wanted.values())
            yield from self._chosen((f"{name}-f{n}" for n in numbers), [key[1] for key in wanted], seen)
            # Newer ones that came are read; busy rows must not keep a reading from its end.
            self._stale += sum(seen.state(key) == "older" for key in wanted)
        self.proof |= {"listed": visible, "hidden_by_access_rules": max(0, (total or 0) - visible)}

    def _chosen(self, names: Iterator[str], ids: list[str], seen: _Seen) -> Iterator[Page]:
        """Rows by their ids, however few of them the instance gives at a time."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            missing = ids[start : start + _IDS_AT_ONCE]
            while missing:
                part = self.fetch(Ask(next(names), self.span.chosen(missing)))
                keys = self._keys(part.page)
                came = {record_id for _, record_id in keys}
                self._demand(came <= set(missing), part)
                seen.add(keys)
                yield part.page
                # Those that nothing brings are deleted or hidden by now.
                ended = not came or part.ends(0)
                missing = [] if ended else [record_id for record_id in missing if record_id not in came]

    def _hides_by_time(self) -> bool:
        """Whether rows are found without the window and none by any time at all.

        An instance may answer a query that it does not understand with no rows (D.2,
        `glide.invalid_query.returns_no_rows`), which looks like an empty window.
        """
        always = Span(self.span.only, self.span.changed, _EPOCH)
        if self.fetch(Ask("e1", always.first(), counting=True)).total:
            return False
        unbounded = Span(self.span.only, self.span.changed).keys("")
        return self.fetch(Ask("e2", unbounded, counting=True)).total > 0

    def _count_outside(self, keys: list[Key]) -> None:
        """A window that the server ignores costs time and nothing else; it is said in the proof."""
        span = self.span
        if span.bounded and (wide := sum(not span.start <= moment < span.end for moment, _ in keys)):
            self.proof["beyond_the_filter"] = self.proof.get("beyond_the_filter", 0) + wide

    def _keys(self, page: Page) -> list[Key]:
        """`(changed, sys_id)` of a page's rows, as far as they have an id."""
        return [key for record in page.content.records if (key := self._key(record))[1]]

    def _key(self, record: Any) -> Key:
        if isinstance(record, Rejected):
            # It is for quarantine; without its key it would be missed in every listing.
            return _member(record.raw, self.span.changed), _member(record.raw, ID)
        found = record if isinstance(record, dict) else {}
        moment, record_id = found.get(self.span.changed), found.get(ID)
        return moment if isinstance(moment, str) else "", record_id if isinstance(record_id, str) else ""

    def _demand(self, obeyed: bool, part: Part) -> None:
        if not obeyed:
            raise NotObeyed(
                f"answer {part.page.number} holds rows that the query excludes: the instance drops terms "
                "that it does not understand, or the user may not query by sys_updated_on or sys_id"
            )


def _member(raw: bytes, name: str) -> str:
    """A plain text among the members of a row that cannot be parsed; empty where there is none."""
    found = re.search(rb'"%b"\s*:\s*"([ -!#-[\]-~]*)"' % name.encode(), raw)
    return found[1].decode() if found else ""


def _only(row: Any, columns: set[str]) -> bool:
    return not isinstance(row, dict) or columns.issuperset(row)


def _behind(key: Key, last: Key) -> bool:
    """Whether a row comes after another; a change while it is read only moves it further."""
    if key[0] != last[0]:
        return key[0] > last[0]
    return not _plain(key[1], last[1]) or key[1] > last[1]


def _plain(record_id: str, other: str) -> bool:
    """Whether both are ordinary ids: how the database orders others is its own affair."""
    return bool(_ORDERED.fullmatch(record_id) and (not other or _ORDERED.fullmatch(other)))
