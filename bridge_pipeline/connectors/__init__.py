"""The connectors: one folder each, found by themselves.

A folder that does not export `CONNECTOR` fails loudly when any connector is looked up.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from bridge_pipeline.connector_kit.connector import Connector


class UnknownConnector(ValueError):
    """No folder here exports a connector of that name."""


@cache
def all_connectors() -> dict[str, Connector]:
    """Every connector by name.

    Raises:
        RuntimeError: a folder exports no `CONNECTOR`, or one of another name.
    """
    found = {}
    for module in iter_modules(__path__):
        exported = getattr(import_module(f"{__name__}.{module.name}"), "CONNECTOR", None)
        if not isinstance(exported, Connector) or exported.name != module.name:
            raise RuntimeError(f"{__name__}.{module.name} must export CONNECTOR, named like its folder")
        found[module.name] = exported
    return found


def get(name: str) -> Connector:
    """The connector called `name`.

    Raises:
        UnknownConnector: there is none; the message lists those there are.
    """
    try:
        return all_connectors()[name]
    except KeyError:
        known = ", ".join(sorted(all_connectors()))
        raise UnknownConnector(f"there is no connector {name!r}; there are: {known}") from None
