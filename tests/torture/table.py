"""Writes the figures of the campaigns into `docs/guarantees.md`, from what they wrote themselves.

`python -m tests.torture.table` does it: what the last runs wrote is kept in `docs/campaigns/`, and the page
is made from that; so a campaign that was not run again keeps the row it has.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bridge_pipeline.settings import PROJECT_ROOT
from tests.torture.figures import FOLDER

PAGE = PROJECT_ROOT / "docs" / "guarantees.md"
KEPT = PROJECT_ROOT / "docs" / "campaigns"
BEGIN, END = "<!-- campaigns: written by `make figures` -->\n", "<!-- end of campaigns -->\n"
HEAD = (
    "| campaign | law | cases | failures | seconds | seed | figures | reproduce |\n"
    "|---|---|---|---|---|---|---|---|\n"
)
# What all parts of a run have in common.
_OF_A_RUN = ("seed", "runs")
# Campaign -> laws that it attacks, and its file in tests/torture.
CAMPAIGNS = {
    "failpoints": ("L1 L2 L4", "test_failpoints.py"),
    "random-kills": ("L1 L2 L4", "test_random_kills.py"),
    "postgres": ("L4", "test_postgres.py"),
    "disk-full": ("L4", "test_disk.py"),
    "concurrency": ("L3 L5", "test_concurrency.py"),
    "host-crash": ("L4", "test_host_crash.py"),
    "backup": ("L2 L4", "test_backup.py"),
    "http": ("L1 L6", "test_http.py"),
}


def command(campaign: str, seed: int, runs: int) -> str:
    """What runs a campaign again; it takes longer than any other test may."""
    variables = f"BRIDGE_TORTURE_RUNS={runs} BRIDGE_TORTURE_SEED={seed}"
    return f"`{variables} .venv/bin/pytest -m long --timeout 0 tests/torture/{CAMPAIGNS[campaign][1]}`"


def row(campaign: str, parts: list[dict[str, Any]]) -> str:
    """The line of a campaign, its parts added up."""
    facts: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part["facts"].items():
            facts[name] = max(facts[name], value) if name.startswith("longest") else facts[name] + value
    told = [f"{name.replace('_', ' ')} {value:g}" for name, value in facts.items()]
    if not all(part["whole"] for part in parts):
        told.append("**ended before its end**")
    cases, wrong = sum(part["cases"] for part in parts), sum(len(part["wrong"]) for part in parts)
    seconds = sum(part["seconds"] for part in parts)
    seed = parts[0]["seed"]
    cells = [campaign, CAMPAIGNS[campaign][0], f"{cases:,}", str(wrong), f"{seconds:,.0f}", str(seed)]
    return (
        " | ".join(["", *cells, ", ".join(told), command(campaign, seed, parts[0]["runs"]), ""]).strip()
        + "\n"
    )


def rendered(page: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """The page with a row of each campaign that was found."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    rows = [row(name, found[name]) for name in CAMPAIGNS if name in found]
    return before + BEGIN + HEAD + "".join(rows) + END + after


def kept() -> dict[str, list[dict[str, Any]]]:
    """What the page is made from: the figures of each campaign's last run, by part."""
    return {path.stem: json.loads(path.read_text()) for path in KEPT.glob("*.json")}


def last_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The figures in a folder: of each campaign, those of its last run."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        part = json.loads(path.read_text())
        parts = found[part["campaign"]]
        # Others are of a run before: of parts that there are no more, or that were not run again.
        if not parts or [part[name] for name in _OF_A_RUN] == [parts[0][name] for name in _OF_A_RUN]:
            parts.append(part)
    return found


def main(folder: Path) -> None:
    """Keeps what the campaigns wrote into a folder, and writes the page anew."""
    KEPT.mkdir(exist_ok=True)
    for campaign, parts in last_runs(folder).items():
        parts.sort(key=lambda part: part["part"])
        (KEPT / f"{campaign}.json").write_text(json.dumps(parts, indent=2) + "\n")
    PAGE.write_text(rendered(PAGE.read_text(), kept()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
