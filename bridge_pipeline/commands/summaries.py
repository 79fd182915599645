"""A summary as text: what came from the source, what became of it, and where the files lie."""

from rich.console import Console

from bridge_pipeline.commands.answers import printable, table
from bridge_pipeline.steps.summary import Summary

_STAGES = ("fetched", "outside", "duplicate", "quarantined", "rejected", "landed")
_LOADED = ("loaded", "unchanged", "superseded", "waiting")


def show_summary(summary: Summary, console: Console) -> None:
    """Prints a summary."""
    days = f"{summary.first_day} to {summary.last_day}"
    run = f", run {summary.run_id}" if summary.run_id else ""
    console.print(f"\n{summary.connection} ({summary.tenant}), {days}{run}", style="bold")
    _show_rows(summary, console)
    _show_quarantine(summary, console)
    _show_checks(summary, console)
    console.print(f"CSV audit files  {summary.audit}")
    if summary.report:
        console.print(f"report           {summary.report}")


def _show_rows(summary: Summary, console: Console) -> None:
    rows = [
        [
            entity.entity,
            *(getattr(entity, stage) for stage in (*_STAGES, *_LOADED)),
            "holds" if entity.equation_holds else "DOES NOT HOLD",
        ]
        for entity in summary.entities
    ]
    console.print(table(["entity", *_STAGES, *_LOADED, "equation"], rows, "Rows per entity and stage"))
    held = [[e.entity, e.table_rows, e.placeholders, e.audit_files, e.audit_rows] for e in summary.entities]
    columns = ["entity", "rows in table", "placeholders", "CSV files", "CSV rows"]
    console.print(table(columns, held, "What is there now"))


def _show_quarantine(summary: Summary, console: Console) -> None:
    if not summary.quarantine:
        console.print("Quarantine: nothing\n")
        return
    rows = [[each.entity, each.reason, each.records] for each in summary.quarantine]
    console.print(table(["entity", "reason", "records"], rows, "Quarantine"))


def _show_checks(summary: Summary, console: Console) -> None:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes().items() if count)
    console.print(f"Checks: {counts or 'none'}", style="bold")
    found = [
        [each.entity, each.name, each.outcome, each.unexpected, each.evaluated, each.description]
        for each in summary.checks
        if each.failed
    ]
    if found:
        console.print(table(["entity", "check", "outcome", "failing", "of", "meaning"], found))
    for batch in summary.blocked:
        console.print(
            printable(
                f"batch {batch.batch} ({batch.entity} {batch.window}) is blocked by "
                f"{', '.join(batch.checks)}: "
                f'correct the cause and run it again, or: bridge accept {batch.batch} --by NAME --reason "…"'
            ),
            style="red",
        )
