"""Without foreign keys whose checks cost more than the row, and an index that nothing reads by.

What they promised the load's own statements make so: see docs/decisions/0024. Deleted records get an
index, which those that live cost nothing.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

_ENTITIES = ("accounts", "users", "groups", "tickets", "comments", "assets", "problems", "changes")

DDL = """
alter table desk.ticket_users
    drop constraint ticket_users_ticket_id_fkey,
    drop constraint ticket_users_user_id_fkey;

drop index desk.ticket_users_connection_user_id_idx
"""


def upgrade() -> None:
    for entity in _ENTITIES:
        op.execute(f"alter table desk.{entity} drop constraint {entity}_connection_fkey")
        op.execute(
            f"create index {entity}_deleted_idx on desk.{entity} (connection, updated_at) "
            "where deleted_at is not null"
        )
    op.execute(DDL)
