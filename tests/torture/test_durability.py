"""Whatever a commit lists is durable by then: file, name, and the folders on the way to it."""

import json
from pathlib import Path

import pytest

from bridge_pipeline.database.workspace import open_workspace
from tests.integration.flow import ended, start
from tests.torture.durability import Watch
from tests.torture.scenarios import SCENARIOS


def watched(scenario: str, path: str) -> None:
    """The work in a process of its own, with what was wrong at its commits."""
    watch = Watch(open_workspace())
    with watch.watching():
        SCENARIOS[scenario].work()
    Path(path).write_text(json.dumps([watch.commits, watch.left()]))


# Those that list files or make keys. A backup's restore is a home of its own, synced as a whole.
LISTING = ("flow", "rotate", "seal", "certify", "replay", "accept", "purge", "flow-beside", "flow-again")
# These pass every place that syncs; the others rest on the same ones.
ALWAYS = LISTING[:3]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in LISTING]
)
def test_what_a_commit_lists_survives_a_power_cut(target, name):
    scenario = SCENARIOS[name]
    with target.copy(scenario) as workspace:
        path = workspace.home.work / "watched.json"
        assert ended(start(watched, name, str(path))) == 0
        commits, wrong = json.loads(path.read_text())
    assert commits, "nothing was listed, and nothing looked at"
    assert wrong == []
