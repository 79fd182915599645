"""Commands at a terminal: what is left out is asked for, credentials are not shown, purges are confirmed."""

import os
import pty
import re
import select
import sys
import time

import pytest

from bridge_pipeline.database import registry
from tests.integration.desk import TOKEN
from tests.integration.flow import NAME, rows

pytestmark = pytest.mark.slow
PATIENCE = 120.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def converse(arguments, *answers):
    """Runs a command at a terminal of its own and types each answer when its question stands there.

    Returns:
        The exit code, and all that the terminal showed.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "bridge_pipeline.cli", *arguments])
    shown, searched, left = "", 0, list(answers)
    ends = time.monotonic() + PATIENCE
    try:
        while text := _next(terminal, ends):
            shown += _CONTROL.sub("", text)
            while left and (found := re.compile(left[0][0]).search(shown, searched)):
                os.write(terminal, f"{left.pop(0)[1]}\n".encode())
                searched = found.end()
    finally:
        # It ends with its terminal, if it has not yet.
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert not left, f"it never asked for {left[0][0]}; the terminal showed:\n{shown}"
    return os.waitstatus_to_exitcode(status), shown


def _next(terminal, ends):
    ready, _, _ = select.select([terminal], [], [], max(0.0, ends - time.monotonic()))
    assert ready, "the command shows nothing more and does not end"
    try:
        return os.read(terminal, 65_536).decode(errors="replace")
    except OSError:
        # So a terminal ends whose other side is closed.
        return ""


def test_what_is_left_out_of_a_new_connection_is_asked_for(workspace, desk):
    code, shown = converse(
        ["connections", "add", "acme-typed"],
        (r"tenant: ", "acme"),
        (r"connector \(.*\): ", "helpdesk"),
        (r"base_url.*: ", "no address"),
        # What is wrong with one answer is said at once, and it is asked for again.
        (r"base_url.*: ", desk.url),
        (r"api_token: ", TOKEN),
        (r"allow_private \[y/N\]: ", "y"),
    )
    assert code == 0, shown
    assert "connection acme-typed" in shown
    assert TOKEN not in shown
    record = registry.get(workspace.database.engine, "acme-typed")
    assert (record.tenant, record.connector) == ("acme", "helpdesk")
    assert record.config == {"base_url": desk.url, "allow_private": True}


def test_a_credential_that_is_refused_is_neither_stored_nor_shown(workspace, desk):
    wrong = TOKEN[:-1] + "X"
    code, shown = converse(
        ["connections", "add", "acme-typed", "--tenant", "acme", "--connector", "helpdesk"],
        (r"base_url.*: ", desk.url),
        (r"api_token: ", wrong),
        (r"allow_private \[y/N\]: ", "y"),
    )
    assert code == 1, shown
    assert "it is not stored" in shown
    assert wrong not in shown
    assert not rows(workspace, "select from bridge.connections where name = 'acme-typed'")


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 1), ("y", 0, 0)])
def test_a_purge_shows_what_goes_and_asks_first(answer, code, left, workspace, desk):
    landed = workspace.home.landing_of("acme", NAME, "tickets") / "1" / "tickets.0.parquet"
    landed.parent.mkdir(parents=True)
    landed.touch()
    arguments = ["connections", "remove", NAME, "--purge", "--by", "Ann", "--reason", "contract ended"]
    ended, shown = converse(arguments, (rf"Remove all of {NAME} for good\? \[y/N\]: ", answer))
    assert ended == code, shown
    assert "1 files in landing" in shown
    assert ("nothing was removed" in shown) is landed.exists() is bool(left)
    assert len(rows(workspace, f"select from bridge.connections where name = '{NAME}'")) == left
    assert len(rows(workspace, "select from bridge.purges")) == 1 - left
