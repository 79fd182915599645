"""The data-quality report: one HTML page per connection and day that says what to think of the data.

The page needs nothing else: no script, no font, style or image from elsewhere. The same is given as
Markdown, and the rejected records as a workbook. All of it comes from the ledger, so the same data
gives the same bytes, but for the run facts (rule 30).
"""

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge_pipeline.connector_kit.journal import write_durably
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.database.engine import advisory_lock, transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.masking import masked_text
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.redaction import redact_secrets
from bridge_pipeline.steps import chain
from bridge_pipeline.steps.certificate import verdict_words
from bridge_pipeline.steps.changes import compare, state_of
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.findings import Findings, Part, findings_of, last_day
from bridge_pipeline.steps.summary import NothingExtracted
from bridge_pipeline.steps.trend import HEIGHT, WIDTH
from bridge_pipeline.steps.verdict import (
    OWNERS,
    Verdict,
    answers,
    overall,
    run_command,
    share,
    verdict_of,
)
from bridge_pipeline.steps.workbook import write_workbook

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent
# Dagster keeps the Markdown in its event log.
_MOST_MARKDOWN = 60_000

# Findings of one entity that stand open on the page; the rest can be opened.
_AT_ONCE = 25

TERMS = {
    "outside": "outside: good records of other days that came along, and records that the source itself "
    "lists as deleted, which hold nothing to load",
    "loaded": "loaded: new or changed in the tables",
    "unchanged": "unchanged: the tables had them already",
    "superseded": "superseded: a newer version is known",
    "quarantined": "quarantined: set aside, with their exact bytes",
    "duplicate": "duplicate: the same version once more, from reading more than once",
}
EFFECTS = {
    "block": "holds the data back until somebody decides",
    "quarantine": "sets these records aside; the others go on",
    "warn": "is reported; the records are used as they are",
}
_KINDS = {"new": "New", "worse": "More", "better": "Fewer", "mended": "Mended", "other": "Changed"}
_PROOFS = {
    "whole listing": "The source's whole listing was read, without a filter, again and again until a full "
    "reading brought no record that had not been seen, and the last pages were then read once more.",
    "filtered listing": "The listing of what changed in this window (and a margin around it) was read again "
    "and again until a full reading brought no record that had not been seen, and the last pages were then "
    "read once more. The filter was checked against the listing without it, now or before.",
    "keyset, confirmed by keys": "Pages followed each other by the time of change and the key of their last "
    "row; then all keys were listed in another order until none was new.",
    "cursor export": "The source's export was read from the window's beginning to its end. It is ordered by "
    "change, so that a record that changes meanwhile moves to its end and is met again.",
    "time export": "The source's export was read from the window's beginning to its end. It is ordered by "
    "change, so that a record that changes meanwhile moves to its end and is met again.",
    "list": "The source's list was read from page to page to its end.",
    "lookup by id": "Single records were asked for by their id.",
}


