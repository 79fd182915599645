"""docs/benchmarks.md, made of the figures of one run; what it did not measure keeps what stood there."""

from typing import Any

_HEAD = """# Benchmarks

Whole pipelines side by side, on one machine, over the same data and database server; the subjects of
a measurement take turns, and each figure is the median of the rounds; memory, and the first grid ever, which
there is once, are of one run. This page is written by `make bench`; every single run is in the JSON that it
writes beside. What a later run did not measure keeps its row: the last column says which of these runs a row
is of.

"""
_TABLE = """
| what | against | came to | aim | met | measured |
|---|---|---|---|---|---|
"""
_MEDIANS = "\n## Medians\n\n"
_TAIL = """
Time and rows per second of a pipeline are those of the run itself, from the start of the extract step
to the end of the audit step. The source sends pages of 1,000 records, rendered before, from a process
of its own; nothing that a pipeline guarantees is switched off.

"At least" is what the parts of a run cost alone (`bench/parts.py`): read twice, journalled, parsed, hashed,
written as Parquet, rows and CSV by fast libraries, all cores shared without a wait, with nothing refused,
compared, counted or checked. Cores that are halves of one do less at once than each alone: how much work all
do together is measured beside, by a process for each that parses JSON.

On a machine whose cores change their speed within minutes ratios within one row were taken side by side,
figures of different rows were not.

What the UI is asked for, and why these times: [decision 27](decisions/0027-a-usable-ui.md).

Memory is the most that all processes of a run hold together at one time, from its launch to the end of the
audit step, with what they share counted once ([decision 30](decisions/0030-memory-of-a-run.md)); dbt, which
begins after that, is shown beside, and Postgres, a server of its own, is no part of it.
"""


def rendered(figures: dict[str, Any], before: str = "") -> str:
    """The page of the figures that `python -m bench` wrote.

    Args:
        figures: what stands in its JSON.
        before: the page as it stood, whose rows stay where nothing was measured for them now.
    """
    runs, rows, medians = _lines(before)
    runs[figures["at"]] = _run(figures)
    for row in figures["rows"]:
        rows[row["subject"], row["against"]] = _row(row, figures["at"])
        if row["shown"]:
            medians[row["subject"]] = _medians_of(row)
    shown = {_cells(line)[-1] for line in rows.values()} | {figures["at"]}
    parts = (
        _HEAD,
        *(line for at, line in sorted(runs.items()) if at in shown),
        _TABLE,
        *rows.values(),
        _MEDIANS,
        *medians.values(),
        _TAIL,
    )
    return "".join(parts)


def _lines(page: str) -> tuple[dict[str, str], dict[tuple[str, str], str], dict[str, str]]:
    """The lines of a page: of its runs, by their time; of its rows, by what was compared with what; and of
    their medians, by what was measured."""
    runs, rows, medians = {}, {}, {}
    table = False
    for line in page.splitlines(keepends=True):
        if line.startswith("- **"):
            runs[line.split("**")[1]] = line
        elif line.startswith("- "):
            medians[line.removeprefix("- ").split(". ")[0]] = line
        elif table and line.startswith("|"):
            what, against, *_ = _cells(line)
            rows[what, against] = line
        # What stands above it are the names of its columns.
        table = line.startswith("|") and (table or line.startswith("|-"))
    return runs, rows, medians


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _run(figures: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    notes = "".join(f" Beware: {note}" for note in figures["notes"])
    return (
        f"- **{figures['at']}**, {figures['rounds']} rounds, on {figures['machine']}; with {versions}. "
        f"`{figures['command']}`{notes}\n"
    )


def _row(row: dict[str, Any], at: str) -> str:
    sign = "≥" if row["at_least"] else "≤"
    met = "yes" if row["met"] else "**no**"
    came, aim = (f"{row[name]:,.3g} {row['unit']}" for name in ("value", "bound"))
    return f"| {row['subject']} | {row['against']} | {came} | {sign} {aim} | {met} | {at} |\n"


def _medians_of(row: dict[str, Any]) -> str:
    shown = "; ".join(f"{name}: {value:,.4g}" for name, value in row["shown"].items())
    told = "".join(f" Beware: {each}" for each in row["told"])
    return f"- {row['subject']}. {shown}.{told}\n"
