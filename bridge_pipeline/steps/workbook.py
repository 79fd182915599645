"""The workbook of rejected records that goes with a report: texts only, so that nothing in it can run."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.connector_kit.journal import write_durably
from bridge_pipeline.database import tables as t
from bridge_pipeline.masking import masked_detail, masked_key, masked_record, masked_text
from bridge_pipeline.redaction import redact_secrets
from bridge_pipeline.steps.reasons import Reason

# What a reader can look through; all of them are listed by `bridge quarantine list`.
_MOST_ROWS = 20_000
# A cell takes 32,767 characters; a record is recognised by far fewer.
_MOST_LETTERS = 4_000
Link = Callable[[str], str | None]

_COLUMNS = {
    "entity": 12,
    "id at the source": 18,
    "what is wrong": 60,
    "what mends it": 60,
    "who sees to it": 16,
    "reason code": 22,
    "where in the record": 26,
    "detail": 40,
    "record": 80,
    "SHA-256": 66,
    "page at the source": 50,
    "batch": 8,
}


def write_workbook(
    connection: sa.Connection,
    path: Path,
    day: date,
    batches: Sequence[int],
    reasons: dict[tuple[str, str], Reason],
    links: dict[str, Link],
    clear: bool,
) -> Path | None:
    """Writes the records of the batches that are in quarantine; None, and no file, where there are none.

    Args:
        reasons: the words for each (entity, reason code).
        links: entity -> function of a record's id that gives its page at the source.
        clear: whether personal values are shown as they are.
    """
    rows = _rows(connection, batches, reasons, links, clear)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, _workbook(day, first, rows), alone=True)
    return path


def _workbook(day: date, first: list[str], rows: Iterator[list[str]]) -> bytes:
    # Its import takes a moment that only a report pays for.
    import xlsxwriter

    buffer = BytesIO()
    # Not even a text that looks like a formula, number or link is taken for one.
    plain = {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    book = xlsxwriter.Workbook(buffer, {"constant_memory": True, **plain})
    # The same records give the same file.
    book.set_properties({"created": datetime.combine(day, time.min, UTC), "title": "Rejected records"})
    sheet = book.add_worksheet("rejected records")
    bold = book.add_format({"bold": True, "bottom": 1})
    wrapped = book.add_format({"text_wrap": True, "valign": "top"})
    for column, (title, width) in enumerate(_COLUMNS.items()):
        sheet.set_column(column, column, width)
        sheet.write_string(0, column, title, bold)
    sheet.freeze_panes(1, 0)
    count = 0
    for count, row in enumerate(chain([first], rows), start=1):
        _write(sheet, count, row, wrapped)
    sheet.autofilter(0, 0, count, len(_COLUMNS) - 1)
    book.close()
    return buffer.getvalue()


def _write(sheet: Any, number: int, row: list[str], style: Any) -> None:
    for column, value in enumerate(row):
        sheet.write_string(number, column, redact_secrets(value)[:_MOST_LETTERS], style)


def _rows(
    connection: sa.Connection,
    batches: Sequence[int],
    reasons: dict[tuple[str, str], Reason],
    links: dict[str, Link],
    clear: bool,
) -> Iterator[list[str]]:
    q, s = t.quarantine, t.quarantine_sightings
    same = sa.and_(q.c.connection == s.c.connection, q.c.entity == s.c.entity, q.c.sha256 == s.c.sha256)
    query = (
        sa.select(q.c.entity, q.c.reason, s.c.batch_id, q.c.sha256, q.c.record_id)
        .add_columns(q.c.pointer, q.c.detail, sa.func.substr(q.c.raw, 1, 1_000_000).label("raw"))
        .join_from(s, q, same)
        .where(s.c.batch_id.in_(batches), q.c.replayed_at.is_(None))
        .order_by(q.c.entity, q.c.reason, q.c.sha256, s.c.batch_id)
        .limit(_MOST_ROWS)
        .execution_options(yield_per=20)
    )
    for row in connection.execute(query):
        reason = reasons[row.entity, row.reason]
        known = row.record_id is not None
        yield [
            row.entity,
            masked_key(row.record_id, clear) if known else "",
            reason.sentence,
            reason.remedy,
            reason.owner,
            row.reason,
            masked_text(row.pointer, clear) or "the whole record",
            masked_detail(row.reason, row.detail, clear),
            masked_record(bytes(row.raw), clear),
            row.sha256,
            (links[row.entity](row.record_id) or "") if known else "",
            str(row.batch_id),
        ]
