"""A backup gives the installation back, whole or not at all, and nobody is fooled by another file."""

import base64
import errno
import fcntl
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import psycopg
import pytest

from bridge_pipeline import failpoints
from bridge_pipeline import settings as configuration
from bridge_pipeline.database import readers, registry
from bridge_pipeline.database.embedded import DatabaseUnavailable
from bridge_pipeline.database.engine import advisory_lock
from bridge_pipeline.database.sealing import open_sealer
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.naming import Home
from bridge_pipeline.steps import archive
from bridge_pipeline.steps import rotate as rotating
from bridge_pipeline.steps.backup import BackupRefused, backup, last_backup
from bridge_pipeline.steps.restore import NotEmpty, WrongKey, restore
from bridge_pipeline.steps.rotate import rotate
from bridge_pipeline.steps.tenants import apply_tenants, parse_tenants
from tests.integration import backups
from tests.integration.backups import DAYS, restored
from tests.integration.desk import TOKEN
from tests.integration.flow import NAME, beside, connect, day, digest, ended, process, rows, start


@pytest.fixture(scope="module")
def filled(server, tmp_path_factory):
    """An installation that has seen three days, which no test changes."""
    with backups.filled_installation(server, tmp_path_factory.mktemp("filled") / "home") as workspace:
        yield workspace


@pytest.fixture
def spoilable(filled, tmp_path):
    """The same with files of its own."""
    root = tmp_path / "spoilable"
    shutil.copytree(filled.home.root, root)
    Home(root).last_backup.unlink(missing_ok=True)
    return replace(filled, home=Home(root))


@pytest.fixture(scope="module")
def made(filled, tmp_path_factory):
    return backup(filled, tmp_path_factory.mktemp("made") / "made.backup")


@pytest.fixture
def target(filled, tmp_path):
    with backups.place(filled, tmp_path / "restored") as settings:
        yield settings


def token(workspace):
    return registry.secrets(workspace.database.engine, workspace.sealer, NAME)["api_token"]


def test_what_is_restored_is_what_was_there(filled, made, target):
    done, copied = restored(target, made.path, sha256=made.sha256)
    assert done.problems == made.problems == []
    assert backups.state(copied) == backups.state(filled)
    assert digest(copied) == digest(filled)
    assert backups.findings(copied) == []
    assert copied.home.chain_of("acme").read_bytes() == filled.home.chain_of("acme").read_bytes()
    assert copied.home.head_of("acme").read_bytes() == filled.home.head_of("acme").read_bytes()
    assert token(copied) == TOKEN
    assert backups.due(copied, *DAYS) == backups.due(filled, *DAYS) == []


@pytest.mark.long
def test_nothing_that_was_restored_is_loaded_twice(filled, made, target):
    _, copied = restored(target, made.path)
    versions = rows(copied, "select count(*) from bridge.audit_files")
    for _, update, files in process(copied, day(*DAYS)).values():
        assert not any(file.added for file in files)
        assert not any(load.loaded for load in update.loads)
    assert rows(copied, "select count(*) from bridge.audit_files") == versions
    assert digest(copied)["tables"] == digest(filled)["tables"]


def test_the_journal_and_landing_come_back_to_the_byte(filled, made, target):
    _, copied = restored(target, made.path)
    for name, pattern in (("journal", "*.*"), ("landing", "*.parquet")):
        before, after = (
            {path.relative_to(home.root): path.read_bytes() for path in (home.root / name).rglob(pattern)}
            for home in (filled.home, copied.home)
        )
        assert before == after != {}


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "landing/../../evil", "postgres/data/evil"])
def test_a_member_is_never_written_elsewhere(name, tmp_path, target):
    path = tmp_path / "evil.backup"
    with path.open("wb") as file, archive.written(file, {"schema": "0001", "keys": True}) as writer:
        writer.add_bytes(name, b"evil")
        writer.finish()
    with pytest.raises(archive.BackupDamaged, match="none of ours"):
        restore(target, path, backups.nothing_to_settle)
    assert not [found for found in tmp_path.rglob("*evil*") if found != path]
    assert list(target.home.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"-- PostgreSQL database dump\n"])
def test_another_file_is_told_from_a_backup(data, tmp_path, target):
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises((archive.NotABackup, archive.BackupDamaged), match="other"):
        restore(target, path, backups.nothing_to_settle)


