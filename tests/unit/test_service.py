"""What `bridge up` does for its parts, whatever becomes of their surroundings."""

import subprocess
import sys
from dataclasses import replace

from bridge_pipeline.commands import service
from bridge_pipeline.naming import Home


def test_what_a_part_prints_is_read_on_where_no_log_can_be_written(workspace, tmp_path):
    """As on a full disk; more than a pipe holds, so a part that nobody listens to would wait for ever."""
    home = Home(tmp_path / "full")
    home.root.mkdir()
    home.logs.write_text("a file where the folder should be")
    printing = [sys.executable, "-c", "for n in range(5000): print(n, 'x' * 100)"]
    with subprocess.Popen(printing, stdout=subprocess.PIPE, text=True) as process:
        child = service._Child("daemon", process)
        service._keep_lines(replace(workspace, home=home), child)
        assert process.wait(60) == 0
    assert [line.split()[0] for line in child.last] == [str(n) for n in range(4985, 5000)]
