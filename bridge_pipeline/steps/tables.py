"""Brings the tables up to a window: load what is readable, fetch the parents that are missing, look."""

from dataclasses import dataclass

from bridge_pipeline.database import ledger
from bridge_pipeline.database.ledger import CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.load import LoadResult, load_window
from bridge_pipeline.steps.parents import fetch_missing
from bridge_pipeline.steps.references import check_tables


@dataclass(frozen=True)
class TableUpdate:
    """What was loaded, the rows the table holds now, and the placeholders left per parent entity.

    `checks` are those of the load of the newest batch, and of the tables afterwards.
    """

    loads: list[LoadResult]
    rows: int
    placeholders: dict[str, int]
    checks: list[CheckResult]

    def total(self, term: str) -> int:
        """The sum of one count over all loads."""
        return sum(getattr(result, term) for result in self.loads)


def bring_up_to_date(
    workspace: Workspace, name: str, entity: str, window: Window, run_id: str | None = None
) -> TableUpdate:
    """Loads the readable batches of the window, then the parents they refer to; then looks at the tables.

    Raises:
        BatchBlocked: a batch that speaks for days of the window may not be read.
        EquationBroken: the rows of a batch do not add up; its load is undone.
        SourceError: parents could not be asked for; what was loaded stays.
    """
    loads = load_window(workspace, name, entity, window, run_id)
    placeholders = fetch_missing(workspace, name, entity, window, run_id)
    rows = _rows(workspace, name, entity, loads)
    found = check_tables(workspace, name, entity, window, run_id, rows=rows)
    with workspace.database.engine.connect() as connection:
        newest = ledger.newest_batch(connection, name, entity, window, run_id)
        checks = ledger.checks_of(connection, newest.id) if newest else []
    return TableUpdate(loads, rows, placeholders, [*(c for c in checks if c.stage == "load"), *found])


def _rows(workspace: Workspace, name: str, entity: str, loads: list[LoadResult]) -> int:
    """How many records of the connection the table holds."""
    match loads:
        case [LoadResult(first=True, loaded=loaded)]:
            # Who reads rows for the first time marks each of them as committed, and writes the table anew.
            return loaded
        case _:
            with workspace.database.engine.connect() as connection:
                return ledger.rows_in_table(connection, name, entity)
