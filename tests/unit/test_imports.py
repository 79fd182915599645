"""Imports put off: what is imported meanwhile gets a stand-in, everybody else the module."""

import gc
import importlib
import operator
import subprocess
import sys

import pytest

from bridge_pipeline.imports import collections_paused, hidden, hollow, made_to_stay, put_off

NAME = "xml.dom.pulldom"


@pytest.fixture(autouse=True)
def absent(monkeypatch):
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_a_module_that_is_put_off_is_imported_when_something_of_it_is_used():
    with put_off(NAME):
        from xml.dom import pulldom
    assert NAME not in sys.modules
    assert pulldom.START_ELEMENT == "START_ELEMENT"
    assert sys.modules[NAME].START_ELEMENT is pulldom.START_ELEMENT


def test_one_that_is_used_at_once_is_the_module_itself():
    with put_off(NAME):
        from xml.dom.pulldom import START_ELEMENT
    assert sys.modules[NAME].START_ELEMENT is START_ELEMENT


def test_one_that_is_there_already_stays():
    before = sys.modules["json"]
    with put_off("json"):
        assert sys.modules["json"] is before
    assert sys.modules["json"] is before


def test_a_hidden_package_is_not_installed_until_afterwards():
    with hidden(NAME), pytest.raises(ImportError, match=NAME):
        importlib.import_module(NAME)
    assert importlib.import_module(NAME).START_ELEMENT


def test_a_hollow_module_only_hands_names_on_until_afterwards():
    with hollow(NAME):
        from xml.dom.pulldom import START_ELEMENT

        assert isinstance(START_ELEMENT, type)
        # As in the type of an argument.
        assert operator.getitem(START_ELEMENT, int) is START_ELEMENT  # type: ignore[call-overload]
    assert importlib.import_module(NAME).START_ELEMENT == "START_ELEMENT"


_ARROW = """
import sys
import bridge_pipeline.steps.parser_process
import pyarrow as pa

table = pa.table({"number": pa.array([1, 2])})
assert not {"pandas", "sqlalchemy", "dagster", "dlt"} & set(sys.modules)
assert table.to_pandas().number.sum() == 3
"""

_LAUNCHED = """
import sys
import bridge_pipeline.automation.runs
import pydantic
from pydantic.plugin import _loader

# Models were made, and nobody looked for what else may have a say in them.
assert pydantic.RootModel.__pydantic_complete__ and _loader._plugins is None
assert not {"grpc", "great_expectations", "dlt"} & set(sys.modules)
"""

_LANDED = """
import importlib
import sys
import tempfile
from pathlib import Path
import pyarrow as pa
from bridge_pipeline.steps import dlt_pipeline

with tempfile.TemporaryDirectory() as folder:
    place, work = Path(folder) / "7", Path(folder) / "work"
    dlt_pipeline.write_parquet("accounts", lambda: iter([pa.table({"id": ["a"]})]), place, work)
    assert len(list(place.iterdir())) == 1
# Neither what speaks to databases, nor what sends requests, nor what looks for plugins.
unwanted = {*dlt_pipeline._NEVER_USED, "dlt.dataset.relation", "requests", "pluggy"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
context = dlt_pipeline.Container()[dlt_pipeline.PluggableRunContext].context
assert not context.runtime_config.dlthub_telemetry
# What is left out is there, and whoever needs it gets it.
assert all(importlib.import_module(name) for name in dlt_pipeline._NEVER_USED)
assert importlib.import_module("sqlglot").parse_one("select 1").sql() == "SELECT 1"
"""

_JUDGED = """
import importlib.util
import sys
import pyarrow as pa
from bridge_pipeline.steps import gx, gx_worker

kinds = {
    "ExpectColumnValuesToBeInSet": {"column": "id", "value_set": ["a", "b"]},
    "ExpectColumnValuesToMatchRegex": {"column": "id", "regex": "a|b"},
    "ExpectColumnValuesToBeBetween": {"column": "size", "min_value": 1},
    "ExpectColumnPairValuesAToBeGreaterThanB": {"column_A": "size", "column_B": "zero"},
    "ExpectColumnValuesToNotBeNull": {"column": "size"},
}
asked = tuple(gx.Question(kind, kind, arguments) for kind, arguments in kinds.items())
values = pa.table({"id": ["a", "c"], "size": [1, 0], "zero": [0, 0]})
found = {kind: list(positions) for kind, positions in gx_worker._judged(asked, values).items()}
assert found == {kind: [] if "Null" in kind else [1] for kind in kinds}, found
assert "sqlalchemy" not in sys.modules
assert not {*gx._NEVER_USED, "structlog", "pydantic_settings"} & set(sys.modules)
# What is left out is there, and whoever needs it gets it.
assert all(importlib.util.find_spec(name) for name in gx._NEVER_USED)
assert importlib.import_module(gx._NEVER_USED[-1]).SqliteDatasource.__fields__
"""


@pytest.mark.parametrize(
    "program", [_ARROW, _LAUNCHED, _LANDED, pytest.param(_JUDGED, marks=pytest.mark.slow)]
)
def test_what_is_not_needed_is_not_imported(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def collector():
    was = gc.isenabled()
    yield
    (gc.enable if was else gc.disable)()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was(enabled):
    (gc.enable if enabled else gc.disable)()
    with pytest.raises(KeyError), collections_paused():
        {}[gc.isenabled()]
    assert gc.isenabled() is enabled
    with collections_paused():
        assert not gc.isenabled()


@pytest.mark.usefixtures("collector")
def test_what_is_made_to_stay_is_spared_by_the_next_looks():
    gc.enable()
    with made_to_stay():
        made = [[] for _ in range(1_000)]
        assert not gc.isenabled()
    young = {id(each) for generation in (0, 1) for each in gc.get_objects(generation)}
    assert gc.isenabled()
    assert not young & {id(each) for each in made}


@pytest.mark.usefixtures("collector")
def test_within_a_pause_nothing_is_made_to_stay():
    gc.disable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with made_to_stay():
        pass
    assert gc.get_freeze_count() == frozen
    gc.unfreeze()
