"""What is measured: each subject runs in a process of its own and says what it took.

Run as `python -m bench.subjects SUBJECT …` by `stage`; what it says is lines of JSON on its stdout, the last
of which holds its costs.
"""

import http.client
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from bench.peaks import family
from bench.records import NAME

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from sqlalchemy import Engine

Figures = dict[str, Any]
# By step, when it began and ended, in seconds since 1970.
Spans = dict[str, tuple[float, float]]
COLUMNS = (
    "id text, subject text, description text, status text, priority text, tags jsonb, account_id text, "
    "created_at timestamptz, updated_at timestamptz, resolved_at timestamptz, responded_at timestamptz, "
    "closed_at timestamptz, is_closed boolean, custom_fields jsonb"
)
TIMES = ("created_at", "updated_at", "resolved_at", "responded_at", "closed_at")
# Seconds between two looks whether dbt has begun.
_BETWEEN_LOOKS = 0.5
PLAIN = {"id", "subject", "description", "tags", *TIMES}


def pipeline(first: str, last: str, entities: str, patience: str = "") -> Figures:
    """Days of the connection through Dagster, everything on; `seconds` from the first step to the last of
    its own, which `ended` then (seconds since 1970): models and report are shown beside. `rows` are those
    that the tables have afterwards, `loaded` those of them that are new or have changed.

    Args:
        patience: seconds that dbt may take before it is ended, and the run with it. Where they are given,
            the run's own figures are said once before, as soon as its own steps have ended; and at the
            end, whether dbt was `given_up`.
    """
    from bridge_pipeline.imports import made_to_stay
    from bridge_pipeline.steps import gx_worker

    # As `bridge run` does.
    with gx_worker.ready():
        with made_to_stay():
            import dagster as dg

            from bridge_pipeline.automation.runs import run_days
            from bridge_pipeline.database.workspace import open_workspace

        workspace = open_workspace()
        days = date.fromisoformat(first), date.fromisoformat(last)
        with _Guard(float(patience)) if patience else nullcontext() as guard:
            outcome = run_days(workspace, NAME, *days, tuple(entities.split(",")))
    given_up = guard is not None and guard.given_up
    if not outcome.success and not given_up:
        raise RuntimeError(f"the run failed: {outcome.failures}")
    figures = _own(_steps(dg.DagsterInstance.get(), outcome.run_id))
    figures |= _came_to(workspace.database.engine, outcome.run_id, entities.split(","))
    return figures | {"given_up": given_up} if patience else figures


def _came_to(engine: "Engine", run_id: str | None, entities: list[str]) -> Figures:
    """How many rows the tables of these entities have, and how many of them a run has loaded."""
    rows = " + ".join(f"(select count(*) from desk.{each} where not placeholder)" for each in entities)
    loads = """
        select coalesce(sum(l.loaded), 0) from bridge.loads as l join bridge.batches as b on b.id = l.batch_id
        where l.run_id is not distinct from %(run)s and b.entity = any(%(entities)s)
    """
    with engine.connect() as connection:
        asked = {"run": run_id, "entities": entities}
        found = connection.exec_driver_sql(f"select {rows}, ({loads})", asked).one()
    return {"rows": int(found[0]), "loaded": int(found[1])}


class _Guard:
    """Says what a run took as soon as dbt begins, and ends a dbt that takes too long.

    Args:
        patience: seconds that dbt may take.
    """

    def __init__(self, patience: float) -> None:
        self.given_up = False
        self._patience = patience
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Guard":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_BETWEEN_LOOKS):
            if _dbt():
                self._wait()
                return

    def _wait(self) -> None:
        import dagster as dg

        instance = dg.DagsterInstance.get()
        (record,) = instance.get_run_records(limit=1)
        # dbt is the last but the report.
        _say(_own(_steps(instance, record.dagster_run.run_id)))
        if not self._ended.wait(self._patience):
            self.given_up = True
            for pid in _dbt():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _dbt() -> list[int]:
    """The processes of dbt's command that this one started."""
    return [pid for pid in family(os.getpid()) if any(Path(part).name == "dbt" for part in _command(pid))]


def _command(pid: int) -> list[str]:
    with suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


def _own(steps: Spans) -> Figures:
    """What the steps of a run took that are its own, without models and report."""
    own = [span for key, span in steps.items() if not key.startswith(("models", "quality", "dbt"))]
    ended = max(end for _, end in own)
    seconds = ended - min(start for start, _ in own)
    return {"seconds": seconds, "ended": ended, "steps": _lasted(steps)}


def lasted(run: str) -> Figures:
    """How long the steps of a run took that another process had, and what its tickets came to as
    `pipeline` says it."""
    import dagster as dg

    from bridge_pipeline.database.workspace import open_workspace

    figures = _came_to(open_workspace().database.engine, run, ["tickets"])
    with dg.DagsterInstance.get() as instance:
        return figures | {"steps": _lasted(_steps(instance, run))}


def library(first: str, last: str, entities: str) -> Figures:
    """The same days through the library alone, without Dagster."""
    from bridge_pipeline.database.workspace import open_workspace
    from bridge_pipeline.model import Window
    from bridge_pipeline.steps.audit import audit_window
    from bridge_pipeline.steps.check import check
    from bridge_pipeline.steps.extract import extract
    from bridge_pipeline.steps.tables import bring_up_to_date

    workspace = open_workspace()
    window = Window.of_days(date.fromisoformat(first), date.fromisoformat(last))
    marks = [time.perf_counter()]
    for entity in entities.split(","):
        batch = extract(workspace, NAME, entity, window)
        marks.append(time.perf_counter())
        verdict = check(workspace, batch.id)
        marks.append(time.perf_counter())
        bring_up_to_date(workspace, NAME, entity, window)
        marks.append(time.perf_counter())
        audit_window(workspace, NAME, entity, window)
        marks.append(time.perf_counter())
        if verdict.batch.verdict != "passed":
            raise RuntimeError(f"{entity}: {verdict.batch.verdict}")
    steps = [round(later - earlier, 3) for earlier, later in pairwise(marks)]
    figures = {"seconds": marks[-1] - marks[0], "steps": steps}
    return figures | _came_to(workspace.database.engine, None, entities.split(","))


