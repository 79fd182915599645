"""`docs/guarantees.md` names campaigns and tests that exist, and its figures can be written."""

import json
import os
import re

import pytest

from bridge_pipeline.settings import PROJECT_ROOT
from tests.torture import figures, table

PAGE = table.PAGE.read_text()
TORTURE = PROJECT_ROOT / "tests" / "torture"


@pytest.mark.parametrize("campaign", table.CAMPAIGNS)
def test_every_campaign_is_explained_and_writes_its_figures(campaign):
    _, file = table.CAMPAIGNS[campaign]
    assert f'figures_of("{campaign}"' in (TORTURE / file).read_text()
    assert f"\n| {campaign} | " in PAGE.split(table.BEGIN)[0]


def test_every_campaign_that_writes_figures_is_in_the_table():
    written = {
        name
        for path in TORTURE.glob("test_*.py")
        for name in re.findall(r'figures_of\("([^"]+)"', path.read_text())
    }
    assert written == set(table.CAMPAIGNS)


def test_every_test_file_that_the_page_names_exists():
    known = {path.name for path in (PROJECT_ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"\btest_\w+\.py\b", PAGE)) <= known


def test_parts_of_a_campaigns_last_run_are_added_up_and_other_rows_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    kept = "| postgres | L4 | 7 | 0 | 1 | 5 | | `x` |\n"
    table.PAGE.write_text(f"before\n{table.BEGIN}{table.HEAD}{kept}{table.END}after\n")
    # The first was written by a run before.
    for time, (part, seed, cases, wrong) in enumerate(
        (("all", 8, 100, []), ("0", 9, 3, []), ("1", 9, 4, ["w"]))
    ):
        told = {"campaign": "concurrency", "part": part, "seed": seed, "runs": 60, "cases": cases}
        told |= {"facts": {"processes": 2, "longest_seconds": cases}, "wrong": wrong, "seconds": 1.5}
        (tmp_path / f"concurrency.{part}.json").write_text(json.dumps(told))
        os.utime(tmp_path / f"concurrency.{part}.json", (time, time))
    table.main(tmp_path)
    lines = table.PAGE.read_text().splitlines(keepends=True)
    assert (lines[0], lines[-1], lines[4]) == ("before\n", "after\n", kept)
    assert "| concurrency | L3 L5 | 7 | 1 | 3 | 9 | processes 4, longest seconds 4 | " in lines[5]
    assert "`BRIDGE_TORTURE_RUNS=60 BRIDGE_TORTURE_SEED=9 .venv/bin/pytest -m long --timeout 0 " in lines[5]


def test_a_campaign_that_is_ended_early_has_told_what_it_came_to(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    found = figures.Figures("postgres", "all")
    found.add([])
    found.add(["lost"])
    (kept,) = tmp_path.iterdir()
    told = json.loads(kept.read_text())
    assert (told["campaign"], told["cases"], told["wrong"]) == ("postgres", 2, ["lost"])
