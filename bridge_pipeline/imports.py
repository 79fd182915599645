"""Imports that take seconds: without collections in between, and without what is hardly ever used."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


@contextmanager
def collections_paused() -> Iterator[None]:
    """Keeps the garbage collector from looking, again and again, at what is made within and stays.

    Measured over the imports of the code location and of Great Expectations: a quarter of their time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def put_off(*names: str) -> Iterator[None]:
    """Lets what is imported within take these modules at their word: each is imported when it is used.

    Whoever imports them afterwards gets the modules themselves.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: _PutOff(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), _PutOff):
                del sys.modules[name]


def keep_pandas_out() -> None:
    """Lets Arrow take it that there is no pandas, until it is asked for a data frame.

    Arrow imports it with the first list that becomes an array, to see whether the list is a series after
    all: 0.4 s and 54 MiB of a process that has none. Whoever has imported pandas keeps it.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    absent = _Absent("pandas")
    sys.meta_path.insert(0, absent)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(absent)


@dataclass(frozen=True)
class _Absent(MetaPathFinder):
    """Lets nobody find a module."""

    name: str

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == self.name:
            raise ModuleNotFoundError(f"{fullname} is not looked for", name=fullname)


class _PutOff(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        # Import machinery and `inspect` look for these in every module.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)
