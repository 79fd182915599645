"""The command line: `python -m bench --only throughput --tickets 20000 --rounds 1`."""

import argparse
import csv
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.measurements import MEASUREMENTS, Row, Sizes
from bench.page import rendered
from bench.records import fields
from bench.stage import stage

_VERSIONS = ("dagster", "dlt", "great-expectations", "pyarrow", "orjson", "psycopg", "dbt-core")
_USUAL = Sizes()


def main() -> None:
    """Measures what was asked for; writes figures and page, and prints the figures."""
    asked = _arguments()
    # So that the server and the source end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sizes = Sizes(
        _counts(asked.tickets), asked.days, asked.backfill_days, asked.small, _counts(asked.memory),
        asked.rounds, (asked.ui_connections, asked.ui_days), asked.dbt_seconds, asked.rows,
    )  # fmt: skip
    rows: dict[tuple[str, str, str], Row] = {}
    began = datetime.now(UTC)
    page = asked.page.read_text() if asked.page and asked.page.exists() else ""
    with stage(asked.folder) as place:
        for name in asked.only.split(","):
            sys.stderr.write(f"measuring {name}\n")
            for row in MEASUREMENTS[name](place, sizes):
                rows[row.key] = row
                _write(_figures(list(rows.values()), sizes, asked, began), asked, page)
    sys.stdout.write(asked.json.read_text())


def _write(figures: dict[str, Any], asked: argparse.Namespace, before: str) -> None:
    """After each figure: hours later something may end this."""
    asked.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if asked.page:
        asked.page.write_text(rendered(figures, before))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    named = ",".join(MEASUREMENTS)
    parser.add_argument("--only", default=named, help=f"which of {named}")
    parser.add_argument(
        "--tickets", type=_listed, default="200000,1000000", help="sizes of throughput; the first of others"
    )
    parser.add_argument("--days", type=_count, default=_USUAL.days, help="days over which they are spread")
    parser.add_argument("--backfill-days", type=_count, default=_USUAL.backfill_days)
    parser.add_argument("--small", type=_count, default=_USUAL.small, help="tickets of the small day")
    parser.add_argument(
        "--memory", type=_listed, default="100000,5000000", help="tickets of the runs of memory: few and many"
    )
    parser.add_argument(
        "--dbt-seconds", type=float, default=_USUAL.dbt_seconds,
        help="how long dbt may take in a run of memory before it is given up",
    )  # fmt: skip
    parser.add_argument("--ui-connections", type=_count, default=_USUAL.ui[0], help="of the UI's history")
    parser.add_argument("--ui-days", type=_count, default=_USUAL.ui[1], help="partitions of each of them")
    parser.add_argument("--rounds", type=_count, default=_USUAL.rounds)
    parser.add_argument(
        "--rows", type=_rows,
        help="a CSV file, .gz or not: each ticket has the fields of one of its rows as well, in turn",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to work; it needs 1 KB per ticket several times")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where figures go")
    parser.add_argument("--page", type=Path, help="where the page goes, such as docs/benchmarks.md")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know of this run")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - set(MEASUREMENTS):
        parser.error(f"no measurement is called {', '.join(sorted(unknown))}; there are {named}")
    return asked


def _count(text: str) -> int:
    """A number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _listed(text: str) -> str:
    """Numbers of at least one with commas between them, as they were typed."""
    _counts(text)
    return text


def _rows(text: str) -> Path:
    """A file that tickets can have their fields from; looked into before hours are spent."""
    try:
        fields(Path(text))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {error}") from None
    return Path(text)


def _command(asked: argparse.Namespace) -> str:
    """What to type for these figures; not where they went."""
    chosen = (
        "only",
        "tickets",
        "days",
        "backfill_days",
        "small",
        "memory",
        "dbt_seconds",
        "ui_connections",
        "ui_days",
        "rounds",
    )
    options = [f"--{name.replace('_', '-')} {getattr(asked, name)}" for name in chosen]
    options += [f"--rows {asked.rows.name}"] if asked.rows else []
    return f"python -m bench {' '.join(options)}"


def _figures(rows: list[Row], sizes: Sizes, asked: argparse.Namespace, began: datetime) -> dict[str, Any]:
    machine = (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} "
        f"{platform.machine()}, load {os.getloadavg()[0]:.1f} at the end"
    )
    return {
        "at": f"{began:%Y-%m-%d %H:%M:%S}",
        "machine": machine,
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
        "command": _command(asked),
        "rounds": sizes.rounds,
        "notes": asked.note,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


if __name__ == "__main__":
    main()
