"""What the report needs: who sees personal data, which batch saw which quarantined record, past reports."""

from alembic import op

revision = "0005"
down_revision = "0004"

DDL = """
alter table bridge.tenants add column show_personal_data boolean not null default false;

create table bridge.quarantine_sightings (
    batch_id bigint not null,
    connection text not null,
    entity text not null,
    sha256 text not null,
    reason text not null,
    constraint quarantine_sightings_pkey primary key (batch_id, sha256),
    constraint quarantine_sightings_batch_id_fkey
        foreign key (batch_id) references bridge.batches (id) on delete cascade,
    constraint quarantine_sightings_record_fkey
        foreign key (connection, entity, sha256)
        references bridge.quarantine (connection, entity, sha256) on delete cascade
);
create index quarantine_sightings_connection_entity_sha256_idx
    on bridge.quarantine_sightings (connection, entity, sha256);

insert into bridge.quarantine_sightings (batch_id, connection, entity, sha256, reason)
select batch_id, connection, entity, sha256, reason
from bridge.quarantine, unnest(array[first_batch, last_batch]) as seen (batch_id)
on conflict do nothing;

create table bridge.reports (
    connection text not null,
    day date not null,
    tenant text not null,
    state jsonb not null,
    compared_day date,
    compared_state jsonb,
    written_at timestamptz not null default now(),
    constraint reports_pkey primary key (connection, day),
    constraint reports_connection_fkey foreign key (connection) references bridge.connections (name)
);
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
