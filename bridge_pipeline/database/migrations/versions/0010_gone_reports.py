"""What sources list as deleted."""

from alembic import op

revision = "0010"
down_revision = "0009"

DDL = """
create table bridge.gone_reports (
    connection text not null,
    entity text not null,
    record_id text not null,
    tenant text not null,
    reported_at timestamptz,
    seen_at timestamptz not null,
    batch_id bigint not null,
    page bigint not null,
    position bigint not null,
    constraint gone_reports_pkey primary key (connection, entity, record_id),
    constraint gone_reports_connection_fkey foreign key (connection) references bridge.connections (name),
    constraint gone_reports_batch_id_fkey foreign key (batch_id) references bridge.batches (id)
)
"""


def upgrade() -> None:
    op.execute(DDL)