def test_a_backup_of_a_newer_bridge_is_refused(tmp_path, target):
    path = tmp_path / "newer.backup"
    with path.open("wb") as file, archive.written(file, {"schema": "9999"}) as writer:
        writer.finish()
    with pytest.raises(archive.NewerBackup, match="9999"):
        restore(target, path, backups.nothing_to_settle)


def test_an_installation_is_never_overwritten(filled, made, target):
    before = digest(filled), backups.state(filled)
    with pytest.raises(NotEmpty, match="is not empty"):
        restore(filled.settings, made.path, backups.nothing_to_settle)
    elsewhere = target.model_copy(update={"database_url": filled.settings.database_url})
    with pytest.raises(NotEmpty, match="holds an installation"):
        restore(elsewhere, made.path, backups.nothing_to_settle)
    assert (digest(filled), backups.state(filled)) == before
    assert restored(target, made.path)[0].problems == []


def test_a_backup_without_keys_wants_them_back(filled, tmp_path, target):
    made = backup(filled, tmp_path, with_keys=False)
    names = [info.name for info, _ in backups.members(made.path)]
    assert not [name for name in names if name.startswith("keys")]
    with pytest.raises(WrongKey, match=open_sealer(filled.settings, filled.home).key_id):
        restore(target, made.path, backups.nothing_to_settle)
    assert list(target.home.iterdir()) == []
    done, copied = restored(target, made.path, keys=filled.home.keys)
    assert done.problems == []
    assert token(copied) == TOKEN


@pytest.fixture
def begun(workspace):
    """An installation that holds nothing yet, opened as commands open it."""
    opened = open_workspace(workspace.settings)
    yield opened
    opened.database.engine.dispose()


@pytest.mark.parametrize("with_keys", [True, False])
def test_a_backup_names_the_key_of_its_instant_and_not_the_one_of_its_beginning(
    begun, tmp_path, target, with_keys
):
    connect(begun, "http://127.0.0.1:1")
    done = rotate(begun)
    made = backup(begun, tmp_path / "made.backup", with_keys=with_keys)
    assert archive.header_of(made.path)["sealing_keys"] == [done.key]
    _, copied = restored(target, made.path, keys=None if with_keys else begun.home.keys)
    assert token(copied) == TOKEN


def with_key(monkeypatch, target, *keys):
    """The settings of a target whose key the environment gives, and former ones behind it."""
    for name, given in (("BRIDGE_SECRET_KEY", keys[:1]), ("BRIDGE_FORMER_SECRET_KEYS", keys[1:])):
        monkeypatch.setenv(name, ",".join(base64.b64encode(key).decode() for key in given))
    return configuration.load(
        home=target.home, database_url=target.database_url, dagster_database=target.dagster_database
    )


def test_a_backup_of_a_killed_rotation_wants_the_key_that_sealed(begun, tmp_path, target, monkeypatch):
    connect(begun, "http://127.0.0.1:1")

    def cut(_home):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rotating, "former_keys", cut)
        with pytest.raises(KeyboardInterrupt):
            rotate(begun)
    known = open_sealer(begun.settings, begun.home)
    made = backup(begun, tmp_path / "made.backup", with_keys=False)
    with pytest.raises(WrongKey, match="sealed with the key"):
        restore(with_key(monkeypatch, target, known.key), made.path, backups.nothing_to_settle)
    settings = with_key(monkeypatch, target, known.upcoming)
    assert token(restored(settings, made.path, keys=begun.home.keys)[1]) == TOKEN


def test_a_backup_with_a_new_key_that_sealed_nothing_yet_wants_the_former(
    begun, tmp_path, target, monkeypatch
):
    connect(begun, "http://127.0.0.1:1")
    new, former = os.urandom(32), begun.sealer.key
    settings = with_key(monkeypatch, begun.settings, new, former)
    ahead = replace(begun, settings=settings, sealer=open_sealer(settings, begun.home))
    made = backup(ahead, tmp_path / "made.backup", with_keys=False)
    with pytest.raises(WrongKey, match=begun.sealer.key_id):
        restore(with_key(monkeypatch, target, new), made.path, backups.nothing_to_settle)
    settings = with_key(monkeypatch, target, former)
    assert token(restored(settings, made.path, keys=begun.home.keys)[1]) == TOKEN


def test_an_address_of_a_reviewer_wants_its_key_too(begun, tmp_path, target):
    declared = tmp_path / "tenants.yaml"
    declared.write_text("tenants: [{name: acme, reviewers: [{to: 'mailto:ann@acme.example', on: [daily]}]}]")
    apply_tenants(begun, parse_tenants(declared, {}))
    made = backup(begun, tmp_path / "made.backup", with_keys=False)
    with pytest.raises(WrongKey, match=begun.sealer.key_id):
        restore(target, made.path, backups.nothing_to_settle)


