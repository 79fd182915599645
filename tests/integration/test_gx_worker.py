"""Great Expectations in a process of its own: what it is told, and what becomes of it."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pytest

from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps import gx_worker
from bridge_pipeline.steps.gx import Question

IN_SET = Question("known", "ExpectColumnValuesToBeInSet", {"column": "n", "value_set": ["a"]})
PRESENT = Question("present", "ExpectColumnValuesToNotBeNull", {"column": "n"})


def values(*cells: str | None) -> pa.Table:
    return pa.table({"n": pa.array(cells, pa.string())})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch):
    """The worker that judges, also where an earlier test imported the library here."""
    monkeypatch.delitem(sys.modules, "great_expectations", raising=False)
    monkeypatch.setenv("ACME_TOKEN", "canary-4711")
    monkeypatch.setenv("BRIDGE_DATABASE_URL", "postgresql://canary@127.0.0.1/none")
    gx_worker.dismiss()
    gx_worker.start()
    yield psutil.Process(gx_worker._started.worker.process.pid)  # type: ignore[union-attr]
    gx_worker.dismiss()


def found(answers: gx_worker.Answers) -> dict[str, list[int]]:
    assert all(positions.dtype == np.int64 for positions in answers.values())
    return {name: positions.tolist() for name, positions in answers.items()}


@pytest.mark.slow
def test_it_answers_each_question_and_knows_no_credential(worker):
    asked = gx_worker.ask((IN_SET, PRESENT), values("a", "b", None, "c"))
    assert found(asked()) == {"known": [1, 3], "present": [2]}
    # One that nobody waited for is not taken for the answer to the next.
    gx_worker.ask((PRESENT,), values(None, None))
    assert found(gx_worker.ask((PRESENT,), values("a", None))()) == {"present": [1]}
    assert not worker.is_running(), "the next answer of the first worker would have been the wrong one"
    environment = psutil.Process(gx_worker._started.worker.process.pid).environ()  # type: ignore[union-attr]
    assert "canary" not in str(environment)
    assert not {name for name in environment if name.startswith("BRIDGE_")}
    with pytest.raises(RuntimeError, match="missing"):
        gx_worker.ask((Question("lost", PRESENT.kind, {"column": "missing"}),), values("a"))()
    assert "great_expectations" not in sys.modules


def test_one_that_is_killed_is_missed_and_replaced(worker):
    asked = gx_worker.ask((PRESENT,), values("a", None))
    worker.kill()
    with pytest.raises(gx_worker.WorkerEnded, match=r"status -9.*run the partition again"):
        asked()
    gx_worker.start()
    assert gx_worker._started.worker.process.pid != worker.pid  # type: ignore[union-attr]


def test_one_that_does_not_answer_is_given_up(worker, monkeypatch):
    monkeypatch.setattr(gx_worker._started.worker, "_patience", 0.1)  # type: ignore[union-attr]
    worker.suspend()
    with pytest.raises(gx_worker.WorkerEnded, match="status -9"):
        gx_worker.ask((PRESENT,), values("a", None))()


def test_where_none_can_be_started_the_process_judges_itself(worker, monkeypatch):
    gx_worker.dismiss()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    judged = []
    monkeypatch.setattr(gx_worker, "_judged", lambda questions, table: judged.append(questions) or {})
    assert gx_worker.ask((PRESENT,), values("a", None))() == {}
    assert judged == [(PRESENT,)]


def test_where_the_library_is_imported_nothing_is_started(worker, monkeypatch):
    gx_worker.dismiss()
    assert not worker.is_running()
    monkeypatch.setitem(sys.modules, "great_expectations", sys)
    gx_worker.start()
    assert gx_worker._started is None


@pytest.mark.parametrize("how", ["done", pytest.param("killed", marks=pytest.mark.slow)])
def test_it_ends_with_the_process_that_started_it(how):
    code = """
import sys
from bridge_pipeline.steps import gx_worker
gx_worker.start()
print(gx_worker._started.worker.process.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    if how == "killed":
        parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([worker], timeout=60)
    assert gone == [worker]


def test_it_ends_with_what_it_was_started_for_also_where_that_fails(worker):
    with pytest.raises(KeyError, match="True"), gx_worker.ready(), gx_worker.ready():
        {}[worker.is_running()]
    assert not worker.is_running()
