"""Postgres is restarted, or its sessions are ended, in the middle of the work; a plain re-run heals it."""

import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from bridge_pipeline.database import embedded
from bridge_pipeline.database.embedded import Server
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.migrate import migrate
from bridge_pipeline.naming import Home
from tests.integration.flow import ended, start
from tests.torture.attack import Range, half_done, in_its_group, shooting_range
from tests.torture.figures import PARTS, RUNS, SEED, figures_of, runs_of
from tests.torture.scenarios import SCENARIOS

DRAWN = ("flow", "flow", "certify", "accept")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A home with a server of its own: that of the other tests must not be restarted."""
    with tempfile.TemporaryDirectory(prefix="bridge-torture-", dir=Path("/dev/shm")) as folder:
        Path(folder).chmod(0o755)
        home = Home(Path(folder) / "home")
        yield home
        embedded.stop(home)


@pytest.fixture(scope="module")
def target(home: Home) -> Iterator[Range]:
    server = embedded.ensure_running(home)
    maintenance = Database.of(server.url("postgres")).engine.execution_options(isolation_level="AUTOCOMMIT")
    with maintenance.connect() as connection:
        connection.execute(sa.text("create database template_bridge template template0"))
    maintenance.dispose()
    template = Database.of(server.url("template_bridge"))
    migrate(template.engine)
    template.engine.dispose()
    with shooting_range(server) as found:
        yield found


def restart(home: Home, server: Server) -> None:
    """An immediate shutdown, which is a crash for the server, and a start that recovers."""
    crashing = psutil.Process(server.pid)
    crashing.send_signal(signal.SIGQUIT)
    # Until it has taken the signal it passes for one that runs.
    crashing.wait(60)
    assert embedded.ensure_running(home).url("postgres") == server.url("postgres")


def end_sessions(server: Server, name: str) -> None:
    """Ends all sessions of a database."""
    engine = sa.create_engine(Database.of(server.url(name)).engine.url, poolclass=sa.NullPool)
    query = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
    with engine.connect() as connection:
        connection.execute(sa.text(f"{query} and pid <> pg_backend_pid()"))


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_work_heals_after_the_server_crashed_or_ended_its_sessions(target, home, part):
    with figures_of("postgres", str(part)) as figures:
        figures.facts = {"restarts": 0, "ended_sessions": 0, "work_broken_off": 0}
        for number in runs_of(part, max(2, RUNS // 10)):
            draw = random.Random(f"postgres {SEED} {number}")
            scenario = SCENARIOS[draw.choice(DRAWN)]
            target.undisturbed(scenario)
            with target.copy(scenario) as workspace:
                process = start(in_its_group, scenario.name)
                process.join(draw.random() * target.seconds[scenario.name])
                server = embedded.ensure_running(home)
                if draw.random() < 0.5:
                    restart(home, server)
                    figures.facts["restarts"] += 1
                else:
                    end_sessions(server, workspace.database.name)
                    figures.facts["ended_sessions"] += 1
                code = ended(process)
                figures.facts["work_broken_off"] += code == 1
                wrong = [] if code in (0, 1) else [f"the process ended with {code}"]
                # The pool of this process still has sessions of the server before.
                workspace.database.engine.dispose()
                wrong += half_done(workspace) + target.run_again(scenario, workspace)
            figures.add(f"{each} (run {number} of seed {SEED}, {scenario.name})" for each in wrong)
