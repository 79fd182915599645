"""Imports that take seconds: without collections in between, and without what is hardly ever used."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class _PutOff(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        # Import machinery and `inspect` look for these in every module.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)
