"""Tenants are apart (L8): their logins read their own rows and nothing else, in whatever way they try."""

import itertools
import os
import subprocess
import sys
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from bridge_pipeline.database import readers, registry
from bridge_pipeline.database.engine import Database
from bridge_pipeline.database.tables import metadata
from bridge_pipeline.naming import DESK_SCHEMA, MARTS_SCHEMA
from bridge_pipeline.settings import PROJECT_ROOT
from bridge_pipeline.steps.tenants import remove_tenant
from resources.dbt import connection_variables
from tests.integration.desk import account, serving, ticket, user
from tests.integration.flow import connect, day, process, rows

# Roles belong to the server that all tests share: no other test may use these.
TENANTS = ("apart-one", "apart-two")
DAY = "2024-03-01"
DETAILS = {"resolved_at": f"{DAY}T10:00:00Z", "customer_user": {"id": 1, "_type": "User"}}
WITH_TENANT = {t.name: t for t in metadata.tables.values() if "tenant" in t.columns}
MARTS = ("dim_accounts", "dim_users", "fct_tickets", "fct_account_volume", "fct_resolution_times")
VIEWS = ("stg_accounts", "stg_users", "stg_tickets", "stg_ticket_users")
READABLE = [*(f"desk.{name}" for name in ("accounts", "users", "tickets", "ticket_users"))]
MODELS = [f"marts.{name}" for name in (*MARTS, *VIEWS)]
CLOSED = sorted(f"bridge.{t.name}" for t in metadata.tables.values() if t.schema == "bridge")


def fill(workspace, tenant):
    """A desk of one tenant, whose every text names it."""
    with serving() as desk:
        connect(workspace, desk, f"{tenant}-helpdesk", tenant)
        desk.records["accounts"] = [account(1, f"{DAY}T10:00:00Z", name=f"account of {tenant}")]
        desk.records["users"] = [user(1, f"{DAY}T10:00:00Z", name=f"user of {tenant}")]
        desk.records["tickets"] = [
            *(ticket(n, f"{DAY}T10:00:00Z", subject=f"ticket of {tenant}", **DETAILS) for n in range(1, 4)),
            b'{"id": "' + tenant.encode() + b'"}',
        ]
        process(workspace, day(DAY), name=f"{tenant}-helpdesk")


