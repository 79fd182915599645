"""Great Expectations in a process of its own: how it is started and asked, and what it does.

Its import takes seconds, longer than all the rest of a small run: here it takes place on another core
while records are fetched, and its memory is given back when it is dismissed. How workers start and talk
is in `workers`. What is asked, and what the answers mean, is in `gx` and `rows`.
"""

import atexit
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np
import pyarrow as pa

from bridge_pipeline import workers
from bridge_pipeline.memory import give_back
from bridge_pipeline.steps import gx
from bridge_pipeline.workers import Worker, WorkerEnded

Answers = dict[str, np.ndarray]

# Seconds for one part of a batch, beside the import of the library.
_PATIENCE = 900.0

_started: "_Judge | None" = None


class _Judge:
    """The parent's end of a worker; `owner` is the process that started it.

    `waiting` is it between a question and its answer.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.waiting = False
        self.worker = Worker(__spec__.name, patience=_PATIENCE)

    @property
    def usable(self) -> bool:
        """Whether it lives, and the next answer is to the next question of this very process.

        One that nobody waits for any longer may still be on its way, and a forked process would read
        those of the other.
        """
        return self.owner == os.getpid() and not self.waiting and self.worker.process.poll() is None

    def send(self, questions: tuple[gx.Question, ...], values: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, values.schema) as stream:
            stream.write_table(values)
        self.waiting = True
        with _told():
            self.worker.send(pickle.dumps(questions))
            self.worker.send(sink.getvalue())

    def receive(self) -> Answers:
        with _told():
            answer = self.worker.receive()
        self.waiting = False
        answers, refusal = pickle.loads(answer)  # noqa: S301 - from this program's other end
        if refusal:
            raise RuntimeError(refusal)
        return answers


@contextmanager
def _told() -> Iterator[None]:
    """Says what it means that the worker ended."""
    try:
        yield
    except WorkerEnded as error:
        raise WorkerEnded(
            f"the process that runs Great Expectations is lost: {error}; the batch stays unchecked: run the "
            "partition again, and see whether there is memory enough"
        ) from error


def start() -> None:
    """Starts the worker, so that it is ready when it is asked; does not wait for it."""
    global _started
    if "great_expectations" in sys.modules or (_started is not None and _started.usable):
        return
    dismiss()
    try:
        _started = _Judge()
    except OSError as error:
        # The worker itself tells nobody anything, and starts in less time without.
        import structlog

        log = structlog.get_logger(__name__)
        log.warning("no process can be started to judge in; this one does it itself", error=str(error))


def is_there() -> bool:
    """Whether a worker would answer the next question, and not this process."""
    return _started is not None and _started.usable


def dismiss() -> None:
    """Ends the worker, if there is one; the next question starts another."""
    global _started
    judge, _started = _started, None
    if judge is not None and judge.owner == os.getpid():
        judge.worker.end()


atexit.register(dismiss)


@contextmanager
def ready() -> Iterator[None]:
    """Starts the worker for what happens within, and ends it afterwards.

    It has what this process had open: whoever reads to the end of that would wait for it.
    """
    start()
    try:
        yield
    finally:
        dismiss()


def ask(questions: Iterable[gx.Question], values: pa.Table) -> Callable[[], Answers]:
    """Lets the values be judged; what it gives waits for the answers, before the next is asked.

    Where Great Expectations is imported already, or no worker can be started, this process judges itself.

    Raises:
        WorkerEnded: the worker was killed, or did not answer; by the answers, too.
        RuntimeError: by the answers, that Great Expectations could not evaluate a question.
    """
    asked = tuple(questions)
    start()
    if _started is None or not _started.usable:
        found = _judged(asked, values)
        return lambda: found
    _started.send(asked, values)
    return _started.receive


def _judged(questions: tuple[gx.Question, ...], values: pa.Table) -> Answers:
    found = gx.failing(questions, values.to_pandas())
    return {name: np.array(positions, dtype=np.int64) for name, positions in found.items()}


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    gx.great_expectations()
    # Whoever does not read the answer has been killed.
    with suppress(EOFError, BrokenPipeError):
        while True:
            workers.write_frame(answers, _answer(workers.read_frame(requests), workers.read_frame(requests)))
            # It may wait for long, beside a process that has much to hold.
            give_back()


def _answer(asked: bytes, values: bytes) -> bytes:
    try:
        questions = pickle.loads(asked)  # noqa: S301 - from this program's other end
        outcome = _judged(questions, pa.ipc.open_stream(values).read_all()), ""
    except Exception as error:
        outcome = {}, f"{type(error).__name__}: {error}"
    return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    asked, answers, _ = workers.channel()
    _serve(asked, answers)
