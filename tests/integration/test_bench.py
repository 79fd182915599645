"""The whole harness of measurements runs, with tiny sizes; nothing is said of any time."""

import json
import os
import subprocess
import sys

import pytest

from bench.measurements import MEASUREMENTS
from bridge_pipeline.settings import PROJECT_ROOT


@pytest.mark.long
def test_every_measurement_gives_rows_figures_and_page(tmp_path):
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    sizes = "--tickets 40 --days 2 --backfill-days 3 --small 20 --memory 20,40 --rounds 1"
    sizes += " --ui-connections 2 --ui-days 40"
    command = [sys.executable, "-m", "bench", *sizes.split(), "--folder", str(tmp_path)]
    command += ["--json", str(figures), "--page", str(page)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4_000:]
    rows = json.loads(figures.read_text())["rows"]
    assert {row["measurement"] for row in rows} == set(MEASUREMENTS)
    assert all(row["subject"] in page.read_text() and row["value"] > 0 for row in rows)
    # Nothing stays behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "page.md"]


def test_the_command_names_the_measurements_that_there_are():
    command = [sys.executable, "-m", "bench", "--only", "sauce"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("sauce", *MEASUREMENTS))
