"""docs/benchmarks.md, made of the figures of one run and nothing else."""

from typing import Any

_HEAD = """# Benchmarks

Whole pipelines side by side, on one machine, over the same data and database server; the subjects of
a measurement take turns, and each figure is a median. Rounds: {rounds}. This page is written by
`make bench`; every single run is in the JSON that it writes beside.

- Measured {at} on {machine}.
- With {versions}.
- Reproduce: `{command}`

| what | against | came to | aim | met |
|---|---|---|---|---|
"""
_TAIL = """
Time and rows per second of a pipeline are those of the run itself, from the start of the extract step
to the end of the audit step. The source sends pages of 1,000 records, rendered before, from a process
of its own; nothing that a pipeline guarantees is switched off.

"At least" is what the parts of a run cost alone (`bench/parts.py`): read twice, journalled, parsed, hashed,
written as Parquet, rows and CSV by fast libraries, all cores shared without a wait, with nothing refused,
compared, counted or checked. Cores that are halves of one do less at once than each alone: how much work all
do together is measured beside, by a process for each that parses JSON.

What the UI is asked for, and why these times: [decision 27](decisions/0027-a-usable-ui.md).

Memory is the most that all processes of a run hold together at one time, from its launch to the end of the
audit step, with what they share counted once ([decision 30](decisions/0030-memory-of-a-run.md)); dbt, which
begins after that, is shown beside, and Postgres, a server of its own, is no part of it.
"""


def rendered(figures: dict[str, Any]) -> str:
    """The page of the figures that `python -m bench` wrote.

    Args:
        figures: what stands in its JSON.
    """
    known = {name: figures[name] for name in ("rounds", "at", "machine", "command")}
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    rows = "".join(_row(row) for row in figures["rows"])
    notes = "".join(f"\n**Beware:** {note}\n" for note in figures["notes"])
    medians = "\n## Medians\n\n" + "".join(_medians(figures["rows"]))
    return _HEAD.format(versions=versions, **known) + rows + notes + medians + _TAIL


def _row(row: dict[str, Any]) -> str:
    sign = "≥" if row["at_least"] else "≤"
    met = "yes" if row["met"] else "**no**"
    came, aim = (f"{row[name]:,.3g} {row['unit']}" for name in ("value", "bound"))
    return f"| {row['subject']} | {row['against']} | {came} | {sign} {aim} | {met} |\n"


def _medians(rows: list[dict[str, Any]]) -> list[str]:
    seen = {}
    for row in rows:
        if row["shown"]:
            shown = "; ".join(f"{name}: {value:,.4g}" for name, value in row["shown"].items())
            seen[f"- {row['subject']}. {shown}\n"] = None
    return list(seen)