def build(workspace):
    """A real build of the models, as a run makes it."""
    arguments = ["build", "--exclude-resource-type", "unit_test", "--quiet", "--target-path"]
    command = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", *arguments]
    folder = PROJECT_ROOT / "dbt_project"
    subprocess.run(
        [*command, workspace.home.work / "dbt", "--project-dir", folder, "--profiles-dir", folder],
        env=os.environ | connection_variables(workspace) | {"DBT_LOG_PATH": str(workspace.home.work)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture
def logins(workspace):
    """Two tenants with data, models, and a login each."""
    for tenant in TENANTS:
        fill(workspace, tenant)
    found = [readers.make_login(workspace.database, readers.role_of(tenant)) for tenant in TENANTS]
    build(workspace)
    yield found
    with workspace.database.engine.begin() as connection:
        for role in (*(login.role for login in found), readers.ANALYST):
            readers.drop_login(connection, role)


def signed_in(login):
    return psycopg.connect(login.address, autocommit=True)


def told(connection, statement):
    """All that a statement tells: its rows, or its error with every detail."""
    try:
        with connection.cursor() as cursor:
            if statement.startswith("copy"):
                with cursor.copy(statement) as copy:
                    return repr([bytes(part) for part in copy] if "to " in statement else copy.write(b""))
            cursor.execute(statement)
            return repr(cursor.fetchall()) if cursor.description else ""
    except psycopg.Error as error:
        diagnosis = error.diag
        return repr([str(error), diagnosis.message_detail, diagnosis.message_hint, diagnosis.context])


WRITES = (
    "insert into {t} select * from {t}",
    "update {t} set tenant = '{mine}'",
    "update {t} set tenant = tenant where tenant = '{other}'",
    "delete from {t} where tenant = '{other}'",
    "delete from {t}",
    "truncate {t} cascade",
    "drop table {t} cascade",
    "alter table {t} disable row level security",
    "drop policy tenants on {t}",
    "create policy mine on {t} using (true)",
    "create index on {t} (tenant)",
    "create trigger spy before insert on {t} execute function suppress_redundant_updates_trigger()",
    "copy {t} from stdin",
    "begin; lock table {t} in access exclusive mode",
)
READS = (
    "select * from {t}",
    "select count(*) from {t} where tenant = '{other}'",
    "select * from {t} where tenant <> '{mine}'",
    "select * from {t} where connection = '{other}-helpdesk'",
    "select * from {t} where tenant || '' = '{other}' or true",
    "select string_agg({t}::text, '') from {t}",
    "select * from {t} order by (select 1 / case when tenant = '{other}' then 0 else 1 end)",
    "select cast(tenant as integer) from {t} where tenant = '{other}'",
    "select cast(r::text as integer) from {t} r where tenant <> '{mine}'",
    "select * from {t} tablesample bernoulli (100)",
    "select * from only {t}",
    "select a.* from {t} a full join {t} b on false",
    "with r as materialized (select * from {t}) select * from r",
    "select to_jsonb(r) from {t} r",
    "select * from query_to_xml('select * from {t}', true, true, '')",
    "select * from table_to_xml('{t}', true, true, '')",
    "copy {t} to stdout",
    "copy (select * from {t}) to program 'cat'",
    "explain (analyze, verbose) select * from {t} where tenant = '{other}'",
    "select * from pg_stats where schemaname || '.' || tablename = '{t}'",
)
AROUND = (
    "set role {other_role}",
    "set session authorization {other_role}",
    "set row_security = off; select * from desk.tickets",
    "select set_config('role', '{other_role}', false)",
    "select set_config('row_security', 'off', false); select * from desk.tickets",
    "set app.tenant = '{other}'; select * from desk.tickets",
    "grant {other_role} to current_user",
    "alter role current_user superuser",
    "alter role current_user bypassrls",
    "create role {other_role}_too in role {other_role}",
    "create view public.spy as select * from desk.tickets",
    "create temporary view spy as select * from desk.tickets; select * from spy",
    "create function pg_temp.spy() returns setof desk.tickets security definer language sql as "
    "'select * from desk.tickets'; select * from pg_temp.spy()",
    "create schema spy",
    "create extension dblink",
    "select pg_read_file('/etc/passwd')",
    "select * from pg_ls_dir('.')",
    "select lo_import('/etc/passwd')",
    "select rolpassword from pg_authid",
    "select query from pg_stat_activity where usename <> current_user and query like '%{other}%'",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename <> current_user",
    "select * from desk.tickets t where exists (select from bridge.connections)",
    "select secrets from bridge.connections",
    "select raw from bridge.quarantine",
    "select config from bridge.connections where tenant = '{other}'",
    "alter system set row_security = off",
    "begin; set local role {other_role}; select * from desk.tickets",
    "reset role; select * from desk.tickets",
    "do $$ begin execute 'set role {other_role}'; end $$",
    "select * from pg_ls_logdir()",
    "select * from pg_stat_statements where query like '%{other}%'",
    "select pg_logical_emit_message(true, '{other}', 'x')",
    "select * from pg_create_logical_replication_slot('spy', 'test_decoding')",
    "create publication spy for all tables",
    "create subscription spy connection 'host=localhost' publication spy",
    "create foreign data wrapper spy",
    "create event trigger spy on ddl_command_end execute function suppress_redundant_updates_trigger()",
    "create cast (text as integer) without function",
    "create operator public.=== (leftarg = text, rightarg = text, function = texteq)",
    "comment on table desk.tickets is '{other}'",
    "vacuum full desk.tickets",
    "analyze desk.tickets",
    "cluster desk.tickets",
    "reindex table desk.tickets",
    "refresh materialized view marts.fct_tickets",
    "create rule spy as on select to desk.tickets do instead select 1",
    "create temporary table desk_spy (like desk.tickets including all); insert into desk_spy "
    "select * from desk.tickets; select * from desk_spy",
    "declare spy cursor with hold for select * from desk.tickets; fetch all from spy",
    "prepare spy as select * from desk.tickets; set row_security = off; execute spy",
    "merge into desk.tickets t using (values ('{other}')) v (x) on t.tenant = v.x when matched then delete",
    "select * from bridge.quota_take('x', '{other}', '{{}}', 0, 1, 1, null)",
    "select bridge.quota_settle('x', 1, '[]')",
    "select nextval('bridge.quota_tickets')",
    "alter default privileges in schema desk grant select on tables to public",
    "security label on table desk.tickets is 'x'",
    "select pg_promote(), pg_reload_conf()",
    "select * from current_setting('app.tenant')",
    "load 'auto_explain'",
)


def attempts(mine, other):
    """Every way to every table, as one tenant against the other."""
    names = {"mine": mine, "other": other, "other_role": f'"{readers.role_of(other)}"'}
    for name, statement in itertools.product((*READABLE, *MODELS), (*READS, *WRITES)):
        yield statement.format(t=name, **names)
    for name, statement in itertools.product(CLOSED, (*READS[:3], "delete from {t}")):
        yield statement.format(t=name, **names)
    for statement in AROUND:
        yield statement.format(**names)


def attack(login, mine, other):
    """Tries everything; returns how many attempts were made, none of which told or changed anything."""
    texts = (f"ticket of {other}", f"account of {other}", f"user of {other}", f"'{other}-helpdesk'")
    tried = 0
    for statement in attempts(mine, other):
        # A session of its own: what one attempt set must not help or hinder the next.
        with signed_in(login) as connection:
            answer = told(connection, statement).replace(statement, "")
        assert not [text for text in texts if text in answer], (statement, answer)
        tried += 1
    return tried


def check_own_rows(workspace, login, mine):
    """Whether a login sees exactly its tenant's rows, in every table, view and mart."""
    with signed_in(login) as connection:
        for name in (*READABLE, *MODELS):
            own = rows(workspace, f"select tenant from {name} where tenant = :mine", mine=mine)
            assert own, name
            assert connection.execute(f"select tenant from {name}").fetchall() == [(mine,)] * len(own), name


def check_idleness(login):
    """Whether a transaction that a reader leaves open comes to an end, and with it what it locks."""
    with signed_in(login) as connection:
        assert connection.execute("show idle_in_transaction_session_timeout").fetchone() == ("5min",)


def check_readers(workspace, logins):
    """Whether analysts see everybody's rows, and no reader can do more than read."""
    assert not [login for login in logins if login.password in repr(login)]
    with signed_in(readers.make_login(workspace.database, readers.ANALYST)) as connection:
        for name in ("desk.tickets", "marts.fct_tickets", "marts.stg_tickets"):
            assert set(connection.execute(f"select distinct tenant from {name}")) == {(t,) for t in TENANTS}
        for statement in ("select secrets from bridge.connections", *WRITES):
            answer = told(connection, statement.format(t="desk.tickets", mine="x", other="y"))
            assert "permission denied" in answer or "must be owner" in answer, (statement, answer)
    query = """
        select distinct rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls as more
        from pg_roles where starts_with(rolname, 'bridge_tenant_apart') or rolname = 'bridge_analyst'
    """
    assert rows(workspace, query) == [{"more": False}]
    plain = "select 1 from pg_authid where rolname like 'bridge_%' and rolpassword not like 'SCRAM-SHA-256$%'"
    assert rows(workspace, plain) == []


@pytest.mark.long
def test_no_way_leads_from_one_tenant_to_another_before_or_after_a_rebuild(workspace, logins):
    before = [rows(workspace, f"select count(*) from {name}") for name in (*READABLE, *MODELS)]
    pairs = list(zip(logins, TENANTS, TENANTS[::-1], strict=True))
    tried = sum(attack(*pair) for pair in pairs)
    assert tried >= 1_000
    assert [rows(workspace, f"select count(*) from {name}") for name in (*READABLE, *MODELS)] == before
    build(workspace)
    for login, mine, _ in pairs:
        check_own_rows(workspace, login, mine)
        check_idleness(login)
    check_readers(workspace, logins)


def test_every_table_that_carries_a_tenant_is_protected(database):
    query = """
        select c.relname from pg_class c
        where c.relrowsecurity and 2 = (select count(*) from pg_policy p where p.polrelid = c.oid)
    """
    with database.engine.connect() as connection:
        assert set(connection.scalars(sa.text(query))) == set(WITH_TENANT)


# --- A database user that is no superuser ---------------------------------------------------------


@pytest.fixture
def modest(empty_database):
    """A database as its user sees it who may make roles, and is no superuser."""
    name = f"modest_{uuid4().hex[:12]}"
    with empty_database.engine.begin() as connection:
        connection.exec_driver_sql(f"create role {name} login createrole")
        for schema in (DESK_SCHEMA, MARTS_SCHEMA):
            connection.exec_driver_sql(f"create schema {schema} authorization {name}")
    found = Database(empty_database.url.set(username=name))
    yield found
    found.engine.dispose()
    with empty_database.engine.begin() as connection:
        connection.exec_driver_sql(f"drop owned by {name} cascade; drop role {name}")


def test_who_is_no_superuser_gives_a_login_another_password_and_takes_it_away(modest):
    role = readers.role_of(f"modest-{uuid4().hex[:12]}")
    first, second = (readers.make_login(modest, role).password for _ in range(2))
    assert first != second
    with modest.engine.begin() as connection:
        readers.drop_login(connection, role)
        assert not readers.exists(connection, role)


def test_a_role_that_others_made_is_left_to_them_and_it_is_said_what_to_do(empty_database, modest):
    role = readers.role_of(f"modest-{uuid4().hex[:12]}")
    with empty_database.engine.begin() as connection:
        connection.exec_driver_sql(f'create role "{role}" superuser login')
    for act in (lambda: readers.make_login(modest, role), lambda: dropped(modest, role)):
        with pytest.raises(readers.RolesNotAllowed, match="with admin option"):
            act()
    readers.make_login(empty_database, role)
    with empty_database.engine.connect() as connection:
        query = sa.text("select rolsuper from pg_roles where rolname = :role")
        assert connection.scalar(query, {"role": role}) is False
    dropped(empty_database, role)


@pytest.fixture
def kept(workspace, empty_database):
    """The role of a removed tenant, which is kept because it reads another database."""
    tenant = f"kept-{uuid4().hex[:12]}"
    role = readers.role_of(tenant)
    registry.add_tenant(workspace.database.engine, tenant)
    readers.make_login(workspace.database, role)
    with empty_database.engine.begin() as connection:
        connection.exec_driver_sql(f'create table kept (id int); grant select on kept to "{role}"')
    remove_tenant(workspace, tenant)
    yield role
    dropped(empty_database, role)


def test_a_login_that_reads_another_database_loses_this_one_alone_and_for_good(
    workspace, empty_database, kept
):
    database = workspace.database
    assert readable(database, kept) == (False, False)
    other = readers.role_of(f"other-{uuid4().hex[:12]}")
    readers.make_login(database, other)
    assert readable(database, other) == (True, True)
    with database.engine.begin() as connection:
        readers.grant_readers(connection)
        assert kept not in readers.verifiers(connection)
    assert readable(database, kept) == (False, False)
    with empty_database.engine.connect() as connection:
        allowed = sa.text("select has_table_privilege(:role, 'kept', 'select')")
        assert connection.scalar(allowed, {"role": kept}) is True
    dropped(database, other)
    dropped(empty_database, kept)
    with database.engine.connect() as connection:
        assert not readers.exists(connection, kept)


@pytest.mark.long
def test_a_build_gives_a_login_that_was_taken_away_nothing_back(workspace, kept):
    build(workspace)
    assert readable(workspace.database, kept) == (False, False)


def readable(database, role):
    """Whether a role may look into the schemas of readers."""
    allowed = (
        "select has_schema_privilege(:role, 'desk', 'usage'), has_schema_privilege(:role, 'marts', 'usage')"
    )
    with database.engine.connect() as connection:
        return tuple(connection.execute(sa.text(allowed), {"role": role}).one())


def dropped(database, role):
    with database.engine.begin() as connection:
        readers.drop_login(connection, role)
