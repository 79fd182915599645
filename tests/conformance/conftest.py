"""The kit's subjects: every connector there is, with its small desk served for a whole module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.conformance.reading import DEFECTS, Subject, desk, scratch, subject_of


@pytest.fixture(params=sorted(connectors.all_connectors()), scope="module")
def subject(request: Any) -> Subject:
    """Each connector in turn: a folder below `bridge_pipeline/connectors` is all it takes."""
    return subject_of(request.param)


@pytest.fixture(scope="module")
def simulator(subject: Subject) -> Iterator[RunningSimulator]:
    """The subject's desk, which stands still."""
    with desk(subject) as (simulator, _):
        yield simulator


@pytest.fixture(autouse=True)
def _sound_simulator() -> Iterator[None]:
    """A simulator that breaks down fails the test, and says why."""
    DEFECTS.clear()
    yield
    if DEFECTS:
        pytest.fail(f"the simulator broke down: {type(DEFECTS[0]).__name__}: {DEFECTS[0]}", pytrace=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a case keeps its journal."""
    with scratch() as folder:
        yield folder
