"""Certificates, and the deletions that they observed."""

from alembic import op

revision = "0008"
down_revision = "0007"

DDL = """
create table bridge.certificates (
    connection text not null,
    number integer not null,
    tenant text not null,
    window_start timestamptz,
    window_end timestamptz,
    verdict text not null,
    listings jsonb not null,
    document jsonb not null,
    path text not null,
    sha256 text not null,
    page_sha256 text not null,
    accepted_by text,
    accept_reason text,
    run_id text,
    created_at timestamptz not null default now(),
    constraint certificates_pkey primary key (connection, number),
    constraint certificates_verdict_check check (verdict in ('complete', 'incomplete', 'blocked')),
    constraint certificates_connection_fkey foreign key (connection) references bridge.connections (name)
);

create table bridge.deletions (
    connection text not null,
    entity text not null,
    record_id text not null,
    observed_at timestamptz not null,
    tenant text not null,
    reason text not null,
    evidence text not null,
    certificate integer not null,
    accepted_by text,
    constraint deletions_pkey primary key (connection, entity, record_id, observed_at),
    constraint deletions_reason_check check (reason in ('lookup', 'listing', 'marked')),
    constraint deletions_connection_fkey
        foreign key (connection, certificate) references bridge.certificates (connection, number)
)
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
