"""The only place where keys, schemas, tables and paths are composed.

`docs/naming.md` is the grammar. Nothing here touches a disk or a database.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

KEY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,40}$"
_KEY = re.compile(KEY_PATTERN)

DESK_SCHEMA = "desk"
BRIDGE_SCHEMA = "bridge"
MARTS_SCHEMA = "marts"

# A connection's name has no dot, so the chain is never taken for one.
CHAIN_NAME = "chain.jsonl"

# Below Dagster's home: a locked file for each run of the command line that is under way.
EXECUTING = "executing"

# Backups hold it together, and a purge alone.
BACKUP_LOCK = "backup"

CONNECTION_DIMENSION = "connection"
DAY_DIMENSION = "day"
EXTRACTED, TABLES, AUDIT, MODELS, QUALITY = "extracted", "tables", "audit", "models", "quality"


class InvalidKey(ValueError):
    """A name that cannot be a partition key and a path."""


def checked_key(kind: str, key: str) -> str:
    """Returns `key` if it may name a tenant or a connection.

    Raises:
        InvalidKey: it does not match `KEY_PATTERN`.
    """
    # fullmatch: `$` alone would let a trailing newline through.
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidKey(
            f"{kind} {key!r} is not a valid name: use 1 to 41 of a-z, 0-9, '-' and '_', "
            "starting with a letter or digit"
        )
    return key


def partition_key(connection: str, day: date) -> str:
    """The Dagster key of one day of one connection: `connection|YYYY-MM-DD`."""
    return f"{checked_key('connection', connection)}|{day.isoformat()}"


def asset_key(layer: str, name: str) -> list[str]:
    """The Dagster asset key of `name` in `layer`."""
    return [layer, name]


def span_label(start: datetime, end: datetime) -> str:
    """How a window `[start, end)` is written in paths: `20160301T000000Z--20160302T000000Z`."""
    return f"{start:%Y%m%dT%H%M%SZ}--{end:%Y%m%dT%H%M%SZ}"


@dataclass(frozen=True)
class Home:
    """The layout of `BRIDGE_HOME`: all state of one installation lies under `root`."""

    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def landing(self) -> Path:
        return self.root / "landing"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def signing(self) -> Path:
        """The private keys that sign the audit chains, one file each, named by its fingerprint."""
        return self.keys / "signing"

    @property
    def heads(self) -> Path:
        """The last entry of each tenant's audit chain, kept apart from the audit folder."""
        return self.root / "heads"

    @property
    def work(self) -> Path:
        """Scratch space; whatever lies here may be deleted when no process of this home runs."""
        return self.root / "work"

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    @property
    def expectations(self) -> Path:
        """The tenants' own thresholds."""
        return self.root / "expectations"

    @property
    def last_backup(self) -> Path:
        """What is known of the last backup that was made of this home."""
        return self.root / "last-backup.json"

    @property
    def restoring(self) -> Path:
        """There while a restore into this home is not finished; nothing else may use the home then."""
        return self.root / "restoring"

    @property
    def demo(self) -> Path:
        """What the demo's simulated helpdesk writes: its truth and its request log."""
        return self.root / "demo"

    def journal_of(self, tenant: str, connection: str, entity: str, label: str) -> Path:
        """Folder of the extractions of one window."""
        return _under(self.journal, tenant, connection, entity) / label

    def landing_of(self, tenant: str, connection: str, entity: str) -> Path:
        """Folder of the batches of one connection and entity."""
        return _under(self.landing, tenant, connection, entity)

    def audit_of(self, tenant: str, connection: str, entity: str, day: date) -> Path:
        """Folder of the audit versions of one day."""
        return _under(self.audit, tenant, connection, entity) / day.isoformat()

    def audit_tenant(self, tenant: str) -> Path:
        """Folder of all audit files of a tenant: it can be handed over and verified alone."""
        return self.audit / checked_key("tenant", tenant)

    def chain_of(self, tenant: str) -> Path:
        """The audit chain of a tenant."""
        return self.audit_tenant(tenant) / CHAIN_NAME

    def head_of(self, tenant: str) -> Path:
        """The kept head of a tenant's audit chain."""
        return self.heads / f"{checked_key('tenant', tenant)}.json"

    def extraction_of(self, connection: str, entity: str) -> Path:
        """Scratch space of the running extraction of an entity; a killed one leaves raw records there."""
        return self.work / f"extract-{checked_key('connection', connection)}-{entity}"

    def auditing_of(self, connection: str, entity: str) -> Path:
        """The scratch folder of whoever writes audit files of an entity."""
        return self.work / f"audit-{checked_key('connection', connection)}-{entity}"

    def loading_of(self, connection: str, entity: str) -> Path:
        """The scratch folder of whoever loads an entity."""
        return self.work / f"load-{checked_key('connection', connection)}-{entity}"

    def of_connection(self, tenant: str, connection: str, entities: Iterable[str]) -> list[tuple[str, Path]]:
        """All folders in which a connection has files, each with the name of what it lies in."""
        roots = (self.journal, self.landing, self.audit, self.reports)
        kept = [(root.name, _under(root, tenant, connection)) for root in roots]
        scratch = [
            place(connection, entity)
            for place in (self.extraction_of, self.auditing_of, self.loading_of)
            for entity in entities
        ]
        return kept + [(self.work.name, path) for path in scratch]

    def expectations_of(self, tenant: str) -> Path:
        """Where a tenant's own thresholds are read from, if there are any."""
        return self.expectations / f"{checked_key('tenant', tenant)}.yaml"

    def certificates_of(self, tenant: str, connection: str) -> Path:
        """Folder of the certificates of one connection, among its audit files."""
        return _under(self.audit, tenant, connection) / "certificates"

    def report_of(self, tenant: str, connection: str, day: date) -> Path:
        """The data-quality report of one connection up to `day`."""
        return _under(self.reports, tenant, connection) / f"{day.isoformat()}.html"

    def rejected_of(self, tenant: str, connection: str, day: date) -> Path:
        """The workbook of rejected records that belongs to a report."""
        return _under(self.reports, tenant, connection) / f"{day.isoformat()}-rejected.xlsx"


def audit_name(version: int) -> str:
    """File name, without ending, of one audit version: `v0001`."""
    return f"v{version:04d}"


def certificate_name(number: int) -> str:
    """File name, without ending, of one certificate: `c0001`."""
    return f"c{number:04d}"


def _under(root: Path, tenant: str, connection: str, *parts: str) -> Path:
    checked = (checked_key("tenant", tenant), checked_key("connection", connection))
    return root.joinpath(*checked, *parts)
