"""The quota of a connection: whose credential it is, what is known of its limits, what is left.

Counting and waiting are `database.quota`; how a vendor counts is its connector's.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel

from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.connector_kit.quota import Bucket
from bridge_pipeline.database import quota, registry
from bridge_pipeline.database.quota import REQUESTS, Holder, Level, SharedQuota
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.settings import Settings


def shared_quota(
    workspace: Workspace,
    record: ConnectionRecord,
    connector: Connector,
    config: BaseModel,
    secrets: Mapping[str, str],
    settings: Settings,
) -> SharedQuota:
    """The quota that a connection shares with all that use its credential.

    Args:
        secrets: its credentials in clear, by field.
        settings: how patiently it asks.
    """
    credential = workspace.sealer.fingerprint(identity(record, connector, secrets))
    return SharedQuota(
        workspace.database.engine,
        Holder(record.tenant, record.name, credential, record.quota_reserve),
        known_buckets(record, connector, config),
        connector.metering,
        settings.connect_timeout + 2 * settings.read_timeout,
        patience=settings.retry_after_budget,
    )


def quota_of(workspace: Workspace, record: ConnectionRecord) -> list[dict[str, Any]]:
    """What a connection has of each bucket now: `limit` (units in `seconds`), `used`, `left`, `wait` …

    Empty for one that was never opened. Who else uses the credential is not said.
    """
    with workspace.database.engine.connect() as connection:
        credential = quota.credential_of(connection, record.name)
        found = quota.levels(connection, credential) if credential else []
    return [_shown(level, record.quota_reserve) for level in found]


def quotas(workspace: Workspace) -> list[dict[str, Any]]:
    """Every credential in use: the connections that share it, and what it has of each bucket now.

    What is left is what the connection with the smallest reserve may use.
    """
    records = {record.name: record for record in registry.list_connections(workspace.database.engine)}
    with workspace.database.engine.connect() as connection:
        shared = quota.shared_by(connection)
        found = quota.levels(connection)
    result = []
    for credential, names in shared.items():
        reserve = min((records[name].quota_reserve for name in names if name in records), default=0.0)
        mine = [_shown(level, reserve) for level in found if level.credential == credential]
        result.append({"connections": names, "reserve": reserve, "buckets": mine})
    return result


def _shown(level: Level, reserve: float) -> dict[str, Any]:
    return {
        "bucket": level.bucket,
        "limit": level.limit,
        "seconds": level.seconds,
        "used": level.used,
        "others": level.others,
        "left": level.left(reserve),
        "wait": round(level.wait(reserve), 1),
        "waiting": level.waiting,
    }


def known_buckets(record: ConnectionRecord, connector: Connector, config: BaseModel) -> tuple[Bucket, ...]:
    """The limits published for the connection's plan, and the one configured for it."""
    published = connector.metering.buckets(config) if connector.metering else ()
    if record.requests_per_minute is None:
        return published
    return (Bucket(REQUESTS, record.requests_per_minute), *published)


def identity(record: ConnectionRecord, connector: Connector, secrets: Mapping[str, str]) -> str:
    """All that makes a credential this one: connector, origin, login and secrets. Only for a fingerprint.

    Of a source that counts by account, connector and origin are all. Case of addresses and logins does
    not count: taking two for one keeps both within the limit.
    """
    address = urlsplit(str(record.config.get("base_url", "")).casefold())
    port = _port(address) or {"http": 80, "https": 443}.get(address.scheme)
    account = [connector.name, address.scheme, address.hostname, port]
    if connector.metering and connector.metering.per_account:
        return json.dumps(account)
    login = [str(record.config.get(name) or "").casefold() for name in connector.logins]
    return json.dumps([*account, login, sorted(secrets.items())])


def _port(address: SplitResult) -> int | None:
    """The port, if there can be such a one; an address without is refused where it is opened."""
    try:
        return address.port
    except ValueError:
        return None
