"""The comparison behind a certificate: what the source lists, with tables and quarantine, set by set.

Every id of either side gets exactly one finding. Nothing is fetched or changed here but scratch
tables, which live as long as the caller's transaction.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pyarrow as pa
import sqlalchemy as sa

from bridge_pipeline.connector_kit.fields import from_microseconds
from bridge_pipeline.connector_kit.reckoning import Outcome
from bridge_pipeline.database.certificates import Coverage
from bridge_pipeline.database.copying import stage
from bridge_pipeline.database.ledger import READABLE, SINGLE
from bridge_pipeline.model import Window
from bridge_pipeline.steps.blocked import Blocked
from bridge_pipeline.steps.listed import IdBook
from bridge_pipeline.steps.sightings import SIGHTED

UNEXPLAINED = "unexplained"
EXPLANATIONS = ("loaded", "deleted", "archived", "forbidden", "quarantined", "awaited", UNEXPLAINED)


@dataclass(frozen=True)
class Finding:
    """What a certificate says of an id: the explanation it counts as, and the sentence for it."""

    explanation: str
    words: str


FINDINGS = {
    "current": Finding("loaded", "in the table, in the version the source has"),
    "fresh": Finding("loaded", "loaded while the source was read"),
    "hidden": Finding("loaded", "the source's listing hides it; asked for by its id, the source gives it"),
    "kept": Finding("loaded", "the source lists it as deleted; asked for by its id, the source gives it"),
    "archived": Finding("archived", "archived by the source"),
    "deleted": Finding("deleted", "gone from the source, found before"),
    "gone": Finding("deleted", "gone from the source, found now"),
    "vanished": Finding("deleted", "listed, and gone before it could be fetched"),
    "forbidden": Finding("forbidden", "the source does not let this credential read it"),
    "quarantined": Finding("quarantined", "in quarantine, with its exact bytes"),
    "awaited": Finding("awaited", "changed on days that have not been extracted and settled"),
    "not_loaded": Finding(UNEXPLAINED, "the source has it, the table does not"),
    "outdated": Finding(UNEXPLAINED, "the source has a newer version than the table"),
    "ahead": Finding(UNEXPLAINED, "the source shows an older version than the one in the table"),
    "relisted": Finding(UNEXPLAINED, "marked as deleted, and the source lists it again"),
    "blocked": Finding(UNEXPLAINED, "held back by a blocked batch that nobody has accepted"),
    "undated": Finding(
        UNEXPLAINED, "without a usable change time, and neither loaded nor in quarantine as it is now"
    ),
    "missing": Finding(UNEXPLAINED, "no longer listed, and not asked for by its id"),
    "silent": Finding(UNEXPLAINED, "no longer listed, and the lookup by its id failed"),
    "reported": Finding(
        UNEXPLAINED, "the source lists it as deleted, and no lookup by its id has confirmed it"
    ),
    "held": Finding(UNEXPLAINED, "gone from the source, but too many at once to be believed"),
}
# What seems to be gone: a lookup by id decides.
DOUBTED = ("missing", "reported")
# What is asked for by id once, before a certificate says so.
PENDING = ("not_loaded", "outdated", "ahead", "relisted", "undated")
# What everybody expects is counted and not named.
NAMED = tuple(each for each in FINDINGS if each not in ("current", "fresh", "awaited", "deleted"))
_LOST = tuple(each for each in NAMED if FINDINGS[each].explanation == UNEXPLAINED)
_EXPLAINED = tuple(each for each in NAMED if each not in _LOST)
_NAMED_AT_MOST = 10_000

# An old entry of quarantine says nothing of what the source has now: what it was asked for does. A row that
# was found unchanged keeps the time of its first page; `sighted` has those of the others. Where another
# version was seen later than the table's own, it was an older one.
_FINDING = """
case
when l.id is not null then case
    when l.state = 'deleted' and h.live then case
        when o.state = 'deleted' and h.seen <= o.asked_at then 'gone'
        when o.state in ('found', 'archived') and b.id is not null then 'blocked'
        when o.state in ('found', 'archived') and q.fetched >= o.asked_at then 'quarantined'
        when o.state in ('found', 'archived') and h.seen > h.shown then 'ahead'
        when o.state in ('found', 'archived') then 'kept'
        when o.state = 'forbidden' then 'forbidden'
        when h.seen > l.seen then 'fresh'
        else 'reported' end
    when l.state = 'deleted' then 'deleted'
    when h.live and l.state = 'archived' and h.updated_at >= l.changed then 'archived'
    when h.live and h.updated_at is not distinct from l.changed then
        case when l.state = 'archived' then 'archived' else 'current' end
    when h.live and (h.updated_at > l.changed or l.changed is null) and h.shown > l.seen then 'fresh'
    when o.state = 'forbidden' then 'forbidden'
    when o.state = 'deleted' and h.live and h.seen <= o.asked_at then 'gone'
    when o.state = 'deleted' and not coalesce(h.live, false) then 'vanished'
    when q.fetched >= l.seen then 'quarantined'
    when h.deleted_at is not null and l.seen <= h.deleted_at then 'deleted'
    when b.id is not null then 'blocked'
    when h.deleted_at is not null then 'relisted'
    when h.live and h.updated_at > l.changed then 'ahead'
    when l.changed is null then 'undated'
    when not :explicit and (l.changed < cast(:covered_from as timestamptz)
        or l.changed >= cast(:covered_to as timestamptz)) then 'awaited'
    when h.live then 'outdated'
    else 'not_loaded' end
