"""Checks that say whose threshold held, day counts for volumes, and inventories of the payload's fields."""

from alembic import op

revision = "0003"
down_revision = "0002"

DDL = """
alter table bridge.batches add column first_read_of date;

alter table bridge.checks
    add column stage text not null default 'batch',
    add column source text not null default 'suite',
    add column threshold jsonb not null default '{}',
    add column replaced jsonb not null default '{}',
    add column judged boolean not null default true,
    add column note text not null default '';
alter table bridge.checks
    add constraint checks_stage_check check (stage in ('batch', 'load', 'tables'));
alter table bridge.checks
    add constraint checks_source_check check (source in ('suite', 'connector', 'tenant'));

create table bridge.day_counts (
    batch_id bigint not null,
    day date not null,
    rows bigint not null default 0,
    constraint day_counts_pkey primary key (batch_id, day),
    constraint day_counts_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);

create table bridge.inventories (
    batch_id bigint not null,
    records bigint not null default 0,
    sampled bigint not null default 0,
    absent jsonb not null default '[]',
    fields jsonb not null default '{}',
    constraint inventories_pkey primary key (batch_id),
    constraint inventories_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
);
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
