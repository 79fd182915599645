"""What was taken away on purpose: connections with all their data, and tenants."""

from alembic import op

revision = "0013"
down_revision = "0012"

DDL = """
create table bridge.purges (
    id bigint not null generated always as identity,
    tenant text not null,
    connection text not null,
    purged_by text not null,
    reason text not null,
    rows jsonb,
    files jsonb,
    begun_at timestamptz not null default now(),
    finished_at timestamptz,
    constraint purges_pkey primary key (id)
);

create index purges_connection_idx on bridge.purges (connection);

alter table bridge.purges enable row level security;
create policy analysts on bridge.purges for select using (
    exists (select from pg_roles where rolname = 'bridge_analyst' and pg_has_role(oid, 'usage'))
);
create policy tenants on bridge.purges for select using (
    'bridge_tenant_' || tenant in (
        select cast(rolname as text) from pg_roles where pg_has_role(oid, 'usage')
    )
);

alter table bridge.tenants add column removed_at timestamptz
"""


def upgrade() -> None:
    op.execute(DDL)
