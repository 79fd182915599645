"""What a campaign came to, written where `docs/guarantees.md` is made from; and how long campaigns are."""

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bridge_pipeline.settings import PROJECT_ROOT

# Read at import: no setting of the shell reaches a test.
FOLDER = Path(os.environ.get("BRIDGE_CAMPAIGN_FIGURES") or PROJECT_ROOT / ".bridge-campaigns")
# Random kills; other campaigns are as much longer. 1000 is the full form.
RUNS = int(os.environ.get("BRIDGE_TORTURE_RUNS") or 30)
FULL = RUNS >= 1000
# Of one run of pytest, the same in all workers of pytest-xdist.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(time.time_ns())
# Whatever is drawn comes from this number, the campaign's name and the number of the case.
SEED = int(os.environ.get("BRIDGE_TORTURE_SEED") or zlib.crc32(_RUN.encode()) % 1_000_000)


@dataclass
class Figures:
    """The figures of one part of a campaign.

    Attributes:
        wrong: what went wrong, each with what repeats it.
    """

    campaign: str
    part: str
    seed: int = SEED
    cases: int = 0
    seconds: float = 0.0
    facts: dict[str, int | float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def figures_of(campaign: str, part: str = "all") -> Iterator[Figures]:
    """Figures to be filled in, written at the end; fails if anything went wrong."""
    figures, begin = Figures(campaign, part), time.monotonic()
    try:
        yield figures
    finally:
        figures.seconds = round(time.monotonic() - begin, 1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{campaign}.{part}.json"
        path.write_text(json.dumps(asdict(figures), indent=2) + "\n")
    told = "\n".join(figures.wrong)
    assert not figures.wrong, f"seed {SEED}, {figures.cases} cases:\n{told}"
