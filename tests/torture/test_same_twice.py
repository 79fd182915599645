"""The same input twice gives the same tables, files, manifests and reports (rule 30)."""

import re
from datetime import date

from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.report import write_report
from tests.integration.flow import NAME, digest
from tests.torture.scenarios import LAST, SCENARIOS

# Days are of the data; a time of day is of the run, and so is the head of the chain, which signs times.
_OF_THE_RUN = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?|<code>[0-9a-f]{64}</code>")


def reported(workspace: Workspace) -> str:
    """The report of the last day, without the facts of its run."""
    html = write_report(workspace, NAME, date.fromisoformat(LAST)).html.read_text()
    return _OF_THE_RUN.sub("…", html).replace(str(workspace.home.root), "HOME")


def test_the_same_input_twice_gives_the_same_tables_files_and_reports(target):
    found = []
    for _ in range(2):
        with target.copy(SCENARIOS["flow"]) as workspace:
            SCENARIOS["flow"].work()
            found.append((digest(workspace), reported(workspace), reported(workspace)))
    (first, page, again), (second, other_page, _) = found
    assert first["tables"]["tickets"]
    assert "2024-03-01/v0001.csv" in " ".join(first["files"])
    assert first == second
    assert page == again, "a report that is written again differs"
    assert page == other_page
