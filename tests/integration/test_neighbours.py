"""Connections of one tenant whose sources use the same ids: neither's results depend on the other's."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from bridge_pipeline import connectors
from bridge_pipeline.database import ledger, registry
from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.certify import Acceptance, certify
from bridge_pipeline.steps.due import due_spans
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.load import load_window
from bridge_pipeline.steps.quarantine import Selection
from bridge_pipeline.steps.replay import replay
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.summary import summarise_connection
from tests.integration.desk import Desk, account, serving, ticket, user
from tests.integration.flow import ENTITIES, connect, day, digest, execute, land, process, rows
from tests.integration.test_laws import raw
from tests.integration.test_replay import MENDED, spoilt

DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")
FIRST, MIDDLE, LAST = DAYS
# What tells when and as which batch something was done; what the desks hold is of 2024.
_RUN = re.compile(
    r"(batch|accept|Batch) \d+|20(?!24)\d\d-\d\d-\d\d[T ]\d\d:\d\d[:.\d]*(Z|\+00(:00)?)?|[0-9a-f]{16,64}"
)


def without_run(value: Any) -> Any:
    """Plain values without what differs between two runs over the same data."""
    if isinstance(value, dict):
        return {key: without_run(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_run(each) for each in value]
    return _RUN.sub("…", value) if isinstance(value, str) else value


def held(row: str) -> list[object]:
    """Of a row of a table, which it is and whether it counts."""
    kept = json.loads(row)
    return [kept.get("id"), kept.get("placeholder"), bool(kept.get("deleted_at"))]


def outcome(workspace: Workspace, name: str) -> dict[str, Any]:
    """All that is told of a connection, without the facts of its runs."""
    found = digest(workspace, name)
    query = """
    select b.entity, c.name, c.stage, c.passed, c.judged, c.evaluated, c.unexpected, c.note
    from bridge.checks c join bridge.batches b on b.id = c.batch_id where b.connection = :name
    order by dense_rank() over (order by b.id), 1, 2, 3
    """
    gone = """
    select entity, record_id, certificate, reason from bridge.deletions where connection = :name order by 1, 2
    """
    loads = """
    select b.entity, b.kind, b.verdict, l.loaded, l.unchanged, l.superseded, l.placeholders
    from bridge.batches b left join bridge.loads l on l.batch_id = b.id where b.connection = :name
    order by b.id
    """
    record = registry.get(workspace.database.engine, name)
    reports = [write_report(workspace, name, day(each).last_day).markdown.replace(name, "…") for each in DAYS]
    summary = asdict(summarise_connection(workspace, name))
    with workspace.database.engine.connect() as connection:
        last = ledger.last_run(connection, name)
    kept = {entity: sorted(map(str, each.items())) for entity, each in found["quarantine"].items()}
    return without_run({
        "tables": {entity: [held(row) for row in each] for entity, each in found["tables"].items()},
        "quarantine": kept,
        "files": list(found["files"]),
        "checks": rows(workspace, query, name=name),
        "deletions": rows(workspace, gone, name=name),
        "loads": rows(workspace, loads, name=name),
        "reports": reports,
        "entities": summary["entities"],
        "due": [str(each) for each in due_spans(workspace, record, datetime(2024, 3, 20, tzinfo=UTC))],
        "last_run": last and last["verdicts"],
    })  # fmt: skip


def filled(desk: Desk, hour: int) -> None:
    """Tickets of three days, of accounts that are listed, given by id alone, or nowhere; two are refused."""
    desk.records["accounts"] = [account(n, f"{FIRST}T{hour}:00:00Z") for n in (1, 2, 3, 90)]
    desk.records["users"] = [user(n, f"{FIRST}T{hour}:00:00Z") for n in (1, 2, 3)]
    desk.records["tickets"] = [
        ticket(
            n, f"{DAYS[n % 3]}T{hour}:{n:02}:00Z", account={"id": (1, 2, 90, 91)[n % 4], "_type": "Account"}
        )
        for n in range(1, 13)
    ] + [spoilt(20, f"{MIDDLE}T{hour}:00:00"), spoilt(21, f"{LAST}T{hour}:00:00")]
    desk.unlisted = {90}


def drop(desk: Desk, *numbers: int) -> None:
    desk.records["tickets"] = [
        r for r in desk.records["tickets"] if isinstance(r, bytes) or r["id"] not in numbers
    ]


def quiet(workspace: Workspace, desk: Desk, name: str, monkeypatch) -> Iterator[object]:
    """What becomes of a connection, step by step."""
    filled(desk, 10)
    connect(workspace, desk, name, scheduled=True)
    process(workspace, day(FIRST, LAST), ENTITIES, name)
    yield outcome(workspace, name)
    good = desk.records["tickets"]
    desk.records["tickets"] = [*good, *(raw(number=n, updated_at=f"{LAST}T10:00:00Z") for n in range(30))]
    assert land(workspace, "tickets", day(LAST), name).verdict == "blocked"
    yield outcome(workspace, name)
    desk.records["tickets"] = good
    # Of the first day and of the last.
    drop(desk, 3, 5)
    desk.records["tickets"].append(ticket(30, f"{FIRST}T11:00:00Z"))
    yield told(certify(workspace, name, day(FIRST, MIDDLE)))
    yield outcome(workspace, name)
    process(workspace, day(LAST), ["tickets"], name)
    yield outcome(workspace, name)
    yield told(certify(workspace, name))
    yield outcome(workspace, name)
    yield [(each.batch.fetched, each.batch.landed) for each in replay(workspace, Selection(name))]
    with monkeypatch.context() as patch:
        patch.setitem(connectors.all_connectors(), "helpdesk", MENDED)
        yield [(each.batch.fetched, each.batch.landed) for each in replay(workspace, Selection(name))]
    yield outcome(workspace, name)
    # What was gone long ago does not count against what is gone now.
    past = (
        "update bridge.deletions set observed_at = observed_at - interval '30 days' where connection = :name"
    )
    execute(workspace, past, name=name)
    drop(desk, *range(1, 13))
    yield told(certify(workspace, name))
    yield outcome(workspace, name)


def noisy(workspace: Workspace, desk: Desk, name: str) -> None:
    """Everything may be otherwise with another connection."""
    filled(desk, 20)
    drop(desk, 6)
    desk.records["tickets"] += [
        spoilt(3, f"{FIRST}T10:00:00"),
        ticket(40, "2024-02-10T10:00:00Z"),
        ticket(41, "2024-03-09T10:00:00Z"),
        raw(id=9),
    ]
    connect(workspace, desk, name, scheduled=True)
    process(workspace, day("2024-02-10"), ENTITIES, name)
    process(workspace, day(FIRST, "2024-03-10"), ENTITIES, name)
    drop(desk, 1, 2, 4)
    certify(workspace, name, acceptance=Acceptance("Ann Lee", "known"))
    drop(desk, 5, 7)
    certify(workspace, name)
    desk.records["tickets"] += [raw(number=n, updated_at=f"{LAST}T10:00:00Z") for n in range(40)]
    batch = land(workspace, "tickets", day(FIRST, LAST), name)
    accept_batch(workspace, batch.id, "Ann Lee", "known")
    load_window(workspace, name, "tickets", day(FIRST, LAST))
    for each in DAYS:
        assert land(workspace, "tickets", day(each, "2024-03-10"), name).verdict == "blocked"
    for entity in ENTITIES:
        extract(workspace, name, entity, day(MIDDLE))


def told(certificate: Certificate) -> object:
    """A certificate without the facts of its run."""
    sections = [
        {
            key: each[key]
            for key in ("entity", "ids", "rows", "explained", "findings", "disappeared", "remarks", "batches")
        }
        | {"named": [(one["id"], one["finding"]) for one in each["named"]], "table": each["table"]["rows"]}
        | {
            "source": {
                k: each["source"][k] for k in ("listed", "own_count", "hidden", "requests", "extracted_from")
            }
        }
        for each in certificate.document["entities"]
    ]
    numbers = [certificate.number, certificate.verdict, certificate.listings]
    return without_run([*numbers, certificate.document["covers"]["audit_files"], sections])


@pytest.mark.slow
def test_what_comes_of_a_connection_does_not_depend_on_its_neighbours(workspace, monkeypatch):
    strict = {"quarantine_minimum": 10, "max_quarantined_share": 0.3, "disappeared_minimum": 3}
    workspace = replace(workspace, settings=workspace.settings.model_copy(update=strict))
    with serving() as first, serving() as second, serving() as third:
        alone = list(quiet(workspace, first, "acme-alone", monkeypatch))
        noisy(workspace, second, "acme-noisy")
        for step, found in enumerate(quiet(workspace, third, "acme-beside", monkeypatch)):
            assert found == alone[step], step
        assert outcome(workspace, "acme-alone") == alone[-1]
