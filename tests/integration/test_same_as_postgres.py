"""What DuckDB and Arrow pick, order, write and encode is what Postgres makes of the same landed rows.

Batches are landed by hand, so that every value and every order of versions can be had: a batch with
an id of several versions and a rejected row, a replay, a certificate's lookup, and deleted records.
"""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from bridge_pipeline.database import ledger
from bridge_pipeline.database.copying import stage
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import TICKETS, Kind
from bridge_pipeline.steps import cells, chosen, ordering
from bridge_pipeline.steps.audit import audit_window
from bridge_pipeline.steps.extract import landing_of
from bridge_pipeline.steps.load import load
from tests.integration.flow import NAME, connect, day, execute, rows

SPAN = day("2024-03-01", "2024-03-03")
READ = datetime(2024, 3, 4, 12, tzinfo=UTC)
TEXTS = [
    None, "", "plain", "=1+1", " =1", "\u3000＝1", "'quoted", "''", '"', 'a "b" c', "a,b;\t",
    "two\r\nlines\n", "\\.", "x\n\\.\ny", "\\N", "\x01\x7f", "ü😀", "\ufeff=1", "\u2028-1", "-", "@",
    "y" * 70_000,
]  # fmt: skip
TIMES = [None, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), READ]
JSON = [None, "[]", '["=1", "\\u00fc"]', '{ "b":1.50,"a":[null,true, 1e3]}', "null", '"text"', "0"]


@pytest.fixture
def random_numbers() -> random.Random:
    return random.Random(20240301)


def record(number: random.Random, record_id: str, changed: datetime | None, **values: Any) -> dict[str, Any]:
    """A landed ticket of awkward values."""
    picked = {column.name: number.choice(_VALUES[column.kind]) for column in TICKETS.columns}
    picked |= {"id": record_id, "updated_at": changed, "account_id": number.choice([None, "7", "8"])}
    people = number.choice(["[]", '[{"user_id": "1", "part": "requester"}]', None])
    picked |= {"people": people, "custom_fields": number.choice([each for each in JSON if each])}
    picked |= {"fetched_at": READ, "page": 0, "position": 0, "raw": "{}"} | values
    return {"content_hash": sha256(repr(sorted(picked.items())).encode()).hexdigest()} | picked


_VALUES = {Kind.TEXT: TEXTS, Kind.TIMESTAMP: TIMES, Kind.BOOLEAN: [None, True, False], Kind.JSON: JSON}


def landed(
    workspace: Workspace, records: list[dict[str, Any]], rejected: tuple[int, ...] = (), **facts: Any
) -> Batch:
    """Lists a batch of records in two files, several row groups each, with some of them rejected."""
    found = [{"seq": seq} | each for seq, each in enumerate(records)]
    with workspace.database.engine.begin() as connection:
        number = ledger.next_batch_id(connection)
        listed = {"kind": "window", "window_start": SPAN.start, "window_end": SPAN.end, "verdict": "passed"}
        counts = {"fetched": len(found), "landed": len(found), "rejected": len(rejected)}
        nothing = dict.fromkeys(("outside", "duplicate", "quarantined", "requests", "pages", "sweeps"), 0)
        times = {"fetched_from": READ, "fetched_to": READ, "extraction": number, "run_id": None}
        rest = {"proof": {}, "files": [], "excluded": []}
        batch = Batch(number, "acme", NAME, "tickets", **listed | counts | nothing | times | rest | facts)
        folder = landing_of(workspace, batch)
        folder.mkdir(parents=True)
        half = len(found) // 2
        for name, part in (("a", found[half:]), ("b", found[:half])):
            batch.files.append(written(folder / f"tickets.{name}.parquet", part))
        ledger.add_batch(connection, batch)
        for seq in rejected:
            values = {"batch": number, "seq": seq}
            connection.execute(sa.text("insert into bridge.rejections values (:batch, :seq, 'x')"), values)
    return batch


def written(path: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(records, TICKETS.landing_schema), path, row_group_size=7)
    return {
        "path": path.name,
        "rows": len(records),
        "bytes": path.stat().st_size,
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }


