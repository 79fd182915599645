"""How a stream parses one record: what it comes to in the columns of landing."""

import json
from typing import Any

import pyarrow as pa

from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import from_microseconds, microseconds
from bridge_pipeline.model import Kind
from bridge_pipeline.steps.parse import RecordParser

LATEST = microseconds("2030-01-01T00:00:00Z", "")


def parsed(stream: Stream, record: dict[str, Any]) -> dict[str, Any]:
    """The record's row by column, with its content hash; times in µs, JSON as text."""
    (row,) = together(stream, [record])
    return row


def together(stream: Stream, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of records that are parsed as one page."""
    exact = [b"exact bytes"] * len(records)
    batch = RecordParser(stream).batch(records, LATEST, exact).drop_columns(["raw"])
    fields = [
        field.with_type(pa.int64()) if pa.types.is_timestamp(field.type) else field for field in batch.schema
    ]
    return batch.cast(pa.schema(fields)).to_pylist()


def columns(stream: Stream, record: dict[str, Any]) -> dict[str, Any]:
    """The canonical values of a record by column, times and JSON in Python's form."""
    row, found = parsed(stream, record), {}
    for column in stream.entity.columns:
        value = row[column.name]
        if value is not None and column.kind is Kind.TIMESTAMP:
            value = from_microseconds(value)
        found[column.name] = json.loads(value) if value is not None and column.kind is Kind.JSON else value
    return found


def people(stream: Stream, record: dict[str, Any]) -> set[tuple[str, str]]:
    """The users of a record, each with the part."""
    return {(each["user_id"], each["part"]) for each in json.loads(parsed(stream, record)["people"])}
