"""The quota of a credential holds across processes, whatever becomes of them, and none of it lies idle."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from bridge_pipeline.connector_kit.quota import Bucket, HeldBack, Metering, Observed
from bridge_pipeline.database.quota import REQUESTS, Holder, Level, SharedQuota, Spent, levels
from tests.integration.flow import connect, execute, rows

WINDOW = 0.5

# Each request stays under way for a moment; its times are of the clock that all processes share.
PROGRAM = """
import json, os, sys, threading, time
from bridge_pipeline.connector_kit.quota import Bucket
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.quota import Holder, SharedQuota
name, requests, limit, longest, window, mode = json.loads(sys.argv[1])
engine = Database.of(os.environ["QUOTA_TEST_URL"]).engine
buckets = (Bucket("requests", limit, window),) if limit else ()
quota = SharedQuota(engine, Holder("acme", name, "credential", 0.0), buckets, None, longest)
quota.register()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(requests):
    with quota.request("/", {}) as answered:
        started = time.monotonic()
        if mode == "hang":
            print("under way", flush=True)
            threading.Event().wait()
        threading.Event().wait(0.01)
        ended = time.monotonic()
        answered({})
        print(json.dumps([started, ended]), flush=True)
"""


@pytest.fixture
def workspace(workspace):
    for name in ("first", "second"):
        connect(workspace, "http://127.0.0.1:1", name)
    return workspace


@pytest.fixture
def start(workspace, database):
    """Starts a process that sends requests as soon as it is told to."""
    children = []

    def starting(requests, limit, longest=10.0, mode="send", name="first"):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([name, requests, limit, longest, WINDOW, mode])],
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
    """The quota of a connection: of the bucket `requests`, or of those that `metering` counts."""

    def making(
        limit=None,
        longest=10.0,
        credential="credential",
        reserve=0.0,
        name="first",
        metering=None,
        buckets=(),
        **more,
    ):
        known = (Bucket(REQUESTS, limit, WINDOW),) if limit else ()
        holder = Holder("acme", name, credential, reserve)
        shared = SharedQuota(workspace.database.engine, holder, (*known, *buckets), metering, longest, **more)
        shared.register()
        return shared

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
    output = child.communicate(timeout=120)[0]
    assert child.returncode == 0
    # The rest are lines of its log.
    return [json.loads(line) for line in output.splitlines() if line.startswith("[")]


def busiest(requests):
    """The most requests that any window saw, whenever during a request the source counts it."""
    return max(
        sum(started <= end + WINDOW and ended >= end for started, ended in requests) for _, end in requests
    )


def ask(workspace, name="first", place=None, reserve=0.0, credential="credential", due=False, **costs):
    """Asks the ledger once for units of buckets of 60 s, given as `name=(cost, units)`, without waiting.

    `due`: at the very moment at which all units come back, and all that wait were told to come.
    """
    asked = {bucket: {"cost": cost, "units": units, "seconds": 60} for bucket, (cost, units) in costs.items()}
    call = (
        "select * from bridge.quota_take(:credential, :name, cast(:asked as jsonb), :reserve, 30, 5, :place)"
    )
    values = {"credential": credential, "name": name, "reserve": reserve, "place": place}
    with workspace.database.engine.begin() as connection:
        if due:
            connection.execute(sa.text("update bridge.quota_uses set free_at = clock_timestamp()"))
            connection.execute(sa.text("update bridge.quota_waiters set due_at = clock_timestamp()"))
        return connection.execute(sa.text(call), values | {"asked": json.dumps(asked)}).one()


def settle(workspace, use, *told):
    said = json.dumps([vars(each) for each in told])
    execute(
        workspace, "select bridge.quota_settle('credential', :use, cast(:told as jsonb))", use=use, told=said
    )


def admitted(workspace, **asking):
    """How many requests may go before one has to wait, and that one's answer."""
    for number in itertools.count():
        answer = ask(workspace, **asking)
        if answer.taken is None:
            return number, answer


