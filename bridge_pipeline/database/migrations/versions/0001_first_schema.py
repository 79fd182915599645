"""The first schema: connections, the ledger, quarantine, quotas, and the desk's tables."""

from alembic import op

revision = "0001"
down_revision = None

DDL = """
create schema if not exists bridge;
create schema desk;
create schema marts;

create sequence bridge.batch_ids;

create table bridge.tenants (
    name text not null,
    created_at timestamptz not null default now(),
    constraint tenants_pkey primary key (name),
    constraint tenants_name_check check (name ~ '^[a-z0-9][a-z0-9_-]{0,40}$')
);

create table bridge.connections (
    name text not null,
    tenant text not null,
    connector text not null,
    config jsonb not null,
    secrets jsonb not null,
    secret_variables jsonb not null default '[]',
    requests_per_minute integer,
    entities jsonb not null,
    exclude jsonb not null default '[]',
    first_day date,
    scheduled boolean not null default true,
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    removed_at timestamptz,
    constraint connections_pkey primary key (name),
    constraint connections_name_check check (name ~ '^[a-z0-9][a-z0-9_-]{0,40}$'),
    constraint connections_requests_per_minute_check check (requests_per_minute > 0),
    constraint connections_tenant_fkey foreign key (tenant) references bridge.tenants (name)
);

create table bridge.batches (
    id bigint not null,
    tenant text not null,
    connection text not null,
    entity text not null,
    kind text not null,
    window_start timestamptz not null,
    window_end timestamptz not null,
    extraction integer not null,
    fetched bigint not null default 0,
    outside bigint not null default 0,
    duplicate bigint not null default 0,
    quarantined bigint not null default 0,
    landed bigint not null default 0,
    rejected bigint not null default 0,
    requests bigint not null default 0,
    pages bigint not null default 0,
    sweeps bigint not null default 0,
    proof jsonb not null,
    files jsonb not null,
    excluded jsonb not null default '[]',
    fetched_from timestamptz not null,
    fetched_to timestamptz not null,
    verdict text not null default 'pending',
    verdict_at timestamptz,
    accepted_by text,
    accept_reason text,
    run_id text,
    created_at timestamptz not null default now(),
    constraint batches_pkey primary key (id),
    constraint batches_kind_check check (kind in ('window', 'whole', 'lookup')),
    constraint batches_verdict_check
        check (verdict in ('pending', 'passed', 'accepted', 'blocked')),
    constraint batches_window_check check (window_end > window_start),
    constraint batches_connection_fkey foreign key (connection) references bridge.connections (name)
);
create index batches_connection_entity_window_start_window_end_idx
    on bridge.batches (connection, entity, window_start, window_end);

create table bridge.checks (
    batch_id bigint not null,
    name text not null,
    severity text not null,
    description text not null,
    owner text not null,
    passed boolean not null,
    evaluated bigint not null default 0,
    unexpected bigint not null default 0,
    examples jsonb not null default '[]',
    constraint checks_pkey primary key (batch_id, name),
    constraint checks_severity_check check (severity in ('block', 'quarantine', 'warn')),
    constraint checks_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.quarantine (
    tenant text not null,
    connection text not null,
    entity text not null,
    sha256 text not null,
    reason text not null,
    pointer text not null,
    detail text not null,
    record_id text,
    raw bytea not null,
    first_batch bigint not null,
    last_batch bigint not null,
    page bigint not null,
    position bigint not null,
    times_seen bigint not null default 1,
    first_seen timestamptz not null default now(),
    last_seen timestamptz not null default now(),
    constraint quarantine_pkey primary key (connection, entity, sha256),
    constraint quarantine_connection_fkey
        foreign key (connection) references bridge.connections (name),
    constraint quarantine_first_batch_fkey foreign key (first_batch) references bridge.batches (id),
    constraint quarantine_last_batch_fkey foreign key (last_batch) references bridge.batches (id)
);

create table bridge.rejections (
    batch_id bigint not null,
    seq bigint not null,
    reason text not null,
    constraint rejections_pkey primary key (batch_id, seq),
    constraint rejections_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.loads (
    batch_id bigint not null,
    loaded bigint not null default 0,
    unchanged bigint not null default 0,
    superseded bigint not null default 0,
    placeholders bigint not null default 0,
    run_id text,
    loaded_at timestamptz not null default now(),
    constraint loads_pkey primary key (batch_id),
    constraint loads_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.audits (
    batch_id bigint not null,
    days bigint not null default 0,
    versions_added bigint not null default 0,
    audited_at timestamptz not null default now(),
    constraint audits_pkey primary key (batch_id),
    constraint audits_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.audit_files (
    connection text not null,
    entity text not null,
    day date not null,
    version integer not null,
    tenant text not null,
    path text not null,
    rows bigint not null default 0,
    sha256 text not null,
    rows_sha256 text not null,
    manifest_sha256 text not null,
    batch_id bigint not null,
    fetched_to timestamptz not null,
    created_at timestamptz not null default now(),
    constraint audit_files_pkey primary key (connection, entity, day, version),
    constraint audit_files_connection_fkey
        foreign key (connection) references bridge.connections (name),
    constraint audit_files_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.lookups (
    connection text not null,
    entity text not null,
    record_id text not null,
    looked_up_at timestamptz not null,
    constraint lookups_pkey primary key (connection, entity, record_id),
    constraint lookups_connection_fkey foreign key (connection) references bridge.connections (name)
);

create table bridge.quota_slots (
    credential text not null,
    slot integer not null,
    free_at timestamptz not null,
    constraint quota_slots_pkey primary key (credential, slot)
);
create index quota_slots_credential_free_at_idx on bridge.quota_slots (credential, free_at);

create table bridge.quota_holds (
    credential text not null,
    held_until timestamptz not null,
    constraint quota_holds_pkey primary key (credential)
);

create table desk.accounts (
    tenant text not null,
    connection text not null,
    id text not null,
    name text,
    created_at timestamptz,
    updated_at timestamptz,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint accounts_pkey primary key (connection, id),
    constraint accounts_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index accounts_connection_updated_at_idx on desk.accounts (connection, updated_at);
comment on table desk.accounts is 'Customer organisations that own tickets.';
comment on column desk.accounts.id is 'The source''s key of the record.';
comment on column desk.accounts.name is 'Name of the organisation.';
comment on column desk.accounts.created_at is 'When the source says the record was created.';
comment on column desk.accounts.updated_at
    is 'The change mark: when the source says the record last changed.';

create table desk.users (
    tenant text not null,
    connection text not null,
    id text not null,
    name text,
    email text,
    role text,
    status text,
    created_at timestamptz,
    updated_at timestamptz,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint users_pkey primary key (connection, id),
    constraint users_connection_fkey foreign key (connection) references bridge.connections (name)
);
create index users_connection_updated_at_idx on desk.users (connection, updated_at);
comment on table desk.users is 'People: requesters, agents and watchers of tickets.';
comment on column desk.users.id is 'The source''s key of the record.';
comment on column desk.users.name is 'Full name.';
comment on column desk.users.email is 'E-mail address.';
comment on column desk.users.role is 'Role at the desk; several are separated by commas.';
comment on column desk.users.status is 'Whether the user may sign in: active or locked.';
comment on column desk.users.created_at is 'When the source says the record was created.';
comment on column desk.users.updated_at
    is 'The change mark: when the source says the record last changed.';

create table desk.tickets (
    tenant text not null,
    connection text not null,
    id text not null,
    subject text,
    description text,
    status text,
    priority text,
    tags jsonb,
    account_id text,
    created_at timestamptz,
    updated_at timestamptz,
    resolved_at timestamptz,
    responded_at timestamptz,
    closed_at timestamptz,
    is_closed boolean,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint tickets_pkey primary key (connection, id),
    constraint tickets_account_id_fkey
        foreign key (connection, account_id) references desk.accounts (connection, id),
    constraint tickets_connection_fkey foreign key (connection) references bridge.connections (name)
);
create index tickets_connection_account_id_idx on desk.tickets (connection, account_id);
create index tickets_connection_updated_at_idx on desk.tickets (connection, updated_at);
comment on table desk.tickets
    is 'Requests for help, in the newest version that the source has shown.';
comment on column desk.tickets.id is 'The source''s key of the record.';
comment on column desk.tickets.subject is 'One-line summary.';
comment on column desk.tickets.description is 'The request as it was written.';
comment on column desk.tickets.status is 'Name of the status at the source.';
comment on column desk.tickets.priority is 'Name of the priority at the source.';
comment on column desk.tickets.tags is 'Tags as a list of texts.';
comment on column desk.tickets.account_id is 'The account the ticket belongs to.';
comment on column desk.tickets.created_at is 'When the source says the record was created.';
comment on column desk.tickets.updated_at
    is 'The change mark: when the source says the record last changed.';
comment on column desk.tickets.resolved_at is 'When the ticket was resolved; null while it is not.';
comment on column desk.tickets.responded_at is 'When the first response was given.';
comment on column desk.tickets.closed_at is 'When the ticket was closed.';
comment on column desk.tickets.is_closed is 'Whether the source counts the status as closed.';

create table desk.ticket_users (
    tenant text not null,
    connection text not null,
    ticket_id text not null,
    user_id text not null,
    part text not null,
    constraint ticket_users_pkey primary key (connection, ticket_id, user_id, part),
    constraint ticket_users_ticket_id_fkey
        foreign key (connection, ticket_id) references desk.tickets (connection, id),
    constraint ticket_users_user_id_fkey
        foreign key (connection, user_id) references desk.users (connection, id)
);
create index ticket_users_connection_user_id_idx on desk.ticket_users (connection, user_id);
comment on table desk.ticket_users
    is 'Which users take part in which tickets, as of the ticket''s newest version.';
comment on column desk.ticket_users.part
    is 'What the user is to the ticket: requester, creator, assignee or watcher.';
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
