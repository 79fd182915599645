"""The data-quality report: one HTML page per connection and day that says what to think of the data.

The page needs nothing else: no script, no font, style or image from elsewhere. Everything in it
comes from the ledger, so the same data gives the same bytes, but for the line of run facts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bridge_pipeline.connector_kit.journal import write_durably
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES, Window
from bridge_pipeline.redaction import redact
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.summary import NothingExtracted

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_LOAD_TERMS = ("loaded", "unchanged", "superseded")

_TERMS = {
    "outside": "outside the window: good records that the source sent although not asked for",
    "duplicate": "duplicates: the same version again, from reading more than once",
    "quarantined": "in quarantine: not readable as records of this kind",
    "rejected": "in quarantine: refused by a check",
    "loaded": "loaded: new or changed in the table",
    "unchanged": "unchanged: the table had them already",
    "superseded": "superseded: the table or this batch has a newer version",
    "waiting": "waiting: landed and not loaded",
}
_REASONS = {
    "change_time_in_future": "changed in the future, by the source's word",
    "change_time_missing": "no change time, so it belongs to no day",
    "id_missing": "no id",
    "id_out_of_range": "an id that is no positive 64-bit number",
    "id_wrong_type": "an id that is no number",
    "invalid_json": "not valid JSON",
    "lone_surrogate": "a broken character (half of a pair)",
    "not_a_number": "NaN, which is no JSON",
    "not_an_object": "not a record at all",
    "nul_character": "a NUL character, which no text column can hold",
    "number_out_of_range": "a number too large to keep",
    "repeated_key": "a field that stands twice",
    "time_invalid": "a time that cannot be read",
    "time_without_zone": "a time without a time zone",
    "too_deep": "nested too deep",
    "wrong_type": "a field of the wrong type",
}
_PROOFS = {
    "whole listing": "The source's whole listing was read, without a filter, again and again until a full "
    "reading brought no record that had not been seen, and the last pages were then read once more.",
    "filtered listing": "The listing of what changed in this window (and a margin around it) was read again "
    "and again until a full reading brought no record that had not been seen, and the last pages were then "
    "read once more. The filter was checked against the listing without it, now or before.",
    "lookup by id": "Single records were asked for by their id.",
}


@dataclass(frozen=True)
class _Verdict:
    """`level` is the colour: good, fair or bad."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class _Section:
    """One entity as the page shows it."""

    entity: str
    description: str
    verdict: _Verdict
    window: str
    fetched: int
    terms: tuple[tuple[str, int], ...]
    holds: bool
    failed: tuple[CheckResult, ...]
    passed: tuple[CheckResult, ...]
    quarantine: tuple[tuple[str, str, int], ...]
    proof: tuple[str, ...]
    command: str
    audit: tuple[str, int, str] | None
    facts: str


def write_report(workspace: Workspace, name: str, day: date) -> Path:
    """Writes the report on the newest batches that cover `day`, and returns where it lies.

    Raises:
        UnknownConnection: there is no such connection.
        NothingExtracted: no batch covers the day.
    """
    record = registry.get(workspace.database.engine, name)
    with workspace.database.engine.connect() as connection:
        window = Window.of_days(day, day)
        batches = {each: ledger.newest_batch(connection, name, each, window) for each in entities_of(record)}
        sections = [
            _section(connection, batch, day) if batch else _missing(entity)
            for entity, batch in batches.items()
        ]
    if not any(batches.values()):
        raise NothingExtracted(f"nothing was extracted for {name} on {day}: see `bridge run --help`")
    page = _render(
        name=name,
        tenant=record.tenant,
        connector=record.connector,
        source=record.config.get("base_url"),
        day=day,
        verdict=_overall([section.verdict for section in sections]),
        sections=sections,
    )
    path = workspace.home.report_of(record.tenant, name, day)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, redact(page).encode())
    return path


def last_day_read(workspace: Workspace, name: str) -> date:
    """The last day that was extracted for a connection.

    Raises:
        UnknownConnection: there is no such connection.
        NothingExtracted: nothing was extracted yet.
    """
    registry.get(workspace.database.engine, name)
    query = sa.select(sa.func.max(t.batches.c.window_end)).where(
        t.batches.c.connection == name, t.batches.c.kind != "lookup"
    )
    with workspace.database.engine.connect() as connection:
        end = connection.scalar(query)
    if end is None:
        raise NothingExtracted(f"nothing was extracted yet for {name}: see `bridge run --help`")
    return (end - timedelta(microseconds=1)).date()


def _render(**values: Any) -> str:
    # Its import takes a moment that only a report pays for.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(**values)


