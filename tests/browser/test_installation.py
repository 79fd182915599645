"""An installation as its user has it: the commands, the UI and the report in a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any

import pytest
import zstandard

from bridge_pipeline.settings import PROJECT_ROOT

TOKEN = "73519-canaryCanary_canary-CANARYcanary_Q"
NAME, DAYS = "acme-helpdesk", ("2025-02-01", "2025-02-03")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Seconds that a command may take until it serves, on a machine that does much else.
SERVES_WITHIN = 240

needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")


class Installation:
    """A home of its own, the `bridge` command in it, and what it printed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # Nothing of the developer's environment but what any shell has.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home.parent),
            "LANG": "C.UTF-8",
            "BRIDGE_HOME": str(home),
            "BRIDGE_DATABASE_URL": "",
        }
        self.printed: list[str] = []

    def bridge(self, *arguments: str, status: int = 0, **environment: str) -> Any:
        """Runs a command with `--json`; gives the one document it prints."""
        done = subprocess.run(
            [PROJECT_ROOT / ".venv/bin/bridge", *arguments, "--json"],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.home.parent,
            check=False,
        )
        self.printed += [done.stdout, done.stderr]
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[str]:
        """The address that a command which goes on says it serves at; asked to end, it ends well."""
        command = [PROJECT_ROOT / ".venv/bin/bridge", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, env=self.environment, cwd=self.home.parent, **pipes)
        addresses: Queue[str | None] = Queue()
        # Read to its end, or the command would wait for ever once the pipe is full.
        reader = Thread(target=self._read, args=(process.stdout, addresses))
        reader.start()
        try:
            address = addresses.get(timeout=SERVES_WITHIN)
            assert address is not None, f"it ended without serving: {self.printed[-5:]}"
            yield address
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait(timeout=60)
            reader.join(timeout=60)

    def _read(self, output: IO[str], addresses: "Queue[str | None]") -> None:
        for line in output:
            self.printed.append(line)
            for address in re.findall(r"http://127\.0\.0\.1:\d+", line):
                addresses.put(address)
        addresses.put(None)


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    # Not below pytest's folder: started by root, the server runs as another user.
    root = Path(tempfile.mkdtemp(prefix="bridge-installation-"))
    root.chmod(0o755)
    made = Installation(root / "home")
    yield made
    made.bridge("down")
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def desk(installation: Installation) -> Iterator[str]:
    """The address of a simulated helpdesk that knows one token."""
    days = ("--from", "2025-01-20", "--to", "2025-02-10")
    sizes = ("--tickets", "400", "--faults", "calm", "--token", TOKEN)
    with installation.serving("simulate", "helpdesk", "--port", "0", *days, *sizes) as address:
        yield address


@pytest.fixture(scope="module")
def extracted(installation: Installation, desk: str) -> Any:
    """What the first run of three days printed."""
    file = installation.home.parent / "connections.yaml"
    file.write_text(
        "connections:\n"
        f"  - name: {NAME}\n"
        "    tenant: acme\n"
        "    connector: helpdesk\n"
        f'    config: {{base_url: "{desk}", api_token: "${{ACME_TOKEN}}", allow_private: true}}\n'
    )
    applied = installation.bridge("connections", "apply", str(file), ACME_TOKEN=TOKEN)
    assert [entry["action"] for entry in applied] == ["created"]
    return installation.bridge("run", NAME, "--from", DAYS[0], "--to", DAYS[1])["summary"]


@pytest.fixture(scope="module")
def ui(installation: Installation, extracted: Any) -> Iterator[str]:
    """The address of a running `bridge up`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with installation.serving("up", "--port", str(port)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    from playwright.sync_api import sync_playwright

    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=list(quiet))
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, ui: str) -> Iterator[Any]:
    """A page of the UI that shares nothing with another test's."""
    opened = browser.new_page(viewport={"width": 1600, "height": 1000}, base_url=ui)
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def test_a_run_prints_one_document_that_accounts_for_every_record(extracted: Any) -> None:
    entities = {entry["entity"]: entry for entry in extracted["entities"]}
    assert set(entities) == {"accounts", "users", "tickets"}
    for entry in entities.values():
        terms = ("outside", "duplicate", "quarantined", "landed")
        assert entry["fetched"] == sum(entry[term] for term in terms) > 0
        assert entry["loaded"] == entry["landed"]


