"""Where people look at a record at its source."""

from bridge_pipeline import connectors
from bridge_pipeline.database.registry import ConnectionRecord


def record_url(record: ConnectionRecord, entity: str, record_id: str) -> str | None:
    """The source's own page of a record, or None where the connector does not know such pages."""
    page_of = connectors.get(record.connector).record_url
    base = str(record.config.get("base_url", "")).rstrip("/")
    return page_of(base, entity, record_id) if page_of else None
