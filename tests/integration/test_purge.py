"""A purge leaves nothing of a connection but the record of it, and nothing of others is touched."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from bridge_pipeline import failpoints
from bridge_pipeline.connector_kit.tokens import Token
from bridge_pipeline.database import readers, registry, tokens
from bridge_pipeline.database.engine import advisory_lock, resolve
from bridge_pipeline.database.exclusive import exclusively
from bridge_pipeline.database.purges import rows_of
from bridge_pipeline.database.registry import BeingPurged, TenantInUse, UnknownConnection, UnknownTenant
from bridge_pipeline.database.tokens import SharedTokens
from bridge_pipeline.naming import BACKUP_LOCK
from bridge_pipeline.steps.backup import backup
from bridge_pipeline.steps.certify import certify
from bridge_pipeline.steps.heads import known_heads
from bridge_pipeline.steps.purge import ConnectionBusy, begin, carry_out, extent
from bridge_pipeline.steps.report import write_report
from bridge_pipeline.steps.tenants import remove_tenant
from bridge_pipeline.steps.verify import verify_folder
from tests.integration.desk import account, serving, ticket, user
from tests.integration.flow import (
    NAME,
    beside,
    beside_at,
    connect,
    day,
    ended,
    execute,
    process,
    purge_now,
    rows,
    start,
)

DAY = "2024-03-01"
OTHER = "acme-other"
# A record of what was removed, and of what was done, stays.
RECORDS = ("bridge.purges", "bridge.chain")
WHO = ("jo@example.com", "the contract ended")
TABLES = """
    select table_schema || '.' || table_name from information_schema.tables
    where table_schema in ('desk', 'bridge', 'marts') and table_type = 'BASE TABLE'
