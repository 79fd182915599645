"""Delivery: who is told, what is to be told, and the sent-log."""

from alembic import op

revision = "0006"
down_revision = "0005"

DDL = """
create table bridge.reviewers (
    tenant text not null,
    id text not null,
    address jsonb,
    channel text not null,
    shown text not null,
    events jsonb not null,
    secret_variables jsonb not null default '[]',
    created_at timestamptz not null default now(),
    removed_at timestamptz,
    constraint reviewers_pkey primary key (tenant, id),
    constraint reviewers_tenant_fkey foreign key (tenant) references bridge.tenants (name)
);

create table bridge.messages (
    id bigint generated always as identity,
    tenant text not null,
    event text not null,
    about text not null,
    title text not null,
    body text not null,
    connection text,
    day date,
    follows bigint,
    created_at timestamptz not null default now(),
    constraint messages_pkey primary key (id),
    constraint messages_tenant_event_about_key unique (tenant, event, about),
    constraint messages_tenant_fkey foreign key (tenant) references bridge.tenants (name),
    constraint messages_follows_fkey foreign key (follows) references bridge.messages (id),
    constraint messages_event_check
        check (event in ('blocked', 'resolved', 'failed', 'daily', 'weekly', 'test'))
);

create table bridge.deliveries (
    message_id bigint not null,
    reviewer text not null,
    tenant text not null,
    status text not null default 'pending',
    attempts integer not null default 0,
    attempted_at timestamptz,
    next_attempt_at timestamptz not null default now(),
    error text,
    created_at timestamptz not null default now(),
    settled_at timestamptz,
    constraint deliveries_pkey primary key (message_id, reviewer),
    constraint deliveries_message_id_fkey
        foreign key (message_id) references bridge.messages (id),
    constraint deliveries_reviewer_fkey
        foreign key (tenant, reviewer) references bridge.reviewers (tenant, id),
    constraint deliveries_status_check
        check (status in ('pending', 'sent', 'failed', 'withdrawn'))
);
create index deliveries_status_next_attempt_at_idx
    on bridge.deliveries (status, next_attempt_at);
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