when h.deleted_at is not null then 'deleted'
when b.id is not null then 'blocked'
when o.state = 'found' and q.fetched >= o.asked_at then 'quarantined'
when o.state = 'found' and h.seen > h.shown and :marked then 'ahead'
when o.state = 'found' then 'hidden'
when o.state in ('archived', 'forbidden') then o.state
when o.state = 'deleted' and h.seen <= o.asked_at then 'gone'
when o.state = 'failed' then 'silent'
when h.seen >= :began or h.loaded_at >= :began then 'fresh'
else 'missing'
end
"""

_SCOPE = """
where case when l.id is null then h.updated_at is null or h.updated_at >= :first and h.updated_at < :end
    else l.changed is null or l.changed >= :first and l.changed < :end end
"""


def _judge(entity: str, scope: str) -> str:
    return f"""
    create temporary table judged on commit drop as
    select coalesce(l.id, h.id) as id, coalesce(h.live, false) as live, l.changed, h.updated_at,
        {_FINDING} as finding,
        case when l.state = 'deleted' then concat_ws('; ', 'the source lists it as deleted', o.evidence)
            else coalesce(o.evidence, 'batch ' || b.batch) end as evidence,
        case when l.state = 'deleted' and o.state is distinct from 'deleted' then 'marked' else 'lookup' end
            as reason,
        coalesce(o.asked_at, l.seen) as observed_at, q.id is not null as refused
    from listed_ids l
    full join (
        select d.id, updated_at, loaded_at, deleted_at, deleted_at is null as live,
            greatest(fetched_at, s.seen) as seen, greatest(fetched_at, s.shown) as shown
        from desk.{entity} d left join seen_since s on s.id = d.id
        where connection = :connection and not placeholder
    ) h on h.id = l.id
    left join (
        select record_id as id, max(fetched_at) as fetched from bridge.quarantine
        where connection = :connection and entity = :entity group by record_id
    ) q on q.id = coalesce(l.id, h.id)
    left join (
        select b.id, max(b.batch) as batch from blocked_ids b left join desk.{entity} h
            on h.connection = :connection and h.id = b.id and not h.placeholder
        where h.updated_at >= b.changed is not true group by b.id
    ) b on b.id = coalesce(l.id, h.id)
    left join outcomes o on o.id = coalesce(l.id, h.id)
    {scope}
    """


# When the records of `sighted` were seen last: in any version, and in the one that the table holds.
_SEEN_SINCE = """
create temporary table seen_since on commit drop as
select s.id, max(s.fetched_at) as seen,
    max(s.fetched_at) filter (where s.content_hash = d.content_hash) as shown
from sighted s left join desk.{} d on d.connection = :connection and d.id = s.id
group by s.id
"""

# A record is no longer held back where its day was read again later and let through.
_FORGET_REPLACED = """
delete from blocked_ids h using bridge.batches later
where later.connection = :connection and later.entity = :entity and later.id > h.batch
    and later.kind <> all(:single) and later.verdict = any(:readable)
    and (later.kind = 'whole' or h.changed >= later.window_start and h.changed < later.window_end)