def time_passes(workspace, seconds):
    """All that the ledger remembers happened that much earlier."""
    for table, column in (
        ("uses", "free_at"),
        ("waiters", "due_at"),
        ("buckets", "others_until"),
        ("buckets", "held_until"),
        ("buckets", "told_at"),
        ("connections", "served_at"),
    ):
        execute(
            workspace,
            f"update bridge.quota_{table} set {column} = {column} - make_interval(secs => :s)",
            s=seconds,
        )


# --- Never over the limit -----------------------------------------------------------------------


def test_in_no_window_are_more_requests_than_allowed_by_however_many_processes(start):
    requests = sent([start(5, 6) for _ in range(3)])
    assert len(requests) == 15
    assert busiest(requests) <= 6


def test_of_every_limit_the_reserve_is_left_to_others(workspace):
    assert admitted(workspace, reserve=0.2, requests=(1, 10))[0] == 8
    # Another connection that leaves nothing may use the rest, and no more.
    assert admitted(workspace, name="second", requests=(1, 10))[0] == 2


def test_a_limit_of_one_is_not_all_reserve(workspace):
    assert admitted(workspace, reserve=0.9, requests=(1, 1))[0] == 1


def test_a_request_takes_its_weight_from_every_bucket_that_counts_it(workspace):
    heavy = {"requests": (1, None), "account": (3, 10), "exports": (1, 2)}
    count, refused = admitted(workspace, **heavy)
    assert (count, refused.lacking) == (2, "exports")
    # Four units of the account's ten are left, and the exports' shortage is not theirs.
    count, refused = admitted(workspace, requests=(1, None), account=(3, 10))
    assert (count, refused.lacking) == (1, "account")


def test_a_request_dearer_than_its_bucket_goes_when_the_bucket_is_full(workspace):
    assert admitted(workspace, requests=(1, None), account=(5, 3))[0] == 1


def test_units_come_back_one_window_after_the_answer_and_never_before(workspace):
    use = ask(workspace, requests=(1, 1)).taken
    time_passes(workspace, 20)
    before = clock(workspace)
    settle(workspace, use)
    window = timedelta(seconds=60 * 1.002 + 0.02)
    (given_back,) = (row["free_at"] for row in rows(workspace, "select free_at from bridge.quota_uses"))
    assert before + window <= given_back <= clock(workspace) + window
    time_passes(workspace, 30)
    waiting = ask(workspace, requests=(1, 1))
    assert waiting.taken is None
    time_passes(workspace, 31)
    assert ask(workspace, place=waiting.line, requests=(1, 1)).taken


def clock(workspace):
    (row,) = rows(workspace, "select clock_timestamp() as now")
    return row["now"]


def test_what_a_dead_process_took_is_back_when_its_lease_has_ended(workspace):
    assert ask(workspace, requests=(1, 1)).taken
    # Its longest request may have taken 30 s, and counts for a minute from then on.
    time_passes(workspace, 62)
    waiting = ask(workspace, requests=(1, 1))
    assert waiting.taken is None
    time_passes(workspace, 29)
    assert ask(workspace, place=waiting.line, requests=(1, 1)).taken


def test_an_answer_that_comes_after_its_lease_gives_back_nothing_of_others(workspace):
    sleeper = ask(workspace, requests=(1, 1)).taken
    time_passes(workspace, 91)
    assert ask(workspace, requests=(1, 1)).taken
    settle(workspace, sleeper)
    assert ask(workspace, requests=(1, 1)).taken is None


def test_limits_of_other_credentials_are_their_own(workspace):
    assert admitted(workspace, requests=(1, 2))[0] == 2
    assert admitted(workspace, credential="other", requests=(1, 2))[0] == 2


def test_the_least_limit_configured_for_a_credential_binds_all_connections_that_use_it(workspace, quota):
    for name, limit in (("first", 5), ("second", 3)):
        connect(workspace, "http://127.0.0.1:1", name, requests_per_minute=limit)
        quota(name=name)
    connect(workspace, "http://127.0.0.1:1", "third")
    # Whoever comes last, and knows of no limit, takes none away.
    quota(name="third")
    assert admitted(workspace, name="third", requests=(1, None))[0] == 3
    assert shown_limit(workspace) == 3
    # Nor does one that knows of a higher.
    assert ask(workspace, name="first", requests=(1, 5)).lacking == REQUESTS
    execute(workspace, "update bridge.connections set removed_at = now() where name = 'second'")
    assert admitted(workspace, name="third", requests=(1, None))[0] == 2
    assert shown_limit(workspace) == 5


