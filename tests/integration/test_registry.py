"""Connections are applied, kept with sealed secrets, changed, removed and brought back."""

import dataclasses

import pytest
import sqlalchemy as sa

from bridge_pipeline import connectors
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord, TenantFixed, UnknownConnection
from bridge_pipeline.database.sealing import Sealer, SealingError
from bridge_pipeline.naming import InvalidKey
from bridge_pipeline.steps.connect import ConnectionDraft, apply, parse_connections

RECORD = ConnectionRecord(
    name="acme-helpdesk",
    tenant="acme",
    connector="helpdesk",
    config={"base_url": "https://acme.example.com", "allow_private": False},
    entities=("accounts", "tickets"),
    exclude=("tickets.*_password",),
    requests_per_minute=300,
)
DRAFT = ConnectionDraft(RECORD, {"api_token": "12-hunter2"}, ("ACME_TOKEN",))


@pytest.fixture
def engine(workspace):
    return workspace.database.engine


def changed(**changes):
    return dataclasses.replace(DRAFT, record=dataclasses.replace(RECORD, **changes))


def test_a_declared_connection_reaches_the_registry(workspace, tmp_path):
    path = tmp_path / "connections.yaml"
    path.write_text(
        "connections: [{name: acme-helpdesk, tenant: acme, connector: helpdesk, "
        'config: {base_url: "https://h", api_token: "${ACME_TOKEN}"}}]'
    )
    environ = {"ACME_TOKEN": "12-hunter2"}
    (done,) = apply(workspace, parse_connections(path, environ, connectors.get))
    assert (done.name, done.action) == ("acme-helpdesk", "created")
    engine = workspace.database.engine
    assert registry.get(engine, "acme-helpdesk").entities == ("accounts", "users", "tickets")
    assert registry.secrets(engine, workspace.sealer, "acme-helpdesk") == {"api_token": "12-hunter2"}
    assert registry.secret_variables(engine) == {"ACME_TOKEN"}


@pytest.mark.parametrize(
    ("second", "action"),
    [
        (DRAFT, "unchanged"),
        (changed(exclude=()), "changed"),
        (changed(requests_per_minute=None), "changed"),
        (dataclasses.replace(DRAFT, secrets={"api_token": "13-hunter3"}), "changed"),
        (dataclasses.replace(DRAFT, variables=("OTHER",)), "changed"),
    ],
)
def test_applying_again_changes_only_what_differs(workspace, engine, second, action):
    apply(workspace, [DRAFT])
    before = registry.get(engine, "acme-helpdesk")
    assert [done.action for done in apply(workspace, [second])] == [action]
    after = registry.get(engine, "acme-helpdesk")
    assert after == second.record
    assert after.created_at == before.created_at
    assert registry.secrets(engine, workspace.sealer, "acme-helpdesk") == second.secrets


def test_no_secret_lies_in_the_database_in_clear(workspace, engine):
    apply(workspace, [DRAFT])
    with engine.connect() as connection:
        (row,) = connection.scalars(sa.text("select to_jsonb(c)::text from bridge.connections c"))
    assert "hunter2" not in row


def test_a_removed_connection_stays_known_and_can_come_back(workspace, engine):
    apply(workspace, [DRAFT])
    registry.remove(engine, "acme-helpdesk")
    removed = registry.get(engine, "acme-helpdesk")
    assert removed.removed_at is not None
    registry.remove(engine, "acme-helpdesk")
    assert registry.get(engine, "acme-helpdesk").removed_at == removed.removed_at
    assert registry.list_connections(engine) == []
    assert registry.list_connections(engine, include_removed=True) == [removed]
    assert [done.action for done in apply(workspace, [DRAFT])] == ["changed"]
    assert registry.list_connections(engine) == [RECORD]


def test_a_connection_does_not_move_to_another_tenant(workspace, engine):
    apply(workspace, [DRAFT])
    newcomer = changed(name="aaa-first")
    with pytest.raises(TenantFixed, match=r"'acme'.*'other'"):
        apply(workspace, [newcomer, changed(tenant="other")])
    assert registry.list_connections(engine) == [RECORD]
    with pytest.raises(TenantFixed, match="acme-helpdesk"):
        registry.put(engine, changed(tenant="other").record, {})
    assert registry.get(engine, "acme-helpdesk").tenant == "acme"
    with engine.connect() as connection:
        assert connection.scalars(sa.text("select name from bridge.tenants")).all() == ["acme"]


@pytest.mark.parametrize("names", [{"name": "../x"}, {"tenant": "a|b"}, {"name": "acme\n"}])
def test_a_name_that_is_no_key_is_not_kept(engine, names):
    with pytest.raises(InvalidKey):
        registry.put(engine, changed(**names).record, {})
    assert registry.list_connections(engine, include_removed=True) == []


@pytest.mark.parametrize("name", ["../x", "a|b", "acme\n", "", "x" * 42])
def test_the_database_itself_refuses_such_names(engine, name):
    insert = sa.text("insert into bridge.tenants (name) values (:name)")
    with engine.begin() as connection, pytest.raises(sa.exc.IntegrityError, match="tenants_name_check"):
        connection.execute(insert, {"name": name})


@pytest.mark.parametrize(
    "act", [registry.get, registry.remove, lambda e, n: registry.secrets(e, Sealer(b""), n)]
)
def test_an_unknown_name_lists_the_known_ones(workspace, engine, act):
    with pytest.raises(UnknownConnection, match="none yet"):
        act(engine, "nobody")
    apply(workspace, [DRAFT, changed(name="beta")])
    with pytest.raises(UnknownConnection, match=r"'nobody'.*acme-helpdesk, beta"):
        act(engine, "nobody")


def test_a_lost_key_is_healed_by_applying_again(workspace, engine):
    apply(workspace, [DRAFT])
    other = dataclasses.replace(workspace, sealer=Sealer(bytes(32)))
    with pytest.raises(SealingError, match=r"secret\.key"):
        registry.secrets(engine, other.sealer, "acme-helpdesk")
    assert [done.action for done in apply(other, [DRAFT])] == ["changed"]
    assert registry.secrets(engine, other.sealer, "acme-helpdesk") == DRAFT.secrets
