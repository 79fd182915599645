"""The UI over a long history: how long until it shows what it was opened for, and what that costs.

What "usable" means is decided in docs/decisions/0027; the history is `history`'s.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import psutil

from bench import history
from bench.browser import Tab, program, served, tab
from bench.history import History
from bench.records import FIRST_DAY, World
from bench.stage import Stage

Samples = dict[str, list[dict[str, Any]]]
PAGE, GRID, PARTITION = "asset page", "partition grid", "partition"
_ASSET = "/assets/extracted/tickets"
_ENTITIES = "accounts,users,tickets"


def visits(stage: Stage, past: History, rounds: int) -> tuple[Samples, dict[str, float]]:
    """Visits the UI of an installation with one run, gives it its past, and visits it again.

    Args:
        rounds: how often each view is opened, after it was opened once.

    Returns:
        The samples of `small <view>`, `first <view>` and `<view>`, each with `seconds`, `slowest` (of the
        GraphQL queries, in seconds) with its `query`, and `cpu` of the webserver; and what holds of all:
        `events` in the log, and the `webserver`'s memory at the end in MiB.

    Raises:
        NoBrowser: there is no browser to measure in.
    """
    # Hours of work are not to end with this.
    program()
    world = World(40, 2)
    stage.show(world)
    with stage.home() as home:
        day = FIRST_DAY.isoformat()
        stage.run("pipeline", day, day, _ENTITIES, variables=home)
        samples: Samples = {}
        with _opened(home, min(FIRST_DAY, past.first_day)) as (page, server):
            for _ in range(rounds + 1):
                _views(page, server, samples, "small ")
        events = history.write(stage.server.url(home["BRIDGE_DAGSTER_DATABASE"]), past)
        with _opened(home, past.first_day) as (page, server):
            _views(page, server, samples, "first ")
            for _ in range(rounds):
                _views(page, server, samples, "")
                _sample(samples, PARTITION, server, lambda: _partition(page, past))
            facts = {"events": float(events), "webserver": server.memory_info().rss / 2**20}
    return samples, facts


@contextmanager
def _opened(home: dict[str, str], first_day: date) -> Iterator[tuple[Tab, psutil.Process]]:
    """A tab that has loaded the UI's own code and the definitions, and the webserver's process.

    Args:
        first_day: with which the partitions begin.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
    variables = environment | home | {"BRIDGE_FIRST_DAY": first_day.isoformat()}
    with served(variables) as (address, up), tab(address) as page:
        page.timed(lambda: page.page.goto("/locations"), page.page.get_by_text("Loaded").first)
        (server,) = (each for each in up.children() if "dagster-webserver" in " ".join(each.cmdline()))
        yield page, server


def _views(page: Tab, server: psutil.Process, samples: Samples, prefix: str) -> None:
    # The columns come with what is known of the newest materialisation.
    overview = page.page.get_by_text("Updated").first
    # How many are materialised is told once it is known of each.
    grid = page.page.get_by_text(re.compile(r"Materialized \([1-9]")).first
    for name, path, shown in ((PAGE, "overview", overview), (GRID, "partitions", grid)):
        act = _going(page, f"{_ASSET}?view={path}")
        _sample(samples, prefix + name, server, lambda act=act, shown=shown: page.timed(act, shown))


def _going(page: Tab, path: str) -> Any:
    return lambda: page.page.goto(path)


def _partition(page: Tab, past: History) -> dict[str, Any]:
    """Opens one of the grid, which is shown."""
    page.page.get_by_text(past.names[0]).first.click()
    day = past.first_day + timedelta(days=past.days - 2)
    target = page.page.get_by_text(day.isoformat(), exact=True).first
    return page.timed(target.click, page.page.get_by_text("dagster/row_count").first)


def _sample(samples: Samples, name: str, server: psutil.Process, visit: Any) -> None:
    before = server.cpu_times()
    sample = visit()
    after = server.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    samples.setdefault(name, []).append(sample | {"cpu": cpu})