"""

# What certificates deleted without anybody's word since a moment and since the last such word.
_DELETED_SINCE = """
select count(*) from judged j where j.finding = 'deleted' and exists (
    select from bridge.deletions d
    where d.connection = :connection and d.entity = :entity and d.record_id = j.id
        and d.observed_at >= :since and d.certificate > (
            select coalesce(max(a.certificate), 0) from bridge.deletions a
            where a.connection = :connection and a.entity = :entity and a.accepted_by is not null
        )
)
"""


@dataclass(frozen=True)
class Named:
    """An id as a certificate names it; times are the change marks of both sides."""

    id: str
    finding: str
    evidence: str | None
    at_the_source: datetime | None
    in_the_table: datetime | None


class Comparison:
    """One entity's listing beside its tables, within one transaction.

    Args:
        scope: judge only what changed in it; None for all.
        coverage: what must have arrived by now; None if nothing was loaded yet.
        outcomes: what was said of single records.
        blocked: what blocked batches hold back.
        sighted: what loaded batches saw since the listing began, with the columns of `SIGHTED`.
        marked: whether a record that only its id brings shows the change mark that listings show.
    """

    def __init__(
        self,
        connection: sa.Connection,
        name: str,
        entity: str,
        book: IdBook,
        scope: Window | None,
        coverage: Coverage | None,
        outcomes: dict[str, Outcome],
        blocked: Iterable[Blocked],
        sighted: Iterable[pa.Table] = (),
        marked: bool = True,
    ) -> None:
        self._connection = connection
        self._names: dict[str, Any] = {"connection": name, "entity": entity}
        self._table = f"desk.{entity}"
        for leftover in (
            "listed_ids",
            "outcomes",
            "nameless",
            "blocked_ids",
            "sighted",
            "seen_since",
            "judged",
        ):
            self._run(f"drop table if exists pg_temp.{leftover}")
        self._copy("listed_ids (id text, changed timestamptz, state text, seen timestamptz)", _listed(book))
        self._copy(
            "outcomes (id text, state text, evidence text, asked_at timestamptz)",
            ((key, o.state, o.evidence[:300], o.asked_at) for key, o in outcomes.items()),
        )
        self._copy("nameless (sha256 text, page bigint, position bigint)", book.nameless())
        self._copy("blocked_ids (id text, changed timestamptz, batch bigint)", blocked)
        self._run(_FORGET_REPLACED, single=list(SINGLE), readable=list(READABLE))
        stage(connection, "sighted", SIGHTED, sighted)
        self._run(_SEEN_SINCE.format(entity))
        self._run("analyze listed_ids, outcomes, nameless, blocked_ids, seen_since")
        never = "infinity"
        times = {
            "explicit": scope is not None,
            "covered_from": str(coverage.start) if coverage else never,
            "covered_to": str(coverage.end) if coverage else never,
            "began": book.began,
            "marked": marked,
        }
        spans = {"first": scope.start, "end": scope.end} if scope else {}
        self._run(_judge(entity, _SCOPE if scope else ""), **times, **spans)
        self._run("create index on judged (finding)")

    def counts(self) -> dict[str, int]:
        """How many ids have each finding."""
        query = "select finding, count(*) as ids from judged group by finding"
        return {row.finding: row.ids for row in self._connection.execute(sa.text(query))}

    @property
    def live(self) -> int:
        """How many rows of the table are judged that are not deleted."""
        return int(self._connection.scalar(sa.text("select count(*) from judged where live")) or 0)

    def ids(self, findings: Iterable[str], most: int, refused: bool | None = None) -> list[str]:
        """At most so many ids with one of these findings, spread evenly.

        Args:
            refused: only those of which quarantine holds something, or only the others.
        """
        query = """select id from judged where finding = any(:findings)
            and (cast(:refused as boolean) is null or refused = :refused)
            order by md5(id) limit :most"""
        values = {"findings": list(findings), "most": most, "refused": refused}
        return list(self._connection.execute(sa.text(query), values).scalars())

    def count(self, findings: Iterable[str], refused: bool) -> int:
        """How many ids have one of these findings; `refused` as for `ids`."""
        query = "select count(*) from judged where finding = any(:findings) and refused = :refused"
        values = {"findings": list(findings), "refused": refused}
        return int(self._connection.scalar(sa.text(query), values) or 0)

    def deleted_since(self, since: datetime) -> int:
        """How many of the ids judged were deleted since then, and since somebody accepted deletions."""
        return int(self._connection.scalar(sa.text(_DELETED_SINCE), self._names | {"since": since}) or 0)

    def named(self) -> list[Named]:
        """The ids worth naming in order, those not accounted for first; at most ten thousand of each."""
        return self._named(_LOST) + self._named(_EXPLAINED)

    def nameless(self) -> tuple[int, list[tuple[str, int, int]]]:
        """Listed records without a usable id: how many are in quarantine, and those that are not."""
        query = """
            select n.sha256, n.page, n.position, q.sha256 is not null as kept from nameless n
            left join bridge.quarantine q
                on q.connection = :connection and q.entity = :entity and q.sha256 = n.sha256
            order by n.page, n.position
        """
        kept, lost = 0, []
        for row in self._connection.execute(sa.text(query), self._names):
            kept += row.kept
            if not row.kept and len(lost) < _NAMED_AT_MOST:
                lost.append((row.sha256, row.page, row.position))
        return kept, lost

    def believe_the_listing(self, findings: Iterable[str], observed_at: datetime) -> None:
        """Takes rows that a whole listing lacks, or calls deleted, for gone without a lookup (rule 19)."""
        self._run(
            """update judged set finding = 'gone', observed_at = :observed_at,
                reason = case finding when 'reported' then 'marked' else 'listing' end,
                evidence = case finding when 'reported' then 'a whole listing calls it deleted'
                    else 'a whole listing lacks it' end
                where finding = any(:findings)""",
            findings=list(findings),
            observed_at=observed_at,
        )

    def hold(self) -> None:
        """Takes nothing for gone: so many at once have to be accepted first."""
        self._run("update judged set finding = 'held' where finding = 'gone'")

    def mark(self) -> list[str]:
        """Marks what is gone as deleted, keeps it for `record_deletions`, and returns the ids."""
        marked = self._connection.execute(
            sa.text(
                f"""update {self._table} d set deleted_at = j.observed_at from judged j
                    where d.connection = :connection and d.id = j.id and j.finding = 'gone'
                        and d.deleted_at is null
                    returning d.id"""
            ),
            self._names,
        )
        ids = list(marked.scalars())
        self._run(
            """create temporary table if not exists observed
                (entity text, id text, observed_at timestamptz, reason text, evidence text) on commit drop"""
        )
        self._run(
            """insert into observed select :entity, id, observed_at, reason, coalesce(evidence, '')
                from judged where finding = 'gone'"""
        )
        return ids

    def _named(self, findings: Iterable[str]) -> list[Named]:
        query = f"""select id, finding, evidence, changed as at_the_source, updated_at as in_the_table
            from judged where finding = any(:findings)
            order by length(id), id collate "C" limit {_NAMED_AT_MOST}"""
        rows = self._connection.execute(sa.text(query), {"findings": list(findings)})
        return [Named(**row._mapping) for row in rows]

    def _run(self, statement: str, **values: Any) -> None:
        self._connection.execute(sa.text(statement), self._names | values)

    def _copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._run(f"create temporary table {table} on commit drop")
        driver: psycopg.Connection = self._connection.connection.driver_connection  # type: ignore[assignment]
        with driver.cursor() as cursor, cursor.copy(f"copy {table.split()[0]} from stdin".encode()) as copy:
            for row in rows:
                copy.write_row(row)


def record_deletions(
    connection: sa.Connection, tenant: str, name: str, certificate: int, accepted_by: str | None
) -> None:
    """Keeps what `Comparison.mark` marked, with its certificate."""
    connection.execute(
        sa.text(
            """insert into bridge.deletions (connection, entity, record_id, observed_at, tenant, reason,
                    evidence, certificate, accepted_by)
                select :connection, entity, id, observed_at, :tenant, reason, evidence, :certificate,
                    :accepted_by
                from observed"""
        ),
        {"connection": name, "tenant": tenant, "certificate": certificate, "accepted_by": accepted_by},
    )


def _listed(book: IdBook) -> Iterator[tuple[Any, ...]]:
    for record_id, changed, state, seen in book.listed():
        yield (
            record_id,
            None if changed is None else from_microseconds(changed),
            state,
            from_microseconds(seen),
        )
