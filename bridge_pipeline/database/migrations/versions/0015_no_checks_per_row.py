"""Without the foreign keys to parents, and the indexes that only they and one count read by.

Every load adds the parents that are missing before the rows that refer to them: see
docs/decisions/0028.
"""

from alembic import op

revision = "0015"
down_revision = "0014"

_PARENTS = {
    "tickets": ("account_id",),
    "comments": ("ticket_id", "author_id"),
    "assets": ("account_id", "user_id"),
    "problems": ("account_id",),
    "changes": ("account_id",),
}


def upgrade() -> None:
    for entity, columns in _PARENTS.items():
        for column in columns:
            op.execute(f"alter table desk.{entity} drop constraint {entity}_{column}_fkey")
            op.execute(f"drop index desk.{entity}_connection_{column}_idx")