def shown_limit(workspace):
    with workspace.database.engine.connect() as connection:
        return next(each.limit for each in levels(connection, "credential") if each.bucket == REQUESTS)


# --- Corrected by what answers say --------------------------------------------------------------


@pytest.mark.parametrize("units", [4, 25])
def test_the_limit_that_an_answer_tells_replaces_the_published_one(workspace, units):
    use = ask(workspace, requests=(1, None), account=(1, 10)).taken
    settle(workspace, use, Observed("account", units))
    assert admitted(workspace, requests=(1, None), account=(1, 10))[0] == units - 1


def test_a_limit_that_is_no_longer_told_is_forgotten_for_the_published_one(workspace):
    use = ask(workspace, requests=(1, None), account=(1, 10)).taken
    settle(workspace, use, Observed("account", 25))
    time_passes(workspace, 3_700)
    assert admitted(workspace, requests=(1, None), account=(1, 10))[0] == 10


def test_what_others_used_is_not_there_to_be_used(workspace):
    asking = {"reserve": 0.2, "requests": (1, None), "account": (1, 10)}
    use = ask(workspace, **asking).taken
    settle(workspace, use, Observed("account", 10, left=3, resets_in=30))
    count, refused = admitted(workspace, **asking)
    assert count == 3
    assert refused.pause <= 30
    time_passes(workspace, 31)
    # The window of the others is over, ours of this minute counts on.
    assert admitted(workspace, **asking)[0] == 4


def test_what_others_used_less_than_the_reserve_takes_nothing_from_us(workspace):
    asking = {"reserve": 0.2, "requests": (1, None), "account": (1, 10)}
    use = ask(workspace, **asking).taken
    settle(workspace, use, Observed("account", 10, left=8, resets_in=30))
    assert admitted(workspace, **asking)[0] == 7


def test_answers_that_overtake_each_other_make_no_others_of_our_own(workspace):
    asking = {"requests": (1, None), "account": (1, 10)}
    uses = [ask(workspace, **asking).taken for _ in range(6)]
    for number, use in reversed(list(enumerate(uses, 1))):
        settle(workspace, use, Observed("account", 10, left=10 - number, resets_in=60))
    assert admitted(workspace, **asking)[0] == 4


def test_an_answer_so_slow_that_our_units_came_back_meanwhile_makes_no_others_of_them(workspace):
    asking = {"requests": (1, None), "account": (1, 10)}
    for _ in range(6):
        settle(workspace, ask(workspace, **asking).taken)
    time_passes(workspace, 50)
    slow = ask(workspace, **asking).taken
    time_passes(workspace, 11)
    assert ask(workspace, **asking).taken
    settle(workspace, slow, Observed("account", 10, left=3, resets_in=60))
    assert admitted(workspace, **asking)[0] == 8


def test_a_bucket_that_nobody_declared_counts_from_the_answer_that_names_it(workspace):
    use = ask(workspace, requests=(1, None), rule=(1, None)).taken
    settle(workspace, use, Observed("rule", 5, resets_in=1_000, seconds=3_600))
    count, refused = admitted(workspace, requests=(1, None), rule=(1, None))
    assert (count, refused.lacking) == (4, "rule")


TWO_HEADERS = Metering(
    lambda config: (),
    lambda path, params: {"account": 1},
    lambda headers: (
        (
            Observed("account", int(headers["account"])),
            Observed("hidden", int(headers["hidden"])),
        )
        if headers
        else ()
    ),
)


def test_paths_pay_a_bucket_that_their_answers_named(quota, workspace):
    shared = quota(metering=TWO_HEADERS)
    for number in (1, 2):
        with shared.request(f"/tickets/{number}.json", {}) as answered:
            answered({"account": "100", "hidden": "7"})
    with shared.request("/users.json", {}) as answered:
        answered({})
    assert used(workspace) == {"requests": 3, "account": 3, "hidden": 1}


