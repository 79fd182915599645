"""The access tokens of credentials, sealed."""

from alembic import op

revision = "0009"
down_revision = "0008"

DDL = """
create table bridge.access_tokens (
    credential text not null,
    identity jsonb not null,
    access_token jsonb,
    refresh_token jsonb,
    expires_at timestamptz,
    sent_at timestamptz,
    renewed_at timestamptz,
    constraint access_tokens_pkey primary key (credential)
);
"""


def upgrade() -> None:
    op.execute(DDL)
