"""The simulator starts, spoils its answers, logs and ends as its options say, always the same way."""

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge_pipeline.connector_kit.simulator import PROFILES, Faults, RunningSimulator, SimulatorOptions
from bridge_pipeline.connectors.helpdesk.simulator import serving
from tests.connectors.helpdesk.simulator.reader import TOKEN, WINDOW, ask, client, page_of, poke, raw_pages

# --- Determinism and faults ---


def transcript(options: SimulatorOptions, requests: int = 120) -> list[Any]:
    """What a client sees of a fixed sequence of requests."""
    seen: list[Any] = []
    with serving(options) as simulator:
        for number in range(requests):
            query = {"filter": WINDOW} if number % 3 == 0 else {}
            answer = poke(simulator, "/api/v1/tickets.json", page=number % 40 + 1, **query)
            whole = isinstance(answer, httpx.Response)
            seen.append((answer.status_code, answer.content) if whole else type(answer))
        seen.append(simulator.truth())
    return seen


@pytest.mark.parametrize("faults", ["calm", "typical", "hostile"])
def test_the_same_options_and_requests_give_the_same_bytes(faults: str) -> None:
    options = SimulatorOptions(tickets=2_000, faults=faults, page_size=50, seed=5)
    assert transcript(options) == transcript(options)


def test_another_seed_gives_other_records_and_faults() -> None:
    first, second = (
        transcript(SimulatorOptions(tickets=2_000, faults="hostile", seed=seed), 60) for seed in (1, 2)
    )
    assert first[-1]["entities"] != second[-1]["entities"]
    assert [type(entry) for entry in first] != [type(entry) for entry in second]


def test_a_calm_desk_has_no_faults_and_does_not_change(calm: RunningSimulator) -> None:
    before = calm.truth()
    for number in range(1, 60):
        page_of(calm, "tickets", page=number)
    assert calm.truth() == before
    assert not any("fault" in line for line in calm.requests)


@pytest.mark.parametrize("faults", ["typical", "hostile"])
def test_faults_come_as_often_as_the_profile_says(faults: str) -> None:
    profile, draws = PROFILES[faults], 20_000
    drawn = Faults(profile, seed=3)
    found = Counter(fault.kind for n in range(draws) if (fault := drawn.next(f"/{n}")))
    kinds = ("throttle", "server_error", "drop", "cut", "html", "empty", "drip", "redirect")
    assert set(found) == {kind for kind in kinds if getattr(profile, kind)}
    for kind, times in found.items():
        assert 0.5 < times / draws / getattr(profile, kind) < 1.5, kind


@pytest.mark.parametrize("faults", ["typical", "hostile"])
def test_no_request_fails_three_times_in_a_row(faults: str) -> None:
    drawn = Faults(PROFILES[faults], seed=3)
    longest = 0
    for number in range(3_000):
        failed = 0
        for _ in range(20):
            fault = drawn.next(f"/{number}")
            failed = failed + 1 if fault and fault.kind != "drip" else 0
            longest = max(longest, failed)
    assert longest == 2


@pytest.mark.slow
def test_faults_look_as_they_do_on_a_real_network() -> None:
    with serving(SimulatorOptions(tickets=40, faults="hostile")) as simulator:
        seen = [poke(simulator, "/api/v1/tickets.json", page=n, select="subject") for n in range(1_000)]
        faults = {line.get("fault") for line in simulator.requests}
    assert faults >= {"throttle", "server_error", "drop", "cut", "html", "empty", "drip"}
    answers = [entry for entry in seen if isinstance(entry, httpx.Response)]
    by_status = {status: [a for a in answers if a.status_code == status] for status in (200, 429, 500)}
    broken = [str(entry) for entry in seen if isinstance(entry, Exception)]
    assert any("peer closed connection" in text for text in broken)
    assert any("without sending a response" in text for text in broken)
    waits = {answer.headers["retry-after"] for answer in by_status[429]}
    assert "1" in waits
    assert any(wait.endswith("GMT") for wait in waits)
    assert all(TOKEN in answer.text for answer in by_status[500])
    texts = [answer.text for answer in by_status[200]]
    assert "" in texts
    assert any(text.startswith("<!DOCTYPE html>") for text in texts)
    assert any(text.startswith("{") and not text.endswith("}") for text in texts)


