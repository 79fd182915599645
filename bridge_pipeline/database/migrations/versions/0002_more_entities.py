"""The tables of groups, comments, assets, problems and changes."""

from alembic import op

revision = "0002"
down_revision = "0001"

DDL = """
create table desk.groups (
    tenant text not null,
    connection text not null,
    id text not null,
    name text,
    description text,
    created_at timestamptz,
    updated_at timestamptz,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint groups_pkey primary key (connection, id),
    constraint groups_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index groups_connection_updated_at_idx on desk.groups (connection, updated_at);
comment on table desk.groups
    is 'Teams of agents that tickets are assigned to.';
comment on column desk.groups.id
    is 'The source''s key of the record.';
comment on column desk.groups.name
    is 'Name of the group.';
comment on column desk.groups.description
    is 'What the group is for.';
comment on column desk.groups.created_at
    is 'When the source says the record was created.';
comment on column desk.groups.updated_at
    is 'The change mark: when the source says the record last changed.';

create table desk.comments (
    tenant text not null,
    connection text not null,
    id text not null,
    ticket_id text,
    author_id text,
    body text,
    is_public boolean,
    created_at timestamptz,
    updated_at timestamptz,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint comments_pkey primary key (connection, id),
    constraint comments_ticket_id_fkey
        foreign key (connection, ticket_id) references desk.tickets (connection, id),
    constraint comments_author_id_fkey
        foreign key (connection, author_id) references desk.users (connection, id),
    constraint comments_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index comments_connection_ticket_id_idx on desk.comments (connection, ticket_id);
create index comments_connection_author_id_idx on desk.comments (connection, author_id);
create index comments_connection_updated_at_idx on desk.comments (connection, updated_at);
comment on table desk.comments
    is 'What was said and noted in tickets.';
comment on column desk.comments.id
    is 'The source''s key of the record.';
comment on column desk.comments.ticket_id
    is 'The ticket the comment belongs to.';
comment on column desk.comments.author_id
    is 'The user who wrote it.';
comment on column desk.comments.body
    is 'The comment as it was written.';
comment on column desk.comments.is_public
    is 'Whether the requester may read it.';
comment on column desk.comments.created_at
    is 'When the source says the record was created.';
comment on column desk.comments.updated_at
    is 'The change mark: when the source says the record last changed.';

create table desk.assets (
    tenant text not null,
    connection text not null,
    id text not null,
    name text,
    type text,
    status text,
    serial_number text,
    account_id text,
    user_id text,
    created_at timestamptz,
    updated_at timestamptz,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint assets_pkey primary key (connection, id),
    constraint assets_account_id_fkey
        foreign key (connection, account_id) references desk.accounts (connection, id),
    constraint assets_user_id_fkey
        foreign key (connection, user_id) references desk.users (connection, id),
    constraint assets_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index assets_connection_account_id_idx on desk.assets (connection, account_id);
create index assets_connection_user_id_idx on desk.assets (connection, user_id);
create index assets_connection_updated_at_idx on desk.assets (connection, updated_at);
comment on table desk.assets
    is 'Configuration items: devices, software and services that tickets are about.';
comment on column desk.assets.id
    is 'The source''s key of the record.';
comment on column desk.assets.name
    is 'Name of the asset.';
comment on column desk.assets.type
    is 'Kind of asset at the source.';
comment on column desk.assets.status
    is 'State of the asset at the source.';
comment on column desk.assets.serial_number
    is 'The manufacturer''s serial number.';
comment on column desk.assets.account_id
    is 'The account the asset belongs to.';
comment on column desk.assets.user_id
    is 'The user the asset is assigned to.';
comment on column desk.assets.created_at
    is 'When the source says the record was created.';
comment on column desk.assets.updated_at
    is 'The change mark: when the source says the record last changed.';

create table desk.problems (
    tenant text not null,
    connection text not null,
    id text not null,
    subject text,
    description text,
    status text,
    priority text,
    account_id text,
    created_at timestamptz,
    updated_at timestamptz,
    resolved_at timestamptz,
    closed_at timestamptz,
    is_closed boolean,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint problems_pkey primary key (connection, id),
    constraint problems_account_id_fkey
        foreign key (connection, account_id) references desk.accounts (connection, id),
    constraint problems_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index problems_connection_account_id_idx on desk.problems (connection, account_id);
create index problems_connection_updated_at_idx on desk.problems (connection, updated_at);
comment on table desk.problems
    is 'Causes behind several tickets.';
comment on column desk.problems.id
    is 'The source''s key of the record.';
comment on column desk.problems.subject
    is 'One-line summary.';
comment on column desk.problems.description
    is 'The problem as it was written.';
comment on column desk.problems.status
    is 'Name of the status at the source.';
comment on column desk.problems.priority
    is 'Name of the priority at the source.';
comment on column desk.problems.account_id
    is 'The account the problem belongs to.';
comment on column desk.problems.created_at
    is 'When the source says the record was created.';
comment on column desk.problems.updated_at
    is 'The change mark: when the source says the record last changed.';
comment on column desk.problems.resolved_at
    is 'When the problem was resolved; null while it is not.';
comment on column desk.problems.closed_at
    is 'When the problem was closed.';
comment on column desk.problems.is_closed
    is 'Whether the source counts the status as closed.';

create table desk.changes (
    tenant text not null,
    connection text not null,
    id text not null,
    subject text,
    description text,
    status text,
    priority text,
    type text,
    risk text,
    account_id text,
    planned_start_at timestamptz,
    planned_end_at timestamptz,
    created_at timestamptz,
    updated_at timestamptz,
    closed_at timestamptz,
    is_closed boolean,
    custom_fields jsonb not null default '{}',
    placeholder boolean not null default false,
    content_hash text,
    fetched_at timestamptz,
    deleted_at timestamptz,
    loaded_at timestamptz not null default now(),
    batch_id bigint not null,
    constraint changes_pkey primary key (connection, id),
    constraint changes_account_id_fkey
        foreign key (connection, account_id) references desk.accounts (connection, id),
    constraint changes_connection_fkey
        foreign key (connection) references bridge.connections (name)
);
create index changes_connection_account_id_idx on desk.changes (connection, account_id);
create index changes_connection_updated_at_idx on desk.changes (connection, updated_at);
comment on table desk.changes
    is 'Planned changes to what the desk looks after.';
comment on column desk.changes.id
    is 'The source''s key of the record.';
comment on column desk.changes.subject
    is 'One-line summary.';
comment on column desk.changes.description
    is 'The change as it was written.';
comment on column desk.changes.status
    is 'Name of the status at the source.';
comment on column desk.changes.priority
    is 'Name of the priority at the source.';
comment on column desk.changes.type
    is 'Kind of change at the source, such as standard or emergency.';
comment on column desk.changes.risk
    is 'Risk of the change at the source.';
comment on column desk.changes.account_id
    is 'The account the change belongs to.';
comment on column desk.changes.planned_start_at
    is 'When the change is planned to begin.';
comment on column desk.changes.planned_end_at
    is 'When the change is planned to end.';
comment on column desk.changes.created_at
    is 'When the source says the record was created.';
comment on column desk.changes.updated_at
    is 'The change mark: when the source says the record last changed.';
comment on column desk.changes.closed_at
    is 'When the change was closed.';
comment on column desk.changes.is_closed
    is 'Whether the source counts the status as closed.';
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
