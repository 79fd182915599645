"""`backup` beside runs that are killed, and `backup`, `restore` and `upgrade` killed at random moments.

The plain re-run brings the whole state, the audit verifies, and nothing is fetched or loaded twice.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from bridge_pipeline.database import dump, embedded, upgrade
from bridge_pipeline.database.workspace import Workspace, open_workspace
from bridge_pipeline.naming import Home
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.backup import backup
from bridge_pipeline.steps.restore import NotEmpty, restore
from tests.integration import backups, test_upgrade
from tests.integration.flow import digest, ended, process, rows, start
from tests.torture.attack import Range, different, in_its_group, unsound
from tests.torture.figures import RUNS, SEED, figures_of
from tests.torture.scenarios import ENTITIES, SCENARIOS, WINDOW

# What runs meanwhile: the first days of all, and changed ones with a rotation of the signing key.
BESIDE = ("flow", "rotate")


# --- Processes of their own ---------------------------------------------------------------------


def back_up(target: str) -> None:
    """A backup of the installation of the environment."""
    os.setpgid(0, 0)
    backup(open_workspace(), Path(target))


def restore_beside(path: str, home: str, name: str) -> None:
    """A restore into a database beside that of the environment."""
    os.setpgid(0, 0)
    workspace = open_workspace()
    with suppress(NotEmpty):
        # One that was killed when all was done left an installation.
        restore(backups.beside(workspace.database, Path(home), name), Path(path), backups.nothing_to_settle)


def upgrade_home(home: str) -> None:
    """An upgrade of the embedded database of a home."""
    os.setpgid(0, 0)
    upgrade.upgrade(Home(Path(home)))


def killed(draw: random.Random, seconds: float, work: Callable[..., object], *arguments: object) -> bool:
    """Kills a process, or with its children, after a drawn part of the time; False if it had ended."""
    begun = start(work, *arguments)
    begun.join(draw.random() * seconds)
    return end(draw, begun) == -signal.SIGKILL


def end(draw: random.Random, begun: BaseProcess) -> int | None:
    """Kills a process, by chance with its children; gives its exit code."""
    if draw.random() < 0.5:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(begun.pid or 0, signal.SIGKILL)
    begun.kill()
    return ended(begun)


# --- Beside runs --------------------------------------------------------------------------------


@contextmanager
def restored(workspace: Workspace, path: Path) -> Iterator[tuple[Workspace, list[str]]]:
    """The installation that is made of a backup, over the same source, and what is said to be wrong."""
    with backups.place(workspace, workspace.home.root / "restored") as settings:
        problems = restore(settings, path, backups.nothing_to_settle).problems
        copied = open_workspace(settings)
        yield copied, problems
        copied.database.engine.dispose()


def not_as_before(copied: Workspace, expected: object) -> list[str]:
    """What is wrong with an installation that was restored, and with what it does next."""
    wrong = [f"restored: {each}" for each in backups.findings(copied)]
    for _ in range(2):
        before = rows(copied, "select coalesce(max(id), 0) as id from bridge.batches")[0]["id"]
        process(copied, WINDOW, ENTITIES)
    query = "select l.batch_id from bridge.loads l where l.batch_id > :before and l.loaded > 0"
    wrong += [f"loaded again: {row}" for row in rows(copied, query, before=before)]
    if differs := different(expected, digest(copied)):
        wrong.append(f"after a plain run the restored installation differs: {differs}")
    return wrong + [f"restored: {each}" for each in unsound(copied)]


@pytest.mark.long
def test_a_backup_beside_killed_runs_is_whole_and_goes_on(target: Range) -> None:
    with figures_of("backup", "beside-runs") as figures:
        figures.facts = {"killed_runs": 0}
        for number in range(max(2, RUNS // 3)):
            draw = random.Random(f"backup {SEED} {number}")
            scenario = SCENARIOS[draw.choice(BESIDE)]
            expected, _ = target.undisturbed(scenario)
            with target.copy(scenario) as workspace:
                path = _file(workspace)
                run = start(in_its_group, scenario.name)
                run.join(draw.random() * target.seconds[scenario.name])
                copying = start(back_up, str(path))
                copying.join(draw.random())
                figures.facts["killed_runs"] += end(draw, run) == -signal.SIGKILL
                code = ended(copying)
                wrong = [] if code == 0 else [f"the backup ended with {code}"]
                with restored(workspace, path) as (copied, problems):
                    wrong += problems or not_as_before(copied, expected)
                path.unlink()
            figures.add(f"{each} (run {number} of seed {SEED}, {scenario.name})" for each in wrong)


# --- Killed themselves --------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_backup_and_a_killed_restore_are_begun_anew_and_brought_to_the_end(target: Range) -> None:
    with figures_of("backup", "kills") as figures:
        figures.facts = {"killed_backups": 0, "killed_restores": 0}
        seconds = undisturbed_seconds(target)
        for number in range(max(3, RUNS // 2)):
            draw = random.Random(f"killed backup {SEED} {number}")
            with target.copy(SCENARIOS["rotate"]) as workspace:
                wrong = killed_backup(draw, workspace, seconds[0], figures.facts)
                wrong += killed_restore(draw, workspace, seconds[1], figures.facts)
            figures.add(f"{each} (run {number} of seed {SEED})" for each in wrong)


def undisturbed_seconds(target: Range) -> tuple[float, float]:
    """How long a backup and a restore take that nobody kills."""
    with (
        target.copy(SCENARIOS["rotate"]) as workspace,
        backups.place(workspace, _beside(workspace)) as settings,
    ):
        begin = time.monotonic()
        assert ended(start(back_up, str(_file(workspace)))) == 0
        middle = time.monotonic()
        assert ended(start(restore_beside, *_arguments(workspace, settings))) == 0
        _file(workspace).unlink()
        shutil.rmtree(settings.home)
        return middle - begin, time.monotonic() - middle


def killed_backup(
    draw: random.Random, workspace: Workspace, seconds: float, facts: dict[str, int | float]
) -> list[str]:
    """A backup that is killed one to three times; what is wrong after a plain one."""
    path = _file(workspace)
    for _ in range(draw.randint(1, 3)):
        facts["killed_backups"] += killed(draw, seconds, back_up, str(path))
    # One that was killed when it was done left the file.
    if not path.exists() and (code := ended(start(back_up, str(path)))) != 0:
        return [f"the plain backup ended with {code}"]
    return [f"left over: {each.name}" for each in path.parent.glob(f".{path.name}*")]


def killed_restore(
    draw: random.Random, workspace: Workspace, seconds: float, facts: dict[str, int | float]
) -> list[str]:
    """A restore that is killed one to three times; what is wrong after a plain one."""
    expected = [digest(workspace), _rows(workspace)]
    with backups.place(workspace, _beside(workspace)) as settings:
        arguments = _arguments(workspace, settings)
        for _ in range(draw.randint(1, 3)):
            facts["killed_restores"] += killed(draw, seconds, restore_beside, *arguments)
        if (code := ended(start(restore_beside, *arguments))) != 0:
            return [f"the plain restore ended with {code}"]
        copied = open_workspace(settings)
        wrong = [f"restored: {each}" for each in (*backups.findings(copied), *unsound(copied))]
        if differs := different(expected, [digest(copied), _rows(copied)]):
            wrong.append(f"what was restored is not what was there: {differs}")
        copied.database.engine.dispose()
        left = settings.home.joinpath("restoring").exists() or settings.home.joinpath("restore.lock").exists()
        _file(workspace).unlink()
        shutil.rmtree(settings.home)
        return wrong + ["the restore left its marker or lock"] * left


def _rows(workspace: Workspace) -> dump.Digests:
    """Every row of the data's database."""
    with workspace.database.engine.begin() as connection:
        return dump.digests(connection, dump.DATA)


