"""Rotation of the sealing key: every credential opens before, after, and however often it is killed."""

import base64
import dataclasses
import os

import pytest

from bridge_pipeline import settings
from bridge_pipeline.connector_kit.tokens import Token
from bridge_pipeline.database import registry
from bridge_pipeline.database.sealing import Sealer, SealingError, open_sealer
from bridge_pipeline.database.tokens import SharedTokens
from bridge_pipeline.steps import rotate
from bridge_pipeline.steps.tenants import ADDRESS, apply_tenants, parse_tenants
from tests.integration.desk import TOKEN
from tests.integration.flow import NAME, connect, rows


def token(workspace):
    sealer = open_sealer(workspace.settings, workspace.home)
    return registry.secrets(workspace.database.engine, sealer, NAME)["api_token"]


def used_keys(workspace):
    return {
        row["key"]
        for row in rows(workspace, "select secrets->'api_token'->>'key' as key from bridge.connections")
    }


def test_a_rotation_seals_everything_with_a_new_key_and_keeps_the_former(workspace):
    connect(workspace, "http://127.0.0.1:1")
    connect(workspace, "http://127.0.0.1:1", "other")
    for _ in range(3):
        before = used_keys(workspace)
        done = rotate.rotate(
            dataclasses.replace(workspace, sealer=open_sealer(workspace.settings, workspace.home))
        )
        assert before == {done.former_key}
        assert used_keys(workspace) == {done.key} == {open_sealer(workspace.settings, workspace.home).key_id}
        assert (done.resealed, token(workspace)) == (2, TOKEN)
    assert len(list(workspace.home.keys.glob("*.key"))) == 4


