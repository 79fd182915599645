"""How the tests of the simulator read it: single questions, whole listings, raw bytes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx

from bridge_pipeline.connector_kit.simulator import RunningSimulator

TOKEN = "17-" + "Ab_c-" * 8
WINDOW = "updated_at >= '2025-01-20T00:00:00Z' AND updated_at < '2025-02-03T00:00:00Z'"

Record = dict[str, Any]


@cache
def client() -> httpx.Client:
    """One for all tests: making a client costs more than most of them."""
    return httpx.Client(timeout=60, trust_env=False)


def ask(simulator: RunningSimulator, path: str, **query: Any) -> httpx.Response:
    return client().get(f"{simulator.url}{path}", params={"token": TOKEN} | query)


def poke(simulator: RunningSimulator, path: str, **query: Any) -> httpx.Response | Exception:
    """An answer, or how the connection broke."""
    try:
        return ask(simulator, path, **query)
    except httpx.RemoteProtocolError as error:
        return error


def page_of(simulator: RunningSimulator, entity: str, **query: Any) -> Record:
    answer = ask(simulator, f"/api/v1/{entity}.json", **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def every(simulator: RunningSimulator, entity: str, **query: Any) -> list[Record]:
    """All records, read as the vendor's client does, of a desk that stands still."""
    records: list[Record] = []
    for number in range(1, 1_000):
        page = page_of(simulator, entity, page=number, **query)
        records += page["data"]
        if not page["more"]:
            return records
    raise AssertionError("the listing does not end")


def raw_pages(simulator: RunningSimulator, entity: str, **query: Any) -> Iterator[bytes]:
    """Bodies of all pages, as they are; asks again when something fails."""
    number, attempts = 1, 0
    while attempts < 1_000:
        attempts += 1
        answer = poke(simulator, f"/api/v1/{entity}.json", page=number, **query)
        if isinstance(answer, Exception) or not answer.content.endswith(b"]}"):
            continue
        if answer.content.endswith(b'"data":[]}'):
            return
        number += 1
        yield answer.content


def ids(records: list[Record]) -> list[int]:
    return [record["id"] for record in records]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