def test_a_redirect_leads_to_another_host_and_takes_the_credential_along() -> None:
    drawn = Faults(PROFILES["hostile"], seed=0)
    path = "/api/v1/tickets.json?token={token}&page={page}"
    kinds = ((n, drawn.next(path.format(token="[redacted]", page=n))) for n in range(1, 100_000))
    page = next(n for n, fault in kinds if fault and fault.kind == "redirect")
    with serving(SimulatorOptions(tickets=5, faults="hostile")) as simulator:
        answer = client().get(simulator.url + path.format(token=TOKEN, page=page))
    assert answer.status_code == 302
    assert answer.headers["location"] == "https://elsewhere.example" + path.format(token=TOKEN, page=page)


def test_more_requests_a_minute_than_allowed_are_turned_away() -> None:
    options = SimulatorOptions(tickets=5, faults="calm", requests_per_minute=4)
    with serving(options) as simulator:
        answers = [ask(simulator, "/api/v1/tickets.json") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    assert 58 <= int(answers[-1].headers["retry-after"]) <= 61


# --- Truth file and request log ---


def test_the_truth_file_follows_the_changes(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    with serving(SimulatorOptions(tickets=300, faults="typical", truth=file)) as simulator:
        first = json.loads(file.read_bytes())
        assert first == simulator.truth()
        list(raw_pages(simulator, "tickets", filter="id < 500100"))
        for number in range(60):
            poke(simulator, "/api/v1/accounts.json", page=number)
        last = simulator.truth()
    assert json.loads(file.read_bytes()) == last != first
    assert [path.name for path in tmp_path.iterdir()] == ["truth.json"]


def test_every_request_is_logged_at_once_and_without_its_credential(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with serving(SimulatorOptions(tickets=5, faults="calm", request_log=file)) as simulator:
        ask(simulator, "/api/v1/tickets.json", page=1)
        ask(simulator, "/api/v1/tickets/9.json", token="1-" + "_secret-" * 8)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines == simulator.requests
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/api/v1/tickets.json?token=[redacted]&page=1", 200),
        ("/api/v1/tickets/9.json?token=[redacted]", 404),
    ]
    times = [datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S.%fZ") for line in lines]
    assert times == sorted(times)


@pytest.mark.slow
def test_a_dropped_connection_is_logged_without_a_status() -> None:
    with serving(SimulatorOptions(tickets=5, faults="hostile")) as simulator:
        for number in range(150):
            poke(simulator, "/api/v1/users.json", page=number)
        dropped = [line for line in simulator.requests if line.get("fault") == "drop"]
    assert dropped
    assert all(line["status"] is None for line in dropped)


# --- Serving ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from bridge_pipeline.connector_kit.simulator import SimulatorOptions\n"
        "from bridge_pipeline.connectors.helpdesk.simulator import run\n"
        "run(SimulatorOptions(tickets=50, faults='calm', truth=Path(sys.argv[1])))\n"
    )
    truth = tmp_path / "truth.json"
    process = subprocess.Popen([sys.executable, "-c", code, str(truth)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        answer = httpx.get(f"{line.split()[-1]}/api/v1/tickets.json?token={TOKEN}")
        assert len(answer.json()["data"]) == 50
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert len(json.loads(truth.read_bytes())["entities"]["tickets"]) == 50
    finally:
        process.kill()
        process.wait()


def test_a_stopped_simulator_answers_no_more() -> None:
    with serving(SimulatorOptions(tickets=5, faults="calm")) as simulator:
        url = f"{simulator.url}/api/v1/tickets.json?token={TOKEN}"
        assert client().get(url).status_code == 200
        simulator.stop()
        simulator.stop()
        with pytest.raises(httpx.TransportError):
            client().get(url)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"faults": "wild"}, "faults must be one of"),
        ({"envelope": "brown"}, "envelope must be one of"),
        ({"filter": "coffee"}, "filter must be one of"),
        ({"tickets": -1}, "tickets must not be negative"),
        ({"page_size": 0}, "page_size must be at least 1"),
        ({"requests_per_minute": 0}, "requests_per_minute must be at least 1"),
        ({"first_day": date(2025, 5, 1)}, "is before first_day"),
        ({"event_log": Path("log.csv")}, "event_log needs a clock"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SimulatorOptions(**options)
