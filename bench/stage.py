"""Where measurements take place: a home with its own server, a source, and processes to measure.

Everything lives in one temporary folder, and ends with the block.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any
from uuid import uuid4

import psutil
import sqlalchemy as sa

from bench.peaks import Watched, watched
from bench.records import NAME, World, render
from bridge_pipeline import settings as configuration
from bridge_pipeline.automation.runs import STORAGE_VARIABLE
from bridge_pipeline.database import embedded, registry
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.naming import Home

_TOKEN = "4711-bench"  # noqa: S105 - of a server that asks for none


@dataclass
class Stage:
    """A place to measure in; `url` is the source's address."""

    root: Path
    url: str
    server: embedded.Server

    def show(self, world: World) -> None:
        """Lets the source hold that world, rendered where it has not been yet."""
        folder = self.root / "source" / world.name
        if not folder.exists():
            unfinished = folder.with_name("unfinished")
            render(world, unfinished)
            unfinished.rename(folder)
        link = self.root / "source" / "next"
        link.symlink_to(folder)
        link.replace(self.root / "source" / "current")

    @contextmanager
    def database(self) -> Iterator[str]:
        """A new database on the stage's server, in libpq's form."""
        name = f"bench_{uuid4().hex[:12]}"
        postgres = Database.of(self.server.url("postgres")).engine
        with postgres.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"create database {name} template template0"))
            try:
                yield self.server.url(name)
            finally:
                for leftover in (name, f"{name}_dagster"):
                    connection.execute(sa.text(f"drop database if exists {leftover} with (force)"))
        postgres.dispose()

    @contextmanager
    def home(self) -> Iterator[dict[str, str]]:
        """The environment of a new installation on the stage's server, connected to the source."""
        with self.database() as url, TemporaryDirectory(dir=self.root) as folder:
            variables = {
                "BRIDGE_HOME": folder,
                "BRIDGE_DATABASE_URL": url,
                "BRIDGE_DAGSTER_DATABASE": f"{url.split('?')[0].rsplit('/', 1)[1]}_dagster",
            }
            settings = configuration.load(
                home=folder, database_url=url, dagster_database=variables["BRIDGE_DAGSTER_DATABASE"]
            )
            workspace = open_workspace(settings)
            config = {"base_url": self.url, "allow_private": True}
            record = ConnectionRecord(
                NAME, "bench", "helpdesk", config, entities=("accounts", "users", "tickets")
            )
            box = workspace.sealer.seal(_TOKEN, record.tenant, record.name, "api_token")
            registry.put(workspace.database.engine, record, {"api_token": box})
            workspace.database.engine.dispose()
            variables["DAGSTER_HOME"] = str(workspace.home.dagster)
            variables[STORAGE_VARIABLE] = workspace.dagster_database.psycopg2()
            self.run("connected", variables=variables)
            yield variables

    def run(
        self, subject: str, *arguments: object, variables: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Runs a subject in a process of its own; gives what it says of itself, with its costs.

        `wall` is that of the whole process; `cpu` user and system, of the process; `postgres` are the
        seconds that the server worked meanwhile; `peak` is the most that it and the processes it
        started held at one time, in MiB; `own_peak` the same until `ended`, where it says when that was.
        """
        *_, said = self.told(subject, *arguments, variables=variables)
        return said

    def told(
        self, subject: str, *arguments: object, variables: dict[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Runs a subject as `run` does, and gives what it says each time that it says something, with the
        costs until then; at its end, the last of it with all costs."""
        said: dict[str, Any] = {}
        with self._running("bench.subjects", subject, *arguments, variables=variables) as running:
            assert running.process.stdout is not None
            for line in running.process.stdout:
                if figures := _figures(line):
                    said = figures
                    yield running.spent() | {"own_peak": running.memory.peak(said.get("ended"))} | said
        yield running.spent() | {"own_peak": running.memory.peak(said.get("ended"))} | said

    def command(self, *arguments: object, variables: dict[str, str]) -> dict[str, Any]:
        """Runs a command of `bridge` with `--json`, and gives its answer with the costs that `run` gives,
        but `cpu`, and `own_peak`."""
        with self._running("bridge_pipeline.cli", *arguments, "--json", variables=variables) as running:
            assert running.process.stdout is not None
            output = running.process.stdout.read()
        return running.spent() | json.loads(output)

    @contextmanager
    def _running(
        self, module: str, *arguments: object, variables: dict[str, str] | None
    ) -> Iterator["_Running"]:
        """A module's program, watched until it has ended by itself; ended with the block, if that breaks.

        Raises:
            RuntimeError: it did not succeed.
        """
        command = [sys.executable, "-m", module, *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        began, before = time.perf_counter(), self.postgres_cpu()
        with (
            TemporaryFile(dir=self.root) as errors,
            subprocess.Popen(
                command, env=environment | (variables or {}), stdout=subprocess.PIPE, stderr=errors
            ) as process,
            watched(process.pid) as memory,
        ):
            try:
                yield _Running(self, process, memory, began, before)
            except BaseException:
                process.terminate()
                raise
            process.wait()
            if process.returncode:
                errors.seek(0)
                raise RuntimeError(f"{command[2:]} failed:\n{errors.read().decode()[-4_000:]}")

    def postgres_cpu(self) -> float:
        """The seconds that the server has worked so far."""
        server = psutil.Process(self.server.pid)
        total = 0.0
        for process in [server, *server.children()]:
            # One that has ended since counts among those that the server waited for.
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        ended = server.cpu_times()
        return total + ended.children_user + ended.children_system


@dataclass(frozen=True)
class _Running:
    """A program that runs, or has run; `began` when, and `before` after which seconds of the server."""

    stage: Stage
    process: subprocess.Popen[bytes]
    memory: Watched
    began: float
    before: float

    def spent(self) -> dict[str, Any]:
        """Its costs so far, as `run` tells them."""
        wall, postgres = time.perf_counter() - self.began, self.stage.postgres_cpu() - self.before
        return {"wall": wall, "postgres": postgres, "peak": self.memory.peak()}


def _figures(line: bytes) -> dict[str, Any]:
    """What a subject says in a line; nothing where the line is not a subject's."""
    with suppress(ValueError):
        said = json.loads(line)
        return said if isinstance(said, dict) else {}
    return {}


@contextmanager
def stage(folder: Path | None = None) -> Iterator[Stage]:
    """A stage in a temporary folder below `folder`."""
    with TemporaryDirectory(prefix="bridge-bench-", dir=folder) as temporary:
        root = Path(temporary)
        (root / "source").mkdir()
        home = Home(root / "server")
        home.root.mkdir()
        server = embedded.ensure_running(home)
        command = [sys.executable, "-m", "bench.source", str(root / "source")]
        source = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert source.stdout is not None
            yield Stage(root, source.stdout.readline().strip(), server)
        finally:
            source.terminate()
            source.wait()
            embedded.stop(home)
