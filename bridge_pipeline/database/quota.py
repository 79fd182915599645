"""The quota of a credential: one ledger in Postgres for all processes, runs and tenants that use it.

A request takes units from the source's buckets and gives them back one window after its answer came.
So in no window, fixed or sliding and by whatever clock the source counts, is more under way or
answered than a bucket holds. A process that dies keeps what it took only until its lease ends.

Taking is one call of the function `bridge.quota_take`, which says "go" or when to come again; giving
back, and what an answer's headers say, is one of `bridge.quota_settle` (migration 0012). Each is one
short transaction that holds nothing beyond its end, so that pooled connections will do.
"""

import json
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import Insert, aggregate_order_by, insert
from sqlalchemy.exc import DBAPIError

from bridge_pipeline.connector_kit.quota import Answered, Bucket, HeldBack, Metering, Observed
from bridge_pipeline.database import tables as t

# The bucket that every request takes one unit from; limited only where a connection configures it.
REQUESTS = "requests"
MINUTE = 60.0
# Seconds after which one that waits looks again, whatever it was told: limits and waiters change.
_LONGEST_PAUSE = 5.0
# Headers with other values are mistaken, or speak of something else.
_MOST_UNITS, _LONGEST_RESET = 10**9, 86_400.0
_NUMBER = re.compile(r"\d+")
log = structlog.get_logger("bridge.source")

_TAKE = """
select * from bridge.quota_take(%(credential)s, %(connection)s, cast(%(asked)s as jsonb), %(reserve)s,
    %(longest_request)s, %(longest_pause)s, %(place)s)
"""
# Nobody waits for the disk: what a crash of the server loses is given back late, and told again.
_SETTLE = """
select set_config('synchronous_commit', 'off', true),
    bridge.quota_settle(%(credential)s, %(use)s, cast(%(told)s as jsonb))
"""
_LEVELS = sa.text(
    """
    select b.credential, b.bucket, bridge.quota_limit(b, now.moment, b.units) as "limit",
        coalesce(b.told_seconds, b.seconds) as seconds, cast(coalesce(mine.used, 0) as bigint) as used,
        case when b.others_until > now.moment then b.others else 0 end as others,
        cast(coalesce(extract(epoch from mine.free_at - now.moment), 0) as double precision) as free_in,
        cast(greatest(0, extract(epoch from b.held_until - now.moment)) as double precision) as held,
        (
            select count(*) from bridge.quota_waiters as w
            where w.credential = b.credential and jsonb_exists(w.wanted, b.bucket)
                and w.due_at > now.moment - interval '1 second'
        ) as waiting
    from bridge.quota_buckets as b
    cross join (select clock_timestamp() as moment) as now
    left join lateral (
        select sum(u.units) as used, min(u.free_at) as free_at from bridge.quota_uses as u
        where u.credential = b.credential and u.bucket = b.bucket and u.free_at > now.moment
    ) as mine on true
    where cast(:credential as text) is null or b.credential = :credential
    order by b.credential, b.bucket
    """
)
_HOLD = """
-- The row that is the lock comes first, here as in the functions.
with locked as (
    select from bridge.quota_buckets as b
    where b.credential = %(credential)s and b.bucket = 'requests' for update
)
insert into bridge.quota_buckets as b (credential, bucket, seconds, held_until)
select %(credential)s, named.bucket, %(minute)s, clock_timestamp() + make_interval(secs => %(seconds)s)
from (select count(*) from locked) as first, unnest(cast(%(buckets)s as text[])) as named (bucket)
on conflict (credential, bucket) do update
set held_until = greatest(b.held_until, excluded.held_until)
"""


@dataclass(frozen=True)
class Holder:
    """A connection as the one who asks: its credential's fingerprint, and the share it leaves to others."""

    tenant: str
    connection: str
    credential: str
    reserve: float = 0.2


@dataclass(frozen=True)
class Spent:
    """What a `SharedQuota` took from a bucket: units, and the seconds for which it lacked any."""

    used: int = 0
    waited: float = 0.0


@dataclass(frozen=True)
class Level:
    """A bucket of a credential now.

    `limit` is None where none is known; `used` are our units of the last window, `others` what else the
    source has counted. `free_in` are the seconds until the next unit comes back, `held` those for which
    the source wants no request, `waiting` the requests that lack something.
    """

    credential: str
    bucket: str
    limit: int | None
    seconds: float
    used: int
    others: int
    free_in: float
    held: float
    waiting: int

    def usable(self, reserve: float) -> int | None:
        """Units of a window that are ours when this share is left to others."""
        return None if self.limit is None else max(1, math.floor(self.limit * (1 - reserve)))

    def left(self, reserve: float) -> int | None:
        """Units that may be used at once when this share is left to others."""
        if self.limit is None:
            return None
        return max(0, min(self.usable(reserve) or 0, self.limit - self.others) - self.used)

    def wait(self, reserve: float) -> float:
        """Seconds until the next unit may be used."""
        return max(self.held, self.free_in if self.left(reserve) == 0 else 0.0)