@dataclass(frozen=True)
class Report:
    """A written report: what it says in short, and where its forms lie.

    `subject` fits the subject line of a mail. `workbook` is None where no record was rejected.
    """

    connection: str
    tenant: str
    day: date
    verdict: Verdict
    subject: str
    html: Path
    workbook: Path | None
    markdown: str

    def document(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        kept = {key: value for key, value in asdict(self).items() if key != "html"}
        return kept | {"report": str(self.html), "workbook": str(self.workbook) if self.workbook else None}


def write_report(workspace: Workspace, name: str, day: date) -> Report:
    """Writes the report on the newest batches that cover `day`; writing it again gives the same.

    A day that was never extracted has a report that says so.

    Raises:
        UnknownConnection: there is no such connection.
    """
    record = registry.get(workspace.database.engine, name)
    html = workspace.home.report_of(record.tenant, name, day)
    html.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with transaction(workspace.database.engine, "report") as connection:
        # Two writers of one report would compare it with each other's.
        advisory_lock(connection, f"report:{name}")
        findings = findings_of(workspace, connection, record, list(entities_of(record)), day)
        workbook = _workbook(workspace, connection, findings)
        reach("report.workbook")
        page = _page(connection, findings, workbook)
        write_durably(html, redact_secrets(_render("report.html.j2", page)).encode(), alone=True)
        reach("report.written")
    verdict: Verdict = page["verdict"]
    return Report(
        connection=name,
        tenant=record.tenant,
        day=day,
        verdict=verdict,
        subject=f"{name} {day}: {verdict.title}",
        html=html,
        workbook=workbook,
        markdown=_shortened(redact_secrets(_render("report.md.j2", page))),
    )


def last_day_read(workspace: Workspace, name: str) -> date:
    """The last day that was extracted for a connection.

    Raises:
        UnknownConnection: there is no such connection.
        NothingExtracted: nothing was extracted yet.
    """
    registry.get(workspace.database.engine, name)
    query = sa.select(sa.func.max(t.batches.c.window_end)).where(
        t.batches.c.connection == name, t.batches.c.kind.not_in(ledger.SINGLE)
    )
    with workspace.database.engine.connect() as connection:
        end = connection.scalar(query)
    if end is None:
        raise NothingExtracted(f"nothing was extracted yet for {name}: see `bridge run --help`")
    return (end - timedelta(microseconds=1)).date()


def _workbook(workspace: Workspace, connection: sa.Connection, findings: Findings) -> Path | None:
    record = findings.record
    return write_workbook(
        connection,
        workspace.home.rejected_of(record.tenant, record.name, findings.day),
        findings.day,
        [equation.batch.id for part in findings.parts for equation in part.equations],
        {(part.entity, each.code): each.reason for part in findings.parts for each in part.rejections},
        findings.links,
        findings.clear,
    )


def _page(connection: sa.Connection, findings: Findings, workbook: Path | None) -> dict[str, Any]:
    """Everything that the templates show."""
    record, parts = findings.record, findings.parts
    titles = {part.entity: verdict_of(part).title for part in parts}
    return {
        "name": record.name,
        "tenant": record.tenant,
        "connector": record.connector,
        "source": record.config.get("base_url"),
        "day": findings.day,
        "verdict": overall(parts, findings.shortfall),
        "answers": answers(findings),
        "comparison": compare(connection, record, findings.day, state_of(parts, titles)),
        "parts": parts,
        "cards": [_card(record.name, part) for part in parts],
        "accepted": [
            replace(each, accept_reason=_said(findings, each.accept_reason)) for each in findings.accepted
        ],
        "blocked": [
            *(part.batch for part in parts if part.batch is not None and part.batch.verdict == "blocked"),
            *findings.blocked_elsewhere,
        ],
        "at_once": _AT_ONCE,
        "certificate": _certificate(findings.certificate),
        "head": chain.head(connection, record.tenant),
        "said_by": {each.id: _said(findings, each.accepted_by) for each in findings.accepted},
        "workbook": workbook,
        "clear": findings.clear,
        "effects": EFFECTS,
        "kinds": _KINDS,
        "owners": OWNERS,
        "terms": TERMS,
        "trend_size": (WIDTH, HEIGHT),
    }


def _certificate(newest: Certificate | None) -> dict[str, Any] | None:
    """The newest reckoning against the source's own list, in words; None if there was none."""
    if newest is None:
        return None
    title, text = verdict_words(newest.document)
    span = newest.document["scope"]
    scope = f"what changed from {span['from']} to {span['to']}" if span else "all that the source lists"
    level = "good" if newest.complete else "bad"
    return {
        "number": newest.number,
        "verdict": Verdict(level, title, text),
        "scope": scope,
        "path": newest.path,
    }


def _said(findings: Findings, text: str | None) -> str:
    return masked_text(text or "not said", findings.clear)


def _card(name: str, part: Part) -> dict[str, Any]:
    """What the page says of one entity beside its findings."""
    batch = part.batch
    facts = [_facts(equation.batch) for equation in part.equations]
    return {
        "part": part,
        "description": ENTITIES[part.entity].description,
        "verdict": verdict_of(part),
        "span": _span(batch) if batch else "",
        "counts": tuple(_counts(part)),
        "passed": [check for check in part.checks if check.passed],
        "proof": tuple(_proof(batch)) if batch else (),
        "command": run_command(name, batch.window_start.date(), last_day(batch), [part.entity])
        if batch
        else "",
        "facts": facts,
    }


def _counts(part: Part) -> Iterable[tuple[str, str]]:
    """The scorecard's figures: label and value."""
    if part.batch is None:
        return
    sums = {term: sum(each.terms[term] for each in part.equations) for term in TERMS}
    yield "fetched", f"{sum(each.batch.fetched for each in part.equations):,}"
    yield "landed", f"{sum(each.batch.landed for each in part.equations):,}"
    for term in ("loaded", "unchanged", "superseded", "quarantined"):
        yield term, f"{sums[term]:,}"
    if part.replayed:
        yield "loaded since by replay", f"{part.replayed:,}"
    if waiting := sum(each.waiting for each in part.equations):
        yield "waiting", f"{waiting:,}"
    yield "in the table now", f"{part.table_rows:,}"
    yield "placeholders", f"{part.placeholders:,}"
    passed = sum(check.passed for check in part.checks)
    yield "checks passed", f"{passed} of {len(part.checks)}"


def _span(batch: Batch) -> str:
    if batch.kind == "whole":
        return "all records the source has (the first reading of this entity)"
    first, last = batch.window_start.date(), last_day(batch)
    return (
        f"records that changed on {first}"
        if first == last
        else f"records that changed from {first} to {last}"
    )


def _proof(batch: Batch) -> Iterable[str]:
    """How the batch is known to be whole (rules 3 and 4), in words."""
    proof = batch.proof
    yield _PROOFS.get(proof.get("method", ""), f"Method: {proof.get('method', 'not stated')}.")
    if compared := proof.get("filter"):
        hidden = compared.get("hidden", 0)
        yield (
            f"The source's filter hid {hidden:,} records, so what it sends was not relied on."
            if hidden
            else "Nothing that the filter should have let through was missing from what it sent."
        )
    if proof.get("filter_refused"):
        yield "The source refused the filter, so everything was read."
    if gone := proof.get("listed_as_deleted"):
        yield (
            f"The source lists {gone:,} records as deleted. They count as outside and change no row; a "
            "certificate asks for each by its id before it marks it as deleted."
        )
    if batch.excluded:
        yield f"Left out at the connection's wish, before anything was stored: {', '.join(batch.excluded)}."


def _facts(batch: Batch) -> str:
    compared = batch.proof.get("filter", {})
    comparison = f", {compared.get('records_compared', 0):,} records compared" if compared else ""
    span = f"{batch.fetched_from:%Y-%m-%d %H:%M:%S} to {batch.fetched_to:%Y-%m-%d %H:%M:%S} UTC"
    read = f"{batch.requests:,} requests, {batch.sweeps} readings{comparison}"
    return f"batch {batch.id}, run {batch.run_id or 'by hand'}, {read}, {span}"


# --- Rendering ----------------------------------------------------------------------------------


def _render(template: str, values: dict[str, Any]) -> str:
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> "Environment":
    # Its import takes a moment that only a report pays for.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": lambda value: f"{value:,}", "md": markdown_text}
    environment.globals["share"] = share
    return environment


def markdown_text(text: object) -> str:
    """A value as it stands in Markdown: nothing in it is markup, and it stays on its line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|~#!" else letter for letter in line)


def _shortened(text: str) -> str:
    if len(text) <= _MOST_MARKDOWN:
        return text
    kept = text[:_MOST_MARKDOWN].rsplit("\n", 1)[0]
    return f"{kept}\n\n… the rest stands in the HTML report.\n"