@pytest.mark.slow
def test_running_the_same_days_again_changes_nothing(installation: Installation, extracted: Any) -> None:
    audit = {path: path.read_bytes() for path in (installation.home / "audit").rglob("*.*")}
    again = installation.bridge("run", NAME, "--from", DAYS[0], "--to", DAYS[1])["summary"]
    assert [entry["loaded"] for entry in again["entities"]] == [0, 0, 0]
    assert {path: path.read_bytes() for path in (installation.home / "audit").rglob("*.*")} == audit


@pytest.mark.slow
def test_the_database_url_of_status_opens_the_database(installation: Installation, extracted: Any) -> None:
    import psycopg

    status = installation.bridge("status")
    with psycopg.connect(status["database_url"]) as connection:
        found = connection.execute("select count(*) from marts.fct_tickets").fetchone()
    assert found is not None
    assert found[0] == next(e["table_rows"] for e in extracted["entities"] if e["entity"] == "tickets")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("run", "nobody", "--from", "2025-02-01", "--to", "2025-02-01"), 2),
        (("run", NAME, "--from", "2025-02-02", "--to", "2025-02-01"), 2),
        (("run", NAME, "--from", "2999-01-01", "--to", "2999-01-01"), 2),
        (("run", NAME, "--from", "2025-02-01", "--to", "2025-02-01", "--entities", "pigeons"), 2),
        (("accept", "999999", "--by", "me", "--reason", "because"), 2),
    ],
)
def test_wrong_usage_is_told_apart_from_failed_work(
    installation: Installation, extracted: Any, arguments: tuple[str, ...], status: int
) -> None:
    assert installation.bridge(*arguments, status=status)["error"]


@needs_browser
def test_the_lineage_shows_every_layer(page: Any) -> None:
    page.goto("/asset-groups")
    for layer in ("extracted", "tables", "audit", "models", "quality"):
        page.get_by_text(layer, exact=True).first.wait_for()


@pytest.mark.slow
@needs_browser
def test_an_asset_shows_owner_columns_and_rows(page: Any) -> None:
    page.goto("/assets/extracted/tickets?view=overview")
    page.get_by_text("Landed from the source's API").first.wait_for()
    for text in ("data-platform", "Parquet", "custom_fields", "Row count"):
        page.get_by_text(text).first.wait_for()


@pytest.mark.slow
@needs_browser
def test_checks_have_succeeded(page: Any) -> None:
    page.goto("/assets/extracted/tickets?view=checks")
    page.get_by_text("Succeeded").first.wait_for()
    assert page.get_by_text("Skipped").count() == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_the_report_opens_offline_and_fits(
    installation: Installation, extracted: Any, browser: Any, width: int
) -> None:
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("request", lambda request: asked.append(request.url))
    report = installation.home / "reports" / "acme" / NAME / f"{DAYS[1]}.html"
    page.goto(report.as_uri())
    assert page.get_by_role("heading", level=1).inner_text() == NAME
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert [url for url in asked if not url.startswith("file:")] == []


def test_the_token_is_nowhere(installation: Installation, extracted: Any) -> None:
    """Last: everything above has written by now."""
    secret = TOKEN.encode()
    assert not [text for text in installation.printed if TOKEN in text]
    postgres = installation.home / "postgres"
    for path in installation.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert secret not in _readable(path), path
    assert any(postgres.iterdir()), "the database's own files were searched, too"


def _readable(path: Path) -> bytes:
    """A file's bytes, and what it holds compressed."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data += (
            zstandard.ZstdDecompressor()
            .decompressobj()
            .decompress(data[8 + int.from_bytes(data[4:8], "little") :])
        )
    if path.suffix == ".gz":
        data += zlib.decompress(data, wbits=31)
    return data
