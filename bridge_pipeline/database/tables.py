"""The tables of the schemas `desk` and `bridge`, as SQLAlchemy metadata.

`desk` tables derive from the entities' declarations. The migrations create what is
declared here; a test compares the two.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from bridge_pipeline import naming
from bridge_pipeline.model import ENTITIES, Entity, Kind

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)

_TYPES: dict[Kind, sa.types.TypeEngine] = {
    Kind.TEXT: sa.Text(),
    Kind.TIMESTAMP: sa.TIMESTAMP(timezone=True),
    Kind.BOOLEAN: sa.Boolean(),
    Kind.JSON: JSONB(),
}
_TIME = sa.TIMESTAMP(timezone=True)


def _time(name: str, **options: object) -> sa.Column:
    return sa.Column(name, _TIME, **options)  # type: ignore[arg-type]


def _now(name: str) -> sa.Column:
    return _time(name, nullable=False, server_default=sa.func.now())


def _text(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text, **({"nullable": False} | options))  # type: ignore[arg-type]


def _count(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _key_check(column: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} ~ '{naming.KEY_PATTERN}'", name=column)


def _bridge(name: str, *parts: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, metadata, *parts, schema=naming.BRIDGE_SCHEMA)


tenants = _bridge(
    "tenants",
    _text("name", primary_key=True),
    _now("created_at"),
    # Whether reports may show addresses, numbers and texts of people: the tenant asked for it.
    sa.Column("show_personal_data", sa.Boolean, nullable=False, server_default="false"),
    # Its chain, and the record of what was purged, stay.
    _time("removed_at"),
    _key_check("name"),
)

connections = _bridge(
    "connections",
    _text("name", primary_key=True),
    sa.Column("tenant", sa.ForeignKey(tenants.c.name), nullable=False),
    _text("connector"),
    sa.Column("config", JSONB, nullable=False),
    # Field name -> AES-256-GCM box; never a secret in clear.
    sa.Column("secrets", JSONB, nullable=False),
    # Names of the environment variables the secrets came from, to keep them from child processes.
    sa.Column("secret_variables", JSONB, nullable=False, server_default="[]"),
    sa.Column("requests_per_minute", sa.Integer),
    # Share of the source's limits that is left to the customer's other integrations.
    sa.Column("quota_reserve", sa.Double, nullable=False, server_default=sa.text("0.2")),
    sa.Column("entities", JSONB, nullable=False),
    sa.Column("exclude", JSONB, nullable=False, server_default="[]"),
    sa.Column("first_day", sa.Date),
    # Whether the daily schedule asks for its days.
    sa.Column("scheduled", sa.Boolean, nullable=False, server_default="true"),
    _now("created_at"),
    _now("changed_at"),
    _time("removed_at"),
    _key_check("name"),
    sa.CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
    sa.CheckConstraint("quota_reserve >= 0 and quota_reserve < 1", name="quota_reserve"),
)

batch_ids = sa.Sequence("batch_ids", metadata=metadata, schema=naming.BRIDGE_SCHEMA)

batches = _bridge(
    "batches",
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("tenant"),
    sa.Column("connection", sa.ForeignKey(connections.c.name), nullable=False),
    _text("entity"),
    # window: the records of the window; whole: all records of the entity; lookup: named ids; replay:
    # records from quarantine, parsed and checked again.
    _text("kind"),
    _time("window_start", nullable=False),
    _time("window_end", nullable=False),
    sa.Column("extraction", sa.Integer, nullable=False),
    _count("fetched"),
    _count("outside"),
    _count("duplicate"),
    # Rejected while parsing; what expectations reject is counted in `rejected`.
    _count("quarantined"),
    _count("landed"),
    _count("rejected"),
    _count("requests"),
    _count("pages"),
    _count("sweeps"),
    # How the extraction knows that it is complete: see docs/guarantees.md.
    sa.Column("proof", JSONB, nullable=False),
    # [{path, rows, bytes, sha256}], paths relative to the landing folder.
    sa.Column("files", JSONB, nullable=False),
    sa.Column("excluded", JSONB, nullable=False, server_default="[]"),
    _time("fetched_from", nullable=False),
    _time("fetched_to", nullable=False),
    _text("verdict", server_default="pending"),
    _time("verdict_at"),
    _text("accepted_by", nullable=True),
    _text("accept_reason", nullable=True),
    _text("run_id", nullable=True),
    _now("created_at"),
    # The newest settled day, where the schedule read it here for the first time (rule 16).
    sa.Column("first_read_of", sa.Date),
    # {bucket: {used, waited}}: units that its requests took, and seconds that they waited.
    sa.Column("quota", JSONB, nullable=False, server_default="{}"),
    sa.CheckConstraint("kind in ('window', 'whole', 'lookup', 'replay')", name="kind"),
    sa.CheckConstraint("verdict in ('pending', 'passed', 'accepted', 'blocked')", name="verdict"),
    sa.CheckConstraint("window_end > window_start", name="window"),
    sa.Index(None, "connection", "entity", "window_start", "window_end"),
)

checks = _bridge(
    "checks",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    _text("name", primary_key=True),
    _text("severity"),
    _text("description"),
    _text("owner"),
    sa.Column("passed", sa.Boolean, nullable=False),
    _count("evaluated"),
    _count("unexpected"),
    # Up to ten {id, value} with personal values masked.
    sa.Column("examples", JSONB, nullable=False, server_default="[]"),
    # Which step took it: the check of the landed batch, its load, or the look at the tables after it.
    _text("stage", server_default="batch"),
    # Who set the threshold, what it was, and what a tenant's file replaced in it.
    _text("source", server_default="suite"),
    sa.Column("threshold", JSONB, nullable=False, server_default="{}"),
    sa.Column("replaced", JSONB, nullable=False, server_default="{}"),
    # Not judged: switched off, or nothing to compare with; the note says which.
    sa.Column("judged", sa.Boolean, nullable=False, server_default="true"),
    _text("note", server_default=""),
    sa.CheckConstraint("severity in ('block', 'quarantine', 'warn')", name="severity"),
    sa.CheckConstraint("stage in ('batch', 'load', 'tables')", name="stage"),
    sa.CheckConstraint("source in ('suite', 'connector', 'tenant')", name="source"),
)

# Rows per day of a batch's window: with the batch's fetch time, the history of volumes at equal lag.
day_counts = _bridge(
    "day_counts",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    _count("rows"),
)

# Which fields the payload of a batch had, and of which JSON types; never their values.
inventories = _bridge(
    "inventories",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    _count("records"),
    _count("sampled"),
    # Canonical columns whose keys no record had.
    sa.Column("absent", JSONB, nullable=False, server_default="[]"),
    # JSON pointer -> JSON type -> records of the sample.
    sa.Column("fields", JSONB, nullable=False, server_default="{}"),
)

quarantine = _bridge(
    "quarantine",
    _text("tenant"),
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    _text("entity", primary_key=True),
    # Of the record's exact bytes.
    _text("sha256", primary_key=True),
    _text("reason"),
    _text("pointer"),
    _text("detail"),
    _text("record_id", nullable=True),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("first_batch", sa.ForeignKey(batches.c.id), nullable=False),
    sa.Column("last_batch", sa.ForeignKey(batches.c.id), nullable=False),
    sa.Column("page", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("times_seen", sa.BigInteger, nullable=False, server_default="1"),
    _now("first_seen"),
    _now("last_seen"),
    # Of the page that last held these bytes: it orders the version, whenever it is loaded (rule 7).
    _time("fetched_at", nullable=False),
    # The last replay that took the record; its batch is listed at the end of the same transaction.
    sa.Column(
        "replay_batch",
        sa.ForeignKey(batches.c.id, deferrable=True, initially="DEFERRED"),
        index=True,
    ),
    # Which of that batch's records it is; landing has it as `page`.
    sa.Column("replay_number", sa.BigInteger),
    # When that replay brought it into the tables; null while it is in quarantine.
    _time("replayed_at"),
)

# Which batch brought which quarantined record, and what it was refused for then.
quarantine_sightings = _bridge(
    "quarantine_sightings",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id, ondelete="CASCADE"), primary_key=True),
    _text("connection"),
    _text("entity"),
    _text("sha256", primary_key=True),
    _text("reason"),
    sa.ForeignKeyConstraint(
        ["connection", "entity", "sha256"],
        [f"{naming.BRIDGE_SCHEMA}.quarantine.{name}" for name in ("connection", "entity", "sha256")],
        name="quarantine_sightings_record_fkey",
        ondelete="CASCADE",
    ),
    sa.Index(None, "connection", "entity", "sha256"),
)

# Landed rows that an expectation of severity `quarantine` took out of their batch.
rejections = _bridge(
    "rejections",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    _text("reason"),
)

# What the source itself lists as deleted: newest report of each record. No row is changed by it alone.
gone_reports = _bridge(
    "gone_reports",
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    _text("entity", primary_key=True),
    _text("record_id", primary_key=True),
    _text("tenant"),
    # When it changed to that at the source, and when that was read.
    _time("reported_at"),
    _time("seen_at", nullable=False),
    # Where it stands in the journal.
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), nullable=False),
    sa.Column("page", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
)

loads = _bridge(
    "loads",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    _count("loaded"),
    _count("unchanged"),
    _count("superseded"),
    _count("placeholders"),
    _text("run_id", nullable=True),
    _now("loaded_at"),
)

audits = _bridge(
    "audits",
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), primary_key=True),
    _count("days"),
    _count("versions_added"),
    _now("audited_at"),
)

audit_files = _bridge(
    "audit_files",
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    _text("entity", primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    _text("tenant"),
    # Relative to the audit folder.
    _text("path"),
    _count("rows"),
    _text("sha256"),
    _text("rows_sha256"),
    _text("manifest_sha256"),
    sa.Column("batch_id", sa.ForeignKey(batches.c.id), nullable=False),
    _time("fetched_to", nullable=False),
    _now("created_at"),
)

# The audit chains as they are committed; `<tenant>/chain.jsonl` in the audit folder follows.
chain = _bridge(
    "chain",
    sa.Column("tenant", sa.ForeignKey(tenants.c.name), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    # The entry as it stands in the file, without its line break, and the SHA-256 of that.
    _text("line"),
    _text("sha256"),
    # Fingerprint of the key that signs the next entry.
    _text("next_key"),
    # Where the next entry begins in the file, in bytes.
    sa.Column("ends", sa.BigInteger, nullable=False),
    _time("at", nullable=False),
)

# Ids that were asked for one by one, so that a re-run does not ask for those that did not arrive again.
lookups = _bridge(
    "lookups",
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    _text("entity", primary_key=True),
    _text("record_id", primary_key=True),
    _time("looked_up_at", nullable=False),
)

# What each report said, without run facts, and what it was compared with.
reports = _bridge(
    "reports",
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    _text("tenant"),
    sa.Column("state", JSONB, nullable=False),
    sa.Column("compared_day", sa.Date),
    sa.Column("compared_state", JSONB(none_as_null=True)),
    _now("written_at"),
)

certificates = _bridge(
    "certificates",
    sa.Column("connection", sa.ForeignKey(connections.c.name), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    _text("tenant"),
    # Null: all that the source lists.
    _time("window_start"),
    _time("window_end"),
    _text("verdict"),
    # Entity -> number of the listing in the journal that it rests on.
    sa.Column("listings", JSONB, nullable=False),
    # What the JSON file says.
    sa.Column("document", JSONB, nullable=False),
    # Of the JSON file, relative to the audit folder; the page lies beside it.
    _text("path"),
    _text("sha256"),
    _text("page_sha256"),
    # Who let a mass disappearance through, and why.
    _text("accepted_by", nullable=True),
    _text("accept_reason", nullable=True),
    _text("run_id", nullable=True),
    _now("created_at"),
    sa.CheckConstraint("verdict in ('complete', 'incomplete', 'blocked')", name="verdict"),
)

# Each time a record was found to be gone; `deleted_at` in the table is the newest, until it is seen again.
deletions = _bridge(
    "deletions",
    _text("connection", primary_key=True),
    _text("entity", primary_key=True),
    _text("record_id", primary_key=True),
    _time("observed_at", primary_key=True),
    _text("tenant"),
    # lookup: by id it was not found; listing: a whole listing lacks it; marked: the source calls it deleted.
    _text("reason"),
    _text("evidence"),
    sa.Column("certificate", sa.Integer, nullable=False),
    _text("accepted_by", nullable=True),
    sa.ForeignKeyConstraint(
        ["connection", "certificate"],
        [f"{naming.BRIDGE_SCHEMA}.certificates.{name}" for name in ("connection", "number")],
    ),
    sa.CheckConstraint("reason in ('lookup', 'listing', 'marked')", name="reason"),
)

quota_tickets = sa.Sequence("quota_tickets", metadata=metadata, schema=naming.BRIDGE_SCHEMA)

# Which credential a connection uses; the one place that says who shares a quota.
quota_connections = _bridge(
    "quota_connections",
    sa.Column("connection", sa.ForeignKey(connections.c.name, ondelete="CASCADE"), primary_key=True),
    _text("tenant"),
    # A keyed fingerprint, as in all tables of the quota.
    _text("credential", index=True),
    # When a request of it was let through last.
    _time("served_at"),
)

# What a source lets a credential do; `told_…` is what its answers said. Every request takes from the
# bucket `requests`, whose row is the lock of its credential.
quota_buckets = _bridge(
    "quota_buckets",
    _text("credential", primary_key=True),
    _text("bucket", primary_key=True),
    sa.Column("units", sa.BigInteger),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("told_units", sa.BigInteger),
    sa.Column("told_seconds", sa.Double),
    _time("told_at"),
    # The sum of the units in `quota_uses`.
    _count("used"),
    # Units that the source has counted and this ledger has not, and until when they count.
    _count("others"),
    _time("others_until"),
    _time("held_until"),
)

# What requests took from buckets, until it is free again.
quota_uses = _bridge(
    "quota_uses",
    sa.Column("use", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("bucket", primary_key=True),
    _text("credential"),
    sa.Column("units", sa.BigInteger, nullable=False),
    # What the bucket's `used` was then, this one included.
    sa.Column("used_with_it", sa.BigInteger, nullable=False),
    sa.Column("answered", sa.Boolean, nullable=False, server_default="false"),
    _time("free_at", nullable=False),
    sa.Index(None, "credential", "bucket", "free_at"),
)

# Requests that were told when to come again.
quota_waiters = _bridge(
    "quota_waiters",
    sa.Column("ticket", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("credential"),
    _text("connection"),
    # {bucket: units}
    sa.Column("wanted", JSONB, nullable=False),
    _time("due_at", nullable=False),
    sa.Index(None, "credential", "due_at"),
)

# Tokens that a source gave for a credential; all in boxes, as the secrets of connections are.
access_tokens = _bridge(
    "access_tokens",
    # A fingerprint of all that a token is asked with, which `identity` holds sealed.
    _text("credential", primary_key=True),
    sa.Column("identity", JSONB, nullable=False),
    sa.Column("access_token", JSONB),
    sa.Column("refresh_token", JSONB),
    _time("expires_at"),
    # When a token was asked for whose answer has not been kept.
    _time("sent_at"),
    _time("renewed_at"),
)


# Who is told, per tenant. `id` is a keyed fingerprint of the address.
reviewers = _bridge(
    "reviewers",
    sa.Column("tenant", sa.ForeignKey(tenants.c.name), primary_key=True),
    _text("id", primary_key=True),
    # AES-256-GCM box; null once the reviewer was removed.
    sa.Column("address", JSONB(none_as_null=True)),
    # `mail`, or the schema of an Apprise URL.
    _text("channel"),
    # The address as it may be seen by others.
    _text("shown"),
    # Which events the reviewer is told of.
    sa.Column("events", JSONB, nullable=False),
    # Names of the environment variables the address came from, to keep them from child processes.
    sa.Column("secret_variables", JSONB, nullable=False, server_default="[]"),
    _now("created_at"),
    _time("removed_at"),
)

# What is to be told: written in the transaction of the fact that causes it.
messages = _bridge(
    "messages",
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("tenant", sa.ForeignKey(tenants.c.name), nullable=False),
    _text("event"),
    # What it is about, such as `batch 17`: nothing is told twice of the same.
    _text("about"),
    _text("title"),
    _text("body"),
    # The report that goes with it; what was told stays known when the connection is gone.
    _text("connection", nullable=True),
    sa.Column("day", sa.Date),
    # The alarm that this message ends.
    sa.Column("follows", sa.BigInteger, sa.ForeignKey(f"{naming.BRIDGE_SCHEMA}.messages.id")),
    _now("created_at"),
    sa.UniqueConstraint("tenant", "event", "about"),
    sa.CheckConstraint("event in ('blocked', 'resolved', 'failed', 'daily', 'weekly', 'test')", name="event"),
)

# One message to one reviewer, and what became of it.
deliveries = _bridge(
    "deliveries",
    sa.Column("message_id", sa.ForeignKey(messages.c.id), primary_key=True),
    _text("reviewer", primary_key=True),
    _text("tenant"),
    _text("status", server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    _time("attempted_at"),
    _now("next_attempt_at"),
    # Of the last attempt; null after an attempt whose end nobody saw.
    _text("error", nullable=True),
    _now("created_at"),
    # When it was sent, given up or withdrawn.
    _time("settled_at"),
    sa.ForeignKeyConstraint(
        ["tenant", "reviewer"],
        [f"{naming.BRIDGE_SCHEMA}.reviewers.tenant", f"{naming.BRIDGE_SCHEMA}.reviewers.id"],
        name="deliveries_reviewer_fkey",
    ),
    sa.CheckConstraint("status in ('pending', 'sent', 'failed', 'withdrawn')", name="status"),
    sa.Index(None, "status", "next_attempt_at"),
)


# Connections that were taken away with all they brought; see `database.purges`.
purges = _bridge(
    "purges",
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    _text("tenant"),
    _text("connection"),
    _text("purged_by"),
    _text("reason"),
    # Table -> rows deleted, and folder -> files that were there; null until the rows are deleted.
    sa.Column("rows", JSONB),
    sa.Column("files", JSONB),
    _now("begun_at"),
    _time("finished_at"),
    sa.Index(None, "connection"),
)


def desk_table(entity: Entity) -> sa.Table:
    """The table of an entity: identity, canonical columns, custom fields and provenance.

    Neither it nor `ticket_users` has foreign keys: see docs/decisions/0028.
    """
    return metadata.tables[f"{naming.DESK_SCHEMA}.{entity.name}"]


def _desk(entity: Entity) -> sa.Table:
    canonical = [
        sa.Column(column.name, _TYPES[column.kind], nullable=column.name != "id", comment=column.description)
        for column in entity.columns
    ]
    return sa.Table(
        entity.name,
        metadata,
        _text("tenant"),
        # That of the batch, which has the foreign key.
        _text("connection"),
        *canonical,
        sa.Column("custom_fields", JSONB, nullable=False, server_default="{}"),
        # A parent that a record refers to and that has not arrived: only its id is known.
        sa.Column("placeholder", sa.Boolean, nullable=False, server_default="false"),
        _text("content_hash", nullable=True),
        _time("fetched_at"),
        _time("deleted_at"),
        _now("loaded_at"),
        sa.Column("batch_id", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("connection", "id"),
        sa.Index(None, "connection", "updated_at"),
        # Few rows of many: each load and each audit asks for them.
        sa.Index(
            f"{entity.name}_deleted_idx",
            "connection",
            "updated_at",
            postgresql_where=sa.text("deleted_at is not null"),
        ),
        schema=naming.DESK_SCHEMA,
        comment=entity.description,
    )


for _entity in ENTITIES.values():
    _desk(_entity)

ticket_users = sa.Table(
    "ticket_users",
    metadata,
    _text("tenant"),
    _text("connection"),
    _text("ticket_id"),
    _text("user_id"),
    _text("part", comment="What the user is to the ticket: requester, creator, assignee or watcher."),
    sa.PrimaryKeyConstraint("connection", "ticket_id", "user_id", "part"),
    schema=naming.DESK_SCHEMA,
    comment="Which users take part in which tickets, as of the ticket's newest version.",
)
