"""Imports put off: what is imported meanwhile gets a stand-in, everybody else the module."""

import gc
import subprocess
import sys

import pytest

from bridge_pipeline.imports import collections_paused, put_off

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


def test_pandas_is_imported_for_data_frames_and_not_for_arrays():
    program = """
import sys, pyarrow as pa, bridge_pipeline.model
array = pa.array([1, None])
print('pandas' in sys.modules)
print(pa.table({'n': array}).to_pandas()['n'].count())
import pandas as pd
print(pa.array(pd.Series([1.0, float('nan')])).null_count)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1", "1"]
