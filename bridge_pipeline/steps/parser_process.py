"""A process that parses pages while its extraction asks for the next: the work of another core.

Nothing depends on it. It gets a page's bytes and gives rows and what fields they had, or nothing where a
record of the page cannot be accepted, or where it has ended; then its extraction parses the page itself,
with the same outcome. It ends with its extraction, however that ends.

How both talk is in `workers`.
"""

import fcntl
import gc
import itertools
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import orjson
import pyarrow as pa
import structlog

from bridge_pipeline import connectors, workers
from bridge_pipeline.connector_kit.connector import Stream
from bridge_pipeline.connector_kit.fields import Refused
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
# What stands before a page's bytes: µs since 1970 after which no record can have changed, and how many
# records were read before.
_HEAD = struct.Struct("<qq")
# Most pages fit, so that nobody waits for the other to read.
_PIPE_BYTES = 1_048_576


@dataclass(frozen=True)
class Parsed:
    """The rows of a page in the entity's `content_schema`, and the fields of its records."""

    batch: pa.RecordBatch
    look: Look


class ParserProcess:
    """Parses pages of one stream, one at a time; to be closed."""

    def __init__(self, connector: str, entity: str) -> None:
        self._arguments = (connector, entity)
        self._worker: Worker | None = None
        self._lost, self._ready = _cores() < 2, False
        self._offered = 0

    def expect(self, size: int) -> None:
        """Tells it that so many bytes of pages are to be expected: it is started when that is enough."""
        if self._worker is None and not self._lost and size >= _WORTHWHILE:
            self._start()

    def give(self, body: bytes, latest: int, first: int) -> bool:
        """Gives it a page to parse; False where it does not take it: it is not there, or not yet.

        Args:
            body: of a page with an `outline`.
            latest: µs since 1970 after which no change time can be true.
            first: how many records were read before this page.
        """
        self._offered += len(body)
        self.expect(self._offered)
        worker = self._worker
        if worker and not self._ready and worker.answering:
            # It says that it is ready by a frame without content.
            self._ready = self._received(worker) is not None
        if worker is None or not self._ready:
            return False
        try:
            worker.send(_HEAD.pack(latest, first), body)
        except WorkerEnded as ended:
            self._lose(ended)
        return self._worker is not None

    def result(self) -> Parsed | None:
        """The page that it was given; None where one of its records cannot be accepted, or it has ended."""
        frame = self._received(self._worker) if self._worker else None
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
        for pipe in (self._worker.questions, self._worker.answers):
            # Where the system does not let it, the two wait for each other in pieces.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _lose(self, reason: Exception) -> None:
        self.close()
        told = "there is no process that parses pages; its extraction goes on without"
        log.warning(told, reason=str(reason))


def serve(stream: Stream, source: IO[bytes], target: IO[bytes]) -> None:
    """Parses pages until there are no more."""
    parser = RecordParser(stream)
    workers.write_frame(target)
    with suppress(EOFError):
        for number in itertools.count(1):
            frame = workers.read_frame(source)
            parsed = _parsed(parser, stream, frame[_HEAD.size :], *_HEAD.unpack_from(frame))
            workers.write_frame(target, _packed(parsed) if parsed else b"")
            if number % _PAGES_TO_GIVE_BACK == 0:
                give_back()


def _parsed(parser: RecordParser, stream: Stream, body: bytes, latest: int, first: int) -> Parsed | None:
    """A page; None where one of its records cannot be accepted."""
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
