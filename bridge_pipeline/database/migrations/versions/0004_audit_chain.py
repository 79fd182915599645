"""The audit chains: one signed entry for every write to a tenant's audit folder."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
        create table bridge.chain (
            tenant text not null,
            sequence bigint not null,
            kind text not null,
            line text not null,
            sha256 text not null,
            next_key text not null,
            ends bigint not null,
            at timestamptz not null,
            constraint chain_pkey primary key (tenant, sequence),
            constraint chain_tenant_fkey foreign key (tenant) references bridge.tenants (name)
        )
    """)
