"""Which rows a connection has, in whatever tables there are, and the record that they were purged.

Which tables hold rows of a connection follows from their declarations: those with a column
`connection`, and those that refer to rows of such ones. The record stays when all of them are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.database import tables as t
from bridge_pipeline.naming import MARTS_SCHEMA

# What says that there was the connection.
_KEPT = (t.connections, t.purges)
_MARTS = """
select c.table_name from information_schema.columns c
join information_schema.tables using (table_schema, table_name)
where table_schema = :marts and c.column_name = 'connection' and table_type = 'BASE TABLE'
order by c.table_name
"""


@dataclass(frozen=True)
class Purge:
    """The removal of a connection with all it brought.

    Attributes:
        by: who wanted it.
        rows: how many were deleted, by table; None until they are.
        files: how many there were to remove, by folder of the home; None until the rows are deleted.
        finished_at: None while something is still to be removed.
    """

    id: int
    tenant: str
    connection: str
    by: str
    reason: str
    rows: Mapping[str, int] | None
    files: Mapping[str, int] | None
    begun_at: datetime
    finished_at: datetime | None


def begin(connection: sa.Connection, tenant: str, name: str, by: str, reason: str) -> Purge:
    """Says, before anything is removed, that a connection is being purged."""
    row = {"tenant": tenant, "connection": name, "purged_by": by, "reason": reason}
    return _purge(connection.execute(t.purges.insert().values(row).returning(t.purges)).one())


def latest(connection: sa.Connection, name: str) -> Purge | None:
    """The newest purge of a connection of that name, finished or not."""
    query = sa.select(t.purges).where(t.purges.c.connection == name).order_by(t.purges.c.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return _purge(row) if row else None


def note(connection: sa.Connection, purge: Purge, **values: Any) -> Purge:
    """Writes further columns of a purge."""
    change = t.purges.update().where(t.purges.c.id == purge.id).values(values)
    return _purge(connection.execute(change.returning(t.purges)).one())


def delete_rows(connection: sa.Connection, name: str) -> dict[str, int]:
    """Deletes all rows of a connection, in marts too, and the connection itself; how many, by table."""
    deleted = {
        table.fullname: connection.execute(table.delete().where(condition)).rowcount
        for table, condition in rows_of(name).items()
    }
    for mart in connection.scalars(sa.text(_MARTS), {"marts": MARTS_SCHEMA}).all():
        table = sa.table(mart, sa.column("connection"), schema=MARTS_SCHEMA)
        statement = sa.delete(table).where(table.c.connection == name)
        deleted[f"{MARTS_SCHEMA}.{mart}"] = connection.execute(statement).rowcount
    connection.execute(t.connections.delete().where(t.connections.c.name == name))
    return {table: count for table, count in deleted.items() if count}


def count_rows(connection: sa.Connection, name: str) -> dict[str, int]:
    """How many rows of a connection there are, by table; marts, which are derived, not among them."""
    queries = {
        table.fullname: sa.select(sa.func.count()).select_from(table).where(condition)
        for table, condition in rows_of(name).items()
    }
    counts = {table: connection.scalar(query) or 0 for table, query in queries.items()}
    return {table: count for table, count in counts.items() if count}


def rows_of(name: str) -> dict[sa.Table, sa.ColumnElement[bool]]:
    """Which rows of which tables are of a connection; tables that refer to others come before those."""
    found: dict[sa.Table, sa.ColumnElement[bool]] = {}
    for table in t.metadata.sorted_tables:
        if table not in _KEPT and (terms := _terms(table, name, found)):
            found[table] = _with_own_followers(table, sa.or_(*terms))
    return dict(reversed(found.items()))


def _terms(
    table: sa.Table, name: str, parents: Mapping[sa.Table, sa.ColumnElement[bool]]
) -> list[sa.ColumnElement[bool]]:
    own = [table.c.connection == name] if "connection" in table.c else []
    if own and not table.c.connection.nullable:
        return own
    keys = [key for key in table.foreign_key_constraints if key.referred_table in parents]
    return [*own, *(_referring(key, parents[key.referred_table]) for key in keys)]


def _with_own_followers(table: sa.Table, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Also the rows of a table that refer to other rows of it, and may have no connection themselves."""
    if "connection" in table.c and not table.c.connection.nullable:
        return condition
    own = [key for key in table.foreign_key_constraints if key.referred_table is table]
    return sa.or_(condition, *(_referring(key, condition) for key in own))


def _referring(key: sa.ForeignKeyConstraint, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    ours = [element.parent for element in key.elements]
    theirs = sa.select(*(element.column for element in key.elements)).where(condition)
    return sa.tuple_(*ours).in_(theirs.correlate(None))


def _purge(row: sa.Row[Any]) -> Purge:
    return Purge(
        row.id,
        row.tenant,
        row.connection,
        row.purged_by,
        row.reason,
        row.rows,
        row.files,
        row.begun_at,
        row.finished_at,
    )