def test_an_older_backup_that_names_one_key_wants_that(filled, made, tmp_path, target):
    header = archive.header_of(made.path)
    del header["sealing_keys"], header["kind"], header["format"]
    for name, key in (("other", "0123456789abcdef"), ("right", filled.sealer.key_id)):
        with (
            (tmp_path / name).open("wb") as file,
            archive.written(file, header | {"sealing_key": key}) as writer,
        ):
            for info, data in backups.members(made.path):
                if info.name not in (archive.HEADER, archive.MANIFEST):
                    writer.add_bytes(info.name, data)
            writer.finish()
    with pytest.raises(WrongKey, match="0123456789abcdef"):
        restore(target, tmp_path / "other", backups.nothing_to_settle)
    assert token(restored(target, tmp_path / "right")[1]) == TOKEN


@pytest.mark.timeout(60)
def test_a_backup_of_a_home_that_lost_its_key_waits_for_nothing(begun, tmp_path):
    (begun.home.keys / "secret.key").unlink()
    made = backup(begun, tmp_path / "made.backup")
    assert archive.header_of(made.path)["sealing_keys"] == []


def test_a_backup_of_before_a_rotation_opens_with_the_former_key(filled, tmp_path, target, monkeypatch):
    made = backup(filled, tmp_path / "made.backup", with_keys=False)
    settings = with_key(monkeypatch, target, os.urandom(32), filled.sealer.key)
    done, copied = restored(settings, made.path, keys=filled.home.keys)
    assert done.problems == []
    assert token(copied) == TOKEN


def test_without_any_key_the_data_comes_back_and_it_is_said_what_does_not(filled, tmp_path, target):
    made = backup(filled, tmp_path, with_keys=False)
    done, copied = restored(target, made.path, without_keys=True)
    assert ["audit chains" in each for each in done.problems] == [True]
    assert digest(copied) == digest(filled)
    assert backups.findings(copied) == []


def test_what_is_damaged_in_the_original_is_told_and_copied(spoilable, tmp_path, target):
    home = spoilable.home
    (landed,) = (home.landing / "acme" / NAME / "tickets").rglob("*.parquet")
    landed.unlink()
    audited = next((home.audit / "acme" / NAME / "users").rglob("*.csv"))
    audited.write_bytes(audited.read_bytes() + b"x")
    made = backup(spoilable, tmp_path / "made.backup")
    told = [str(path.relative_to(home.root)) for path in (landed, audited)]
    assert [problem.split(" ")[0] for problem in made.problems] == told
    done, _ = restored(target, made.path)
    assert len(done.problems) == 3
    assert sum("audit: altered" in each for each in done.problems) == 1


@pytest.mark.parametrize("put", ["link", "folder", "file above"])
def test_what_is_no_file_any_more_is_told_and_the_rest_is_copied(spoilable, tmp_path, target, put):
    home = spoilable.home
    audited = next((home.audit / "acme" / NAME / "users").rglob("*.csv"))
    elsewhere = audited.rename(tmp_path / "elsewhere.csv")
    if put == "link":
        audited.symlink_to(elsewhere)
    elif put == "folder":
        audited.mkdir()
    else:
        shutil.rmtree(audited.parent)
        audited.parent.write_bytes(b"")
    made = backup(spoilable, tmp_path / "made.backup")
    assert f"{audited.relative_to(home.root)} is no file, and the ledger lists it" in made.problems
    done, copied = restored(target, made.path)
    assert digest(copied)["tables"] == digest(spoilable)["tables"]
    assert [each for each in done.problems if "audit: removed" in each]


def test_keys_that_cannot_be_read_end_the_backup(spoilable, tmp_path):
    signing = spoilable.home.signing
    signing.rename(tmp_path / "signing")
    signing.symlink_to(signing)
    with pytest.raises(OSError, match="signing"):
        backup(spoilable, tmp_path / "made.backup")
    assert not (tmp_path / "made.backup").exists()


def test_no_backup_is_overwritten_and_a_killed_one_is_begun_anew(spoilable, tmp_path):
    path = tmp_path / "twice.backup"
    (tmp_path / ".twice.backup.part").write_bytes(b"of a killed process" * 1_000_000)
    assert last_backup(spoilable.home) is None
    made = backup(spoilable, path)
    assert archive.read(path).sha256 == made.sha256 == last_backup(spoilable.home)["sha256"]
    assert sorted(found.name for found in tmp_path.iterdir() if "twice" in found.name) == ["twice.backup"]
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(BackupRefused, match="exists already"):
        backup(spoilable, path)


