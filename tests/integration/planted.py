"""Days planted in the ledger without any extraction: what a report must be able to show, in milliseconds."""

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from bridge_pipeline.database import ledger
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import Window
from bridge_pipeline.steps.extract import add_to_quarantine
from tests.integration.flow import NAME

DAY = date(2025, 3, 14)
_FETCHED = datetime(2025, 3, 15, 3, 0, tzinfo=UTC)
# What an attacker or an unlucky customer may put into any field.
HOSTILE = (
    "<script>alert('x')</script>",
    "W" * 2_000,
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    '=HYPERLINK("http://evil.example","click")',
    "]]> --> {{ 7 * 7 }} `code` | cell | ![x](http://evil.example/x.png)",
    "half \ud83d of a pair",
)


def failed(name: str, severity: str, sentence: str, count: int, of: int, **values: str) -> CheckResult:
    """A check that found something, with as many examples as it may have."""
    examples = [{"id": str(4_000 + n), **values} for n in range(min(count, 10))]
    owner = "data-platform" if severity == "block" else "data-quality"
    return CheckResult(name, severity, sentence, owner, False, of, count, examples)


def passed(name: str, sentence: str, of: int) -> CheckResult:
    """A check that found nothing."""
    return CheckResult(name, "warn", sentence, "data-quality", True, of, 0, [])


def plant(
    workspace: Workspace,
    entity: str,
    checks: list[CheckResult] | None,
    rejected: list[dict[str, Any]] | None = None,
    day: date = DAY,
    loaded: bool = True,
    **changes: Any,
) -> Batch:
    """A batch of a day with its checks and quarantine; `checks` None: they have not run."""
    rejected = rejected or []
    window = Window.of_days(day, day)
    with workspace.database.engine.begin() as connection:
        batch = replace(_batch(ledger.next_batch_id(connection), entity, window, len(rejected)), **changes)
        ledger.add_batch(connection, batch)
        for record in rejected:
            add_to_quarantine(connection, batch, [_quarantined(record)])
        if checks is not None:
            ledger.record_checks(connection, batch.id, checks, 0)
        batch = ledger.batch(connection, batch.id)
        if batch.readable and loaded:
            rest = batch.landed - 12
            counts = {"loaded": rest, "unchanged": 9, "superseded": 3, "placeholders": 0}
            ledger.record_load(connection, batch.id, None, counts)
    return batch


def plant_history(workspace: Workspace, batch: Batch, counts: list[int | None]) -> None:
    """The rows of the days up to that of `batch`, as its trend line shows them; None is a gap."""
    last = batch.window_start.date()
    rows = [
        {
            "connection": NAME,
            "entity": batch.entity,
            "day": last - timedelta(days=len(counts) - 1 - n),
            "version": 1,
            "tenant": "acme",
            "path": f"acme/{NAME}/{batch.entity}/v0001.csv",
            "rows": count,
            "sha256": "0" * 64,
            "rows_sha256": "0" * 64,
            "manifest_sha256": "0" * 64,
            "batch_id": batch.id,
            "fetched_to": batch.fetched_to,
        }
        for n, count in enumerate(counts)
        if count is not None
    ]
    with workspace.database.engine.begin() as connection:
        connection.execute(t.audit_files.insert(), rows)


def rejected(reason: str, raw: bytes, **more: Any) -> dict[str, Any]:
    """A record that was refused."""
    where = {"pointer": "", "detail": "", "record_id": None, "fetched_at": _FETCHED}
    return {"reason": reason, "raw": raw} | where | more


def plant_hostile(workspace: Workspace) -> None:
    """A day of which every text is hostile, with 200 failing expectations."""
    checks = [
        failed(
            f"check_{n:03}", "warn", f"{HOSTILE[n % 5]} must not be {n}.", n + 1, 400, status=HOSTILE[n % 5]
        )
        for n in range(200)
    ]
    records = [
        rejected(
            "wrong_type",
            text.encode("utf-8", "replace"),
            pointer=f"/{text[:200]}".encode("utf-8", "replace").decode(),
            detail=text.encode("utf-8", "replace").decode(),
            record_id=text.encode("utf-8", "replace").decode(),
        )
        for text in HOSTILE
    ]
    plant(workspace, "tickets", checks, records)
    plant(workspace, "accounts", [], landed=12, fetched=12, outside=0, duplicate=0, quarantined=0)


def _batch(number: int, entity: str, window: Window, quarantined: int) -> Batch:
    at = datetime(2025, 3, 15, 3, 30, tzinfo=UTC)
    return Batch(
        id=number,
        tenant="acme",
        connection=NAME,
        entity=entity,
        kind="window",
        window_start=window.start,
        window_end=window.end,
        extraction=1,
        fetched=500 + quarantined,
        outside=80,
        duplicate=20,
        quarantined=quarantined,
        landed=400,
        requests=12,
        pages=10,
        sweeps=2,
        proof={"method": "filtered listing", "filter": {"hidden": 0, "records_compared": 90}},
        files=[],
        excluded=[],
        fetched_from=at,
        fetched_to=at + timedelta(minutes=2),
        run_id=None,
    )


def _quarantined(record: dict[str, Any]) -> dict[str, Any]:
    return {"page": 0, "position": 0, "sha256": hashlib.sha256(record["raw"]).hexdigest()} | record
