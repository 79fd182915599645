"""A process that parses pages while its extraction asks for the next: the work of another core.

Nothing depends on it. It gets a page's bytes and gives rows and what fields they had, or nothing where a
record of the page cannot be accepted, or where it has ended; then its extraction parses the page itself,
with the same outcome. It ends with its extraction, however that ends.

Run as `python -m bridge_pipeline.steps.parser_process CONNECTOR ENTITY`; how both talk is in `workers`.
"""

import fcntl
import gc
import os
import select
import struct
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
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
from bridge_pipeline.steps.inventory import Look, look_at
from bridge_pipeline.steps.parse import RecordParser

log = structlog.get_logger(__name__)
# Bytes of pages. To start takes as long as to parse about so many.
_WORTHWHILE = 8_000_000
# Seconds in which a page that was given away is parsed, or it is parsed here.
_PATIENCE = 60.0
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
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = self._lost = _cores() < 2
        self._offered = 0

    def expect(self, size: int) -> None:
        """Tells it that so many bytes of pages are to be expected: it is started when that is enough."""
        if self._process is None and not self._lost and size >= _WORTHWHILE:
            self._start()

    def give(self, body: bytes, latest: int, first: int) -> bool:
        """Gives it a page to parse; False where it does not take it: it is not there, or not yet.

        Args:
            body: of a page with an `outline`.
            latest: µs since 1970 after which no change time can be true.
            first: how many records were read before this page.
        """
        if not self._is_ready(len(body)):
            return False
        try:
            with self._patiently():
                workers.write_frame(self._input, _HEAD.pack(latest, first), body)
        except OSError:
            self._lose()
        return not self._lost

    def result(self) -> Parsed | None:
        """The page that it was given; None where one of its records cannot be accepted, or it has ended."""
        try:
            with self._patiently():
                frame = workers.read_frame(self._output)
        except (OSError, EOFError):
            self._lose()
            return None
        return _unpacked(frame) if frame else None

    def close(self) -> None:
        """Ends it."""
        self._lost = True
        if self._process:
            self._process.kill()
            self._process.wait()
            for pipe in (self._input, self._output):
                # What was not sent is of no use any more.
                with suppress(OSError):
                    pipe.close()
            self._process = None

    def _is_ready(self, size: int) -> bool:
        """Whether it can take a page; it is started when there is enough to do."""
        self._offered += size
        if self._process is None:
            self.expect(self._offered)
        elif not self._ready and select.select([self._output], [], [], 0)[0]:
            self._ready = True
            # It says so by a frame without content.
            self.result()
        return self._ready and not self._lost

    def _patiently(self) -> AbstractContextManager[None]:
        assert self._process
        return workers.given_up(self._process, _PATIENCE)

    def _start(self) -> None:
        try:
            self._process = workers.start(__spec__.name, *self._arguments)
        except OSError:
            self._lose()
            return
        for pipe in (self._input, self._output):
            # Where the system does not let it, the two wait for each other in pieces.
            with suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _lose(self) -> None:
        process = self._process
        self.close()
        log.warning(
            "there is no process that parses pages; its extraction goes on without",
            exit=process and process.returncode,
        )

    @property
    def _input(self) -> IO[bytes]:
        assert self._process
        assert self._process.stdin
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process
        assert self._process.stdout
        return self._process.stdout


def serve(stream: Stream, source: IO[bytes], target: IO[bytes]) -> None:
    """Parses pages until there are no more."""
    parser = RecordParser(stream)
    workers.write_frame(target)
    with suppress(EOFError):
        while True:
            frame = workers.read_frame(source)
            parsed = _parsed(parser, stream, frame[_HEAD.size :], *_HEAD.unpack_from(frame))
            workers.write_frame(target, _packed(parsed) if parsed else b"")


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


def main(connector: str, entity: str) -> None:
    """Serves the process that started this one."""
    source, target = workers.channel()
    # Records are trees, and need no search for cycles.
    gc.disable()
    serve(connectors.get(connector).stream(entity), source, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
