"""Facts of a batch as a whole: the checks that may block it (rule 14).

The rows themselves are the business of the expectations in `check`.
"""

import hashlib
from pathlib import Path

import duckdb

from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.settings import Settings

OWNER = "data-platform"

DESCRIPTIONS = {
    "equation": "Every record fetched is outside the window, a duplicate, quarantined or landed.",
    "landing_intact": "The landing files are those the ledger lists, to the byte.",
    "versions_unique": "No version of a record is landed twice.",
    "quarantined_share": "Not more of the records are rejected than may be.",
}


def facts(batch: Batch, folder: Path, rejected: int, settings: Settings) -> list[CheckResult]:
    """Checks the facts of a batch; `rejected` rows were taken out by expectations."""
    return [
        _equation(batch),
        landing_intact(batch, folder),
        _versions_unique(batch, folder),
        _quarantined_share(batch, rejected, settings),
    ]


def _result(name: str, passed: bool, evaluated: int, unexpected: int, **example: object) -> CheckResult:
    examples = [] if passed else [example]
    return CheckResult(name, "block", DESCRIPTIONS[name], OWNER, passed, evaluated, unexpected, examples)


def _equation(batch: Batch) -> CheckResult:
    # `fetched` counts what the journal holds, `landed` the rows in the Parquet files.
    accounted = batch.outside + batch.duplicate + batch.quarantined + batch.landed
    difference = abs(batch.fetched - accounted)
    return _result(
        "equation", not difference, batch.fetched, difference, fetched=batch.fetched, accounted=accounted
    )


def landing_intact(batch: Batch, folder: Path) -> CheckResult:
    """Whether the batch's files are those that the ledger lists."""
    wrong = [file["path"] for file in batch.files if _digest(folder / file["path"]) != file["sha256"]]
    return _result("landing_intact", not wrong, len(batch.files), len(wrong), files=wrong)


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions_unique(batch: Batch, folder: Path) -> CheckResult:
    paths = [str(folder / file["path"]) for file in batch.files]
    if not paths or not landing_intact(batch, folder).passed:
        return _result("versions_unique", True, 0, 0)
    # Grouping spills to disk where it must; counting distinct values does not.
    query = """
        select coalesce(sum(n), 0)::bigint, count(*) from (
            select count(*) as n from read_parquet($paths) group by id, content_hash
        )"""
    with duckdb.connect(config={"memory_limit": "64MB", "threads": 1, "temp_directory": str(folder)}) as db:
        found = db.execute(query, {"paths": paths}).fetchone()
    rows, versions = found or (0, 0)
    return _result("versions_unique", rows == versions, rows, rows - versions, repeated=rows - versions)


def _quarantined_share(batch: Batch, rejected: int, settings: Settings) -> CheckResult:
    distinct = batch.fetched - batch.duplicate
    bad = batch.quarantined + rejected
    share = bad / distinct if distinct else 0.0
    passed = distinct < settings.quarantine_minimum or share <= settings.max_quarantined_share
    return _result(
        "quarantined_share", passed, distinct, bad, share=round(share, 4), most=settings.max_quarantined_share
    )