def levels(connection: sa.Connection, credential: str | None = None) -> list[Level]:
    """The buckets of one credential, or of all, in order; nothing is waited for."""
    rows = connection.execute(_LEVELS, {"credential": credential})
    return [Level(**row._mapping) for row in rows]


def credential_of(connection: sa.Connection, name: str) -> str | None:
    """The fingerprint of a connection's credential; None where it was never opened."""
    c = t.quota_connections.c
    return connection.scalar(sa.select(c.credential).where(c.connection == name))


def shared_by(connection: sa.Connection) -> dict[str, list[str]]:
    """The connections that use each credential, by its fingerprint; without those that were removed."""
    c, own = t.quota_connections.c, t.connections.c
    query = (
        sa.select(c.credential, sa.func.array_agg(aggregate_order_by(c.connection, c.connection)))
        .join(t.connections, own.name == c.connection)
        .where(own.removed_at.is_(None))
        .group_by(c.credential)
        .order_by(sa.func.min(c.connection))
    )
    return {row[0]: list(row[1]) for row in connection.execute(query)}


class SharedQuota:
    """See `connector_kit.quota.Quota`. Threads may share one.

    Args:
        engine: of the database that all processes share.
        holder: who asks.
        metering: how the source counts, if that is known.
        buckets: the limits that are known beforehand; what answers say corrects them.
        longest_request: seconds after which a request that got no answer has ended for certain.
        patience: seconds that a request waits for the source's `Retry-After` at most.
    """

    def __init__(
        self,
        engine: sa.Engine,
        holder: Holder,
        buckets: tuple[Bucket, ...],
        metering: Metering | None,
        longest_request: float,
        patience: float = math.inf,
    ) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._holder = holder
        self._known = {REQUESTS: Bucket(REQUESTS, 0)} | {bucket.name: bucket for bucket in buckets}
        self._metering = metering
        self._longest_request = longest_request
        self._patience = patience
        # By shape of path, buckets that only answers told of.
        self._learned: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        # By thread, the buckets of its last request that the answer named as used up when it asked for
        # patience.
        self._emptied = threading.local()
        self._spent: dict[str, Spent] = defaultdict(Spent)
        # Kept from request to request: to take one out of the pool costs as much as the statement.
        self._connection: sa.Connection | None = None
        self._using = threading.Lock()
        self._begin()

    @property
    def spent(self) -> dict[str, Spent]:
        """What its requests took so far, by bucket."""
        with self._lock:
            return dict(self._spent)

    @contextmanager
    def request(self, path: str, params: Mapping[str, str]) -> Iterator[Answered]:
        """Waits for units in every bucket that the request takes from.

        Its window begins with the answer's headers, or where none came with the end of the context.
        """
        costs = self._costs(path, params)
        use = self._take(costs)
        answered = False

        def settle(headers: Mapping[str, str]) -> None:
            nonlocal answered
            told = self._observed(path, costs, headers)
            self._settle(use, told)
            if "retry-after" in headers:
                # To hold a bucket that no request takes from would hold nobody.
                paid = self._costs(path, params)
                empty = [each["bucket"] for each in told if each["left"] == 0]
                self._emptied.buckets = [bucket for bucket in empty if bucket in paid]
            answered = True

        self._emptied.buckets = []
        try:
            yield settle
        finally:
            if not answered:
                self._settle(use, [])

    def hold(self, seconds: float) -> None:
        """No request of this credential, from whatever process, for that long; shortens no longer hold.

        Where this thread's last answer asked for it and named buckets of its request that are used up, none
        of theirs.
        """
        buckets = getattr(self._emptied, "buckets", []) or [REQUESTS]
        self._emptied.buckets = []
        self._run(_HOLD, seconds=seconds, minute=MINUTE, buckets=buckets)

    def register(self) -> None:
        """Says that the connection, which must be stored, uses the credential, and what limits it knows.

        Not for a draft: it may be refused, and what is stored then holds on.
        """
        holder = self._holder
        user = insert(t.quota_connections).values(
            connection=holder.connection, tenant=holder.tenant, credential=holder.credential
        )
        limits = self._limits()
        changed = {name: limits.excluded[name] for name in ("units", "seconds")}
        with self._engine.connect() as connection:
            connection.execute(
                user.on_conflict_do_update(
                    index_elements=["connection"],
                    set_={"tenant": holder.tenant, "credential": holder.credential},
                )
            )
            connection.execute(
                limits.on_conflict_do_update(index_elements=["credential", "bucket"], set_=changed)
            )

    def close(self) -> None:
        """Closes its connection to the database; the next request makes another."""
        with self._using:
            self._disconnect()

    def _begin(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(self._limits().on_conflict_do_nothing())

    def _limits(self) -> Insert:
        """A row for each bucket that is known beforehand."""
        rows = [
            {
                "credential": self._holder.credential,
                "bucket": bucket.name,
                # What is configured for `requests` stands with the connections (`bridge.quota_limit`).
                "units": None if bucket.name == REQUESTS else bucket.units,
                "seconds": bucket.seconds,
            }
            # The row that is the lock comes first, here as in the functions.
            for bucket in sorted(self._known.values(), key=lambda each: (each.name != REQUESTS, each.name))
        ]
        return insert(t.quota_buckets).values(rows)

    def _costs(self, path: str, params: Mapping[str, str]) -> dict[str, int]:
        costs = {REQUESTS: 1} | dict(self._metering.cost(path, params) if self._metering else {})
        # The last one stays the last: answers may speak of it without its name.
        return {name: 1 for name in self._learned.get(_shape(path), ()) if name not in costs} | costs

    def _take(self, costs: Mapping[str, int]) -> int:
        """Waits for its turn; the number of the use."""
        asked = json.dumps({name: self._asked(name, cost) for name, cost in costs.items()})
        place, told = None, False
        while True:
            found = self._run(
                _TAKE,
                connection=self._holder.connection,
                asked=asked,
                reserve=self._holder.reserve,
                longest_request=self._longest_request,
                longest_pause=_LONGEST_PAUSE,
                place=place,
            )
            assert found is not None
            if found.taken is not None:
                self._note(costs)
                return found.taken
            if found.held > self._patience:
                raise HeldBack(f"the source asked for no requests within the next {found.held:.0f} s")
            if not told:
                log.info("waiting for quota", bucket=found.lacking, seconds=round(found.pause, 1))
                told = True
            place = found.line
            self._pause(found.lacking, min(found.pause, _LONGEST_PAUSE))

    def _asked(self, name: str, cost: int) -> dict[str, float | None]:
        bucket = self._known.get(name, Bucket(name, 0))
        return {"cost": cost, "units": bucket.units or None, "seconds": bucket.seconds}

    def _pause(self, bucket: str, seconds: float) -> None:
        time.sleep(seconds)
        with self._lock:
            spent = self._spent[bucket]
            self._spent[bucket] = replace(spent, waited=spent.waited + seconds)

    def _note(self, costs: Mapping[str, int]) -> None:
        with self._lock:
            for name, cost in costs.items():
                spent = self._spent[name]
                self._spent[name] = replace(spent, used=spent.used + cost)

    def _observed(
        self, path: str, costs: Mapping[str, int], headers: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """What an answer says of its buckets, as far as it can be; buckets it names are paid from then on."""
        if self._metering is None:
            return []
        own = list(costs)[-1]
        told = [_sound(replace(each, bucket=each.bucket or own)) for each in self._metering.observed(headers)]
        if new := {each.bucket for each in told if each.units is not None} - set(costs):
            self._learned[_shape(path)] |= new
        # A limit that is configured here is not the source's to change.
        return [vars(each) for each in told if each.bucket != REQUESTS]

    def _settle(self, use: int, told: list[dict[str, Any]]) -> None:
        self._run(_SETTLE, use=use, told=json.dumps(told))

    def _run(self, statement: str, **values: object) -> sa.Row[Any] | None:
        """Executes a statement in a transaction of its own; its one row, if it has one."""
        parameters = {"credential": self._holder.credential, **values}
        with self._using:
            try:
                return self._execute(statement, parameters)
            except DBAPIError as error:
                # It may have broken long ago, while nobody used it. Of what was taken twice a part is
                # given back late, and all else comes to the same when it is said twice.
                if not error.connection_invalidated:
                    raise
                return self._execute(statement, parameters)

    def _execute(self, statement: str, parameters: dict[str, object]) -> sa.Row[Any] | None:
        if self._connection is None:
            self._connection = self._engine.connect()
            # Those who wait for one of the pool do not wait for this one.
            self._connection.detach()
        try:
            result = self._connection.exec_driver_sql(statement, parameters)
            return result.one_or_none() if result.returns_rows else None
        except BaseException:
            # An interrupt, too, may leave one that answers nothing any more.
            if self._connection.invalidated:
                self._disconnect()
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _shape(path: str) -> str:
    """A path without its numbers: requests for single records share a bucket."""
    return _NUMBER.sub("#", path)


def _sound(said: Observed) -> Observed:
    """What is said, without what cannot be."""
    units = said.units if said.units is not None and 0 < said.units <= _MOST_UNITS else None
    left = said.left if said.left is not None and 0 <= said.left <= _MOST_UNITS else None
    resets = said.resets_in if said.resets_in is not None and 0 <= said.resets_in <= _LONGEST_RESET else None
    seconds = said.seconds if said.seconds is not None and 0 < said.seconds <= _LONGEST_RESET else None
    return Observed(said.bucket, units, left, resets, seconds)
