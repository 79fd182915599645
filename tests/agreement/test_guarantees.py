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


def test_the_figures_of_the_page_are_those_that_the_campaigns_wrote():
    assert set(table.kept()) == set(table.CAMPAIGNS)
    assert table.rendered(PAGE, table.kept()) == PAGE


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page, with the figures of one campaign, as they are written into a folder."""
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(table, "KEPT", tmp_path / "kept")
    table.PAGE.write_text(f"before\n{table.BEGIN}{table.HEAD}| what is gone |\n{table.END}after\n")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "postgres.0.json").write_text(told("postgres", "0", 5, 7))
    table.main(tmp_path / "before")
    return table.PAGE


def told(campaign, part, seed, cases, **others):
    said = {"campaign": campaign, "part": part, "seed": seed, "runs": 60, "cases": cases, "whole": True}
    said |= {"facts": {"processes": 2, "longest_seconds": cases}, "wrong": [], "seconds": 1.5} | others
    return json.dumps(said)


def test_parts_of_a_campaigns_last_run_are_added_up_and_other_rows_stay(page, tmp_path):
    # The first was written by a run before.
    runs = ("all", 8, 100, []), ("1", 9, 4, ["w"]), ("0", 9, 3, [])
    for time, (part, seed, cases, wrong) in enumerate(runs):
        path = tmp_path / f"concurrency.{part}.json"
        path.write_text(told("concurrency", part, seed, cases, wrong=wrong))
        os.utime(path, (time, time))
    table.main(tmp_path)
    lines = page.read_text().splitlines(keepends=True)
    assert (lines[0], lines[-1], len(lines)) == ("before\n", "after\n", 8)
    assert lines[4].startswith("| postgres | L4 | 7 | 0 | 2 | 5 |")
    assert "| concurrency | L3 L5 | 7 | 1 | 3 | 9 | processes 4, longest seconds 4 | " in lines[5]
    assert "`BRIDGE_TORTURE_RUNS=60 BRIDGE_TORTURE_SEED=9 .venv/bin/pytest -m long --timeout 0 " in lines[5]


@pytest.mark.parametrize(("how", "wrong"), [(TimeoutError("never left STARTED"), 1), (None, 0)])
def test_a_campaign_that_did_not_come_to_its_end_is_not_told_as_one_that_did(
    page, tmp_path, monkeypatch, how, wrong
):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    monkeypatch.setattr(figures.Figures, "runs", 60)

    def ends() -> None:
        with figures.figures_of("postgres") as found:
            found.add([])
            raise how

    if how:
        with pytest.raises(type(how)):
            ends()
    else:
        # As where its process is killed.
        figures.Figures("postgres", "all").add([])
    table.main(tmp_path)
    line = page.read_text().splitlines()[4]
    assert f"| postgres | L4 | 1 | {wrong} | " in line
    assert "**ended before its end**" in line


def test_a_campaign_that_is_ended_early_has_told_what_it_came_to(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    found = figures.Figures("postgres", "all")
    found.add([])
    found.add(["lost"])
    (kept,) = tmp_path.iterdir()
    told = json.loads(kept.read_text())
    assert (told["campaign"], told["cases"], told["wrong"]) == ("postgres", 2, ["lost"])
