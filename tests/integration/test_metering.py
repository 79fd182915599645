"""Connections and their sources' limits: whose quota it is, and that sources never have to refuse."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy as sa

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.simulator import SimulatorOptions
from bridge_pipeline.connectors.freshservice import simulator as freshservice
from bridge_pipeline.connectors.freshservice.simulator.behaviour import Behaviour
from bridge_pipeline.connectors.freshservice.simulator.dialect import Freshservice
from bridge_pipeline.connectors.servicenow import simulator as servicenow
from bridge_pipeline.connectors.zendesk import simulator as zendesk
from bridge_pipeline.database import readers, registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.model import Window
from bridge_pipeline.steps.extract import extract, open_source
from bridge_pipeline.steps.metering import identity
from tests.integration import flow
from tests.integration.flow import rows

WHOLE = Window.of_days(date(2025, 1, 1), date(2025, 3, 31))
SECRETS = {
    "zendesk": ("api_token", "canary-Zend3sk-T0ken"),
    "servicenow": ("password", "canary-p4ssword"),
    "freshservice": ("api_key", "canary-Fresh-K3y"),
}
LOGINS = {
    "zendesk": {"email": "admin@acme.example"},
    "servicenow": {"user": "integration"},
    "freshservice": {"plan": "starter"},
}


def connect(workspace, connector, url, name="acme-desk", tenant="acme", config=(), secret=None, **more):
    """Registers a simulated source as a connection."""
    config = {"base_url": url, "allow_private": True} | LOGINS[connector] | dict(config)
    entities = connectors.get(connector).entities
    record = ConnectionRecord(name, tenant, connector, config, entities, **more)
    field, usual = SECRETS[connector]
    box = workspace.sealer.seal(secret or usual, tenant, name, field)
    registry.put(workspace.database.engine, record, {field: box})
    return record


def buckets(workspace):
    return {row["bucket"]: row for row in rows(workspace, "select * from bridge.quota_buckets")}


def bucket_of(workspace, connection, bucket):
    (found,) = rows(
        workspace,
        "select b.* from bridge.quota_buckets as b join bridge.quota_connections as c using (credential)"
        " where c.connection = :connection and b.bucket = :bucket",
        connection=connection,
        bucket=bucket,
    )
    return found


def refused(simulator):
    return [line for line in simulator.requests if line["status"] == 429]


# --- Whose quota --------------------------------------------------------------------------------


def whose(**changes):
    given = {
        "connector": "servicenow",
        "base_url": "https://acme.example.com",
        "user": "a@acme.example",
        "secret": "t",
        "tenant": "acme",
        "page_size": 10,
    } | changes
    config = {name: given[name] for name in ("base_url", "user", "page_size")}
    record = ConnectionRecord(f"{given['tenant']}-desk", given["tenant"], given["connector"], config, ())
    return identity(record, connectors.get(given["connector"]), {"password": given["secret"]})


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "b@acme.example"},
        {"secret": "other"},
        {"base_url": "https://umbrella.example.com"},
        {"base_url": "http://acme.example.com"},
        {"base_url": "https://acme.example.com:8443"},
        {"connector": "helpdesk"},
    ],
)
def test_another_login_secret_origin_or_connector_is_another_credential(changes):
    assert whose(**changes) != whose()


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "umbrella"},
        {"page_size": 500},
        {"user": "A@Acme.example"},
        {"base_url": "https://ACME.example.com:443/"},
    ],
)
def test_tenant_settings_and_spelling_make_no_other_credential(changes):
    assert whose(**changes) == whose()


@pytest.mark.parametrize("connector", ["zendesk", "freshservice"])
def test_a_source_that_counts_by_account_has_one_quota_for_all_logins_of_its_address(connector):
    one = whose(connector=connector)
    assert whose(connector=connector, user="b@acme.example", secret="other") == one
    assert whose(connector=connector, base_url="https://umbrella.example.com") != one


def test_an_address_whose_port_there_cannot_be_has_a_credential_too():
    assert whose(base_url="https://acme.example.com:99999") == whose(base_url="https://acme.example.com:port")


@pytest.mark.slow
def test_one_credential_in_two_tenants_is_one_quota_that_names_neither(workspace):
    options = SimulatorOptions(tickets=20, users=10, accounts=5, faults="calm")
    with zendesk.serving(options) as simulator:
        for tenant in ("acme", "umbrella"):
            connect(workspace, "zendesk", simulator.url, f"{tenant}-desk", tenant)
            extract(workspace, f"{tenant}-desk", "groups", WHOLE)
    (credential,) = {row["credential"] for row in rows(workspace, "select * from bridge.quota_connections")}
    assert buckets(workspace)["account"]["used"] == len(simulator.requests)
    secret = SECRETS["zendesk"][1]
    for table in ("buckets", "uses", "connections", "waiters"):
        shown = json.dumps(rows(workspace, f"select * from bridge.quota_{table}"), default=str)
        assert secret not in shown
        assert table == "connections" or not {"acme", "umbrella"} & set(shown.split('"'))
    assert credential not in (secret, "")


def test_a_tenant_that_could_read_the_ledger_would_see_its_own_connection_only(workspace):
    for tenant in ("acme", "umbrella"):
        flow.connect(workspace, "http://127.0.0.1:1", f"{tenant}-desk", tenant)
        row = {"connection": f"{tenant}-desk", "tenant": tenant, "credential": "shared"}
        flow.execute(
            workspace,
            "insert into bridge.quota_connections values (:connection, :tenant, :credential)",
            **row,
        )
    role = readers.role_of("acme")
    login = readers.make_login(workspace.database, role)
    try:
        with workspace.database.engine.connect() as connection:
            connection.execute(sa.text(f"grant usage on schema bridge to {role}"))
            connection.execute(sa.text(f"grant select on all tables in schema bridge to {role}"))
            connection.execute(sa.text(f"set local role {role}"))
            seen = connection.scalars(sa.text("select connection from bridge.quota_connections")).all()
            connection.rollback()
    finally:
        with workspace.database.engine.begin() as connection:
            readers.drop_login(connection, login.role)
    assert seen == ["acme-desk"]


# --- What vendors say ---------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["2023", "2024"])
def test_zendesk_is_asked_within_its_buckets_as_its_answers_correct_them(spelling, workspace):
    options = SimulatorOptions(tickets=40, users=10, accounts=5, faults="calm", requests_per_minute=60)
    behaviour = zendesk.Behaviour(export_page=10, spelling=spelling)
    with zendesk.serving(options, behaviour) as simulator:
        connect(workspace, "zendesk", simulator.url)
        batch = extract(workspace, "acme-desk", "tickets", WHOLE)
    assert batch.landed
    assert not refused(simulator)
    known = buckets(workspace)
    # The plan's 200 and the documented 10 are corrected by the headers.
    assert (known["account"]["units"], known["account"]["told_units"]) == (200, 60)
    cursor = known["incremental-exports-cursor"]
    assert (cursor["units"], cursor["told_units"], cursor["used"]) == (10, 20, len(simulator.requests))
    assert {name: spent["used"] for name, spent in batch.quota.items()} == {
        "requests": batch.requests,
        "account": batch.requests,
        "incremental-exports-cursor": batch.requests,
    }
    assert all(bucket["others"] == 0 for bucket in known.values())


def test_servicenow_tells_the_rule_of_an_instance_with_its_answers(workspace):
    options = SimulatorOptions(tickets=40, users=10, accounts=5, faults="calm", requests_per_minute=50)
    with servicenow.serving(options) as (simulator, _):
        connect(workspace, "servicenow", simulator.url, config={"page_size": 10}, requests_per_minute=50)
        extract(workspace, "acme-desk", "groups", WHOLE)
    assert not refused(simulator)
    (rule,) = (bucket for name, bucket in buckets(workspace).items() if name != "requests")
    assert (rule["units"], rule["told_units"], rule["told_seconds"]) == (None, 3_000, 3_600)
    assert rule["used"] == len(simulator.requests)


def test_two_keys_of_a_freshservice_account_take_from_one_ledger(workspace):
    """Freshservice counts by account (vendor-apis B.6), whatever key a request is sent with."""
    options = SimulatorOptions(tickets=20, users=10, accounts=5, faults="calm")
    used = {}
    with freshservice.serving(Freshservice(options, Behaviour(plan="starter"))) as simulator:
        for name, times in (("first", 7), ("second", 1)):
            connect(workspace, "freshservice", simulator.url, name, secret=f"canary-key-of-{name}")
            with open_source(workspace, name) as source:
                for _ in range(times):
                    source.client.check(source.connector.stream("tickets"))
                used[name] = source.quota.spent["list-tickets"].used
    assert len({row["credential"] for row in rows(workspace, "select * from bridge.quota_buckets")}) == 1
    own, account = buckets(workspace)["list-tickets"], buckets(workspace)["account"]
    assert (own["told_units"], own["used"], own["others"]) == (40, sum(used.values()), 0)
    assert own["used"] == account["used"] > used["second"] > 0
    # Nothing was said of the account's.
    assert (account["units"], account["told_units"], account["others"]) == (100, None, 0)


def test_a_plea_for_patience_holds_the_bucket_that_the_answer_names_as_used_up(workspace):
    """Where an answer names none that is used up, all requests are held."""
    told = {
        "exports": {"zendesk-ratelimit-incremental-exports": "total=10; remaining=0; resets=40"},
        "nothing": {"ratelimit-limit": "200", "ratelimit-remaining": "30"},
    }
    held = {}
    connect(workspace, "zendesk", "http://127.0.0.1:1")
    for case, headers in told.items():
        flow.execute(workspace, "update bridge.quota_buckets set held_until = null")
        with open_source(workspace, "acme-desk") as source:
            with source.quota.request("/api/v2/incremental/organizations", {}) as answered:
                answered(headers | {"retry-after": "40"})
            source.quota.hold(40)
        held[case] = {name for name, bucket in buckets(workspace).items() if bucket["held_until"]}
    assert held == {"exports": {"incremental-exports"}, "nothing": {"requests"}}


def test_units_that_end_without_a_plea_for_patience_narrow_no_later_one(workspace):
    """A token request, which has no bucket, may be the next to be told to wait."""
    connect(workspace, "zendesk", "http://127.0.0.1:1")
    with open_source(workspace, "acme-desk") as source:
        with source.quota.request("/api/v2/tickets", {}) as answered:
            answered({"zendesk-ratelimit-tickets-index": "total=100; remaining=0; resets=9"})
        source.quota.hold(40)
    assert [name for name, bucket in buckets(workspace).items() if bucket["held_until"]] == ["requests"]


def test_a_configured_limit_holds_back_before_the_source_would_refuse(workspace):
    """Of 5 requests a minute 4 are ours; the fifth is told to come in a minute, whatever it reads."""
    options = SimulatorOptions(tickets=40, users=10, accounts=5, faults="calm", requests_per_minute=5)
    with servicenow.serving(options) as (simulator, _):
        record = connect(workspace, "servicenow", simulator.url, requests_per_minute=5)
        with open_source(workspace, "acme-desk") as source:
            for _ in range(4):
                source.client.check(source.connector.stream("groups"))
            asked = {"requests": {"cost": 1, "units": 5, "seconds": 60}}
            take = "select pause from bridge.quota_take(:c, :n, cast(:asked as jsonb), :r, 30, 5, null)"
            credential = rows(workspace, "select credential from bridge.quota_connections")[0]["credential"]
            answer = rows(workspace, take, c=credential, n=record.name, asked=json.dumps(asked), r=0.2)
    assert 0 < answer[0]["pause"] <= 61
    assert [line["status"] for line in simulator.requests] == [200] * 4


# --- The source's own log ------------------------------------------------------------------------


class Guarded(ThreadingHTTPServer):
    """Admits `limit` requests in any window of `seconds`, refuses more, and keeps when each arrived."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, limit, seconds):
        self.limit, self.seconds = limit, seconds
        self.arrived, self.refused = [], 0
        self._recent, self._lock = deque(), threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def admits(self):
        with self._lock:
            now = time.monotonic()
            while self._recent and self._recent[0] <= now - self.seconds:
                self._recent.popleft()
            if len(self._recent) >= self.limit:
                self.refused += 1
                return False
            self._recent.append(now)
            self.arrived.append(now)
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        admitted = self.server.admits()
        body = b"{}"
        self.wfile.write(
            b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
            % (200 if admitted else 429)
            + body
        )

    def log_message(self, format, *args):
        pass


