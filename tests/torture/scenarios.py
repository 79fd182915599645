"""What the campaigns attack: small flows, each with the state it begins from and what the source holds.

A scenario's work is done by a process of its own and may be repeated: what it comes to is always
the same.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from bridge_pipeline import connectors
from bridge_pipeline.database import outbox, registry
from bridge_pipeline.database.ledger import NotBlocked
from bridge_pipeline.database.sealing import open_sealer
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps import parser_process
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.announce import Failure, tell_failed_run, tell_report, tell_test
from bridge_pipeline.steps.audit import audit_window
from bridge_pipeline.steps.backup import backup
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.chain import rotate_key
from bridge_pipeline.steps.deliver import deliver, revive
from bridge_pipeline.steps.landed_before import LandedBefore
from bridge_pipeline.steps.load import BatchBlocked, EquationBroken, load_window
from bridge_pipeline.steps.parser_process import ParserProcess
from bridge_pipeline.steps.purge import begin, carry_out
from bridge_pipeline.steps.quarantine import Selection
from bridge_pipeline.steps.replay import replay
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.restore import NotEmpty, restore
from bridge_pipeline.steps.rotate import rotate
from bridge_pipeline.steps.tenants import ReviewerDraft, TenantDraft, apply_tenants, remove_tenant
from tests.integration import backups
from tests.integration.desk import TOKEN, Desk, ticket
from tests.integration.flow import NAME, connect, day, digest, execute, land, process, rows
from tests.integration.test_laws import fill_to_be_killed, raw
from tests.integration.test_replay import MENDED, spoil

FIRST, LAST = "2024-03-01", "2024-03-02"
WINDOW = day(FIRST, LAST)
ENTITIES = ("accounts", "tickets")
_EXPECTATIONS = "expectations: {tickets: {subject_length: {severity: quarantine, max_length: 60}}}\n"


# As if the lookup of an account had been blocked by its check.
_LOOKUP = "batch_id in (select id from bridge.batches where kind = 'lookup')"
_LOOKUP_BLOCKED = (
    "update bridge.batches set verdict = 'blocked' where kind = 'lookup'",
    f"delete from bridge.loads where {_LOOKUP}",
    "update desk.accounts set placeholder = true, updated_at = null, content_hash = null, fetched_at = null "
    f"where {_LOOKUP}",
)


@dataclass(frozen=True)
class Scenario:
    """One kind of work.

    Attributes:
        prepare: brings an empty workspace, connected to the desk, to where the work begins.
        world: what the desk holds while the work is done.
        work: the work, in a process of its own.
        result: what it came to, in the sense of rule 30.
    """

    name: str
    prepare: Callable[[Workspace, Desk], None]
    world: Callable[[Desk], None]
    work: Callable[[], None]
    result: Callable[[Workspace], object] = digest
    entities: Sequence[str] = ENTITIES


# --- The flow -----------------------------------------------------------------------------------


def fill(desk: Desk) -> None:
    """Accounts of which one must be looked up, tickets of two days, two of which are rejected."""
    fill_to_be_killed(desk)
    desk.records["tickets"].append(ticket(40, f"{LAST}T11:00:00Z", subject="long " * 20))


def connected(workspace: Workspace, desk: Desk) -> None:
    """Expectations of its own, and a reviewer."""
    path = workspace.home.expectations_of("acme")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(_EXPECTATIONS)
    _reviewed(workspace)


def left_behind(workspace: Workspace, desk: Desk) -> None:
    """The same, and what a killed run of the days left: a landing and an audit file that nothing lists."""
    connected(workspace, desk)
    home = workspace.home
    landing = home.landing_of("acme", NAME, "tickets") / "4711"
    day_folder = home.audit_of("acme", NAME, "tickets", date.fromisoformat(FIRST))
    for path in (landing / "tickets.parquet", day_folder / "v0001.csv"):
        path.parent.mkdir(parents=True)
        path.write_text("cut off")


def flow() -> None:
    """Two days of two entities, and the report."""
    workspace = open_workspace()
    process(workspace, WINDOW, ENTITIES)
    tell_report(workspace, write_report(workspace, NAME, date.fromisoformat(LAST)), _after(LAST))


def flow_beside() -> None:
    """The same, while a process beside parses pages, which otherwise starts for many thousands of records."""
    expect, result, parsed = ParserProcess.expect, ParserProcess.result, list[parser_process.Parsed | None]()

    def expect_at_once(self: ParserProcess, size: int, pages: int) -> None:
        expect(self, parser_process._WORTHWHILE, pages)
        if self._worker and not self._ready:
            self._ready = self._received(self._worker) is not None

    def result_noted(self: ParserProcess) -> parser_process.Parsed | None:
        parsed.append(result(self))
        return parsed[-1]

    ParserProcess.expect, ParserProcess.result = expect_at_once, result_noted
    flow()
    assert any(parsed) or parser_process._cores() < 2


def flow_again() -> None:
    """The same of days that have landed before: rows of records with the same bytes are taken from there."""
    parsed, taken = LandedBefore.parsed, list[parser_process.Parsed | None]()

    def noted(self: LandedBefore, *about: Any) -> parser_process.Parsed | None:
        taken.append(parsed(self, *about))
        return taken[-1]

    LandedBefore.parsed = noted
    flow()
    assert any(taken)


def _after(last: str) -> datetime:
    return datetime.fromisoformat(f"{last}T12:00:00Z") + timedelta(days=1)


def _reviewed(workspace: Workspace) -> None:
    reviewer = ReviewerDraft(outbox.MAIL, "maria@acme.example", ("blocked", "failed", "daily", "weekly"))
    apply_tenants(workspace, [TenantDraft("acme", reviewers=(reviewer,))])
    # Who is listed later is told of the next week first.
    execute(workspace, "update bridge.reviewers set created_at = '2024-01-01'")


# --- What may follow it -------------------------------------------------------------------------


def extracted(workspace: Workspace, desk: Desk) -> None:
    """Both days are in the tables and in the audit files."""
    connected(workspace, desk)
    fill(desk)
    process(workspace, WINDOW, ENTITIES)


def changed(desk: Desk) -> None:
    """Since then two tickets are gone for good, and an account is; one ticket came."""
    fill(desk)
    # It would come back with the first page of tickets, and what is found would depend on where a run ended.
    desk.before = lambda request: None
    tickets = desk.records["tickets"]
    tickets[:] = [each for each in tickets if not (isinstance(each, dict) and each["id"] in (7, 8))]
    tickets.append(ticket(60, f"{FIRST}T12:00:00Z"))


def certification() -> None:
    """A certificate."""
    certify(open_workspace(), NAME)


def certified(workspace: Workspace) -> object:
    """Tables and files, and the newest certificate without the facts of its run.

    What is gone is gone as found at some time, which is the run's (rule 30).
    """
    query = "select verdict from bridge.certificates order by number desc limit 1"
    deletions = "select entity, record_id from bridge.deletions order by 1, 2"
    found, folder = digest(workspace), workspace.home.audit / "acme" / NAME
    found["tables"] = {
        entity: [_FOUND_GONE.sub(r'\1"gone"', row) for row in table]
        for entity, table in found["tables"].items()
    }
    found["files"] = {
        path: _without_times(folder / path) for path in found["files"] if "certificates/" not in path
    }
    return [found, rows(workspace, query), rows(workspace, deletions)]


_FOUND_GONE = re.compile(r'("deleted_at": )"[^"]+"')


def _without_times(path: Path) -> object:
    """An audit file or its manifest, without the times at which records were found to be gone."""
    if path.suffix == ".json":
        hashes = ("sha256", "rows_sha256", "previous")
        manifest = json.loads(path.read_text()).items()
        return {key: value for key, value in manifest if key not in (*hashes, "run", "connection")}
    with path.open(newline="") as file:
        columns, *records = csv.reader(file)
    hashed, deleted = columns.index("content_hash"), columns.index("deleted_at")
    for record in records:
        if record[deleted]:
            record[hashed] = record[deleted] = "gone"
    return [columns, *records]


def spoilt(workspace: Workspace, desk: Desk) -> None:
    """Tickets that the connector's mapping cannot take are in quarantine."""
    spoil(desk)
    process(workspace, WINDOW, ["tickets"])


