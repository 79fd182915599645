"""Foreign keys whose check per row costs more than the row, and an index that nothing reads by.

What they promised the load's own statements make so: see docs/decisions/0024.
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
    op.execute(DDL)
