"""The disk is full in journal, landing, audit folder or work folder; with room again a re-run heals it."""

import os
import resource
import subprocess

import pytest

from tests.integration.flow import ended, start
from tests.torture.attack import in_its_group
from tests.torture.figures import FULL, figures_of
from tests.torture.scenarios import SCENARIOS

FOLDERS = ("journal", "landing", "audit", "work")
KIB = (16, 64, 128, 256) if FULL else (16, 64)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")


@pytest.mark.long
@root_only
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_full_disk_leaves_nothing_that_a_re_run_does_not_heal(target, folder):
    scenario = SCENARIOS["flow"]
    target.undisturbed(scenario)
    with figures_of("disk-full", folder) as figures:
        for size in KIB:
            with target.copy(scenario) as workspace:
                place = getattr(workspace.home, folder)
                subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", f"size={size}k,mode=700", "none", place], check=True
                )
                try:
                    code = ended(start(in_its_group, scenario.name))
                    # In the smallest there is never room; in others the work may come to its end.
                    expected = (1,) if size == KIB[0] else (0, 1)
                    wrong = [] if code in expected else [f"the process ended with {code}"]
                    figures.facts["refused"] = figures.facts.get("refused", 0) + (code == 1)
                    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
                    wrong += target.run_again(scenario, workspace)
                finally:
                    subprocess.run(["umount", "-l", place], check=True)
            figures.add(f"{each} ({folder} of {size} KiB)" for each in wrong)


def with_small_files(scenario: str, size: int) -> None:
    """The work, in a process whose files cannot grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    in_its_group(scenario)


@pytest.mark.long
def test_a_file_that_cannot_grow_leaves_nothing_that_a_re_run_does_not_heal(target):
    scenario = SCENARIOS["flow"]
    target.undisturbed(scenario)
    with figures_of("disk-full", "limit") as figures:
        for size in (200, 1_000, 3_000, 6_000, 12_000):
            with target.copy(scenario) as workspace:
                code = ended(start(with_small_files, scenario.name, size))
                wrong = [] if code == 1 else [f"the process ended with {code}"]
                wrong += target.run_again(scenario, workspace)
            figures.add(f"{each} ({size} bytes)" for each in wrong)