def world(workspace: Workspace, number: random.Random) -> dict[str, Batch]:
    """All that a day's file may be made of, and what does not belong to it."""

    def some(ids: list[int], **values: Any) -> list[dict[str, Any]]:
        moments = [SPAN.start + timedelta(microseconds=number.randrange(3 * 86_400 * 10**6)) for _ in ids]
        return [record(number, str(each), at, **values) for each, at in zip(ids, moments, strict=True)]

    many = some([*range(1, 60), 100, 1_000, 2_000])
    again = [each | record(number, each["id"], each["updated_at"]) for each in many[:9]]
    later = [record(number, str(each), SPAN.end - timedelta(microseconds=1)) for each in range(1, 12)]
    mixed = [*many, *again, *later, record(number, "900", SPAN.start), record(number, "901", None)]
    number.shuffle(mixed)
    batches = {"own": landed(workspace, mixed, rejected=(3, 5, 8))}
    stale = some([300], fetched_at=READ - timedelta(days=9))
    replayed = some([200, 201, 202, 5], fetched_at=READ + timedelta(hours=1))
    batches["replay"] = landed(workspace, [*stale, *replayed], rejected=(2,), kind="replay")
    asked = some([400, 401], fetched_at=READ + timedelta(hours=2))
    batches["lookup"] = landed(workspace, asked, kind="lookup", proof={"for": "certificate"})
    return batches


# --- What Postgres makes of it ------------------------------------------------------------------


def _typed(name: str) -> str:
    known = {"seq": "bigint", "fetched_at": "timestamptz"}
    kinds = {c.name: c.kind.postgres for c in TICKETS.columns if c.kind is not Kind.JSON}
    return known.get(name, kinds.get(name, "text"))


COLUMNS = ("seq", *TICKETS.content_names, "content_hash", "fetched_at")
GUARDED = "case when {0} ~ '^[\\s'']*[=+\\-@＝＋－＠]|^[\\t\\r\\n'']' then '''' || {0} else {0} end"
ISO = """to_char({0} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def copied(cursor: psycopg.Cursor, batch: Batch, folder: Path, table: str) -> None:
    """A batch's rows in a temporary table, by COPY of Python's values in the text format."""
    shape = ", ".join(f"{name} {_typed(name)}" for name in COLUMNS)
    cursor.execute(f"create temporary table {table} ({shape})".encode())
    with cursor.copy(f"copy {table} from stdin".encode()) as copy:
        for file in batch.files:
            for row in pq.read_table(folder / file["path"], columns=list(COLUMNS)).to_pylist():
                copy.write_row([row[name] if name not in _AS_TEXT else _said(row[name]) for name in COLUMNS])
    out = "delete from {0} using bridge.rejections r where r.batch_id = {1} and r.seq = {0}.seq"
    cursor.execute(out.format(table, batch.id).encode())


# Python's dates end where Postgres's go on, but psycopg writes the first and the last year all the same.
_AS_TEXT = {c.name for c in TICKETS.columns if c.kind is Kind.TIMESTAMP} | {"fetched_at"}


def _said(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="microseconds")


def files_by_postgres(workspace: Workspace, batches: dict[str, Batch]) -> Iterator[tuple[date, bytes]]:
    """The files of the span, picked, sorted and written by Postgres."""
    with psycopg.connect(workspace.database.libpq()) as connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        for name, batch in batches.items():
            copied(cursor, batch, landing_of(workspace, batch), name)
        cursor.execute(f"delete from replay where fetched_at < '{batches['own'].fetched_from}'".encode())
        cursor.execute(_ONLY_LOADED.format(batches["lookup"].id).encode())
        cursor.execute(_PICKED.format(parts=versions(batches)).encode())
        for each in SPAN.days():
            day_of = f"from picked where day = '{each}' order by length(id), id collate \"C\""
            statement = f"copy (select {_cells()} {day_of}) to stdout (format csv, force_quote *)"
            with cursor.copy(statement.encode()) as copy:
                yield each, b"".join(bytes(part) for part in copy)


def versions(batches: dict[str, Batch]) -> str:
    """All rows that were copied, later batches with a higher number."""
    return " union all ".join(
        f"select {number} as part, * from {name}" for number, name in enumerate(batches)
    )


_ONLY_LOADED = """
delete from lookup l where not exists (
    select from desk.tickets d where d.id = l.id and d.batch_id = {} and d.content_hash = l.content_hash
)
"""
_PICKED = f"""
create temporary table picked as
with versions as ({{parts}}), newest as (
    select distinct on (day, id) * from (
        select (updated_at at time zone 'UTC')::date as day, * from versions where updated_at is not null
    ) as dated
    order by day, id, updated_at desc, fetched_at desc, part desc, seq desc
), gone as (
    select (updated_at at time zone 'UTC')::date as day, id, deleted_at from desk.tickets
    where connection = '{NAME}' and deleted_at is not null
)
select day, {", ".join(COLUMNS)}, null::timestamptz as deleted_at from newest n
where not exists (select from gone g where g.day = n.day and g.id = n.id and n.fetched_at <= g.deleted_at)
union all
select g.day, (jsonb_populate_record(null::own, jsonb_build_object('id', g.id, 'content_hash',
    encode(sha256(convert_to('deleted ' || {ISO.format("g.deleted_at")} || ' ' || g.id, 'UTF8')), 'hex')))).*,
    g.deleted_at