@pytest.mark.parametrize("value", ["-3", "0", "9999999999999999999"])
def test_a_limit_that_cannot_be_is_not_believed(value, quota, workspace):
    shared = quota(metering=TWO_HEADERS, buckets=(Bucket("account", 5),))
    with shared.request("/", {}) as answered:
        answered({"account": value, "hidden": "7"})
    assert admitted(workspace, requests=(1, None), account=(1, 5))[0] == 4


def used(workspace):
    found = rows(workspace, "select bucket, units from bridge.quota_uses")
    return dict(sum((Counter({row["bucket"]: row["units"]}) for row in found), Counter()))


# --- Fair ---------------------------------------------------------------------------------------


def test_of_those_that_wait_the_one_served_longest_ago_is_next(workspace, quota):
    for name in ("first", "second"):
        quota(name=name)
    asking = {"requests": (1, 1)}
    first = ask(workspace, **asking).taken
    settle(workspace, first)
    # Three of the connection that was served, and then one of another.
    lines = [ask(workspace, **asking).line for _ in range(3)]
    other = ask(workspace, name="second", **asking).line
    refused = ask(workspace, due=True, place=lines[0], **asking)
    assert refused.taken is None
    assert ask(workspace, name="second", place=other, **asking).taken


def test_those_of_one_connection_go_in_the_order_in_which_they_came(workspace):
    asking = {"requests": (1, 1)}
    settle(workspace, ask(workspace, **asking).taken)
    lines = [ask(workspace, **asking).line for _ in range(2)]
    assert ask(workspace, due=True, place=lines[1], **asking).taken is None
    assert ask(workspace, place=lines[0], **asking).taken


def test_a_newcomer_waits_behind_those_that_wait(workspace):
    asking = {"requests": (1, 1)}
    settle(workspace, ask(workspace, name="second", **asking).taken)
    ask(workspace, name="second", **asking)
    assert ask(workspace, name="second", due=True, **asking).taken is None


@pytest.mark.long
def test_a_connection_that_asks_once_at_a_time_is_not_crowded_out_by_one_that_asks_five_times(quota):
    """Two a window for six that always want: the single one has its turn nearly every window."""
    order, enough = [], threading.Event()
    together = threading.Barrier(6)

    def keep_asking(name):
        shared = quota(2, name=name)
        together.wait(60)
        while not enough.is_set():
            with shared.request("/", {}):
                order.append(name)
                if len(order) >= 24:
                    enough.set()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(keep_asking, ["first"] * 5 + ["second"]))
    assert 8 <= order[:24].count("second") <= 14


def test_one_that_died_waiting_holds_nobody_up_for_long(workspace):
    asking = {"requests": (1, 1)}
    settle(workspace, ask(workspace, **asking).taken)
    ask(workspace, name="second", **asking)
    refused = ask(workspace, due=True, **asking)
    assert 0 < refused.pause <= 1
    time_passes(workspace, 1)
    assert ask(workspace, place=refused.line, **asking).taken


def test_one_that_died_waiting_is_not_shown_as_waiting_for_long(workspace):
    settle(workspace, ask(workspace, requests=(1, 1)).taken)
    ask(workspace, name="second", requests=(1, 1))
    shown = []
    for late in (0, 2):
        execute(
            workspace, f"update bridge.quota_waiters set due_at = clock_timestamp() - interval '{late} s'"
        )
        with workspace.database.engine.connect() as connection:
            shown.append([level.waiting for level in levels(connection, "credential")])
    assert shown == [[1], [0]]


def test_of_any_limit_one_unit_may_be_used():
    level = Level("c", "requests", 1, 60.0, used=0, others=0, free_in=0, held=0, waiting=0)
    assert (level.usable(0.5), level.left(0.5)) == (1, 1)