@contextmanager
def guarded(limit, seconds):
    server = Guarded(limit, seconds)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


WORKER = """
import json, os, sys
from bridge_pipeline.connector_kit.quota import Bucket
from bridge_pipeline.connector_kit.session import Session, SourceContext
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.quota import Holder, SharedQuota
from bridge_pipeline.settings import Settings
name, port, limit, window, requests = json.loads(sys.argv[1])
engine = Database.of(os.environ["QUOTA_TEST_URL"]).engine
quota = SharedQuota(
    engine, Holder("acme", name, "shared", 0.2), (Bucket("requests", limit, window),), None, 10.0
)
quota.register()
session = Session(SourceContext(name, Settings(attempts=1), quota), f"http://127.0.0.1:{port}", {}, True)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(requests):
    session.get("/", {}, bytes)
"""


def run_workers(database, server, workers, limit, seconds, requests):
    """So many processes, half of them of another tenant's connection, with so many requests in all."""
    url = database.engine.url.render_as_string(hide_password=False)
    children = []
    for number in range(workers):
        arguments = (
            ["first", "second"][number % 2],
            server.server_port,
            limit,
            seconds,
            -(-requests // workers),
        )
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"QUOTA_TEST_URL": url},
            )
        )
    try:
        for child in children:
            while child.stdout.readline() not in ("ready\n", ""):
                pass
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            child.communicate(timeout=300)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [child.returncode for child in children]


