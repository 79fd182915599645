"""The tenants and connections that this installation knows, as rows of `bridge.connections`.

What a connection may be is decided in `steps.connect`; here it is only kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.sealing import Box, Sealer
from bridge_pipeline.database.tables import connections, purges, reviewers, tenants
from bridge_pipeline.naming import checked_key


class UnknownConnection(LookupError):
    """There is no connection of that name; the message lists those there are."""


class TenantFixed(ValueError):
    """A connection stays with its tenant: the rows and files it brought are that tenant's."""


class UnknownTenant(LookupError):
    """There is no tenant of that name."""


class TenantInUse(ValueError):
    """The tenant has connections; the message names them."""


class BeingPurged(RuntimeError):
    """What a connection of that name brought is being removed; a new one would lose what it brings."""


@dataclass(frozen=True)
class ConnectionRecord:
    """One connection without its credentials.

    `created_at` and `removed_at` are set by the registry and ignored by `put`. `first_day` None
    means the one of the settings, `requests_per_minute` None that no limit is configured. Of every limit
    the share `quota_reserve` is left to others. The daily schedule leaves out a connection that is not
    `scheduled`.
    """

    name: str
    tenant: str
    connector: str
    config: Mapping[str, Any]
    entities: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    quota_reserve: float = 0.2
    first_day: date | None = None
    scheduled: bool = True
    created_at: datetime | None = field(default=None, compare=False)
    removed_at: datetime | None = None


def get(engine: sa.Engine, name: str) -> ConnectionRecord:
    """The connection called `name`, also a removed one.

    Raises:
        UnknownConnection: there is none.
    """
    return _record(_row(engine, name))


def tenant_of(connection: sa.Connection, name: str) -> str:
    """The tenant that owns a connection, which may have been removed.

    Raises:
        UnknownConnection: there is no such connection.
    """
    tenant = connection.scalar(sa.select(connections.c.tenant).where(connections.c.name == name))
    if tenant is None:
        raise UnknownConnection(f"there is no connection {name!r}")
    return tenant


def list_connections(engine: sa.Engine, include_removed: bool = False) -> list[ConnectionRecord]:
    """All connections by name, without the removed ones unless asked for."""
    query = sa.select(connections).order_by(connections.c.name)
    if not include_removed:
        query = query.where(connections.c.removed_at.is_(None))
    with engine.connect() as connection:
        return [_record(row) for row in connection.execute(query)]


def add_tenant(engine: sa.Engine, name: str) -> None:
    """Adds a tenant; one that is known stays as it is.

    Raises:
        InvalidKey: that may not be a tenant's name.
    """
    with transaction(engine, "registry.tenant") as connection:
        ensure_tenant(connection, checked_key("tenant", name))


def ensure_tenant(connection: sa.Connection, name: str) -> bool:
    """Whether a tenant was new, or had been removed, before it was added here.

    Until the transaction ends it cannot be removed.
    """
    present = sa.select(tenants.c.removed_at.is_(None)).where(tenants.c.name == name)
    if connection.scalar(present.with_for_update(key_share=True)):
        return False
    upsert = insert(tenants).values(name=name)
    upsert = upsert.on_conflict_do_update(index_elements=["name"], set_={"removed_at": None})
    connection.execute(upsert)
    return True


def remove_tenant(connection: sa.Connection, name: str) -> None:
    """Takes a tenant that has no connections off the list; its row stays for its audit chain.

    Raises:
        UnknownTenant: there is none of that name.
        TenantInUse: it has connections, perhaps disabled ones.
    """
    row = sa.select(tenants.c.name).where(tenants.c.name == name)
    if connection.scalar(row.with_for_update(key_share=True)) is None:
        raise UnknownTenant(f"there is no tenant {name!r}; see `bridge tenants list`")
    query = sa.select(connections.c.name).where(connections.c.tenant == name).order_by(connections.c.name)
    if left := connection.scalars(query).all():
        raise TenantInUse(
            f"the tenant {name!r} has connections: {', '.join(left)}; remove each of them first, with "
            "`bridge connections remove NAME --purge`"
        )
    gone = sa.func.coalesce(tenants.c.removed_at, sa.func.now())
    connection.execute(sa.update(tenants).where(tenants.c.name == name).values(removed_at=gone))


def list_tenants(engine: sa.Engine) -> list[str]:
    """The names of all tenants that were not removed."""
    query = sa.select(tenants.c.name).where(tenants.c.removed_at.is_(None)).order_by(tenants.c.name)
    with engine.connect() as connection:
        return list(connection.scalars(query))