def replaying() -> None:
    """The mapping is mended, and quarantine replayed."""
    connectors.all_connectors()["helpdesk"] = MENDED
    replay(open_workspace(), Selection(NAME))


def blocked(workspace: Workspace, desk: Desk) -> None:
    """A blocked batch of tickets, and a blocked batch of an account that was looked up."""
    fill(desk)
    process(workspace, WINDOW, ENTITIES)
    for statement in _LOOKUP_BLOCKED:
        execute(workspace, statement)
    desk.records["tickets"] += [raw(number=n, updated_at=f"{LAST}T10:00:00Z") for n in range(100)]
    assert land(workspace, "tickets", WINDOW).verdict == "blocked"


def accepting() -> None:
    """Both are accepted; where that was done before, the next run of the days goes on from there."""
    workspace = open_workspace()
    query = "select id from bridge.batches where verdict in ('blocked', 'accepted') order by id"
    before = False
    for row in rows(workspace, query):
        try:
            accept_batch(workspace, row["id"], "Grace Hopper", "looked at all of them")
        except NotBlocked:
            before = True
    for entity in ENTITIES if before else ():
        load_window(workspace, NAME, entity, WINDOW)
        audit_window(workspace, NAME, entity, WINDOW)


def wrong(workspace: Workspace, desk: Desk) -> None:
    """A batch whose rows do not add up."""
    connected(workspace, desk)
    fill(desk)
    process(workspace, WINDOW, ["accounts"])
    batch = land(workspace, "tickets", WINDOW)
    execute(workspace, "update bridge.batches set outside = outside + 1 where id = :id", id=batch.id)


def undoing() -> None:
    """It is not loaded, and blocked from then on."""
    try:
        load_window(open_workspace(), NAME, "tickets", WINDOW)
    except (EquationBroken, BatchBlocked):
        return
    raise AssertionError("it was loaded")