from gone g
where not exists (select from newest n where n.day = g.day and n.id = g.id and n.fetched_at > g.deleted_at)
"""


def _cells() -> str:
    def cell(name: str) -> str:
        if name == "deleted_at" or name in _AS_TEXT:
            return ISO.format(name)
        return f"{name}::text" if name == "is_closed" else GUARDED.format(name)

    return ", ".join(cell(name) for name in (*TICKETS.content_names, "content_hash", "deleted_at"))


# --- The tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 20_000, ordering.BUDGET], ids=["row by row", "spread", "at once"])
def test_audit_files_are_byte_for_byte_what_postgres_would_write(
    workspace, random_numbers, monkeypatch, budget
):
    monkeypatch.setattr(ordering, "BUDGET", budget)
    connect(workspace, "http://127.0.0.1:1")
    batches = world(workspace, random_numbers)
    for batch in batches.values():
        load(workspace, batch)
    gone = "update desk.tickets set deleted_at = :at where id = any(:ids)"
    execute(workspace, gone, at=READ + timedelta(seconds=1, microseconds=7), ids=["20", "21", "900", "200"])
    execute(workspace, gone, at=READ - timedelta(days=30), ids=["30"])
    # Of a batch that no file is made of.
    forgotten = """insert into desk.tickets (tenant, connection, id, updated_at, deleted_at, batch_id)
        values ('acme', :name, '77777', :at, now(), 1)"""
    execute(workspace, forgotten, name=NAME, at=SPAN.start)
    found = {file.day: file for file in audit_window(workspace, NAME, "tickets", SPAN)}
    head = cells.header((*TICKETS.content_names, "content_hash", "deleted_at"))
    for each, expected in files_by_postgres(workspace, batches):
        content = found[each].path.read_bytes()
        assert content == head + expected
        assert found[each].sha256 == sha256(content).hexdigest()
    assert sum(file.rows for file in found.values()) > 60
    assert not list(workspace.home.work.glob("audit-*"))
    again = audit_window(workspace, NAME, "tickets", SPAN)
    assert [(file.version, file.added) for file in again] == [(1, False)] * 3


@pytest.mark.parametrize("together", [1, 50_000], ids=["a row group at a time", "at once"])
def test_the_tables_hold_what_postgres_makes_of_the_newest_versions(
    workspace, random_numbers, monkeypatch, together
):
    monkeypatch.setattr(chosen, "_ROWS_AT_A_TIME", together)
    connect(workspace, "http://127.0.0.1:1")
    batches = world(workspace, random_numbers)
    for batch in batches.values():
        load(workspace, batch)
    content = [*TICKETS.column_names, "custom_fields", "content_hash", "fetched_at"]
    with psycopg.connect(workspace.database.libpq()) as connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        for name, batch in batches.items():
            copied(cursor, batch, landing_of(workspace, batch), name)
        newest = f"""select distinct on (id) * from ({versions(batches)}) as v
            order by id, updated_at desc nulls last, fetched_at desc, part desc, seq desc"""
        typed = ", ".join(f"{name}::jsonb" if name in ("tags", "custom_fields") else name for name in content)
        sides = {typed: f"({newest}) as n", ", ".join(content): "desk.tickets"}
        wanted, held = (
            cursor.execute(
                f"select to_jsonb(w)::text from (select {columns} from {table} order by id) as w".encode()
            ).fetchall()
            for columns, table in sides.items()
        )
        assert len(held) > 60
        assert held == wanted
        people = "jsonb_to_recordset(n.people::jsonb) as p (user_id text, part text)"
        linked = (
            f"select n.id, p.user_id, p.part from ({newest}) as n cross join lateral {people} order by 1, 2"
        )
        links = "select ticket_id, user_id, part from desk.ticket_users order by 1, 2"
        assert cursor.execute(links.encode()).fetchall() == cursor.execute(linked.encode()).fetchall()


@pytest.mark.parametrize("together", [1, 50_000], ids=["a row group at a time", "at once"])
def test_nothing_refers_to_a_row_that_is_not_there(workspace, random_numbers, monkeypatch, together):
    monkeypatch.setattr(chosen, "_ROWS_AT_A_TIME", together)
    connect(workspace, "http://127.0.0.1:1")
    for batch in reversed(world(workspace, random_numbers).values()):
        load(workspace, batch)
    orphans = """select * from desk.ticket_users l
        where not exists (select from desk.tickets d where (d.connection, d.id) = (l.connection, l.ticket_id))
            or not exists (select from desk.users d where (d.connection, d.id) = (l.connection, l.user_id))"""
    strays = """select id from desk.tickets t where account_id is not null and not exists (
        select from desk.accounts d where (d.connection, d.id) = (t.connection, t.account_id))"""
    assert rows(workspace, "select count(*) from desk.ticket_users")[0]["count"] > 10
    assert rows(workspace, "select count(*) from desk.accounts where placeholder") == [{"count": 2}]
    assert rows(workspace, orphans) == rows(workspace, strays) == []


def test_what_is_copied_is_what_python_would_write(workspace):
    values = {
        "text": TEXTS,
        "jsonb": JSON,
        "timestamptz": TIMES,
        "boolean": [None, True, False],
        "bigint": [None, 0, -(2**63), 2**63 - 1],
    }
    kinds = {"text": pa.string(), "jsonb": pa.string(), "bigint": pa.int64(), "boolean": pa.bool_()}
    types, count = {f"of_{kind}": kind for kind in values}, 5_000
    columns = [[each[n % len(each)] for n in range(count)] for each in values.values()]
    arrays = [
        pa.array(column, kinds.get(kind, pa.timestamp("us", "UTC")))
        for kind, column in zip(values, columns, strict=True)
    ]
    whole = pa.table(arrays, names=list(types))
    parts = [whole.slice(0, 3), whole.slice(3, 0), whole.slice(3, 2_500), whole.slice(2_503)]
    with workspace.database.engine.begin() as connection:
        stage(connection, "arrow", types, iter([parts[0], parts[1], pa.concat_tables(parts[2:])]))
        stage(connection, "nothing", types, iter([]))
        cursor = connection.connection.driver_connection.cursor()
        cursor.execute("create temporary table python (like arrow) on commit drop")
        with cursor.copy("copy python from stdin") as copy:
            for row in zip(*columns, strict=True):
                copy.write_row(row)
        for one, other in (("arrow", "python"), ("python", "arrow")):
            differing = f"select count(*) from (select * from {one} except all select * from {other}) as d"
            assert connection.scalar(sa.text(differing)) == 0
        assert connection.scalar(sa.text("select count(*) from arrow")) == count


def test_the_same_cells_are_guarded_whatever_they_begin_with(workspace):
    letters = [chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x10400))]
    texts = [text for letter in letters for text in (letter, f"{letter}=1")]
    with workspace.database.engine.connect() as connection:
        query = f"select {GUARDED.format('t')} from unnest(cast(:texts as text[])) as t"
        expected = list(connection.scalars(sa.text(query), {"texts": texts}))
    content = cells.lines(cells.written(pa.table({"text": pa.chunked_array([texts])}))).to_pybytes().decode()
    assert content == "".join('"{}"\n'.format(text.replace('"', '""')) for text in expected)
