"""Where the heads of the audit chains are known outside the audit folder: database and home."""

import hashlib

import orjson
import structlog
from sqlalchemy.exc import SQLAlchemyError

from bridge_pipeline.database import embedded
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import DATA_DATABASE, Database
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.chain import heads
from bridge_pipeline.steps.verify import KnownHead

log = structlog.get_logger(__name__)


def known_heads(settings: Settings, home: Home) -> dict[str, list[KnownHead]]:
    """The heads that can be reached as things are, by tenant; nothing is started for it."""
    known: dict[str, list[KnownHead]] = {}
    for tenant, head in [*_committed(settings, home), *_kept(home)]:
        known.setdefault(tenant, []).append(head)
    return known


def _committed(settings: Settings, home: Home) -> list[tuple[str, KnownHead]]:
    try:
        database = _reachable(settings, home)
        if database is None:
            return []
        with database.engine.connect() as connection:
            found = heads(connection)
    except (DatabaseUnavailable, SQLAlchemyError):
        log.debug("the database is not reachable, so its heads are not used")
        return []
    database.engine.dispose()
    return [(head.tenant, KnownHead("the database", head.sequence, head.sha256)) for head in found]


def _reachable(settings: Settings, home: Home) -> Database | None:
    if settings.database_url is not None:
        return Database.of(settings.database_url.get_secret_value())
    server = embedded.running(home)
    return Database.of(server.url(DATA_DATABASE)) if server else None


def _kept(home: Home) -> list[tuple[str, KnownHead]]:
    found = []
    for path in sorted(home.heads.glob("*.json")):
        line = path.read_bytes().removesuffix(b"\n")
        try:
            # No entry has a lower number, and one that no chain can hold would not be looked for.
            sequence = max(1, int(orjson.loads(line)["sequence"]))
        except (ValueError, KeyError, TypeError):
            # A head that nothing can match: that it is damaged must not pass for "not known".
            sequence = 1
        digest = hashlib.sha256(line).hexdigest()
        found.append((path.stem, KnownHead(f"{home.heads.name}/{path.name}", sequence, digest)))
    return found