def _section(connection: sa.Connection, batch: Batch, day: date) -> _Section:
    checks = ledger.checks_of(connection, batch.id)
    terms = _terms(connection, batch)
    holds = batch.fetched == sum(terms.values())
    last = (batch.window_end - timedelta(microseconds=1)).date()
    return _Section(
        entity=batch.entity,
        description=ENTITIES[batch.entity].description,
        verdict=_verdict(batch, checks, holds),
        window=_span(batch, last),
        fetched=batch.fetched,
        terms=tuple((_TERMS[term], count) for term, count in terms.items()),
        holds=holds,
        failed=tuple(check for check in checks if not check.passed),
        passed=tuple(check for check in checks if check.passed),
        quarantine=tuple(_quarantine(connection, batch)),
        proof=tuple(_proof(batch)),
        command=f"bridge run {batch.connection} --from {batch.window_start.date()} --to {last} "
        f"--entities {batch.entity}",
        audit=_audit(connection, batch, day),
        facts=_facts(batch),
    )


def _missing(entity: str) -> _Section:
    verdict = _Verdict("bad", "Not extracted", "No extraction of this entity covers the day.")
    return _Section(
        entity,
        ENTITIES[entity].description,
        verdict,
        "",
        0,
        (),
        True,
        (),
        (),
        (),
        (),
        "",
        None,
        "not extracted",
    )


def _span(batch: Batch, last: date) -> str:
    if batch.kind == "whole":
        return "all records the source has (the first reading of this entity)"
    first = batch.window_start.date()
    return (
        f"records that changed on {first}"
        if first == last
        else f"records that changed from {first} to {last}"
    )


def _terms(connection: sa.Connection, batch: Batch) -> dict[str, int]:
    """What became of the records of a batch, in the order of the equation; without terms that are 0."""
    query = sa.select(*(t.loads.c[term] for term in _LOAD_TERMS)).where(t.loads.c.batch_id == batch.id)
    load = connection.execute(query).one_or_none()
    terms = {term: getattr(batch, term) for term in ("outside", "duplicate", "quarantined", "rejected")}
    if load is None:
        terms["waiting"] = batch.landed - batch.rejected
    else:
        terms |= load._mapping
    return {term: count for term, count in terms.items() if count}


def _verdict(batch: Batch, checks: list[CheckResult], holds: bool) -> _Verdict:
    if not holds:
        return _Verdict("bad", "Not accounted for", "Records that were fetched are not accounted for.")
    if batch.verdict == "blocked":
        return _Verdict("bad", "Blocked", "A check stops this data; nothing downstream reads it.")
    if batch.verdict == "pending":
        return _Verdict("bad", "Not checked", "The checks have not run; nothing downstream reads this data.")
    if batch.verdict == "accepted":
        return _Verdict("fair", f"Accepted by {batch.accepted_by}", f"Reason: {batch.accept_reason}")
    found = sum(not check.passed for check in checks)
    if found or batch.quarantined:
        parts = [f"{found} of {len(checks)} checks found something"] if found else []
        parts += [f"{batch.quarantined:,} records are in quarantine"] if batch.quarantined else []
        return _Verdict("fair", "Usable, with remarks", f"{' and '.join(parts)}.")
    return _Verdict("good", "Good", f"All {len(checks)} checks passed.")


def _overall(verdicts: list[_Verdict]) -> _Verdict:
    if any(verdict.level == "bad" for verdict in verdicts):
        return _Verdict("bad", "Do not rely on this data yet", "Something is missing or blocked; see below.")
    if any(verdict.level == "fair" for verdict in verdicts):
        return _Verdict("fair", "Complete and usable, with remarks", "Every record is accounted for.")
    return _Verdict("good", "Complete and good", "Every record is accounted for, and every check passed.")


def _quarantine(connection: sa.Connection, batch: Batch) -> Iterable[tuple[str, str, int]]:
    """Reason, the same in words, and how many records of the batch went to quarantine for it."""
    q = t.quarantine
    query = (
        sa.select(q.c.reason, sa.func.count())
        .where(
            q.c.connection == batch.connection,
            q.c.entity == batch.entity,
            sa.or_(q.c.first_batch == batch.id, q.c.last_batch == batch.id),
        )
        .group_by(q.c.reason)
        .order_by(q.c.reason)
    )
    for reason, count in connection.execute(query):
        yield reason, _REASONS.get(reason, "refused by the check of that name"), count


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
    if batch.excluded:
        yield f"Left out at the connection's wish, before anything was stored: {', '.join(batch.excluded)}."


def _audit(connection: sa.Connection, batch: Batch, day: date) -> tuple[str, int, str] | None:
    """Path, rows and SHA-256 of the day's current audit file."""
    row = ledger.current_audit_file(connection, batch.connection, batch.entity, day)
    return (row.path, row.rows, row.sha256) if row is not None else None


def _facts(batch: Batch) -> str:
    accept = (
        f'; to accept it: bridge accept {batch.id} --by NAME --reason "…"'
        if batch.verdict == "blocked"
        else ""
    )
    compared = batch.proof.get("filter", {})
    comparison = f", {compared.get('records_compared', 0):,} records compared" if compared else ""
    span = f"{batch.fetched_from:%Y-%m-%d %H:%M:%S} to {batch.fetched_to:%Y-%m-%d %H:%M:%S} UTC"
    read = f"{batch.requests:,} requests, {batch.sweeps} readings{comparison}"
    return f"batch {batch.id}, run {batch.run_id or 'by hand'}, {read}, {span}{accept}"