def _file(workspace: Workspace) -> Path:
    return workspace.home.root.with_suffix(".backup")


def _beside(workspace: Workspace) -> Path:
    return workspace.home.root.with_suffix(".restored")


def _arguments(workspace: Workspace, settings: Settings) -> tuple[str, str, str]:
    return str(_file(workspace)), str(settings.home), backups.databases(settings).name


# --- A major upgrade ----------------------------------------------------------------------------

OLD = "15"


@pytest.mark.long
@pytest.mark.skipif(embedded.programs(OLD) is None, reason=f"Postgres {OLD} is not on this machine")
def test_a_killed_upgrade_is_begun_anew_and_brought_to_the_end() -> None:
    with figures_of("backup", "upgrade") as figures, test_upgrade.old_home(OLD) as found:
        assert found is not None
        kept, wanted = found
        figures.facts = {"killed_upgrades": 0}
        seconds = 0.0
        for number in range(1 + max(3, RUNS // 3)):
            draw = random.Random(f"killed upgrade {SEED} {number}")
            with test_upgrade.copy(kept) as home:
                # The first one tells how long it takes.
                for _ in range(draw.randint(1, 3) if seconds else 0):
                    figures.facts["killed_upgrades"] += killed(draw, seconds, upgrade_home, str(home.root))
                begin = time.monotonic()
                code = ended(start(upgrade_home, str(home.root)))
                seconds = seconds or time.monotonic() - begin
                wrong = [f"the plain upgrade ended with {code}"] if code else upgraded_wrongly(home, wanted)
            figures.add(f"{each} (run {number} of seed {SEED})" for each in wrong)


def upgraded_wrongly(home: Home, wanted: object) -> list[str]:
    """What is wrong with a home that was upgraded."""
    try:
        test_upgrade.check(home, wanted)
        test_upgrade.check_going_on(home)
    except (AssertionError, SQLAlchemyError) as error:
        return [f"what came over is not what was there, or does not go on: {error}"]
    folders = sorted(path.name for path in home.postgres.iterdir() if path.is_dir())
    expected = ["data", f"old-{OLD}", embedded.ensure_running(home).socket_dir.name]
    return [] if folders == expected else [f"the folder of the database holds {folders}"]