def busiest(arrived, seconds):
    return max(sum(start <= other < start + seconds for other in arrived) for start in arrived)


@pytest.fixture
def registered(workspace):
    for name, tenant in (("first", "acme"), ("second", "umbrella")):
        flow.connect(workspace, "http://127.0.0.1:1", name, tenant)


def test_a_source_that_counts_refuses_none_of_several_processes(registered, database):
    with guarded(20, 0.5) as server:
        assert run_workers(database, server, 3, 20, 0.5, 60) == [0, 0, 0]
    assert server.refused == 0
    assert len(server.arrived) == 60
    assert busiest(server.arrived, 0.5) <= 16


NOTED = """
create table public.told_to_wait (used bigint);
create function public.note() returns trigger language plpgsql as $$
begin
    insert into public.told_to_wait select b.used from bridge.quota_buckets as b
    where b.credential = new.credential and b.bucket = 'requests';
    return null;
end
$$;
create trigger note after insert or update on bridge.quota_waiters
    for each row execute function public.note()
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", range(1, 7))
def test_of_what_may_be_used_hardly_less_and_nothing_more_is_used_by_however_many(
    workers, registered, database
):
    """By the ledger's own count whenever it tells someone to wait, however busy the machine is."""
    limit, seconds, windows, usable = 50, 5.0, 4, 40
    with database.engine.begin() as connection:
        connection.exec_driver_sql(NOTED)
    with guarded(limit, seconds) as server:
        codes = run_workers(database, server, workers, limit, seconds, usable * windows)
    assert codes == [0] * workers
    assert server.refused == 0
    assert len(server.arrived) >= usable * windows
    assert busiest(server.arrived, seconds) <= usable
    with database.engine.connect() as connection:
        counted = connection.execute(sa.text("select count(*), avg(used) from public.told_to_wait")).one()
    assert counted[0] >= windows - 1
    assert counted[1] >= 0.9 * usable