def plain_dlt(url: str, database: str, work: str) -> Figures:
    """dlt's own REST source into its own merge: no journal, no checks, no audit."""
    import dlt
    from dlt.sources.rest_api import rest_api_source

    dlt.config["runtime.dlthub_telemetry"] = False
    paginator = {"type": "page_number", "base_page": 1, "total_path": "total_pages"}
    resource = {
        "name": "tickets",
        "primary_key": "id",
        "write_disposition": "merge",
        "endpoint": {
            "path": "api/v1/tickets.json",
            "data_selector": "data",
            "paginator": paginator,
        },
    }
    source = rest_api_source({"client": {"base_url": url}, "resources": [resource]})  # type: ignore[typeddict-item]
    began = time.perf_counter()
    pipeline = dlt.pipeline(
        "plain",
        pipelines_dir=work,
        # dlt insists on a password, which the server does not ask for.
        destination=dlt.destinations.postgres(database.replace("@", ":none@", 1)),
        dataset_name="plain",
    )
    pipeline.run(source)
    seconds = time.perf_counter() - began
    with pipeline.sql_client() as client:
        counted = client.execute_sql("select count(*) from tickets") or [(0,)]
        return {"seconds": seconds, "rows": counted[0][0]}


def floor(url: str, database: str) -> Figures:
    """`orjson` and a raw COPY of the same rows into a bare table, in one process."""
    import orjson
    import psycopg

    began = time.perf_counter()
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(f"create table floor ({COLUMNS})")
        with cursor.copy("copy floor from stdin") as copy:
            for body in _bodies(url):
                for record in orjson.loads(body)["data"]:
                    copy.write_row(_flat(record, orjson.dumps))
        connection.commit()
        seconds = time.perf_counter() - began
        counted = cursor.execute("select count(*) from floor").fetchone()
    return {"seconds": seconds, "rows": counted and counted[0]}


def least(url: str, database: str, work: str) -> Figures:
    """The parts of a run that cannot be done without, each alone: CPU of this process, in seconds; and how
    many cores' work all cores do `together`."""
    from bench.parts import cores_together, measured

    # First: what Postgres still does with the rows afterwards is none of them.
    together = cores_together()
    rows, parts = measured(lambda: _bodies(url), database, Path(work))
    return {"rows": rows, "parts": parts.seconds, "together": together}


def connected() -> Figures:
    """What `bridge connections apply` leaves: the connection is a partition, Dagster's tables are there."""
    from bridge_pipeline.automation.runs import add_partition
    from bridge_pipeline.database.workspace import open_workspace

    add_partition(open_workspace(), NAME)
    return {}


def bare(steps: str) -> Figures:
    """A Dagster run of empty steps over the same storage, in a process that imports nothing else."""
    import dagster as dg

    @dg.job
    def empty() -> None:
        for number in range(int(steps)):
            dg.op(name=f"step_{number}")(_nothing)()

    with dg.DagsterInstance.get() as instance:
        return {"success": empty.execute_in_process(instance=instance).success}


def _nothing() -> None:
    """What an empty step does."""


def imported(module: str) -> Figures:
    """The import of a module, and whether it imported Great Expectations."""
    began = time.perf_counter()
    importlib.import_module(module)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "great_expectations": "great_expectations" in sys.modules}


def _steps(instance: "DagsterInstance", run: str) -> Spans:
    stats = instance.get_run_step_stats(run)
    return {step.step_key: (step.start_time or 0.0, step.end_time or 0.0) for step in stats}


def _lasted(steps: Spans) -> dict[str, float]:
    """How long each step took that has ended."""
    return {key: round(end - start, 3) for key, (start, end) in steps.items() if end}


def _bodies(url: str) -> Iterator[bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    page, pages = 1, 1
    while page <= pages:
        connection.request("GET", f"/api/v1/tickets.json?page={page}")
        body = connection.getresponse().read()
        pages = int(body[body.index(b'"total_pages":') + 14 : body.index(b',"data"')])
        page += 1
        yield body


def _flat(record: dict[str, Any], dumps: Callable[[Any], bytes]) -> tuple[Any, ...]:
    rest = {key: value for key, value in record.items() if key not in PLAIN}
    return (
        str(record["id"]),
        record["subject"],
        record["description"],
        record["status"]["name"],
        record["priority"]["name"],
        dumps(record["tags"]).decode(),
        str(record["account"]["id"]),
        *(record[name] for name in TIMES),
        record["status"]["closed"],
        dumps(rest).decode(),
    )


SUBJECTS: dict[str, Callable[..., Figures]] = {
    function.__name__: function
    for function in (pipeline, lasted, library, plain_dlt, floor, least, connected, bare, imported)
}


def main(subject: str, *arguments: str) -> None:
    """Runs one subject and prints its figures with the process's own costs."""
    figures = SUBJECTS[subject](*arguments)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    _say(figures | {"cpu": cpu})


def _say(figures: Figures) -> None:
    """In a line of its own: libraries print what they like before."""
    sys.stdout.write("\n" + json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