def put(
    engine: sa.Engine,
    record: ConnectionRecord,
    sealed_secrets: Mapping[str, Box],
    variables: Sequence[str] = (),
) -> None:
    """Writes a connection and its sealed credentials, new or in place of the old; it is active then.

    A tenant that is not known yet is added. `variables` are the environment variables that the
    file named, which no child process should inherit.

    Raises:
        InvalidKey: the name of the tenant or connection may not be one.
        BeingPurged: a connection of that name is being removed with its data.
        TenantFixed: the connection belongs to another tenant.
    """
    row = {
        "name": checked_key("connection", record.name),
        "tenant": checked_key("tenant", record.tenant),
        "connector": record.connector,
        "config": dict(record.config),
        "secrets": {name: dict(box) for name, box in sealed_secrets.items()},
        "secret_variables": sorted(variables),
        "requests_per_minute": record.requests_per_minute,
        "quota_reserve": record.quota_reserve,
        "entities": list(record.entities),
        "exclude": list(record.exclude),
        "first_day": record.first_day,
        "scheduled": record.scheduled,
    }
    upsert = insert(connections).values(row)
    changes = {name: upsert.excluded[name] for name in row if name not in ("name", "tenant")}
    upsert = upsert.on_conflict_do_update(
        index_elements=["name"],
        set_={**changes, "changed_at": sa.func.now(), "removed_at": None},
        where=connections.c.tenant == upsert.excluded.tenant,
    ).returning(connections.c.name)
    with transaction(engine, "registry.connection") as connection:
        lock(connection, record.name)
        _refuse_purged(connection, record.name)
        ensure_tenant(connection, record.tenant)
        if connection.scalar(upsert) is None:
            raise TenantFixed(
                f"the connection {record.name!r} belongs to another tenant than {record.tenant!r} and cannot "
                "move: give the new one another name"
            )


def secrets(engine: sa.Engine, sealer: Sealer, name: str) -> dict[str, str]:
    """The credentials of a connection in clear, by field; `redaction` masks them from now on.

    Raises:
        UnknownConnection: there is none of that name.
        SealingError: the key does not open them.
    """
    row = _row(engine, name)
    return {field: sealer.unseal(box, row.tenant, row.name, field) for field, box in row.secrets.items()}


def shows_personal_data(engine: sa.Engine, tenant: str) -> bool:
    """Whether a tenant asked for personal values as they are in its reports and samples."""
    query = sa.select(tenants.c.show_personal_data).where(tenants.c.name == tenant)
    with engine.connect() as connection:
        return bool(connection.scalar(query))


def secret_variables(engine: sa.Engine, name: str | None = None) -> set[str]:
    """The environment variables that one connection, or everything, was given with.

    They are not for child processes.
    """
    query = sa.select(connections.c.secret_variables)
    if name is not None:
        query = query.where(connections.c.name == name)
    else:
        query = query.union_all(sa.select(reviewers.c.secret_variables))
    with engine.connect() as connection:
        return {variable for variables in connection.scalars(query) for variable in variables}


def remove(engine: sa.Engine, name: str) -> None:
    """Disables a connection; its rows and files stay. Removing it again changes nothing.

    Raises:
        UnknownConnection: there is none of that name.
    """
    _row(engine, name)
    with transaction(engine, "registry.removal") as connection:
        disable(connection, name)


def disable(connection: sa.Connection, name: str) -> None:
    """Disables a connection, if there is one that is not."""
    removal = sa.update(connections).where(connections.c.name == name, connections.c.removed_at.is_(None))
    connection.execute(removal.values(removed_at=sa.func.now()))


def lock(connection: sa.Connection, name: str) -> None:
    """Waits until nobody else adds or purges a connection of that name, to the transaction's end."""
    advisory_lock(connection, f"connection:{name}")


def exists(connection: sa.Connection, name: str) -> bool:
    """Whether there is a connection of that name, also a removed one."""
    return connection.scalar(sa.select(connections.c.name).where(connections.c.name == name)) is not None


def _refuse_purged(connection: sa.Connection, name: str) -> None:
    unfinished = sa.select(purges.c.id).where(purges.c.connection == name, purges.c.finished_at.is_(None))
    if connection.scalar(unfinished) is not None:
        raise BeingPurged(
            f"the connection {name!r} is being removed with its data, and that is not finished: run "
            f"`bridge connections remove {name} --purge` again, or wait for it, and then add it anew"
        )


def _row(engine: sa.Engine, name: str) -> sa.Row[Any]:
    with engine.connect() as connection:
        row = connection.execute(sa.select(connections).where(connections.c.name == name)).one_or_none()
        if row is None:
            known = ", ".join(connection.scalars(sa.select(connections.c.name).order_by(connections.c.name)))
            raise UnknownConnection(
                f"there is no connection {name!r}; there "
                + (f"are: {known}" if known else "is none yet: see `bridge connections add --help`")
            )
    return row


def _record(row: sa.Row[Any]) -> ConnectionRecord:
    return ConnectionRecord(
        name=row.name,
        tenant=row.tenant,
        connector=row.connector,
        config=row.config,
        entities=tuple(row.entities),
        exclude=tuple(row.exclude),
        requests_per_minute=row.requests_per_minute,
        quota_reserve=row.quota_reserve,
        first_day=row.first_day,
        scheduled=row.scheduled,
        created_at=row.created_at,
        removed_at=row.removed_at,
    )
