"""What the last extraction of a window landed: rows of records that come again with the same bytes.

The bytes of a record and the program decide what it is parsed to, so that its row need not be made again. It
is taken only where nothing else can come out: from files that are what the ledger lists, written by the same
program (`program.fingerprint`). When and where a record was read is not taken, and what becomes of it is for
`collect` to say as of any other.

A listing comes in about the order of the last time. So the landing is read in step with it, some row groups
at a time, and memory does not grow with it; what stands elsewhere by now is parsed.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from bridge_pipeline.connector_kit.connector import Page, Stream
from bridge_pipeline.connector_kit.pages import parse_list
from bridge_pipeline.steps.inventory import Look, look_at, sampled, types_of
from bridge_pipeline.steps.parse import RecordParser
from bridge_pipeline.steps.parser_process import Parsed, parsed_page

log = structlog.get_logger(__name__)
# Bytes of records that are held of a landing, and about as many of their rows.
_MOST_BYTES = 13_000_000
_MOST_GROUPS = 16
_NEVER = -(2**63)


@contextmanager
def opened(
    stream: Stream, folder: Path, files: Sequence[dict[str, Any]], absent: Collection[str]
) -> "Iterator[LandedBefore | None]":
    """A landing to take rows from; None where a file is not what the ledger lists.

    Args:
        files: of the landing in `folder`, as the ledger lists them.
        absent: the canonical columns whose keys none of the records had that it was made of.
    """
    with ExitStack() as stack:
        try:
            found = [_intact(stack, folder / file["path"], file["sha256"]) for file in files]
        except (OSError, ValueError) as error:
            log.warning("the last landing of this window cannot be used; all is parsed", reason=str(error))
            found = []
        yield LandedBefore(stream, found, absent) if found else None


def _intact(stack: ExitStack, path: Path, sha256: str) -> pq.ParquetFile:
    # What is read later is what is looked at now, whatever comes to bear its name.
    source = stack.enter_context(pa.OSFile(str(path)))
    if hashlib.file_digest(source, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
        raise ValueError(f"{path} is not the file that the ledger lists")
    source.seek(0)
    return pq.ParquetFile(source)


class LandedBefore:
    """Makes pages of rows that landed before, and of what is new on them."""

    def __init__(self, stream: Stream, files: Sequence[pq.ParquetFile], absent: Collection[str]) -> None:
        self._stream = stream
        self._parser = RecordParser(stream)
        self._schema = stream.entity.content_schema
        # The bytes of the records are those of the page.
        self._columns = [name for name in self._schema.names if name != "raw"]
        self._landing = _Landing(files, self._columns)
        self._absent = frozenset(absent)

    def parsed(self, page: Page, latest: int, first: int, unseen: Collection[str]) -> Parsed | None:
        """A page, exactly as `parser_process.parsed_page` gives it; None where that is to parse it: most of
        its records did not land before, or one of them cannot be accepted.

        Args:
            page: one with an `outline`.
            latest: µs since 1970 after which no change time can be true.
            first: how many records were read before this page.
            unseen: the canonical columns whose keys no record of the extraction had so far.
        """
        exact = list(page.content.exact[:]) if page.content.exact else []
        found, others = self._find(exact)
        if len(others) * 2 >= len(exact):
            return None
        rest = self._parsed([exact[position] for position in others], latest, first) if others else None
        if others and rest is None:
            return None
        rows = self._joined(found, others, rest)
        if _newest(rows) > latest:
            return None
        batch = pa.RecordBatch.from_arrays([*rows.columns, pa.array(exact, pa.string())], schema=self._schema)
        if self._absent.issuperset(unseen):
            look = self._look(exact, first, rest.look.seen if rest else [])
        else:
            look = look_at(page.content.records, first, self._stream.keys)
        return Parsed(batch, look)

    def _find(self, exact: list[bytes]) -> "tuple[list[_Found], list[int]]":
        try:
            return self._landing.find(exact)
        except (OSError, ValueError) as error:
            log.warning("the last landing of this window ends here; the rest is parsed", reason=str(error))
            self._landing = _Landing([], self._columns)
            return [], list(range(len(exact)))

    def _parsed(self, exact: list[bytes], latest: int, first: int) -> Parsed | None:
        return parsed_page(self._parser, self._stream, self._body(exact), latest, first)

    def _look(self, exact: list[bytes], first: int, seen: list[str]) -> Look:
        """As `look_at`, of records of which those that landed before have no key that was not seen yet."""
        sample = [exact[position] for position in sampled(first, len(exact))]
        records = parse_list(self._body(sample), self._stream.names).records if sample else []
        return Look(len(exact), len(sample), seen, types_of(records))

    def _body(self, exact: list[bytes]) -> bytes:
        """A list answer of these records."""
        return b'{"%s":[%s]}' % (self._stream.names[0].encode(), b",".join(exact))

    def _joined(self, found: "list[_Found]", others: list[int], rest: Parsed | None) -> pa.RecordBatch:
        """The rows of a page, in its order, without the bytes."""
        parts = [_rows_of(each.batch, each.rows) for each in found]
        positions = list(chain.from_iterable(each.positions for each in found))
        if rest:
            parts.append(rest.batch.select(self._columns))
            positions += others
        rows = pa.concat_batches(parts) if len(parts) > 1 else parts[0]
        return _rows_of(rows, sorted(range(len(positions)), key=positions.__getitem__))


@dataclass(frozen=True)
class _Group:
    """A row group of a file: how many rows it has, and bytes of their records."""

    file: pq.ParquetFile
    number: int
    count: int
    size: int

    @classmethod
    def of(cls, file: pq.ParquetFile, number: int) -> "_Group":
        told = file.metadata.row_group(number)
        raw = file.schema_arrow.get_field_index("raw")
        return cls(file, number, told.num_rows, told.column(raw).total_uncompressed_size)


@dataclass(frozen=True)
class _Rows:
    """The rows of a group, and which of them a record has."""

    batch: pa.RecordBatch
    places: dict[bytes, int]


@dataclass(frozen=True)
class _Found:
    """Rows of a group, and where on the page their records stand."""

    group: int
    batch: pa.RecordBatch
    rows: list[int]
    positions: list[int]


class _Landing:
    """The rows of a landing, held around where a listing has come to."""

    def __init__(self, files: Sequence[pq.ParquetFile], columns: list[str]) -> None:
        self._columns = columns
        self._groups = [_Group.of(file, number) for file in files for number in range(file.num_row_groups)]
        self._ends = list(accumulate(group.count for group in self._groups))
        self._held: dict[int, _Rows] = {}
        # Of all rows, the one that is expected next.
        self._next = 0

    def find(self, exact: list[bytes]) -> tuple[list[_Found], list[int]]:
        """The rows of records with these bytes as far as they are held, and the positions of the others."""
        found, others, tried = list[_Found](), list(range(len(exact))), set[int]()
        while others and (fresh := [number for number in self._near() if number not in tried]):
            tried.update(fresh)
            before = len(others)
            for number in fresh:
                others = self._match(exact, others, number, found)
            if len(others) == before:
                break
            last = max(found, key=lambda each: each.positions[-1])
            self._next = self._ends[last.group] - self._groups[last.group].count + last.rows[-1] + 1
        if not found:
            # They are new, or took the place of others.
            self._next += len(exact)
        return found, others

    def _match(self, exact: list[bytes], open_: list[int], number: int, found: list[_Found]) -> list[int]:
        """Adds the rows of a group that open positions have, and gives those that stay open."""
        held = self._held[number]
        rows = [held.places.get(exact[position]) for position in open_]
        hits = [(position, row) for position, row in zip(open_, rows, strict=True) if row is not None]
        if not hits:
            return open_
        positions, places = (list(each) for each in zip(*hits, strict=True))
        found.append(_Found(number, held.batch, places, positions))
        return [position for position, row in zip(open_, rows, strict=True) if row is None]

    def _near(self) -> list[int]:
        """The groups that are held from now on, the likeliest first.

        After the one that holds the row that is expected, and the next, it is the first, if there is room:
        there each sweep begins anew.
        """
        here = bisect_right(self._ends, self._next)
        ways = chain(
            (here, here + 1, 0), *((here - step, here + 1 + step) for step in range(1, _MOST_GROUPS))
        )
        near, size = list[int](), 0
        for number in dict.fromkeys(each for each in ways if 0 <= each < len(self._groups)):
            size += self._groups[number].size
            if near and size > _MOST_BYTES:
                break
            near.append(number)
        # What is left goes before others are read.
        self._held = {number: self._held[number] for number in near if number in self._held}
        for number in near:
            if number not in self._held:
                self._held[number] = self._read(number)
        return near

    def _read(self, number: int) -> _Rows:
        group = self._groups[number]
        table = group.file.read_row_group(group.number, [*self._columns, "raw"], use_threads=False)
        (batch,) = table.select(self._columns).combine_chunks().to_batches()
        raw = table["raw"].combine_chunks().cast(pa.binary()).to_pylist()
        return _Rows(batch, {record: row for row, record in enumerate(raw)})


def _rows_of(batch: pa.RecordBatch, rows: list[int]) -> pa.RecordBatch:
    first = rows[0]
    if rows == list(range(first, first + len(rows))):
        return batch.slice(first, len(rows))
    return batch.take(pa.array(rows))


def _newest(rows: pa.RecordBatch) -> int:
    """The last change of the rows, in µs since 1970; of none, long ago."""
    newest = pc.call_function("max", [rows.column("updated_at").cast(pa.int64())]).as_py()
    return _NEVER if newest is None else newest
