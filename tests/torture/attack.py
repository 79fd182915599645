"""How a campaign attacks a scenario: copies of its beginning, one fault, a plain re-run, one comparison."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from bridge_pipeline import failpoints
from bridge_pipeline import settings as configuration
from bridge_pipeline.database import faults
from bridge_pipeline.database.embedded import Server
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.sealing import open_sealer
from bridge_pipeline.database.workspace import Workspace, make_folders
from bridge_pipeline.naming import Home
from bridge_pipeline.steps.heads import known_heads
from bridge_pipeline.steps.verify import verify_folder
from tests.integration.desk import Desk, serving
from tests.integration.flow import connect, ended, rows, start
from tests.integration.post import post_office
from tests.torture.scenarios import SCENARIOS, Scenario


@dataclass(frozen=True)
class Case:
    """One attack; written `scenario:point=action@hit`."""

    scenario: str
    point: str
    action: str
    hit: int = 1

    def __str__(self) -> str:
        return f"{self.scenario}:{self.plan}"

    @property
    def plan(self) -> str:
        """What `BRIDGE_FAILPOINT` takes."""
        return f"{self.point}={self.action}@{self.hit}"

    @classmethod
    def read(cls, text: str) -> "Case":
        """The case that is written so."""
        scenario, _, plan = text.partition(":")
        point, _, rest = plan.partition("=")
        action, _, hit = rest.partition("@")
        return cls(scenario, point, action, int(hit))


class Range:
    """Where attacks take place: a server, a desk, and the beginnings of scenarios to copy."""

    def __init__(self, server: Server, desk: Desk, folder: Path, environment: dict[str, str]) -> None:
        self.desk = desk
        # How long the undisturbed work of a scenario took.
        self.seconds: dict[str, float] = {}
        self._server = server
        self._folder = folder
        self._environment = environment
        self._beginnings: dict[str, tuple[str, Path]] = {}
        self._undisturbed: dict[str, tuple[object, Counter[str]]] = {}
        self._maintenance = Database.of(server.url("postgres")).engine.execution_options(
            isolation_level="AUTOCOMMIT"
        )

    @contextmanager
    def copy(self, scenario: Scenario) -> Iterator[Workspace]:
        """A workspace at the beginning of a scenario, whose source holds what it is to hold."""
        source, home = self._beginning(scenario)
        with self._workspace(source, home) as workspace:
            self._empty_desk()
            scenario.world(self.desk)
            yield workspace

    def undisturbed(self, scenario: Scenario) -> tuple[object, Counter[str]]:
        """What the work comes to when nothing happens, and how often it passes each point, in order."""
        if scenario.name not in self._undisturbed:
            with self.copy(scenario) as workspace:
                path = workspace.home.work / "points.json"
                process = start(counted, scenario.name, str(path))
                begin = time.monotonic()
                if ended(process) != 0:
                    raise AssertionError(f"{scenario.name} fails undisturbed")
                passed = Counter(json.loads(path.read_text()))
                self.seconds[scenario.name] = time.monotonic() - begin
                path.unlink()
                found = unsound(workspace)
                assert not found, found
                self._undisturbed[scenario.name] = scenario.result(workspace), passed
        return self._undisturbed[scenario.name]

    def attacked(self, cases: list[Case]) -> list[str]:
        """Attacks a workspace with one case after the other, runs the work again, and says what is wrong.

        Where the work comes to its end in spite of a fault, the other cases get a workspace of their own.
        """
        scenario = SCENARIOS[cases[0].scenario]
        wrong, left = list[str](), list(cases)
        with self.copy(scenario) as workspace:
            done = False
            while left and not done:
                done, found = self._strike(workspace, left.pop(0))
                wrong += found
            wrong += self.run_again(scenario, workspace)
        return wrong + (self.attacked(left) if left else [])

    def run_again(self, scenario: Scenario, workspace: Workspace) -> list[str]:
        """The work once more, plainly; what is wrong then."""
        expected, _ = self.undisturbed(scenario)
        if (code := ended(start(scenario.work))) != 0:
            return [f"the plain re-run ended with {code}"]
        wrong = unsound(workspace)
        if differs := different(expected, scenario.result(workspace)):
            wrong.append(f"the result differs from that of an undisturbed run: {differs}")
        return wrong

    def _strike(self, workspace: Workspace, case: Case) -> tuple[bool, list[str]]:
        """Whether the work came to its end all the same, and what is wrong."""
        code = ended(start(struck, case.scenario, failpoint=case.plan))
        if code == NOT_REACHED:
            return True, [f"{case} was never reached"]
        wrong = [] if code in expected_codes(case) else [f"{case} ended the process with {code}"]
        return code == 0, wrong + half_done(workspace)

    def _beginning(self, scenario: Scenario) -> tuple[str, Path]:
        """The database and the home to copy; made once."""
        if scenario.name not in self._beginnings:
            home = self._folder / scenario.name
            name = f"beginning_{uuid4().hex[:12]}"
            self._execute(f"create database {name} template template_bridge")
            with self._opened(name, home) as workspace:
                self._empty_desk()
                connect(workspace, self.desk, entities=scenario.entities)
                scenario.prepare(workspace, self.desk)
            self._beginnings[scenario.name] = name, home
        return self._beginnings[scenario.name]

    @contextmanager
    def _workspace(self, source: str, home: Path) -> Iterator[Workspace]:
        name, folder = f"test_{uuid4().hex[:12]}", self._folder / f"copy-{uuid4().hex[:8]}"
        self._execute(f"create database {name} template {source}")
        # A copied sequence takes its next numbers for logged, which they are in the original alone: a crash
        # before the next checkpoint would give them out again.
        self._execute("checkpoint")
        shutil.copytree(home, folder)
        try:
            with self._opened(name, folder) as workspace:
                yield workspace
        finally:
            self._execute(f"drop database {name} with (force)")
            shutil.rmtree(folder)

    @contextmanager
    def _opened(self, name: str, home: Path) -> Iterator[Workspace]:
        database = Database.of(self._server.url(name))
        os.environ.update(self._environment, BRIDGE_HOME=str(home), BRIDGE_DATABASE_URL=database.libpq())
        settings = configuration.load()
        make_folders(Home(home))
        yield Workspace(settings, Home(home), database, open_sealer(settings, Home(home)))
        # A database that somebody is connected to cannot be copied.
        database.engine.dispose()

    def _empty_desk(self) -> None:
        self.desk.before = lambda request: None
        self.desk.page_size = 10
        self.desk.requests.clear()
        for records in self.desk.records.values():
            records.clear()

    def _execute(self, statement: str) -> None:
        with self._maintenance.connect() as connection:
            connection.execute(sa.text(statement))

    def close(self) -> None:
        """Drops what was made."""
        for name, _ in self._beginnings.values():
            self._execute(f"drop database {name} with (force)")
        self._maintenance.dispose()


@contextmanager
def shooting_range(server: Server) -> Iterator[Range]:
    """A range until the block ends; the environment of this process is that of its last workspace.

    Args:
        server: one that holds the migrated database that tests copy.
    """
    before = dict(os.environ)
    with serving() as desk, post_office() as post, tempfile.TemporaryDirectory(dir=_roomy()) as folder:
        environment = {
            "BRIDGE_BACKOFF_INITIAL": "0",
            # None of these flows uses it, but each process looks for it.
            "BRIDGE_DAGSTER_DATABASE": "postgres",
            "BRIDGE_SMTP_URL": f"smtp://127.0.0.1:{post.port}",
            "BRIDGE_MAIL_FROM": "bridge@acme.example",
            "TORTURE_DESK": desk.url,
        }
        found = Range(server, desk, Path(folder), environment)
        try:
            yield found
        finally:
            found.close()
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)


def _roomy() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# --- Processes of their own ---------------------------------------------------------------------

NOT_REACHED = 3


def struck(scenario: str) -> None:
    """The work, under the fault that the environment names; ends with 3 if it was never reached."""
    try:
        SCENARIOS[scenario].work()
    finally:
        fault = failpoints.listener()
        if not isinstance(fault, faults.Fault) or fault.hits < fault.hit:
            os._exit(NOT_REACHED)


def in_its_group(scenario: str) -> None:
    """The work, in a process group of its own."""
    os.setpgid(0, 0)
    SCENARIOS[scenario].work()


def counted(scenario: str, path: str) -> None:
    """The work, undisturbed; writes how often each point was passed."""
    passed: Counter[str] = Counter()

    def count(point: str) -> None:
        passed[point] += 1

    with failpoints.listening(count):
        SCENARIOS[scenario].work()
    Path(path).write_text(json.dumps(passed))


def expected_codes(case: Case) -> tuple[int, ...]:
    """How a process may end under a fault."""
    if case.action == "kill":
        return (-signal.SIGKILL,)
    # An error and a full disk are never passed over; whoever holds no session at that moment gets a new one.
    return (0, 1) if case.action == "disconnect" else (1,)


# --- What must be so after a fault, and after a re-run ------------------------------------------


def half_done(workspace: Workspace) -> list[str]:
    """What the ledger lists and is not there, and rows of the tables that no listed load brought."""
    wrong, home = [], workspace.home
    for row in rows(workspace, "select path from bridge.audit_files"):
        wrong += [f"no file {row['path']}"] * (not (home.audit / row["path"]).is_file())
    for row in rows(workspace, "select id, tenant, connection, entity, files from bridge.batches"):
        folder = home.landing_of(row["tenant"], row["connection"], row["entity"]) / str(row["id"])
        wrong += [f"no file {each['path']}" for each in row["files"] if not (folder / each["path"]).is_file()]
    for entity in ("accounts", "tickets"):
        strangers = f"""
        select count(*) as rows from desk.{entity} where not placeholder
            and batch_id not in (select batch_id from bridge.loads)
        """
        wrong += [f"half a load of {entity}" for row in rows(workspace, strangers) if row["rows"]]
    return wrong


def different(expected: object, found: object, place: str = "") -> str:
    """Where two results differ first, and in what; empty if they are equal."""
    if expected == found:
        return ""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        parts = ((key, expected.get(key), found.get(key)) for key in keys)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        parts = ((str(number), *pair) for number, pair in enumerate(zip(expected, found, strict=True)))
    else:
        return f"{place}: expected {str(expected)[:500]}, found {str(found)[:500]}"
    found_first = (told for key, *pair in parts if (told := different(*pair, f"{place}/{key}")))
    return next(found_first, f"{place}: one has a key that the other lacks")


def unsound(workspace: Workspace) -> list[str]:
    """What is stuck, left over, doubled, or no longer verifies."""
    checks: list[Callable[[Workspace], list[str]]] = [_held, _unchecked, _left_over, unverified]
    return [each for check in checks for each in check(workspace)]


def _held(workspace: Workspace) -> list[str]:
    query = """
    select a.pid, a.state, l.locktype from pg_stat_activity a
    left join pg_locks l on l.pid = a.pid and l.locktype = 'advisory'
    where a.datname = current_database() and a.pid <> pg_backend_pid()
        and (l.locktype is not null or a.state like 'idle in transaction%')
    """
    return [f"a session holds on to something: {row}" for row in rows(workspace, query)]


def _unchecked(workspace: Workspace) -> list[str]:
    """Batches without a verdict whose place no later one has taken."""
    query = """
    select b.id, b.entity from bridge.batches b where b.verdict = 'pending' and not exists (
        select from bridge.batches later
        where later.id > b.id and later.verdict <> 'pending'
            and (later.connection, later.entity, later.kind) = (b.connection, b.entity, b.kind)
            and later.window_start is not distinct from b.window_start
            and later.window_end is not distinct from b.window_end
    )
    """
    return [f"never checked: {row}" for row in rows(workspace, query)]


def _left_over(workspace: Workspace) -> list[str]:
    home = workspace.home
    wrong = [f"left over: {path.relative_to(home.root)}" for path in home.root.rglob("*.tmp")]
    wrong += [f"left over: {path.name}" for path in home.work.iterdir() if path.is_dir()]
    listed = {str(row["id"]) for row in rows(workspace, "select id from bridge.batches")}
    landed = {path.name for path in home.landing.glob("*/*/*/*")}
    return wrong + [f"unlisted landing: {name}" for name in sorted(landed - listed)]


def unverified(workspace: Workspace) -> list[str]:
    """What `audit verify` finds."""
    if not workspace.home.audit_tenant("acme").exists():
        return []
    found = verify_folder(workspace.home.audit, known_heads(workspace.settings, workspace.home))
    return [f"audit verify: {finding}" for finding in found.findings]
