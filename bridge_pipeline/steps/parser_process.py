"""A process that parses pages while its extraction asks for the next: the work of another core.

Nothing depends on it. It is told where the journal holds a page and gives rows and what fields they had, or
nothing where a record of the page cannot be accepted, or where it has ended; then its extraction parses the
page itself, with the same outcome. It ends with its extraction, however that ends.

How both talk is in `workers`.
"""

import fcntl
import gc
import itertools
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson
import pyarrow as pa
import structlog
import zstandard

from bridge_pipeline import connectors, workers
from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Refused
from bridge_pipeline.connector_kit.journal import read_file
from bridge_pipeline.connector_kit.outline import exact_records
from bridge_pipeline.connector_kit.pages import parse_list
from bridge_pipeline.memory import give_back
from bridge_pipeline.steps.inventory import Look, look_at
from bridge_pipeline.steps.parse import RecordParser
from bridge_pipeline.workers import Worker, WorkerEnded

log = structlog.get_logger(__name__)
# Bytes of pages. To start takes as long as to parse about so many.
_WORTHWHILE = 8_000_000
# Seconds in which a page that was given away is parsed, or it is parsed here.
_PATIENCE = 60.0
# As the extraction does with its own memory.
_PAGES_TO_GIVE_BACK = 32
# One to parse, and the next, so that it never waits for its extraction.
_UNDER_WAY = 2
# What stands before a page's path: µs since 1970 after which no record can have changed, and how many
# records were read before.
_HEAD = struct.Struct("<qq")
# Most pages' rows fit, so that it goes on before they are taken.
_PIPE_BYTES = 1_048_576


@dataclass(frozen=True)
class Parsed:
    """The rows of a page in the entity's `content_schema`, and the fields of its records."""

    batch: pa.RecordBatch
    look: Look


class ParserProcess:
    """Parses pages of one stream, in the order in which it gets them; to be closed."""

    def __init__(self, connector: str, entity: str) -> None:
        self._arguments = (connector, entity)
        self._worker: Worker | None = None
        self._lost, self._ready = _cores() < 2, False
        self._offered = self._under_way = 0

    def expect(self, size: int, pages: int) -> None:
        """Tells it of a page of so many bytes, and of how many there may be like it: it is started when that
        is enough."""
        self._offered += size
        if self._worker is None and not self._lost and max(self._offered, size * pages) >= _WORTHWHILE:
            self._start()

    @property
    def running(self) -> bool:
        """Whether it takes pages, or will soon."""
        return self._worker is not None

    def give(self, path: Path, latest: int, first: int) -> bool:
        """Gives it a page to parse; False where it does not take it: it is not there, or has enough to do.

        Args:
            path: of a page's file in the journal; the page has an `outline`.
            latest: µs since 1970 after which no change time can be true.
            first: how many records were read before this page.
        """
        worker = self._worker
        if worker and not self._ready and worker.answering:
            # It says that it is ready by a frame without content.
            self._ready = self._received(worker) is not None
        if worker is None or not self._ready or self._under_way == _UNDER_WAY:
            return False
        try:
            worker.send(_HEAD.pack(latest, first), os.fsencode(path))
        except WorkerEnded as ended:
            self._lose(ended)
            return False
        self._under_way += 1
        return True

    @property
    def answering(self) -> bool:
        """Whether `result` need not wait for the page that it was given first."""
        return self._worker is None or self._worker.answering

    def result(self) -> Parsed | None:
        """The first of the pages that it has under way; None where one of its records cannot be accepted, or
        it has ended and so has none any more."""
        frame = self._received(self._worker) if self._worker else None
        self._under_way -= 1
        return _unpacked(frame) if frame else None

    def close(self) -> None:
        """Ends it."""
        worker, self._worker, self._lost, self._ready = self._worker, None, True, False
        if worker:
            worker.end()

    def _received(self, worker: Worker) -> bytes | None:
        try:
            return worker.receive()
        except WorkerEnded as ended:
            self._lose(ended)
            return None

    def _start(self) -> None:
        try:
            self._worker = Worker(__spec__.name, *self._arguments, patience=_PATIENCE)
        except OSError as error:
            self._lose(error)
            return
        # Where the system does not let it, the two wait for each other in pieces.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(self._worker.answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _lose(self, reason: Exception) -> None:
        self.close()
        told = "there is no process that parses pages; its extraction goes on without"
        log.warning(told, reason=str(reason))


def serve(stream: Stream, source: IO[bytes], target: IO[bytes]) -> None:
    """Parses pages until there are no more."""
    parser = RecordParser(stream)
    workers.write_frame(target)
    # Whoever does not read the answer has been killed.
    with suppress(EOFError, BrokenPipeError):
        for number in itertools.count(1):
            frame = workers.read_frame(source)
            path = Path(os.fsdecode(frame[_HEAD.size :]))
            parsed = _parsed_file(parser, stream, path, *_HEAD.unpack_from(frame))
            workers.write_frame(target, _packed(parsed) if parsed else b"")
            if number % _PAGES_TO_GIVE_BACK == 0:
                give_back()


def _parsed_file(parser: RecordParser, stream: Stream, path: Path, latest: int, first: int) -> Parsed | None:
    try:
        _, body = read_file(path)
    except (OSError, ValueError, zstandard.ZstdError):
        # The extraction has the page itself.
        return None
    return parsed_page(parser, stream, body, latest, first)


def parsed_page(parser: RecordParser, stream: Stream, body: bytes, latest: int, first: int) -> Parsed | None:
    """A page; None where one of its records cannot be accepted.

    Args:
        body: of a page with an `outline`.
        latest: as for `ParserProcess.give`; so is `first`.
    """
    records = parse_list(body, stream.names).records
    if not all(type(record) is dict for record in records):
        return None
    try:
        batch = parser.batch(records, latest, exact_records(body, stream.names))
    except Refused:
        return None
    return Parsed(batch, look_at(records, first, stream.keys))


def _packed(parsed: Parsed) -> pa.Buffer:
    """As an Arrow stream."""
    sink = pa.BufferOutputStream()
    look = orjson.dumps(vars(parsed.look))
    with pa.ipc.new_stream(sink, parsed.batch.schema) as writer:
        writer.write_batch(parsed.batch, custom_metadata={"look": look})
    return sink.getvalue()


def _unpacked(frame: bytes) -> Parsed:
    batch, said = pa.ipc.open_stream(frame).read_next_batch_with_custom_metadata()
    return Parsed(batch, Look(**orjson.loads(said["look"])))


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Serves the process that started this one."""
    source, target, (connector, entity) = workers.channel()
    # Records are trees, and need no search for cycles.
    gc.disable()
    serve(connectors.get(connector).stream(entity), source, target)


if __name__ == "__main__":
    main()
