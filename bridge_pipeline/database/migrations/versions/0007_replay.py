"""Replay from quarantine: when a record was read, and which batch brought it into the tables."""

from alembic import op

revision = "0007"
down_revision = "0006"

DDL = """
alter table bridge.batches
    drop constraint batches_kind_check,
    add constraint batches_kind_check check (kind in ('window', 'whole', 'lookup', 'replay'));

alter table bridge.quarantine
    add column fetched_at timestamptz,
    add column replay_batch bigint,
    add column replay_number bigint,
    add column replayed_at timestamptz,
    add constraint quarantine_replay_batch_fkey
        foreign key (replay_batch) references bridge.batches (id) deferrable initially deferred;

update bridge.quarantine q set fetched_at = b.fetched_from from bridge.batches b where b.id = q.last_batch;

alter table bridge.quarantine alter column fetched_at set not null;

create index quarantine_replay_batch_idx on bridge.quarantine (replay_batch);
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