def test_who_waits_for_one_bucket_holds_up_nobody_in_another(workspace):
    exports = {"requests": (1, None), "account": (1, 5), "exports": (1, 1)}
    assert ask(workspace, **exports).taken
    assert ask(workspace, name="second", **exports).lacking == "exports"
    assert admitted(workspace, requests=(1, None), account=(1, 5))[0] == 4


# --- Held ---------------------------------------------------------------------------------------


def test_a_request_that_fails_gives_its_units_back_a_window_later(quota):
    shared = quota(1)
    before = time.monotonic()
    with pytest.raises(OSError, match="broken"), shared.request("/", {}):
        raise OSError("broken")
    with shared.request("/", {}):
        assert time.monotonic() - before >= WINDOW
    assert shared.spent[REQUESTS].used == 2
    # All of the window but what it took to ask again.
    assert shared.spent[REQUESTS].waited > 0


def test_a_process_that_dies_keeps_its_units_only_for_its_lease(start, quota):
    child = start(1, 1, longest=0.4, mode="hang")
    assert child.stdout.readline() == "ready\n"
    before = time.monotonic()
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "under way\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    with quota(1, longest=0.4).request("/", {}):
        # What it sent may have been answered as late as its longest request lasts.
        assert time.monotonic() - before >= 0.4 + WINDOW


@pytest.mark.slow
def test_nothing_is_sent_during_a_hold_by_any_process(start, quota):
    child = start(2, None)
    assert child.stdout.readline() == "ready\n"
    held = time.monotonic()
    quota().hold(0.6)
    child.stdin.write("go\n")
    child.stdin.flush()
    (first, _), _ = finished(child)
    assert first - held >= 0.6


def test_a_shorter_hold_does_not_end_a_longer_one(quota):
    shared = quota(100)
    held = time.monotonic()
    shared.hold(0.5)
    shared.hold(0.01)
    with shared.request("/", {}):
        assert time.monotonic() - held >= 0.5


@pytest.mark.parametrize(
    ("account", "hidden", "held"),
    [
        (("100", "0"), None, {"account"}),
        (("100", "3"), ("7", "0"), {"hidden"}),
        (("100", "0"), ("0", "0"), {"account"}),
        (("100", "3"), ("0", "0"), {"requests"}),
        (("100", "3"), ("", "0"), {"requests"}),
        (("100", "3"), None, {"requests"}),
    ],
)
def test_a_hold_is_of_what_the_request_pays_from_or_of_all(account, hidden, held, quota, workspace):
    """A hold on a bucket that no request takes from would let the next one go at once."""

    def observed(headers):
        told = {"account": account, "hidden": hidden} if headers else {}
        for name, (units, left) in ((name, each) for name, each in told.items() if each):
            yield Observed(name, int(units) if units else None, int(left), 60)

    metering = Metering(
        lambda config: (), lambda path, params: {"account": 1}, lambda headers: tuple(observed(headers))
    )
    shared = quota(metering=metering, patience=5)
    with shared.request("/tickets.json", {}) as answered:
        answered({"retry-after": "600"})
    shared.hold(600)
    found = rows(workspace, "select bucket from bridge.quota_buckets where held_until > clock_timestamp()")
    assert {row["bucket"] for row in found} == held
    with pytest.raises(HeldBack), shared.request("/tickets.json", {}):
        pass


def test_who_is_held_for_longer_than_a_request_may_wait_is_told_so_at_once(quota):
    shared = quota(patience=5)
    shared.hold(3_600)
    with pytest.raises(HeldBack, match=r"no requests within the next 3\d\d\d s"), shared.request("/", {}):
        pass


def test_a_wait_for_units_is_not_a_hold(workspace, quota):
    assert ask(workspace, requests=(1, 1)).held == 0
    assert ask(workspace, requests=(1, 1)).held == 0
    quota().hold(3_600)
    assert 3_000 < ask(workspace, requests=(1, 1)).held <= 3_600


def test_without_a_limit_nothing_waits_and_all_is_counted(quota, workspace):
    shared = quota()
    for _ in range(50):
        with shared.request("/", {}):
            pass
    assert shared.spent == {REQUESTS: Spent(50, 0.0)}
    assert used(workspace) == {"requests": 50}


