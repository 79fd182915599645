"""Runs the migrations on the connection that `migrate` hands over; there is no other way in."""

from alembic import context

from bridge_pipeline.database.migrate import VERSION_TABLE
from bridge_pipeline.naming import BRIDGE_SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=BRIDGE_SCHEMA,
)
with context.begin_transaction():
    context.run_migrations()
