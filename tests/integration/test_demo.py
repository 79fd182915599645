"""The demo's simulated helpdesk ends with the demo, however that ends."""

import subprocess
import sys

import psutil

from bridge_pipeline import processes

SERVING = """
from bridge_pipeline.commands.demo import _simulator
from bridge_pipeline.database.workspace import open_workspace
with _simulator(open_workspace()) as address:
    print(address, flush=True)
    input()
"""


def test_the_simulator_of_a_demo_that_was_killed_ends(workspace):
    workspace.home.demo.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVING], **pipes) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("http://127.0.0.1:")
        found = processes.facts_of(workspace.home, "simulator")
        assert found is not None
        simulator = psutil.Process(found["pid"])
        demo.kill()
    _, alive = psutil.wait_procs([simulator], timeout=60)
    for each in alive:
        each.kill()
    assert not alive