@pytest.mark.parametrize(("limits", "free"), [((2, 5), 5), ((5, 2), 2), ((3, 3), 3)])
def test_as_many_are_under_way_at_once_as_the_newest_limit_allows(limits, free, quota):
    _, changed = [quota(limit) for limit in limits]
    together, arrivals = threading.Barrier(free), itertools.count()

    def request(_):
        with changed.request("/", {}):
            started = time.monotonic()
            if next(arrivals) < free:
                # Passes only when as many are under way at once as are allowed.
                together.wait(60)
            return started, time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        assert busiest(list(pool.map(request, range(free + 1)))) == free


def test_many_threads_that_begin_at_once_share_what_there_is(quota):
    def request(number):
        with quota(4).request("/", {}):
            started = time.monotonic()
            threading.Event().wait(0.005 * number)
            return started, time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(request, range(10)))
    assert busiest(requests) <= 4


@pytest.mark.slow
def test_those_that_begin_at_once_never_stand_in_each_others_way(quota):
    together = threading.Barrier(8)

    def begin(number):
        for round in range(10):
            together.wait(60)
            shared = quota(credential=f"c{round}", metering=TWO_HEADERS, buckets=(Bucket("account", 90),))
            for _ in range(2):
                with shared.request("/", {}) as answered:
                    answered({"account": "100", "hidden": "90"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(8)))


def test_nothing_is_locked_between_a_request_and_its_answer(quota, workspace):
    """A pooler may give every transaction another session."""
    with quota(5).request("/", {}):
        locks = "pg_locks l join pg_database d on (d.oid, d.datname) = (l.database, current_database())"
        here = f"select l.locktype from {locks}"
        assert rows(workspace, f"{here} where relation = 'bridge.quota_buckets'::regclass") == []
        # Other tests hold theirs, in their own databases.
        assert rows(workspace, f"{here} where locktype = 'advisory'") == []


def test_goes_on_after_the_server_has_cut_its_connection(workspace, quota):
    shared = quota(10)
    with shared.request("/", {}), workspace.database.engine.connect() as connection:
        query = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        connection.execute(sa.text(f"{query} and datname = current_database()"))
    with shared.request("/", {}):
        uses = rows(workspace, "select answered from bridge.quota_uses order by use")
        assert [use["answered"] for use in uses] == [True, False]


def test_those_that_are_open_leave_the_pool_to_others(workspace, quota):
    # More than the pool lends out.
    asked = [quota(credential=f"c{number}") for number in range(12)]
    for shared in asked:
        with shared.request("/", {}):
            pass
    assert workspace.database.engine.pool.checkedout() == 0


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.fixture
def soon(monkeypatch):
    """Interrupts the main thread in a moment."""
    before = signal.signal(signal.SIGALRM, interrupted)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.3)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def asked_once(quota):
    with quota.request("/tickets", {}) as answered:
        answered({})


def asleep(quota, soon):
    """A statement that goes on up to an interrupt."""
    soon()
    quota._run("select 1 as a, pg_sleep(60) is null")


def test_after_an_interrupt_the_next_request_has_a_connection(quota, soon):
    one = quota()
    asked_once(one)
    with pytest.raises(KeyboardInterrupt):
        asleep(one, soon)
    asked_once(one)


def test_so_has_it_after_a_connection_that_was_lost_twice(quota):
    one = quota()
    asked_once(one)
    with pytest.raises(sa.exc.OperationalError):
        one._run("select 1 as a, pg_terminate_backend(pg_backend_pid())")
    asked_once(one)


def settled_in_vain(quota, workspace, soon):
    """A request whose answer is settled while another holds the buckets, up to an interrupt."""
    with workspace.database.engine.begin() as other, quota.request("/tickets", {}) as answered:
        other.execute(sa.text("select from bridge.quota_buckets for update"))
        try:
            soon()
            answered({})
        finally:
            other.rollback()


def test_an_interrupt_while_an_answer_is_settled_is_no_other_error(quota, soon, workspace):
    one = quota()
    asked_once(one)
    with pytest.raises(KeyboardInterrupt):
        settled_in_vain(one, workspace, soon)
