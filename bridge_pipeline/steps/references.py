"""What is expected of the tables once a window is loaded: references, owners, freshness. Nothing blocks.

The results stand in the ledger with the newest batch of the window; examples are ids alone.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.ledger import CheckResult
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES, Entity, Window
from bridge_pipeline.model.expectation import Expectation
from bridge_pipeline.steps import facts
from bridge_pipeline.steps.suites import suite_of

_EXAMPLES = 10
# What the planner knows of the tables may be from before the load: where it takes many rows for one, a
# nested loop over them is quadratic. Hashing is linear, whatever they are.
_PLANNED = "set local enable_nestloop = off"


def check_tables(
    workspace: Workspace,
    name: str,
    entity: str,
    window: Window,
    run_id: str | None = None,
    now: datetime | None = None,
    rows: int | None = None,
) -> list[CheckResult]:
    """Looks at the tables of a connection after a load, and records what was found.

    Args:
        now: the time by which freshness is judged; by default the present.
        rows: how many records the table holds, where that has been counted: it means reading all of them.

    Raises:
        InvalidExpectations: the tenant's file of expectations is wrong.
    """
    record = registry.get(workspace.database.engine, name)
    suite = [e for e in suite_of(workspace, record, entity) if e.subject == "tables"]
    moment = now or datetime.now(UTC)
    with transaction(workspace.database.engine, "references") as connection:
        connection.execute(sa.text(_PLANNED))
        if rows is None:
            rows = ledger.rows_in_table(connection, name, entity)
        results = [
            _judge(e, connection, workspace, record, ENTITIES[entity], rows, moment)
            if e.enabled
            else facts.switched_off(e)
            for e in suite
        ]
        batch = ledger.newest_batch(connection, name, entity, window, run_id)
        if batch is not None:
            ledger.record_stage(connection, batch.id, "tables", results)
    return results


def _judge(
    expectation: Expectation,
    connection: sa.Connection,
    workspace: Workspace,
    record: ConnectionRecord,
    entity: Entity,
    rows: int,
    now: datetime,
) -> CheckResult:
    if expectation.name == "freshness":
        return _freshness(expectation, connection, workspace, record, entity, now)
    judges: dict[str, Callable[[], sa.Select]] = {
        **{f"{parent}_known": partial(_missing, entity, parent, False) for parent in entity.parent_entities},
        **{f"{parent}_exist": partial(_missing, entity, parent, True) for parent in entity.parent_entities},
        "requesters_have_email": partial(_without_email, entity),
    }
    return _counted(expectation, connection, record.name, rows, judges[expectation.name]())


def _counted(
    expectation: Expectation, connection: sa.Connection, name: str, rows: int, failing: sa.Select
) -> CheckResult:
    """The outcome of a query that gives the id of each failing record and what it refers to."""
    values = {"name": name}
    found = failing.subquery()
    unexpected = connection.scalar(sa.select(sa.func.count(sa.distinct(found.c.id))), values) or 0
    # Ids as people order them: short before long.
    query = sa.select(found).order_by(sa.func.length(found.c.id), *found.c).limit(_EXAMPLES)
    examples = [dict(row._mapping) for row in connection.execute(query, values)] if unexpected else []
    return facts.result(expectation, not unexpected, rows, unexpected, examples)


def _missing(entity: Entity, parent: str, denied: bool) -> sa.Select:
    """Records that refer to a parent of which only the id is known; `denied`: the source has none either."""
    links = [_links(entity, column.name, column.references or "") for column in entity.parents]
    if entity.people and parent == "users":
        links.append(_user_links())
    mine = [link for link in links if link[1] == parent]
    parents = t.desk_table(ENTITIES[parent])
    asked = sa.exists().where(
        t.lookups.c.connection == parents.c.connection,
        t.lookups.c.entity == parent,
        t.lookups.c.record_id == parents.c.id,
    )
    queries = [
        query.join(
            parents, sa.and_(parents.c.connection == sa.bindparam("name"), parents.c.id == held)
        ).where(parents.c.placeholder, *([asked] if denied else []))
        for query, _, held in mine
    ]
    united = sa.union(*queries).subquery() if len(queries) > 1 else queries[0].subquery()
    return sa.select(united.c.id, united.c.refers_to)


def _links(entity: Entity, column: str, parent: str) -> tuple[sa.Select, str, sa.ColumnElement[Any]]:
    table = t.desk_table(entity)
    held = table.c[column]
    query = sa.select(table.c.id, held.label("refers_to")).where(
        table.c.connection == sa.bindparam("name"), table.c.deleted_at.is_(None), ~table.c.placeholder
    )
    return query, parent, held


def _user_links() -> tuple[sa.Select, str, sa.ColumnElement[Any]]:
    links = t.ticket_users
    query = sa.select(links.c.ticket_id.label("id"), links.c.user_id.label("refers_to")).where(
        links.c.connection == sa.bindparam("name")
    )
    return query, "users", links.c.user_id


def _without_email(entity: Entity) -> sa.Select:
    """Records whose requester has no e-mail address, with the requester's id."""
    users, links, table = t.desk_table(ENTITIES["users"]), t.ticket_users, t.desk_table(entity)
    return (
        sa.select(links.c.ticket_id.label("id"), links.c.user_id.label("user"))
        .join(users, sa.and_(users.c.connection == links.c.connection, users.c.id == links.c.user_id))
        .join(table, sa.and_(table.c.connection == links.c.connection, table.c.id == links.c.ticket_id))
        .where(
            links.c.connection == sa.bindparam("name"),
            links.c.part == "requester",
            ~users.c.placeholder,
            users.c.deleted_at.is_(None),
            table.c.deleted_at.is_(None),
            sa.func.coalesce(sa.func.trim(users.c.email), "") == "",
        )
    )


def _freshness(
    expectation: Expectation,
    connection: sa.Connection,
    workspace: Workspace,
    record: ConnectionRecord,
    entity: Entity,
    now: datetime,
) -> CheckResult:
    """How old the newest settled day is that was read whole, and the newest change that a listing brought.

    Days read again are as old as they were, and a record fetched by its id says nothing of the rest: so
    neither a backfill nor a lookup makes a desk look fresh.
    """
    if not record.scheduled:
        return facts.not_judged(expectation, "the connection is not on the schedule")
    until = ledger.complete_until(connection, record.name, entity.name, workspace.settings.settle_lag)
    change = ledger.newest_change(connection, record.name, entity.name)
    limits = expectation.arguments
    found = []
    if _older(until, now, limits["max_age_hours"]):
        found.append({"complete_until": _told(until), "newest_change_before": _told(change)})
    if limits["max_quiet_hours"] and _older(change, now, limits["max_quiet_hours"]):
        found.append(
            {"newest_change_before": _told(change), "quiet_for_more_than_hours": limits["max_quiet_hours"]}
        )
    note = f"complete until {_told(until)}, newest changes before {_told(change)}"
    return facts.result(expectation, not found, 1, int(bool(found)), found, note=note)


def _older(moment: datetime | None, now: datetime, hours: float) -> bool:
    return moment is None or now - moment > timedelta(hours=hours)


def _told(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "never"
