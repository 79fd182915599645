"""What a campaign came to, written where `docs/guarantees.md` is made from; and how long campaigns are."""

import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bridge_pipeline.settings import PROJECT_ROOT

# Read at import: no setting of the shell reaches a test.
FOLDER = Path(os.environ.get("BRIDGE_CAMPAIGN_FIGURES") or PROJECT_ROOT / ".bridge-campaigns")
# Random kills; other campaigns are as much longer. 1000 is the full form.
RUNS = int(os.environ.get("BRIDGE_TORTURE_RUNS") or 30)
FULL = RUNS >= 1000
# Long campaigns are cut into as many parts as `make torture` has workers.
PARTS = range(2)
# Of one run of pytest, the same in all workers of pytest-xdist.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(time.time_ns())
# Whatever is drawn comes from this number, the campaign's name and the number of the case.
SEED = int(os.environ.get("BRIDGE_TORTURE_SEED") or zlib.crc32(_RUN.encode()) % 1_000_000)


def runs_of(part: int, runs: int) -> range:
    """The numbers of the runs that a part has of so many."""
    return range(part, runs, len(PARTS))


@dataclass
class Figures:
    """The figures of one part of a campaign.

    Attributes:
        runs: how long the campaign was asked to be.
        whole: whether it came to its end.
        wrong: what went wrong, each with what repeats it.
    """

    campaign: str
    part: str
    seed: int = SEED
    runs: int = RUNS
    whole: bool = False
    cases: int = 0
    seconds: float = 0.0
    facts: dict[str, int | float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _begin: float = field(default_factory=time.monotonic)

    def add(self, wrong: Iterable[str], cases: int = 1) -> None:
        """Counts cases and what went wrong in them, and keeps that: a long campaign may be ended early."""
        self.wrong += wrong
        self.cases += cases
        self.keep()

    def keep(self) -> None:
        """Writes the figures down as they are now."""
        self.seconds = round(time.monotonic() - self._begin, 1)
        kept = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{self.campaign}.{self.part}.json").write_text(json.dumps(kept, indent=2) + "\n")


@contextmanager
def figures_of(campaign: str, part: str = "all") -> Iterator[Figures]:
    """Figures to be filled in, written with each case and at the end; fails if anything went wrong."""
    figures = Figures(campaign, part)
    try:
        yield figures
        figures.whole = True
    except BaseException as error:
        figures.wrong.append(f"ended by {error!r}")
        raise
    finally:
        figures.keep()
    told = "\n".join(figures.wrong)
    assert not figures.wrong, f"seed {SEED}, {figures.cases} cases:\n{told}"
