"""The workspace as a resource: settings are read and the database is opened when a run asks."""

import dagster as dg

from bridge_pipeline.database.workspace import Workspace, open_workspace


class WorkspaceResource(dg.ConfigurableResource):
    """Opens the installation that the environment names; see `bridge_pipeline.settings`."""

    def open(self) -> Workspace:
        """An open workspace.

        Raises:
            DatabaseUnavailable: its database cannot be reached.
        """
        return open_workspace()
