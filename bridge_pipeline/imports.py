"""Imports that take seconds: without collections in between, and without what is hardly used, or never."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


def without_pydantic_plugins() -> None:
    """Keeps pydantic from looking for plugins in all packages there are, before its first model is made.

    None is to change what our models say, and each process would look: 0.05 s. What the environment says
    wins.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


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
def made_to_stay() -> Iterator[None]:
    """Pauses the garbage collector, and spares what is made within its next looks too: modules stay.

    Without this the first look after the import of Dagster goes through 170,000 objects, and two later
    ones again.
    """
    was = gc.isenabled()
    with collections_paused():
        yield
        if was:
            # What was frozen and is not any more belongs to the oldest generation.
            gc.freeze()
            gc.unfreeze()


def put_off(*names: str) -> AbstractContextManager[None]:
    """Lets what is imported within take these modules at their word: each is imported when it is used.

    Whoever imports them afterwards gets the modules themselves.
    """
    return _replaced(_PutOff, names)


def hollow(*names: str) -> AbstractContextManager[None]:
    """Lets what is imported within find these modules, each with a class without content for every name
    that it is asked for: enough for what only hands these names on.

    Whoever imports one of them afterwards gets the module itself; what was imported within keeps what it was
    given, also as its own attribute (`from package import module` finds that).
    """
    return _replaced(_Hollow, names)


@contextmanager
def _replaced(kind: type[ModuleType], names: tuple[str, ...]) -> Iterator[None]:
    """Puts one of a kind in the place of each module that is not imported yet."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: kind(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), kind):
                del sys.modules[name]


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Lets what is imported within find that these packages are not installed; those it can do without.

    One that is imported already is not hidden. Afterwards whoever imports them gets them.
    """
    finder = _Hidden(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Hidden(MetaPathFinder):
    """Finds none of some packages."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in self._names:
            raise ModuleNotFoundError(f"{fullname} is not to be imported here", name=fullname)


class _Hollow(ModuleType):
    """Stands for a module of which nothing is ever used."""

    def __getattr__(self, attribute: str) -> type:
        # Import machinery and `inspect` look for these in every module.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {"__module__": self.__name__, "__class_getitem__": _itself})


@classmethod
def _itself(cls: type, _parameters: object) -> type:
    """What a hollow class is with parameters, as in the type of an argument."""
    return cls


class _PutOff(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        # Import machinery and `inspect` look for these in every module.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)