"""


def fill(workspace, name, tenant="acme"):
    """A connection with rows in every table that a flow fills; every text of them names it."""
    with serving() as desk:
        connect(workspace, desk, name, tenant)
        desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z", name=f"account of {name}")]
        desk.records["users"] = [user(1, f"{DAY}T10:00:00Z", name=f"user of {name}")]
        desk.records["tickets"] = [
            ticket(1, f"{DAY}T10:00:00Z", subject=f"ticket of {name}"),
            b'{"id": "' + name.encode() + b'"}',
        ]
        process(workspace, day(DAY), name=name)
        desk.records["tickets"] = desk.records["tickets"][1:]
        if name == NAME:
            certify(workspace, name)
    write_report(workspace, name, day(DAY).start.date())
    alarm = (
        "insert into bridge.messages (tenant, event, about, title, body, connection) "
        "values (:tenant, 'blocked', :name, :name, 'x', :name) returning id"
    )
    with workspace.database.engine.begin() as connection:
        number = connection.scalar(sa.text(alarm), {"tenant": tenant, "name": name})
    execute(
        workspace,
        "insert into bridge.messages (tenant, event, about, title, body, follows) "
        "values (:tenant, 'resolved', :name, :name, 'x', :number)",
        tenant=tenant,
        name=name,
        number=number,
    )


@pytest.fixture
def filled(workspace):
    """Two connections of one tenant; marts with rows of both."""
    fill(workspace, NAME)
    fill(workspace, OTHER)
    execute(workspace, "create schema if not exists marts")
    execute(workspace, "create table marts.fct_tickets as select connection, subject from desk.tickets")
    return workspace


def dump(workspace):
    """Every row of every table, as text."""
    found = {}
    for name in sorted(row["?column?"] for row in rows(workspace, TABLES)):
        if name not in RECORDS:
            found[name] = sorted(row["t"] for row in rows(workspace, f"select t::text from {name} t"))
    return found


def mentioning(dumped, name):
    return {table: kept for table, all_rows in dumped.items() if (kept := [r for r in all_rows if name in r])}


def files_of(workspace, name):
    return [path for path in workspace.home.root.rglob("*") if path.is_file() and name in str(path)]


def purge(workspace, name=NAME):
    return carry_out(workspace, begin(workspace, name, *WHO))


def verified(workspace):
    heads = known_heads(workspace.settings, workspace.home)
    return verify_folder(workspace.home.audit, heads, all_tenants=True)


def test_every_table_with_rows_of_connections_is_purged(database):
    """Asked of the database itself: a table that is added is found, however it hangs together."""
    has_column = """
        select table_schema || '.' || table_name as name from information_schema.columns
        where table_schema in ('desk', 'bridge') and column_name = 'connection'
    """
    refers = """
        select conrelid::regclass::text as child, confrelid::regclass::text as parent
        from pg_constraint where contype = 'f' and connamespace::regnamespace::text in ('desk', 'bridge')
    """
    with database.engine.connect() as connection:
        wanted = set(connection.scalars(sa.text(has_column)))
        edges = connection.execute(sa.text(refers)).all()
    while more := {child for child, parent in edges if parent in wanted} - wanted:
        wanted |= more
    assert {table.fullname for table in rows_of(NAME)} == wanted - {"bridge.connections", "bridge.purges"}


@pytest.mark.slow
def test_nothing_is_left_but_the_record(filled):
    before = dump(filled)
    counted, files = extent(filled, NAME)
    assert {"desk.tickets", "desk.ticket_users", "bridge.quarantine", "bridge.day_counts"} <= set(counted)
    assert set(files) == {"journal", "landing", "audit", "reports"}
    done = purge(filled)
    after = dump(filled)
    assert mentioning(after, NAME) == {}
    assert mentioning(after, OTHER) == mentioning(before, OTHER)
    assert files_of(filled, NAME) == []
    assert files_of(filled, OTHER)
    assert done.rows == {**counted, "marts.fct_tickets": 1}
    assert done.files == files
    (record,) = rows(filled, "select purged_by, reason, finished_at from bridge.purges")
    assert (record["purged_by"], record["reason"]) == WHO
    assert record["finished_at"] is not None
    assert begin(filled, NAME, "someone else", "again") == done
    found = verified(filled)
    assert found.findings == []
    (chain,) = found.chains
    (removal,) = chain.removals
    assert (removal.kind, removal.paths) == ("purge", [NAME])
    assert removal.facts["reason"] == WHO[1]
    assert "jo@example.com" not in str(removal.facts)


def test_a_file_that_comes_back_after_the_purge_is_found(workspace, desk):
    purge(workspace)
    folder = workspace.home.audit / "acme" / NAME
    folder.mkdir()
    (folder / "v0001.csv").write_text("x")
    assert [finding.what for finding in verified(workspace).findings] == ["inserted"]


@pytest.mark.slow
def test_a_purged_name_can_be_used_anew(workspace, desk):
    for _ in range(2):
        connect(workspace, desk)
        desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z")]
        process(workspace, day(DAY), ["accounts"])
        assert verified(workspace).findings == []
        assert purge(workspace).rows["desk.accounts"] == 1
    assert len(verified(workspace).chains[0].removals) == 2


def test_what_never_was_is_not_purged(workspace):
    with pytest.raises(UnknownConnection):
        begin(workspace, "nobody", *WHO)
    assert rows(workspace, "select * from bridge.purges") == []


@pytest.mark.parametrize("lock", ["exclusive:run", "exclusive:certify", "load", "report", "extract", "audit"])
def test_a_connection_at_work_is_not_purged(workspace, desk, lock):
    name = f"{lock}:{NAME}" + (":tickets" if lock in ("extract", "audit") else "")
    with workspace.database.engine.begin() as busy:
        advisory_lock(busy, name)
        with pytest.raises(ConnectionBusy, match=NAME):
            begin(workspace, NAME, *WHO)
    assert registry.get(workspace.database.engine, NAME).removed_at is None


def test_nothing_is_purged_while_a_backup_is_made(workspace, desk, tmp_path):
    resolve(workspace.settings, workspace.home)
    refused = []

    def attempt(point):
        if point == "backup.instant":
            with pytest.raises(ConnectionBusy, match="backup"):
                begin(workspace, NAME, *WHO)
            refused.append(point)

    with failpoints.listening(attempt):
        backup(workspace, tmp_path)
    assert refused == ["backup.instant"]
    assert purge(workspace).finished_at is not None


def test_two_backups_do_not_wait_for_each_other_and_keep_purges_away(workspace, desk):
    with workspace.database.engine.begin() as one, workspace.database.engine.begin() as other:
        assert advisory_lock(one, BACKUP_LOCK, wait=False, shared=True)
        assert advisory_lock(other, BACKUP_LOCK, wait=False, shared=True)
        with pytest.raises(ConnectionBusy, match="backup"):
            begin(workspace, NAME, *WHO)


def test_raw_records_of_a_killed_extraction_go_too(workspace, desk):
    left, other = (workspace.home.extraction_of(name, "tickets") for name in (NAME, OTHER))
    for folder in (left, other):
        folder.mkdir()
        (folder / "census.sqlite").write_text("x")
    assert extent(workspace, NAME)[1] == {"work": 1}
    assert purge(workspace).files == {"work": 1}
    assert not left.exists()
    assert other.exists()


def test_work_that_begins_meanwhile_stops_the_purge_and_not_for_good(workspace, desk):
    begun = begin(workspace, NAME, *WHO)
    with workspace.database.engine.begin() as busy:
        advisory_lock(busy, f"load:{NAME}")
        with pytest.raises(ConnectionBusy):
            carry_out(workspace, begun)
    assert registry.get(workspace.database.engine, NAME).name == NAME
    assert carry_out(workspace, begun).finished_at is not None


def test_a_name_is_not_taken_while_its_purge_is_unfinished(workspace, desk):
    begun = begin(workspace, NAME, *WHO)
    with pytest.raises(BeingPurged, match="--purge"):
        connect(workspace, desk)
    carry_out(workspace, begun)
    connect(workspace, desk)


def test_a_name_is_not_taken_while_its_purge_begins(workspace, desk):
    with beside_at("purge.begin.committing", workspace, connect, workspace, desk) as taken:
        begin(workspace, NAME, *WHO)
    with pytest.raises(BeingPurged, match="--purge"):
        taken[0].result()
    assert registry.get(workspace.database.engine, NAME).removed_at is not None


def test_rows_are_purged_when_no_build_of_the_models_can_bring_them_back(workspace, desk):
    begun = begin(workspace, NAME, *WHO)
    with ThreadPoolExecutor(1) as threads:
        with exclusively(workspace, "dbt"):
            purging = beside(threads, workspace, carry_out, workspace, begun)
            assert registry.get(workspace.database.engine, NAME).name == NAME
        assert purging.result().finished_at is not None


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        "purge.begin.committed",
        "purge.rows.committing",
        "purge.rows.committed",
        "purge.folder_removed",
        "purge.end.committing",
    ],
)
def test_killed_anywhere_the_same_command_finishes(filled, point):
    before = dump(filled)
    counted, files = extent(filled, NAME)
    assert ended(start(purge_now, failpoint=f"{point}=kill")) == -9
    done = purge(filled)
    assert (done.rows, done.files) == ({**counted, "marts.fct_tickets": 1}, files)
    assert mentioning(dump(filled), NAME) == {}
    assert mentioning(dump(filled), OTHER) == mentioning(before, OTHER)
    assert files_of(filled, NAME) == []
    assert verified(filled).findings == []


def test_a_link_in_place_of_a_folder_is_not_followed(workspace, desk, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    (workspace.home.reports / "acme").mkdir()
    os.symlink(elsewhere, workspace.home.reports / "acme" / NAME)
    purge(workspace)
    assert (elsewhere / "kept").exists()
    assert not os.path.lexists(workspace.home.reports / "acme" / NAME)


def test_what_cannot_be_counted_is_not_signed(workspace, desk, monkeypatch):
    fill(workspace, NAME)
    scandir, folder = os.scandir, str(workspace.home.reports / "acme" / NAME)

    def refuse(path):
        if path == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="Input/output"):
        purge(workspace)
    monkeypatch.undo()
    assert rows(workspace, "select rows from bridge.purges") == [{"rows": None}]
    assert purge(workspace).files["reports"] == 2


def test_tokens_go_with_the_credential_unless_another_connection_has_it(workspace):
    store = SharedTokens(workspace.database.engine, workspace.sealer)
    for secret in ("mine", "shared", "theirs"):
        store.renewed(f'["https://h/token", {{"client_secret": "{secret}"}}]', None, lambda _: Token("a"))
    with workspace.database.engine.begin() as connection:
        assert tokens.forget(connection, workspace.sealer, {"mine"}) == 1
    assert store.find('["https://h/token", {"client_secret": "mine"}]') is None
    assert store.find('["https://h/token", {"client_secret": "shared"}]') == Token("a")


def test_a_token_is_forgotten_with_its_connection(workspace):
    identity = '["https://h/oauth", {"api_token": "12-first"}]'
    for name, secret in ((NAME, "12-first"), (OTHER, "12-second")):
        record = connect(workspace, "https://desk.example.com", name)
        box = workspace.sealer.seal(secret, record.tenant, name, "api_token")
        registry.put(workspace.database.engine, record, {"api_token": box})
    store = SharedTokens(workspace.database.engine, workspace.sealer)
    store.renewed(identity, None, lambda _: Token("a"))
    purge(workspace, OTHER)
    assert store.find(identity) == Token("a")
    purge(workspace, NAME)
    assert store.find(identity) is None


# --- Tenants ------------------------------------------------------------------------------------


def test_a_tenant_with_connections_stays(workspace, desk):
    registry.remove(workspace.database.engine, NAME)
    with pytest.raises(TenantInUse, match=NAME):
        remove_tenant(workspace, "acme")
    with pytest.raises(UnknownTenant):
        remove_tenant(workspace, "nobody")
    assert registry.list_tenants(workspace.database.engine) == ["acme"]


def test_a_tenant_goes_with_its_login_and_comes_back(workspace):
    # Roles belong to the server that all tests share: no other test may use this one.
    tenant, engine = "purged-tenant", workspace.database.engine
    registry.add_tenant(engine, tenant)
    login = readers.make_login(workspace.database, readers.role_of(tenant))
    remove_tenant(workspace, tenant)
    remove_tenant(workspace, tenant)
    with engine.connect() as connection:
        assert not readers.exists(connection, login.role)
    assert registry.list_tenants(engine) == []
    connect(workspace, "https://desk.example.com", tenant=tenant)
    assert registry.list_tenants(engine) == [tenant]
