"""Where people look at a record at its source."""

from urllib.parse import urlsplit

from bridge_pipeline import connectors
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.masking import masked_key


def record_url(record: ConnectionRecord, entity: str, record_id: str) -> str | None:
    """The source's own page of a record; None where the connector knows no such page, or none to open."""
    page_of = connectors.get(record.connector).record_url
    # An id that has to be masked would be quoted in the address.
    if page_of is None or masked_key(record_id) != record_id:
        return None
    url = page_of(str(record.config.get("base_url", "")).rstrip("/"), entity, record_id)
    return url if url and urlsplit(url).scheme in ("http", "https") else None
