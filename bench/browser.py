"""The UI as a person meets it: a browser, what it shows, and how long each of its questions took."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

_NAMES = ("chromium", "google-chrome")
# Headless, as root, and asking nobody but the page.
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# Milliseconds after which a page is taken for one that never comes.
_NEVER = 300_000


class NoBrowser(RuntimeError):
    """There is no browser on this machine."""


def program() -> str:
    """Where the browser is.

    Raises:
        NoBrowser: nowhere.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise NoBrowser(f"the UI is measured in a browser: install {' or '.join(_NAMES)}")
    return found


@dataclass
class Tab:
    """A page of a browser, and the questions that it has asked the server since it was last `timed`."""

    page: Any
    asked: list[tuple[float, str]] = field(default_factory=list)

    def timed(self, act: Callable[[], object], shown: Any) -> dict[str, Any]:
        """Does something, and waits until what it is to bring can be seen.

        Returns:
            `seconds` until then; `slowest` of the GraphQL queries answered until then, and its `query`.
        """
        self.asked.clear()
        began = time.perf_counter()
        act()
        shown.wait_for()
        seconds = time.perf_counter() - began
        slowest, query = max(self.asked, default=(0.0, "none"))
        return {"seconds": seconds, "slowest": slowest, "query": query}

    def note(self, request: Any) -> None:
        """Keeps how long a GraphQL query took, in seconds."""
        if request.method == "POST" and urlsplit(request.url).path == "/graphql":
            timing, asked = request.timing, request.post_data_json or {}
            took = (timing["responseEnd"] - timing["requestStart"]) / 1_000
            self.asked.append((took, asked.get("operationName") or "unnamed"))


@contextmanager
def tab(address: str) -> Iterator[Tab]:
    """A tab of a browser of its own, with nothing kept from before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=list(_QUIET))
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 1000}, base_url=address)
            page.set_default_timeout(_NEVER)
            found = Tab(page)
            page.on("requestfinished", found.note)
            yield found
        finally:
            browser.close()


@contextmanager
def served(variables: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """`bridge up` over an installation: its address, and the process whose children serve."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("bridge"), "up", "--port", str(port)]
    up = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert up.stdout is not None
        said = []
        # It gives up by itself, and says so, if it cannot serve.
        for line in up.stdout:
            said.append(line)
            if "http://" in line:
                yield "http://" + line.split("http://")[1].split()[0], psutil.Process(up.pid)
                return
        raise RuntimeError(f"bridge up failed:\n{''.join(said)[-4_000:]}")
    finally:
        up.terminate()
        up.wait()
