"""A sealed credential opens with its key, in its place, and nowhere else."""

import base64
import json
import multiprocessing
import os
import signal
import stat
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_pipeline import redaction, settings
from bridge_pipeline.database import sealing
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.database.sealing import Sealer, SealingError, make_key, open_sealer, read_sealer
from bridge_pipeline.naming import Home

SEALER = Sealer(bytes(range(32)))
PLACE = ("acme", "acme-helpdesk", "api_token")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_comes_back(secret):
    assert SEALER.unseal(SEALER.seal(secret, *PLACE), *PLACE) == secret


def test_a_box_is_json_and_shows_nothing():
    box = SEALER.seal("hunter2-hunter2", *PLACE)
    text = json.dumps(box)
    assert "hunter2" not in text
    assert base64.b64encode(b"hunter2-hunter2").decode() not in text
    assert set(box) == {"v", "key", "nonce", "data"}
    assert SEALER.seal("hunter2-hunter2", *PLACE) != box


def test_an_opened_credential_is_redacted_from_then_on():
    SEALER.unseal(SEALER.seal("never-shown-again", *PLACE), *PLACE)
    assert "never-shown-again" not in redaction.redact("it was never-shown-again")


@pytest.mark.parametrize(
    "place",
    [
        ("other", "acme-helpdesk", "api_token"),
        ("acme", "other", "api_token"),
        ("acme", "acme-helpdesk", "other"),
        ("acmeacme-helpdesk", "", "api_token"),
    ],
)
def test_a_box_moved_elsewhere_does_not_open(place):
    with pytest.raises(SealingError, match="connections apply"):
        SEALER.unseal(SEALER.seal("secret", *PLACE), *place)


@pytest.mark.parametrize("change", [{"data": "AAAA"}, {"nonce": "!"}, {"data": "not base64"}, {"nonce": ""}])
def test_a_damaged_box_does_not_open(change):
    with pytest.raises(SealingError, match="damaged"):
        SEALER.unseal(SEALER.seal("secret", *PLACE) | change, *PLACE)


def test_another_key_is_named_in_the_error():
    other = Sealer(bytes(32))
    with pytest.raises(SealingError, match=f"{SEALER.key_id}.*{other.key_id}"):
        other.unseal(SEALER.seal("secret", *PLACE), *PLACE)


def test_a_box_of_a_later_form_is_refused():
    with pytest.raises(SealingError, match="newer"):
        SEALER.unseal(SEALER.seal("secret", *PLACE) | {"v": 2}, *PLACE)


def test_a_fingerprint_depends_on_key_and_secret_and_tells_neither():
    fingerprint = SEALER.fingerprint("secret")
    assert fingerprint == Sealer(SEALER.key).fingerprint("secret")
    assert len({fingerprint, SEALER.fingerprint("Secret"), Sealer(bytes(32)).fingerprint("secret")}) == 3
    assert "secret" not in repr(SEALER) + fingerprint
    assert repr(SEALER) == "Sealer()"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_the_home_gets_a_key_that_only_its_owner_reads(home):
    made = open_sealer(settings.load(home=home.root), home)
    path = home.keys / "secret.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700
    assert open_sealer(settings.load(home=home.root), home) == made
    assert len(made.key) == 32


def test_a_draft_of_a_killed_process_is_no_key(home):
    home.keys.mkdir()
    (home.keys / "draft.new").write_text("half")
    assert len(open_sealer(settings.load(home=home.root), home).key) == 32


def _key_id(root):
    home = Home(root)
    return open_sealer(settings.load(home=root), home).key_id


def test_a_key_that_was_made_while_its_lock_was_waited_for_is_kept(tmp_path, monkeypatch):
    home, made = Home(tmp_path), []
    home.keys.mkdir()

    @contextmanager
    def behind_another(path):
        with file_lock(path):
            make_key(home.keys / "secret.key")
            made.append(read_sealer(settings.load(home=tmp_path), home))
            yield

    monkeypatch.setattr(sealing, "file_lock", behind_another)
    assert [open_sealer(settings.load(home=tmp_path), home)] == made


def test_processes_that_make_the_key_at_once_agree(home):
    # Dagster's handler, which a test before this one may have set, would keep one that is ended alive.
    default = (signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    with multiprocessing.get_context("fork").Pool(8, *default) as pool:
        assert len(set(pool.map(_key_id, [home.root] * 16, chunksize=1))) == 1


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_key_of_the_environment_wins(home, monkeypatch, encode):
    key = b"\xff\xfe" + os.urandom(30)
    monkeypatch.setenv("BRIDGE_SECRET_KEY", encode(key).decode())
    assert open_sealer(settings.load(home=home.root), home) == Sealer(key)
    assert not home.keys.exists()
    assert encode(key).decode() not in redaction.redact(f"it is {encode(key).decode()}")


@pytest.mark.parametrize("wrong", ["c2hvcnQ=", "not base64 at all", "=" * 44])
def test_what_is_no_key_is_refused_without_showing_it(home, monkeypatch, wrong):
    monkeypatch.setenv("BRIDGE_SECRET_KEY", wrong)
    with pytest.raises(SealingError, match="BRIDGE_SECRET_KEY") as caught:
        open_sealer(settings.load(home=home.root), home)
    assert wrong not in str(caught.value)


def test_what_a_former_key_sealed_opens_until_that_key_is_gone():
    box = SEALER.seal("secret", *PLACE)
    assert Sealer(bytes(32), (SEALER.key,)).unseal(box, *PLACE) == "secret"
    with pytest.raises(SealingError, match=SEALER.key_id):
        Sealer(bytes(32)).unseal(box, *PLACE)


def test_a_fingerprint_outlives_a_rotation():
    assert Sealer(bytes(32), (SEALER.key,)).fingerprint("secret") == SEALER.fingerprint("secret")


def test_a_command_may_give_the_key(home, monkeypatch):
    key = os.urandom(32)
    monkeypatch.setenv("BRIDGE_SECRET_KEY_COMMAND", f"echo {base64.b64encode(key).decode()}")
    assert open_sealer(settings.load(home=home.root), home) == Sealer(key)


FAILING = f"sh -c 'echo {base64.b64encode(bytes(32)).decode()}; exit 3'"


@pytest.mark.parametrize("command", ["false", "/no/such/program", "echo short", "echo 'unclosed", FAILING])
def test_a_command_that_gives_no_key_is_named(home, monkeypatch, command):
    monkeypatch.setenv("BRIDGE_SECRET_KEY_COMMAND", command)
    with pytest.raises(SealingError, match="BRIDGE_SECRET_KEY_COMMAND"):
        open_sealer(settings.load(home=home.root), home)
