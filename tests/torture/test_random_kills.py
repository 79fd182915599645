"""The whole process group is killed at random moments; a plain re-run heals it."""

import os
import random
import signal
from contextlib import suppress

import pytest

from tests.integration.flow import ended, start
from tests.torture.attack import Case, Range, half_done, in_its_group
from tests.torture.figures import PARTS, RUNS, SEED, figures_of, runs_of
from tests.torture.scenarios import SCENARIOS

# Each as often as it stands here.
DRAWN = (
    "flow",
    "flow",
    "flow-beside",
    "flow-beside",
    "flow-again",
    "flow-again",
    "certify",
    "replay",
    "accept",
    "rotate",
)
# What was counted.
Met = dict[str, int | float]
# One run of a campaign, as a failed one names it.
ONLY = os.environ.get("BRIDGE_TORTURE_NUMBER")


def killed_by_time(target: Range, draw: random.Random, name: str, met: Met) -> list[str]:
    """One to three kills of the group after a drawn share of the undisturbed time.

    Args:
        met: counts the processes that were killed, and those that had come to their end before.
    """
    told = []
    with target.copy(SCENARIOS[name]) as workspace:
        for _ in range(draw.randint(1, 3)):
            share = draw.random()
            process = start(in_its_group, name)
            process.join(share * target.seconds[name])
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            code = ended(process)
            met["killed" if code == -signal.SIGKILL else "ended_before"] += 1
            told += [] if code in (-signal.SIGKILL, 0) else [f"the process ended with {code}"]
            told += half_done(workspace)
        return told + target.run_again(SCENARIOS[name], workspace)


def killed_by_point(target: Range, draw: random.Random, name: str, met: Met) -> list[str]:
    """A kill at a drawn passing of a drawn point: the same each time that it is repeated."""
    _, passed = target.undisturbed(SCENARIOS[name])
    point = draw.choice(sorted(passed))
    # Where it is not killed there, that is wrong.
    met["killed"] += 1
    return target.attacked([Case(name, point, "kill", draw.randint(1, passed[point]))])


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_a_process_group_killed_at_random_heals_by_a_plain_re_run(target, part):
    numbers = [int(ONLY)] if ONLY else runs_of(part, RUNS)
    with figures_of("random-kills", str(part)) as figures:
        met: Met = {"killed": 0, "ended_before": 0}
        figures.facts = met
        for number in numbers:
            draw = random.Random(f"kill {SEED} {number}")
            name = draw.choice(DRAWN)
            target.undisturbed(SCENARIOS[name])
            attack = killed_by_time if draw.random() < 0.6 else killed_by_point
            repeat = f"BRIDGE_TORTURE_SEED={SEED} BRIDGE_TORTURE_NUMBER={number}"
            figures.add(f"{each} ({repeat})" for each in attack(target, draw, name, met))
