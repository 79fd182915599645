"""Deletions that an instance wrote down: rows of `sys_audit_delete` as tombstones (vendor-apis D.4, 6).

Such a row also holds the whole record that was deleted; nothing of it is asked for.
"""

from typing import Any

import orjson

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connectors.servicenow.keyset import ID, Span
from bridge_pipeline.connectors.servicenow.streams import DELETED

PATH = "/api/now/table/sys_audit_delete"
COLUMNS = f"{ID},tablename,documentkey,sys_created_on"
_WHEN = "sys_created_on"


def asked(stream: Stream, start: str, end: str) -> str:
    """The query for what was deleted of a stream's table in `[start, end)`."""
    return Span(f"tablename={_table(stream)}", _WHEN, start, end).first()


def tombstones(body: bytes, stream: Stream, start: str, end: str) -> PageContent:
    """The rows of an answer as records of the stream that say no more than which was deleted, and when.

    Others than were asked for are passed over: what an instance does not understand of a query is
    dropped (D.2). `total` is how many rows there are in the answer, whatever they say.

    Raises:
        UnreadableBody: it is no list.
    """
    content = pages.parse_list(body, stream.names)
    changed = stream.fields[stream.entity.column_names.index("updated_at")].consumes[0]
    found = [
        {ID: row.get("documentkey"), changed: row[_WHEN], DELETED: "true"}
        for row in content.records
        if _is_asked_for(row, _table(stream), start, end)
    ]
    return PageContent(found, total=len(content.records), exact=[orjson.dumps(each) for each in found])


def _is_asked_for(row: Any, table: str, start: str, end: str) -> bool:
    when = row.get(_WHEN) if isinstance(row, dict) else None
    return isinstance(when, str) and row.get("tablename") == table and start <= when < end


def _table(stream: Stream) -> str:
    return stream.path.rsplit("/", 1)[1]