def undone(workspace: Workspace) -> object:
    """Nothing of it stayed, and reviewers are told once."""
    told = "select event, about is not null as told from bridge.messages order by 1"
    verdicts = "select entity, verdict from bridge.batches where kind <> 'lookup' order by id"
    return [digest(workspace), rows(workspace, told), rows(workspace, verdicts)]


# --- Keys, and what is told ---------------------------------------------------------------------


def rotating() -> None:
    """Another signing key, and another version of a day that it signs."""
    workspace = open_workspace()
    rotate_key(workspace)
    process(workspace, WINDOW, ["tickets"])


def sealing() -> None:
    """Another sealing key."""
    rotate(open_workspace())


def sealed(workspace: Workspace) -> object:
    """Every credential can be opened with the keys of the home."""
    fresh = open_sealer(workspace.settings, workspace.home)
    return registry.secrets(workspace.database.engine, fresh, NAME) == {"api_token": TOKEN}


def telling() -> None:
    """A failed run, the week and a test are told of, and sent."""
    workspace = open_workspace()
    days = date.fromisoformat(FIRST), date.fromisoformat(LAST)
    failure = Failure("tables__tickets", "the source is away", "SourceError")
    tell_failed_run(workspace, "4711", NAME, days, [failure], False)
    if not rows(workspace, "select 1 from bridge.messages where event = 'test'"):
        tell_test(workspace, "acme", datetime.now(UTC))
    revive(workspace)
    # An attempt that was cut off is made again a minute later.
    deliver(workspace)
    deliver(workspace, clock=lambda: datetime.now(UTC) + timedelta(hours=1))


def told(workspace: Workspace) -> object:
    """Each message once, and sent."""
    query = """
    select m.event, case m.event when 'test' then '' else m.about end as about, d.status, count(*) as times
    from bridge.messages m
    join bridge.deliveries d on d.message_id = m.id group by 1, 2, 3 order by 1, 2, 3
    """
    return rows(workspace, query)


def registering() -> None:
    """A tenant, a connection that is removed and applied again, and reviewers."""
    workspace = open_workspace()
    engine = workspace.database.engine
    registry.add_tenant(engine, "initech")
    record = connect(workspace, os.environ["TORTURE_DESK"], "initech-helpdesk", "initech")
    registry.remove(engine, record.name)
    connect(workspace, record.config["base_url"], record.name, record.tenant)
    apply_tenants(workspace, [TenantDraft("initech", reviewers=())])


def registered(workspace: Workspace) -> object:
    """Who is there."""
    query = "select name, tenant, entities, removed_at from bridge.connections order by name"
    return [rows(workspace, query), registry.list_tenants(workspace.database.engine)]


def purging() -> None:
    """The connection goes, and its tenant after it."""
    workspace = open_workspace()
    carry_out(workspace, begin(workspace, NAME, "jo@acme.example", "the contract ended"))
    remove_tenant(workspace, "acme")


def purged(workspace: Workspace) -> object:
    """One finished record, and neither rows nor files nor a tenant."""
    query = "select connection, rows, files, finished_at is not null as finished from bridge.purges"
    connections = rows(workspace, "select name from bridge.connections")
    folders = workspace.home.of_connection("acme", NAME, ENTITIES)
    left = [kind for kind, folder in folders if folder.exists()]
    tenants = registry.list_tenants(workspace.database.engine)
    return [rows(workspace, query), connections, left, tenants]


def backing_up() -> None:
    """A backup, and an installation that is made of it; either only where it is not there yet."""
    workspace = open_workspace()
    settings = _restored(workspace)
    path = settings.home.with_suffix(".backup")
    if not path.exists():
        backup(workspace, path)
    with suppress(NotEmpty):
        restore(settings, path, backups.nothing_to_settle)


def _restored(workspace: Workspace) -> Settings:
    database = workspace.database
    return backups.beside(database, workspace.home.root / "restored", f"{database.name}_restored")


def given_back(workspace: Workspace) -> object:
    """What is in the installation that was made of the backup, and whether it is the same."""
    settings = _restored(workspace)
    copied = open_workspace(settings)
    found = digest(copied)
    copied.database.engine.dispose()
    backups.drop(settings)
    return [found, found == digest(workspace)]


def nothing(*_: object) -> None:
    """Neither a state nor a source is needed."""


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("flow", left_behind, fill, flow),
        Scenario("certify", extracted, changed, certification, certified),
        Scenario("replay", spoilt, nothing, replaying, entities=("tickets",)),
        Scenario("accept", blocked, nothing, accepting),
        Scenario("undo", wrong, nothing, undoing, undone),
        Scenario("rotate", extracted, changed, rotating),
        Scenario("seal", nothing, nothing, sealing, sealed),
        Scenario("tell", extracted, nothing, telling, told),
        Scenario("register", nothing, nothing, registering, registered),
        Scenario("purge", extracted, nothing, purging, purged),
        Scenario("backup", extracted, nothing, backing_up, given_back),
        Scenario("flow-beside", connected, fill, flow_beside),
        Scenario("flow-again", extracted, changed, flow_again),
    )
}