def test_a_folder_is_cleared_of_killed_backups_alone(spoilable, tmp_path):
    left, written, other = (
        tmp_path / f".{name}.part" for name in ("bridge-1.backup", "bridge-2.backup", "x")
    )
    for path in (left, written, other):
        path.write_bytes(b"of another process")
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = backup(spoilable, tmp_path)
    names = {found.name for found in tmp_path.iterdir() if found.is_file()}
    assert names == {made.path.name, written.name, other.name}


def test_a_backup_that_another_process_has_finished_meanwhile_is_not_overwritten(
    spoilable, tmp_path, monkeypatch
):
    path, lock = tmp_path / "twice.backup", fcntl.flock
    (tmp_path / ".twice.backup.part").write_bytes(b"the other one")

    def finished_meanwhile(descriptor, operation):
        (tmp_path / ".twice.backup.part").rename(path)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    with pytest.raises(BackupRefused, match="exists already"):
        backup(spoilable, path)
    assert path.read_bytes() == b"the other one"


def test_a_full_disk_leaves_nothing_behind(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        backup(filled, tmp_path / "full.backup")
    assert not list(tmp_path.glob("*full*"))


def full_disk(_descriptor):
    raise OSError(28, "No space left on device")


@pytest.mark.long
@pytest.mark.parametrize(
    "plan",
    [
        "restore.begun=kill",
        "restore.unpacked=kill",
        "restore.loading=kill@2",
        "restore.loaded=kill@2",
        "restore.migrated=kill",
        "restore.chains_written=kill",
        "restore.placing=kill",
        "restore.placing=kill@4",
        "restore.opening=kill",
    ],
)
def test_a_killed_restore_is_no_installation_and_is_begun_anew(filled, made, target, plan, monkeypatch):
    assert killed(filled, made, target, plan, monkeypatch) == -signal.SIGKILL
    with pytest.raises(DatabaseUnavailable, match="bridge restore"):
        open_workspace(target)
    done, copied = restored(target, made.path)
    assert done.problems == []
    assert backups.state(copied) == backups.state(filled)
    assert digest(copied) == digest(filled)
    assert not copied.home.restoring.exists()


@pytest.mark.long
def test_a_restore_that_was_killed_when_it_was_done_is_an_installation(filled, made, target, monkeypatch):
    assert killed(filled, made, target, "restore.syncing=kill", monkeypatch) == -signal.SIGKILL
    with pytest.raises(NotEmpty, match="is not empty"):
        restore(target, made.path, backups.nothing_to_settle)
    copied = open_workspace(target)
    assert backups.state(copied) == backups.state(filled)
    assert digest(copied) == digest(filled)


def killed(filled, made, target, plan, monkeypatch):
    """The exit code of a restore with a failpoint, which the installation beside it is made for."""
    monkeypatch.setenv("BRIDGE_HOME", str(filled.home.root))
    monkeypatch.setenv("BRIDGE_DATABASE_URL", filled.database.libpq())
    monkeypatch.setenv("BRIDGE_DAGSTER_DATABASE", filled.dagster_database.name)
    name = backups.databases(target).name
    arguments = str(made.path), str(target.home), name
    return ended(start(backups.restore_elsewhere, *arguments, failpoint=plan))


@pytest.mark.skipif(not psutil.LINUX, reason="which file a descriptor is of is asked of Linux")
def test_a_file_that_did_not_reach_the_disk_ends_the_restore(filled, made, target, monkeypatch):
    """The system wrote it later, in vain, and tells whoever asks for that file."""
    fsync = os.fsync

    def lost(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".parquet"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lost)
        with pytest.raises(OSError, match="Input/output error"):
            restored(target, made.path)
    with pytest.raises(DatabaseUnavailable, match="bridge restore"):
        open_workspace(target)
    _, copied = restored(target, made.path)
    assert digest(copied) == digest(filled)


def test_a_restore_that_fails_when_it_is_done_leaves_the_installation(filled, made, target):
    def fail(point):
        if point == "restore.syncing":
            raise OSError(5, "Input/output error")

    with failpoints.listening(fail), pytest.raises(OSError, match="Input/output"):
        restore(target, made.path, backups.nothing_to_settle)
    assert digest(open_workspace(target)) == digest(filled)


def test_a_killed_restore_does_not_allow_another_database_to_be_overwritten(filled, made, target):
    target.home.joinpath("restoring").mkdir(parents=True)
    marker = {"databases": ["postgresql://elsewhere/bridge", "postgresql://elsewhere/bridge_dagster"]}
    (target.home / "restoring" / "restoring.json").write_text(json.dumps(marker))
    placed = target.home / "landing" / "placed"
    placed.mkdir(parents=True)
    before = backups.state(filled)
    elsewhere = target.model_copy(update={"database_url": filled.settings.database_url})
    with pytest.raises(NotEmpty, match="holds an installation"):
        restore(elsewhere, made.path, backups.nothing_to_settle)
    assert backups.state(filled) == before
    assert placed.exists()


def test_the_logins_of_tenants_come_back_with_password_and_see_their_rows_alone(filled, tmp_path, target):
    login = readers.make_login(filled.database, readers.role_of("acme"))
    made = backup(filled, tmp_path)
    try:
        with filled.database.engine.begin() as connection:
            before = readers.verifiers(connection)
            readers.drop_login(connection, login.role)
        done, copied = restored(target, made.path)
        assert done.logins == {login.role: True}
        with copied.database.engine.begin() as connection:
            assert readers.verifiers(connection) == before
        with psycopg.connect(copied.database.libpq()) as connection:
            connection.execute("update desk.tickets set tenant = 'other' where id in ('1', '2')")
            connection.execute("insert into bridge.tenants (name) values ('other')")
            connection.execute(f"set role {login.role}")
            assert connection.execute("select count(*) from desk.tickets").fetchone() == (6,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select * from bridge.connections")
    finally:
        for database in (backups.databases(target), filled.database):
            with database.engine.begin() as connection:
                if readers.exists(connection, login.role):
                    connection.exec_driver_sql(f"drop owned by {login.role}")
            database.engine.dispose()
        with filled.database.engine.begin() as connection:
            readers.drop_login(connection, login.role)


def test_a_journal_that_is_gone_is_told(spoilable, tmp_path):
    shutil.rmtree(spoilable.home.journal / "acme" / NAME / "accounts")
    made = backup(spoilable, tmp_path)
    assert ["the journal of batch" in each for each in made.problems] == [True]


def test_pages_of_a_journal_that_are_gone_are_told(spoilable, tmp_path):
    assert backup(spoilable, tmp_path / "whole.backup").problems == []
    (extraction,) = (spoilable.home.journal / "acme" / NAME / "tickets").glob("*/0001")
    for page in extraction.glob("*.json.zst"):
        page.unlink()
    (problem,) = backup(spoilable, tmp_path / "made.backup").problems
    assert problem.startswith(f"{extraction.relative_to(spoilable.home.root)}: 1 pages are missing")


def test_what_is_no_page_of_a_journal_is_passed_over(spoilable, tmp_path):
    (extraction,) = (spoilable.home.journal / "acme" / NAME / "tickets").glob("*/0001")
    first = min(extraction.glob("*.json.zst"))
    for name in (f"._{first.name}", f"{first.name[:6]} (copy){first.name[6:]}"):
        (extraction / name).write_bytes(b"\0\5\x16\7")
    assert backup(spoilable, tmp_path).problems == []


def test_a_name_that_is_no_text_ends_no_backup_and_is_told(spoilable, tmp_path):
    odd = os.fsencode(spoilable.home.reports) + b"/\xff.html"
    try:
        with open(odd, "wb"):
            pass
    except OSError:
        pytest.skip("this file system holds no such name")
    made = backup(spoilable, tmp_path)
    assert made.problems == ["'reports/\\udcff.html' has a name that is no text: it was not copied"]
    assert archive.read(made.path).sha256 == made.sha256


def test_keys_are_not_changed_between_their_copy_and_that_of_the_chains(spoilable, tmp_path):
    with ThreadPoolExecutor(1) as threads:
        with spoilable.database.engine.begin() as rotating:
            advisory_lock(rotating, "signing-key")
            making = beside(threads, spoilable, backup, spoilable, tmp_path)
            assert not making.done()
        assert making.result().path.is_file()


def test_a_link_is_not_left_out_in_silence(spoilable, tmp_path):
    moved = spoilable.home.journal / "acme" / NAME / "accounts"
    moved.rename(tmp_path / "moved")
    moved.symlink_to(tmp_path / "moved")
    made = backup(spoilable, tmp_path)
    assert [f"journal/acme/{NAME}/accounts is a link" in each for each in made.problems] == [True]
