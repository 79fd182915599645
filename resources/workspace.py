"""The workspace as a resource: settings are read and the database is opened when a run asks."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import dagster as dg
from pydantic import PrivateAttr

from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.memory import few_collections
from resources.storage import storage_kept


class WorkspaceResource(dg.ConfigurableResource):
    """Opens the installation that the environment names; see `bridge_pipeline.settings`.

    A run opens it once, for all its steps, and keeps Dagster's own connections meanwhile: also where
    a code server or a daemon started it.
    """

    _opened: Workspace | None = PrivateAttr(default=None)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["WorkspaceResource"]:
        """The resource for the length of a run."""
        with few_collections(), storage_kept(context.instance) if context.instance else nullcontext():
            try:
                yield self
            finally:
                if self._opened is not None:
                    self._opened.database.engine.dispose()
                    self._opened = None

    def open(self) -> Workspace:
        """The open workspace.

        Raises:
            DatabaseUnavailable: its database cannot be reached.
        """
        if self._opened is None:
            self._opened = open_workspace()
        return self._opened
