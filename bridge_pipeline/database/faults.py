"""What an armed failpoint does: ends the process, raises, fills the disk, or cuts the database off.

Armed by the environment, and only in a home that was made for it: without its file
`failpoints-allowed` the variable is ignored with a warning. See docs/decisions/0021.
"""

import errno
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog

from bridge_pipeline import failpoints
from bridge_pipeline.database.engine import Database
from bridge_pipeline.naming import Home

VARIABLE = "BRIDGE_FAILPOINT"
ALLOWED = "failpoints-allowed"
_PLAN = re.compile(r"(?P<point>[a-z._]+)=(?P<action>[a-z]+)(@(?P<hit>[1-9]\d*))?")
log = structlog.get_logger(__name__)


class InvalidFailpoint(ValueError):
    """Not a failpoint, or nothing that one can do."""


class Failed(RuntimeError):
    """What the action `error` raises."""


@dataclass
class Fault:
    """One action at the `hit`-th passing of one point.

    Attributes:
        hits: how often the point was passed so far.
    """

    point: str
    action: str
    hit: int
    database: Database
    hits: int = field(default=0)

    def __call__(self, point: str) -> None:
        """Counts a passed point, and acts when its turn has come."""
        if point != self.point:
            return
        self.hits += 1
        if self.hits == self.hit:
            ACTIONS[self.action](self)


def arm_from_environment(home: Home, database: Database) -> Fault | None:
    """Arms what `BRIDGE_FAILPOINT` names, as `POINT=ACTION` or `POINT=ACTION@HIT`, once per process.

    Raises:
        InvalidFailpoint: it names no point or no action.
    """
    plan = os.environ.get(VARIABLE)
    if not plan:
        return None
    if not (home.root / ALLOWED).exists():
        log.warning("ignored: this home is not made for failpoints", variable=VARIABLE, missing=ALLOWED)
        return None
    match = _PLAN.fullmatch(plan)
    if match is None or match["point"] not in failpoints.POINTS or match["action"] not in ACTIONS:
        raise InvalidFailpoint(f"{VARIABLE}={plan!r}: write POINT=ACTION@HIT, ACTION {', '.join(ACTIONS)}")
    if isinstance(armed := failpoints.listener(), Fault):
        # Another workspace of this process goes on counting.
        return armed
    fault = Fault(match["point"], match["action"], int(match["hit"] or 1), database)
    failpoints.listen(fault)
    return fault


def _kill(_fault: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(fault: Fault) -> None:
    raise Failed(f"failpoint {fault.point}")


def _fill_disk(fault: Fault) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fault.point)


def _disconnect(fault: Fault) -> None:
    """Ends all sessions of the database, as a restart of the server does."""
    # Another server's other databases are none of this home's business.
    others = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
    engine = sa.create_engine(fault.database.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"{others} and pid <> pg_backend_pid()"))


ACTIONS: dict[str, Callable[[Fault], None]] = {
    "kill": _kill,
    "error": _raise,
    "full": _fill_disk,
    "disconnect": _disconnect,
}
