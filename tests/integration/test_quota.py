"""The quota of a credential holds across processes, whatever becomes of them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from bridge_pipeline.connector_kit.quota import HeldBack
from bridge_pipeline.database.quota import SharedQuota

MINUTE = 0.5

# Each request stays under way for a moment; its times are of the clock that all processes share.
PROGRAM = """
import json, os, sys, threading, time
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.quota import SharedQuota
requests, limit, longest, minute, mode = json.loads(sys.argv[1])
engine = Database.of(os.environ["QUOTA_TEST_URL"]).engine
quota = SharedQuota(engine, "credential", limit, longest, minute)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(requests):
    with quota.request("/", {}):
        started = time.monotonic()
        if mode == "hang":
            print("under way", flush=True)
            threading.Event().wait()
        threading.Event().wait(0.01)
        print(json.dumps([started, time.monotonic()]), flush=True)
"""


@pytest.fixture
def start(workspace, database):
    """Starts a process that sends requests as soon as it is told to."""
    children = []

    def starting(requests, limit, longest=10.0, mode="send"):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([requests, limit, longest, MINUTE, mode])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"QUOTA_TEST_URL": database.engine.url.render_as_string(hide_password=False)},
        )
        children.append(child)
        return child

    yield starting
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def quota(workspace):
    def making(limit, longest=10.0, credential="credential"):
        return SharedQuota(workspace.database.engine, credential, limit, longest, MINUTE)

    return making


def go(children):
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()


def sent(children):
    """The start and end of every request, in the order of their ends."""
    go(children)
    requests = [request for child in children for request in finished(child)]
    return sorted(requests, key=lambda request: request[1])


def finished(child):
    """The requests of a process, in order."""
    output = child.communicate(timeout=30)[0]
    assert child.returncode == 0
    # The rest are lines of its log.
    return [json.loads(line) for line in output.splitlines() if line.startswith("[")]


def busiest(requests):
    """The most requests that any minute saw, whenever during a request the source counts it."""
    return max(
        sum(started <= end + MINUTE and ended >= end for started, ended in requests) for _, end in requests
    )


def test_in_no_minute_are_more_requests_than_allowed_by_however_many_processes(start):
    requests = sent([start(5, 6) for _ in range(3)])
    assert len(requests) == 15
    assert busiest(requests) <= 6


def test_a_known_credential_is_limited_and_others_are_not_slowed(quota):
    mine, other = quota(2), quota(2, credential="other")
    started = time.monotonic()
    for shared in (mine, mine, other, other):
        with shared.request("/", {}):
            pass
    assert time.monotonic() - started < MINUTE
    with mine.request("/", {}):
        assert time.monotonic() - started >= MINUTE


def test_a_request_that_fails_gives_its_slot_back_a_minute_later(quota):
    shared = quota(1)
    with pytest.raises(OSError, match="broken"), shared.request("/", {}):
        raise OSError("broken")
    ended = time.monotonic()
    with shared.request("/", {}):
        assert MINUTE <= time.monotonic() - ended < 4 * MINUTE


def test_a_process_that_dies_keeps_its_slot_only_for_its_lease(start, quota):
    child = start(1, 1, longest=0.4, mode="hang")
    go([child])
    assert child.stdout.readline() == "under way\n"
    taken = time.monotonic()
    child.send_signal(signal.SIGKILL)
    child.wait()
    with quota(1, longest=0.4).request("/", {}):
        # What it sent may have been answered as late as its longest request lasts.
        assert 0.3 + MINUTE <= time.monotonic() - taken < 5


def test_one_that_slept_beyond_its_lease_gives_back_nothing_of_others(quota, workspace):
    # A lease that ends at once, as that of a process that was stopped for long.
    sleeper = quota(1, longest=-1.0).request("/", {})
    sleeper.__enter__()
    with quota(1, longest=30.0).request("/", {}):
        lease = free_at(workspace)
        sleeper.__exit__(None, None, None)
        assert free_at(workspace) == lease
    assert free_at(workspace) < lease


def free_at(workspace):
    with workspace.database.engine.connect() as connection:
        return connection.scalar(sa.text("select free_at from bridge.quota_slots"))


def test_nothing_is_sent_during_a_hold_by_any_process(start, quota):
    child = start(2, None)
    assert child.stdout.readline() == "ready\n"
    held = time.monotonic()
    quota(None).hold(0.6)
    child.stdin.write("go\n")
    child.stdin.flush()
    (first, _), _ = finished(child)
    assert 0.6 <= first - held < 3


def test_a_hold_also_holds_where_slots_are_free(quota):
    shared = quota(100)
    held = time.monotonic()
    shared.hold(0.5)
    with shared.request("/", {}):
        assert time.monotonic() - held >= 0.5


def test_a_shorter_hold_does_not_end_a_longer_one(quota):
    shared = quota(None)
    held = time.monotonic()
    shared.hold(0.5)
    shared.hold(0.01)
    with shared.request("/", {}):
        assert time.monotonic() - held >= 0.5


def test_who_is_held_for_longer_than_a_request_may_wait_is_told_so_at_once(workspace):
    shared = SharedQuota(workspace.database.engine, "credential", None, 0.1, MINUTE, patience=5)
    shared.hold(60)
    started = time.monotonic()
    with pytest.raises(HeldBack, match=r"no requests within the next (59|60) s"), shared.request("/", {}):
        pass
    assert time.monotonic() - started < 5


def test_without_a_limit_nothing_waits(quota):
    shared = quota(None)
    started = time.monotonic()
    for _ in range(50):
        with shared.request("/", {}):
            pass
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("limits", "free"), [((2, 5), 5), ((5, 2), 2), ((3, 3), 3)])
def test_a_changed_limit_counts_from_now_on(limits, free, quota):
    _, changed = [quota(limit) for limit in limits]
    together, arrivals = threading.Barrier(free), itertools.count()

    def request(_):
        with changed.request("/", {}):
            started = time.monotonic()
            if next(arrivals) < free:
                # Passes only when as many are under way at once as are allowed.
                together.wait(5)
            return started, time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        assert busiest(list(pool.map(request, range(free + 1)))) == free


def test_many_threads_that_begin_at_once_share_the_slots(workspace):
    def request(number):
        quota = SharedQuota(workspace.database.engine, "credential", 4, 10.0, MINUTE)
        with quota.request("/", {}):
            started = time.monotonic()
            threading.Event().wait(0.005 * number)
            return started, time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(request, range(10)))
    assert busiest(requests) <= 4


def test_who_waits_for_a_slot_under_way_does_not_wait_for_the_end_of_its_lease(quota):
    def request():
        with quota(1).request("/", {}):
            return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        with quota(1).request("/", {}):
            waiting = pool.submit(request)
            threading.Event().wait(0.2)
        ended = time.monotonic()
        assert MINUTE <= waiting.result() - ended < 5
