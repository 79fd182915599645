"""The quota of a credential, shared by all processes, runs and tenants through Postgres.

A credential that may send N requests a minute has N slots. A request takes a free slot and
gives it back a minute after its answer has arrived, so in no minute, by whatever clock the
source counts, are more than N requests under way or answered. A process that dies keeps its
slot only until its lease ends.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog

from bridge_pipeline.connector_kit.quota import HeldBack

MINUTE = 60.0
# Clocks run unevenly; the source's minute may be a little longer than ours.
_MARGIN = 0.25
log = structlog.get_logger("bridge.source")

_MAKE = sa.text(
    """
    insert into bridge.quota_slots (credential, slot, free_at)
    select :credential, slot, '-infinity' from generate_series(
        (select coalesce(max(slot) + 1, 0) from bridge.quota_slots where credential = :credential), :slots - 1
    ) as slot
    on conflict do nothing
    """
)
_TAKE = sa.text(
    """
    update bridge.quota_slots
    set free_at = clock_timestamp() + make_interval(secs => :lease)
    where credential = :credential and slot = (
        select slot from bridge.quota_slots
        where credential = :credential and slot < :slots and free_at <= clock_timestamp()
            and not exists (
                select from bridge.quota_holds
                where credential = :credential and held_until > clock_timestamp()
            )
        order by free_at limit 1 for update skip locked
    )
    returning slot, free_at
    """
)
_GIVE_BACK = sa.text(
    """
    update bridge.quota_slots
    set free_at = clock_timestamp() + make_interval(secs => :minute)
    where credential = :credential and slot = :slot and free_at = :taken_until
    """
)
# Slots start at -infinity, from which Postgres before 17 subtracts nothing.
_WAIT = sa.text(
    """
    select extract(epoch from greatest(
        (select min(free_at) from bridge.quota_slots where credential = :credential and slot < :slots),
        (select held_until from bridge.quota_holds where credential = :credential),
        clock_timestamp()
    ) - clock_timestamp())
    """
)
_HOLD = sa.text(
    """
    insert into bridge.quota_holds (credential, held_until)
    values (:credential, clock_timestamp() + make_interval(secs => :seconds))
    on conflict (credential) do update
    set held_until = greatest(quota_holds.held_until, excluded.held_until)
    """
)


class SharedQuota:
    """See `connector_kit.quota.Quota`.

    Args:
        engine: of the database that all processes share.
        credential: a fingerprint of the credential, not the credential.
        requests_per_minute: None where no limit is known; `Retry-After` holds all the same.
        longest_request: seconds after which a request that got no answer has ended for certain.
        minute: seconds in which no more than that many requests are sent.
        patience: seconds that a request waits for the source's `Retry-After` at most.
    """

    def __init__(
        self,
        engine: sa.Engine,
        credential: str,
        requests_per_minute: int | None,
        longest_request: float,
        minute: float = MINUTE,
        patience: float = math.inf,
    ) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._credential = credential
        self._slots = requests_per_minute
        self._minute = minute + _MARGIN
        self._lease = longest_request + self._minute
        # A slot is free after its lease at the latest; who waits longer is held by the source.
        self._patience = max(patience, self._lease)
        if self._slots:
            self._run(_MAKE, slots=self._slots)

    @contextmanager
    def request(self, path: str, params: Mapping[str, str]) -> Iterator[None]:
        """Waits for a slot, whatever is asked for; its minute begins when the context ends."""
        slot = self._wait_for_slot()
        try:
            yield
        finally:
            if slot is not None:
                # One whose lease ended under way, as of a sleeping laptop, is no longer ours to give.
                self._run(_GIVE_BACK, slot=slot[0], taken_until=slot[1], minute=self._minute)

    def hold(self, seconds: float) -> None:
        """No request of this credential, from whatever process, for that long."""
        self._run(_HOLD, seconds=seconds)

    def _wait_for_slot(self) -> tuple[int, datetime] | None:
        """Number of the slot taken and the end of its lease; None where no limit is known."""
        told = False
        while True:
            if self._slots and (taken := self._run(_TAKE, slots=self._slots, lease=self._lease)):
                return taken.slot, taken.free_at
            asked = self._run(_WAIT, slots=self._slots or 0)
            wait = float(asked[0]) if asked else 0.0
            if wait <= 0 and not self._slots:
                return None
            if wait > self._patience:
                raise HeldBack(f"the source asked for no requests within the next {wait:.0f} s")
            if not told:
                log.info("waiting for quota", seconds=round(wait, 1))
                told = True
            # A slot under way is given back long before its lease ends, and free a minute later.
            time.sleep(min(max(wait, 0.01), self._minute))

    def _run(self, statement: sa.TextClause, **values: object) -> sa.Row[Any] | None:
        """Executes a statement in a transaction of its own; its one row, if it has one."""
        with self._engine.connect() as connection:
            result = connection.execute(statement, {"credential": self._credential, **values})
            return result.one_or_none() if result.returns_rows else None
