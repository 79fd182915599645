"""How workers start and talk: what they print is no answer, and there may be many files."""

import io
import os
import resource
import subprocess
import sys
import threading

import pytest

from bridge_pipeline import workers
from bridge_pipeline.workers import Worker, WorkerEnded

MODULE = "tests.unit.test_workers"
# A question that is answered by two frames at once.
TWICE = b"twice"
# One after which it ends, and takes its time for that.
LEAVE = b"leave"
# One that is answered by the docstring of a module.
DOCUMENTED = b"documented"


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A worker that reverses what it is sent, amid an environment that prints whatever happens."""
    (tmp_path / "sitecustomize.py").write_text("print('a line that nobody asked for')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(MODULE, "beside", patience=60)
    yield worker
    worker.end()


def test_what_is_printed_is_no_answer(worker):
    worker.send(b"ab", b"c")
    assert worker.receive() == b"beside: cba"
    assert not worker.answering


def test_a_frame_that_came_with_the_one_before_it_is_seen(worker):
    worker.send(TWICE)
    assert worker.receive() == b"beside: eciwt"
    assert worker.answering
    assert worker.receive() == b"beside: eciwt"
    assert not worker.answering


def test_a_worker_that_ended_is_told_with_its_status(worker):
    worker.process.kill()
    with pytest.raises(WorkerEnded, match="status -9"):
        worker.receive()
    assert worker.answering
    with pytest.raises(WorkerEnded, match="status -9"):
        worker.send(b"a" * 1_000_000)


def test_a_worker_that_ends_by_itself_is_told_with_its_own_status(worker):
    worker.send(LEAVE)
    with pytest.raises(WorkerEnded, match="status 7"):
        worker.receive()


def test_a_worker_that_nobody_can_watch_is_given_up_at_once(worker, monkeypatch):
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    # It lives: whoever waited for its end would wait for ever.
    monkeypatch.setattr(workers, "_TO_END", None)
    with pytest.raises(WorkerEnded, match="status -9"):
        worker.send(b"ab")


def test_a_worker_keeps_its_docstrings_whatever_the_environment_says(monkeypatch):
    """Great Expectations reads its own."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    worker = Worker(MODULE, "beside", patience=60)
    worker.send(DOCUMENTED)
    assert workers.__doc__
    assert worker.receive().decode() == f"beside: {workers.__doc__}"
    worker.end()


def test_a_worker_that_was_ended_takes_and_gives_nothing(worker):
    worker.send(b"ab")
    worker.end()
    with pytest.raises(WorkerEnded, match="status -9"):
        worker.receive()
    with pytest.raises(WorkerEnded, match="status -9"):
        worker.send(b"ab")


def test_it_answers_where_more_than_a_thousand_files_are_open():
    program = f"""
import os
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
from bridge_pipeline.workers import Worker
worker = Worker({MODULE!r}, "many", patience=60)
worker.send(b"ab")
print(worker.receive(), worker.answering, worker.answers.fileno() > 1024)
worker.end()
"""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = min(most, 4_096) if most != resource.RLIM_INFINITY else 4_096
    if allowed < 1_200:
        pytest.skip(f"this machine lets no process open more than {allowed} files")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most)),
    )
    assert done.stdout.split() == ["b'many:", "ba'", "False", "True"]


def main() -> None:
    asked, answers, (name,) = workers.channel()
    sys.stdout.write("another line\n")
    while True:
        question, frames = workers.read_frame(asked), io.BytesIO()
        if question == DOCUMENTED:
            question = (workers.__doc__ or "").encode()[::-1]
        if question == LEAVE:
            answers.close()
            sys.exit(7 + 0 * sum(range(3_000_000)))
        for _ in range(2 if question == TWICE else 1):
            workers.write_frame(frames, f"{name}: ".encode() + question[::-1])
        answers.write(frames.getvalue())
        answers.flush()


if __name__ == "__main__":
    main()
