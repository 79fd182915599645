"""What is measured against what, and what is aimed at: each measurement gives one row of the table.

The subjects of a measurement take turns, so that whatever else the machine does meets all of them.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import ui as views
from bench.history import History
from bench.records import FIRST_DAY, NAME, World
from bench.stage import Stage

Samples = dict[str, list[dict[str, Any]]]
_NOT_PLAIN = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Sizes:
    """How much is measured: `tickets` of throughput, re-run and backfill; of `small` day; of memory;
    connections and days of the UI's history. `dbt_seconds` is how long dbt may take in a run of memory.
    `rows` are those of `World`.
    """

    tickets: tuple[int, ...] = (200_000, 1_000_000)
    days: int = 30
    backfill_days: int = 365
    small: int = 1_000
    memory: tuple[int, ...] = (100_000, 5_000_000)
    rounds: int = 5
    ui: tuple[int, int] = (50, 1_500)
    dbt_seconds: float = 1_800.0
    rows: Path | None = None

    @property
    def data(self) -> str:
        """Names another data set, after how many tickets there are, as a cell of the page may."""
        return f" with the rows of {_NOT_PLAIN.sub('_', self.rows.name)}" if self.rows else ""


@dataclass(frozen=True)
class Row:
    """One comparison: `value` is what it came to, `bound` what is aimed at, at least or at most.

    `shown` are medians that make the value understood; `samples` every single run; `told` is what a
    reader must know of them.
    """

    measurement: str
    subject: str
    against: str
    value: float
    bound: float
    at_least: bool
    unit: str = "×"
    shown: dict[str, float] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What is compared with what: a later row of the same key takes its place."""
        return self.measurement, self.subject, self.against

    @property
    def met(self) -> bool:
        """Whether the aim is met."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def throughput(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """Whole pipelines over the same pages."""
    for tickets in sizes.tickets:
        world = World(tickets, sizes.days, rows=sizes.rows)
        stage.show(world)
        samples: Samples = {"bridge": [], "dlt": [], "floor": [], "least": []}
        for _ in range(sizes.rounds):
            with stage.home() as home:
                stage.run("library", *_span(world), "accounts,users", variables=home)
                figures = stage.run("pipeline", *_span(world), "tickets", variables=home)
                samples["bridge"].append(_whole(figures, tickets, tickets))
            with stage.database() as database, tempfile.TemporaryDirectory(dir=stage.root) as work:
                samples["dlt"].append(_whole(stage.run("plain_dlt", stage.url, database, work), tickets))
            with stage.database() as database:
                samples["floor"].append(_whole(stage.run("floor", stage.url, database), tickets))
            with stage.database() as database, tempfile.TemporaryDirectory(dir=stage.root) as work:
                samples["least"].append(_whole(stage.run("least", stage.url, database, work), tickets))
        raced = ("bridge", "dlt", "floor")
        rates = {f"{name} rows/s": tickets / _median(samples[name], "seconds") for name in raced}
        shown = rates | {"bridge with launch and dbt, s": _median(samples["bridge"], "wall")}
        shown |= _least(samples["least"], tickets)
        subject = f"{tickets:,} tickets{sizes.data}, everything on: rows per second"
        for against, words, bound in (
            ("dlt", "plain dlt, REST to merge, no checks, no audit", 10.0),
            ("floor", "the floor: orjson and raw COPY", 0.7),
        ):
            value = rates["bridge rows/s"] / rates[f"{against} rows/s"]
            yield Row("throughput", subject, words, value, bound, True, "×", shown, samples)


def _least(samples: list[dict[str, Any]], tickets: int) -> dict[str, float]:
    """What the parts of a run cost alone, and the rows per second if all cores shared that without a wait:
    as many as they do together, and as many as they would if each did as much as one alone."""
    costs = {
        f"CPU of a row at least, {name}, µs": 1e6 * seconds / tickets for name, seconds in _parts(samples)
    }
    together, alone = _median(samples, "together"), 1e6 / sum(costs.values())
    return {
        "at least, by all cores without a wait, rows/s": together * alone,
        "the same, if each did as much beside others as alone, rows/s": (os.cpu_count() or 1) * alone,
        "work of all cores at once, of one core": together,
    } | costs


def _parts(samples: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for name in samples[0]["parts"]:
        yield name, median(sample["parts"][name] for sample in samples)
    yield "in Postgres", _median(samples, "postgres")


def rerun(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """The same days again: nothing changed, then 1 % changed."""
    tickets = sizes.tickets[0]
    worlds = (World(tickets, sizes.days, rows=sizes.rows), World(tickets, sizes.days, 100, rows=sizes.rows))
    samples: Samples = {"first": [], "unchanged": [], "changed": []}
    for _ in range(sizes.rounds):
        with stage.home() as home:
            stage.show(worlds[0])
            # Or the first run would look for its parents one by one.
            stage.run("library", *_span(worlds[0]), "accounts,users", variables=home)
            for name, world, loaded in (
                ("first", worlds[0], tickets),
                ("unchanged", worlds[0], 0),
                ("changed", worlds[1], worlds[1].changed),
            ):
                stage.show(world)
                figures = stage.run("pipeline", *_span(world), "tickets", variables=home)
                samples[name].append(_whole(figures, tickets, loaded))
    shown = {f"{name}, s": _median(found, "seconds") for name, found in samples.items()}
    for name, words, bound in (("unchanged", "nothing changed", 0.25), ("changed", "1 % changed", 0.3)):
        subject = f"{tickets:,} tickets{sizes.data} again, {words}: time"
        value = shown[f"{name}, s"] / shown["first, s"]
        yield Row("rerun", subject, "the first run", value, bound, False, "×", shown, samples)


def backfill(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """A year of partitions in one run against one extraction of the same span."""
    world = World(sizes.tickets[0], sizes.backfill_days, rows=sizes.rows)
    stage.show(world)
    samples: Samples = {"backfill": [], "extraction": []}
    for _ in range(sizes.rounds):
        for name, subject in (("backfill", "pipeline"), ("extraction", "library")):
            with stage.home() as home:
                stage.run("library", *_span(world), "accounts,users", variables=home)
                figures = stage.run(subject, *_span(world), "tickets", variables=home)
                samples[name].append(_whole(figures, world.tickets))
    shown = {f"{name}, s": _median(found, "seconds") for name, found in samples.items()}
    value = shown["backfill, s"] / shown["extraction, s"]
    subject = f"backfill of {world.days} days, {world.tickets:,} tickets{sizes.data}: time"
    words = "the library alone over the same span"
    yield Row("backfill", subject, words, value, 1.2, False, "×", shown, samples)


def small_day(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """One small day of all entities by `bridge run`, from launch until the command has ended, against the
    process of a run of as many empty steps."""
    world = World(sizes.small, 1, rows=sizes.rows)
    first, last = _span(world)
    stage.show(world)
    samples: Samples = {"day": [], "bare": []}
    for _ in range(sizes.rounds):
        with stage.home() as home:
            day = stage.command("run", NAME, "--from", first, "--to", last, variables=home)
            told = _whole(stage.run("lasted", day["run_id"], variables=home), sizes.small, sizes.small)
            day |= {"steps": told["steps"]}
            models = day["steps"].get("models", 0.0)
            samples["day"].append(day | {"without_dbt": day["wall"] - models})
            steps = len(day["steps"]) - ("models" in day["steps"])
            samples["bare"].append(stage.run("bare", steps, variables=home))
    shown = {
        "day without dbt, s": _median(samples["day"], "without_dbt"),
        "day with dbt, s": _median(samples["day"], "wall"),
        "bare run, s": _median(samples["bare"], "wall"),
    }
    value = shown["day without dbt, s"] / shown["bare run, s"]
    subject = f"one day of {sizes.small:,} tickets{sizes.data}, launch to done, everything on but dbt: time"
    words = "a bare Dagster run of as many empty steps"
    yield Row("small-day", subject, words, value, 2.0, False, "×", shown, samples)


def imports(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """What it takes to import the code location."""
    samples: Samples = {"location": [], "dagster": []}
    for _ in range(sizes.rounds):
        samples["location"].append(stage.run("imported", "bridge_pipeline.definitions"))
        samples["dagster"].append(stage.run("imported", "dagster"))
    if any(sample["great_expectations"] for sample in samples["location"]):
        raise RuntimeError("importing the code location imports Great Expectations")
    shown = {f"{name}, s": _median(found, "seconds") for name, found in samples.items()}
    value = shown["location, s"] / shown["dagster, s"]
    subject = "import of the code location, without Great Expectations: time"
    yield Row("imports", subject, "import dagster", value, 4.0, False, "×", shown, samples)


def memory(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """The most memory that a run and the processes it starts hold, of few and of many tickets, from its
    launch to the end of its audit step; with dbt, which is a process of its own, shown beside.

    What is known is given as soon as the audit step has ended, and again when dbt has.
    """
    found: dict[int, dict[str, Any]] = {}
    for tickets in sizes.memory:
        world = World(tickets, sizes.days, rows=sizes.rows)
        stage.show(world)
        with stage.home() as home:
            stage.run("library", *_span(world), "accounts,users", variables=home)
            for said in stage.told("pipeline", *_span(world), "tickets", sizes.dbt_seconds, variables=home):
                found[tickets] = said
                yield from _held(found, sizes)
            _whole(found[tickets], tickets, tickets)


def _held(found: dict[int, dict[str, Any]], sizes: Sizes) -> Iterable[Row]:
    """What runs of so many tickets held each, and the last against the first."""
    samples = {f"{tickets:,} tickets": [said] for tickets, said in found.items()}
    for tickets, said in found.items():
        shown = {"MiB": said["own_peak"], "extract to audit, s": said["seconds"]}
        if "given_up" in said:
            shown |= {"with dbt, MiB": said["peak"], "dbt, s": said["steps"]["models"]}
        subject = f"peak memory of a run of {tickets:,} tickets{sizes.data}"
        told = _of_dbt(tickets, said, sizes)
        yield Row("memory", subject, "–", said["own_peak"], 600.0, False, "MiB", shown, samples, told)
    if len(found) > 1:
        (few, first), *_, (many, last) = found.items()
        subject, words = f"peak memory of a run of {many:,} tickets{sizes.data}", f"one of {few:,}"
        value = last["own_peak"] / first["own_peak"]
        yield Row("memory", subject, words, value, 1.15, False, "×", {}, samples)


def _of_dbt(tickets: int, said: dict[str, Any], sizes: Sizes) -> tuple[str, ...]:
    """What a reader must know of dbt in a run of so many tickets."""
    if "given_up" not in said:
        return (f"dbt over {tickets:,} tickets was still building when this was written.",)
    if not said["given_up"]:
        return ()
    return (
        f"dbt over {tickets:,} tickets had not ended after {sizes.dbt_seconds:,.0f} s and was given up; "
        "the memory shown with it is what the run held until then.",
    )


def ui(stage: Stage, sizes: Sizes) -> Iterable[Row]:
    """Dagster's pages over years of many connections, in a browser."""
    past = History(*sizes.ui)
    samples, facts = views.visits(stage, past, sizes.rounds)
    words = f"UI of {past.connections} connections × {past.days:,} days"
    subjects = (
        (views.PAGE, "an asset's page is shown", 10.0),
        (views.GRID, "its partition grid is shown", 10.0),
        (f"first {views.GRID}", "its grid is shown for the first time ever", 10.0),
        (views.PARTITION, "a partition is opened in it", 1.0),
    )
    for name, what, bound in subjects:
        shown = {
            "s": _median(samples[name], "seconds"),
            "slowest query, s": _median(samples[name], "slowest"),
            "CPU of the webserver, s": _median(samples[name], "cpu"),
        }
        if small := samples.get(f"small {name}"):
            shown["with one run, s"] = _median(small, "seconds")
        subject = f"{words}: {what}"
        yield Row("ui", subject, "–", shown["s"], bound, False, "s", shown | _told(facts), samples)


def _told(facts: dict[str, float]) -> dict[str, float]:
    return {"events in the log": facts["events"], "webserver, MiB": facts["webserver"]}


MEASUREMENTS: dict[str, Callable[[Stage, Sizes], Iterable[Row]]] = {
    "imports": imports,
    "small-day": small_day,
    "throughput": throughput,
    "rerun": rerun,
    "backfill": backfill,
    "memory": memory,
    "ui": ui,
}


def _span(world: World) -> tuple[str, str]:
    return FIRST_DAY.isoformat(), world.last_day.isoformat()


def _whole(figures: dict[str, Any], tickets: int, loaded: int | None = None) -> dict[str, Any]:
    """What a subject says of itself, where it has brought all rows, and loaded as many as are new to it."""
    if figures["rows"] != tickets:
        raise RuntimeError(f"{figures['rows']} of {tickets} rows arrived")
    if loaded not in (None, figures.get("loaded")):
        raise RuntimeError(f"{figures['loaded']} rows were loaded where {loaded} are new or have changed")
    return figures


def _median(samples: list[dict[str, Any]], name: str) -> float:
    return median(sample[name] for sample in samples)
