"""Brings the tables up to a window: load what is readable, then fetch the parents that are missing."""

from dataclasses import dataclass

from bridge_pipeline.database import ledger
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.load import LoadResult, load_window
from bridge_pipeline.steps.parents import fetch_missing


@dataclass(frozen=True)
class TableUpdate:
    """What was loaded, the rows the table holds now, and the placeholders left per parent entity."""

    loads: list[LoadResult]
    rows: int
    placeholders: dict[str, int]

    def total(self, term: str) -> int:
        """The sum of one count over all loads."""
        return sum(getattr(result, term) for result in self.loads)


def bring_up_to_date(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> TableUpdate:
    """Loads the readable batches of the window, and then the parents they refer to.

    Raises:
        BatchBlocked: the newest batch of the window may not be read.
        SourceError: parents could not be asked for; what was loaded stays.
    """
    loads = load_window(workspace, name, entity, window, run_id)
    placeholders = fetch_missing(workspace, name, entity, window, run_id)
    with workspace.database.engine.connect() as connection:
        rows = ledger.rows_in_table(connection, name, entity)
    return TableUpdate(loads, rows, placeholders)