@pytest.mark.parametrize("point", ["make_key", "_reseal_connections", "former_keys"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rotation_that_is_cut_off_loses_nothing_and_is_done_by_the_next(
    workspace, monkeypatch, point, when
):
    connect(workspace, "http://127.0.0.1:1")
    original = getattr(rotate, point)

    def cut(*arguments):
        if when == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rotate, point, cut)
        with pytest.raises(KeyboardInterrupt):
            rotate.rotate(workspace)
    assert token(workspace) == TOKEN
    rotate.rotate(workspace)
    assert token(workspace) == TOKEN
    assert used_keys(workspace) == {open_sealer(workspace.settings, workspace.home).key_id}
    assert not (workspace.home.keys / "next.key").exists()


def test_a_former_key_that_was_deleted_leaves_the_next_rotation_its_name(workspace):
    connect(workspace, "http://127.0.0.1:1")
    for _ in range(2):
        rotate.rotate(workspace)
    (workspace.home.keys / "former-0001.key").unlink()
    rotate.rotate(workspace)
    assert sorted(path.name for path in workspace.home.keys.glob("*.key")) == [
        "former-0002.key",
        "former-0003.key",
        "secret.key",
    ]
    assert used_keys(workspace) == {open_sealer(workspace.settings, workspace.home).key_id}
    assert token(workspace) == TOKEN


def test_a_former_key_that_was_brought_by_hand_may_have_any_name(workspace):
    brought = Sealer(os.urandom(32))
    (workspace.home.keys / "former-lost.key").write_bytes(base64.b64encode(brought.key))
    connect(workspace, "http://127.0.0.1:1")
    box = brought.seal(TOKEN, "acme", NAME, "api_token")
    record = registry.get(workspace.database.engine, NAME)
    registry.put(workspace.database.engine, record, {"api_token": box})
    rotate.rotate(workspace)
    rotate.rotate(workspace)
    assert used_keys(workspace) == {open_sealer(workspace.settings, workspace.home).key_id}
    assert token(workspace) == TOKEN
    names = sorted(path.name for path in workspace.home.keys.glob("former-*.key"))
    assert names == ["former-0001.key", "former-0002.key", "former-lost.key"]


@pytest.mark.timeout(60)
def test_a_rotation_of_a_key_that_is_gone_is_refused(workspace):
    connect(workspace, "http://127.0.0.1:1")
    (workspace.home.keys / "secret.key").unlink()
    before = rows(workspace, "select secrets from bridge.connections")
    with pytest.raises(SealingError, match=r"secret\.key is gone"):
        rotate.rotate(workspace)
    assert rows(workspace, "select secrets from bridge.connections") == before


def test_what_was_opened_before_a_rotation_reads_what_it_sealed(workspace):
    connect(workspace, "http://127.0.0.1:1")
    shared = SharedTokens(workspace.database.engine, workspace.sealer)
    shared.renewed("of acme", None, lambda kept: Token("access", "refresh", 600))
    for _ in range(2):
        rotate.rotate(workspace)
    assert registry.secrets(workspace.database.engine, workspace.sealer, NAME)["api_token"] == TOKEN
    assert shared.find("of acme").access == "access"


def test_a_fingerprint_outlives_a_first_rotation_that_is_cut_off(workspace, monkeypatch):
    connect(workspace, "http://127.0.0.1:1")
    before = workspace.sealer.fingerprint("secret")

    def cut(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rotate, "former_keys", cut)
        with pytest.raises(KeyboardInterrupt):
            rotate.rotate(workspace)
    assert open_sealer(workspace.settings, workspace.home).fingerprint("secret") == before
    rotate.rotate(workspace)
    assert open_sealer(workspace.settings, workspace.home).fingerprint("secret") == before


def test_a_credential_that_does_not_open_stops_the_rotation_and_nothing_changes(workspace):
    record = connect(workspace, "http://127.0.0.1:1")
    registry.put(
        workspace.database.engine,
        record,
        {"api_token": Sealer(bytes(32)).seal("x", "acme", NAME, "api_token")},
    )
    before = rows(workspace, "select secrets from bridge.connections")
    with pytest.raises(SealingError, match="connections apply"):
        rotate.rotate(workspace)
    assert rows(workspace, "select secrets from bridge.connections") == before


def test_a_key_of_the_environment_is_rotated_by_giving_both(workspace, monkeypatch):
    old, new = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    monkeypatch.setenv("BRIDGE_SECRET_KEY", old)

    def reopened():
        loaded = settings.load()
        return dataclasses.replace(workspace, settings=loaded, sealer=open_sealer(loaded, workspace.home))

    connect(reopened(), "http://127.0.0.1:1")
    with pytest.raises(rotate.NoNewKey, match="BRIDGE_FORMER_SECRET_KEYS"):
        rotate.rotate(reopened())
    monkeypatch.setenv("BRIDGE_SECRET_KEY", new)
    monkeypatch.setenv("BRIDGE_FORMER_SECRET_KEYS", old)
    rotate.rotate(reopened())
    monkeypatch.delenv("BRIDGE_FORMER_SECRET_KEYS")
    assert token(reopened()) == TOKEN


def test_the_addresses_of_reviewers_are_sealed_anew(workspace, tmp_path):
    declared = tmp_path / "tenants.yaml"
    declared.write_text("tenants: [{name: acme, reviewers: [{to: 'mailto:ann@acme.example', on: [daily]}]}]")
    apply_tenants(workspace, parse_tenants(declared, {}))
    assert rotate.rotate(workspace).resealed == 1
    (row,) = rows(workspace, "select id, address from bridge.reviewers")
    sealer = Sealer(open_sealer(workspace.settings, workspace.home).key)
    assert sealer.unseal(row["address"], "acme", row["id"], ADDRESS) == "ann@acme.example"


def test_reviewers_stay_who_they_are_when_the_former_key_is_deleted(workspace, tmp_path):
    declared = tmp_path / "tenants.yaml"
    declared.write_text("tenants: [{name: acme, reviewers: [{to: 'mailto:ann@acme.example', on: [daily]}]}]")
    apply_tenants(workspace, parse_tenants(declared, {}))
    before = rows(workspace, "select id, created_at, removed_at from bridge.reviewers")
    rotate.rotate(workspace)
    (workspace.home.keys / "former-0001.key").unlink()
    later = dataclasses.replace(workspace, sealer=open_sealer(workspace.settings, workspace.home))
    assert [each.action for each in apply_tenants(later, parse_tenants(declared, {}))] == ["unchanged"]
    assert rows(workspace, "select id, created_at, removed_at from bridge.reviewers") == before


def test_access_tokens_are_sealed_anew_and_one_that_does_not_open_is_forgotten(workspace):
    def shared():
        return SharedTokens(workspace.database.engine, open_sealer(workspace.settings, workspace.home))

    def kept():
        found = shared().find("of acme")
        return found and (found.access, found.refresh)

    shared().renewed("of acme", None, lambda kept: Token("access", "refresh", 600))
    SharedTokens(workspace.database.engine, Sealer(bytes(32))).renewed(
        "of a lost key", None, lambda kept: Token("other", None, 600)
    )
    done = rotate.rotate(workspace)
    assert done.resealed == 3
    keys = rows(
        workspace, "select access_token->>'key' as key, identity->>'key' as of from bridge.access_tokens"
    )
    assert keys == [{"key": done.key, "of": done.key}]
    assert kept() == ("access", "refresh")
    for path in workspace.home.keys.glob("former-*.key"):
        path.unlink()
    assert kept() == ("access", "refresh")
