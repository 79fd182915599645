"""The audit chain: an entry for every write, whole after any kill, one per tenant, one key after another."""

import json
import multiprocessing
import shutil
import signal
import stat
from datetime import date, timedelta
from typing import Any

import pytest

from bridge_pipeline import cli, failpoints
from bridge_pipeline.connector_kit import journal
from bridge_pipeline.database import registry, signing
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.signing import BadSignature, SigningError, ensure_signing_key, key_ids
from bridge_pipeline.naming import Home
from bridge_pipeline.steps import chain
from bridge_pipeline.steps.accept import accept_batch
from bridge_pipeline.steps.audit import AuditFile, audit_records, audit_window
from bridge_pipeline.steps.chain import ChainFileAltered, Draft, append, export_chain, head, rotate_key
from bridge_pipeline.steps.extract import extract
from bridge_pipeline.steps.heads import known_heads
from bridge_pipeline.steps.load import BatchBlocked, load_window
from bridge_pipeline.steps.verify import Verification, verify_folder
from tests.integration import flow
from tests.integration.desk import Desk, serving, ticket
from tests.integration.flow import NAME, beside_at, connect, day, ended, execute, rows, start
from tests.integration.test_audit import assert_true, cells, manifest

NOON = "2024-03-01T12:00:00Z"
WINDOW = day("2024-03-01", "2024-03-02")


@pytest.fixture
def desk(workspace, desk: Desk) -> Desk:
    """The desk with three tickets on the first day and one on the second."""
    connect(workspace, desk, entities=("tickets",))
    desk.records["tickets"] = [
        *(ticket(number, NOON) for number in (1, 2, 3)),
        ticket(4, "2024-03-02T12:00:00Z"),
    ]
    return desk


def verified(workspace) -> Verification:
    """The workspace's own audit folder, verified as the command does it."""
    heads = known_heads(workspace.settings, workspace.home)
    return verify_folder(workspace.home.audit, heads, all_tenants=True)


def assert_whole(workspace, entries: int | None = None) -> None:
    """Chain, files, ledger and both heads say the same."""
    found = verified(workspace)
    assert found.findings == []
    (result,) = found.chains
    at = f"(entry {result.entries})"
    assert result.head_checked == [f"the database {at}", f"heads/acme.json {at}"]
    listed = rows(workspace, "select count(*) as files from bridge.audit_files")[0]["files"]
    assert result.files == 2 * listed
    assert entries in (None, result.entries)


def entries_of(workspace, tenant: str = "acme") -> list[dict[str, Any]]:
    """The entries of a chain's file."""
    return [json.loads(line) for line in workspace.home.chain_of(tenant).read_text().splitlines()]


def read(workspace, window=WINDOW, name=NAME) -> Batch:
    """Extracts tickets and lets them pass: the checks take longer than all else, and matter elsewhere."""
    batch = extract(workspace, name, "tickets", window)
    execute(workspace, "update bridge.batches set verdict = 'passed' where id = :id", id=batch.id)
    return batch


def tickets_of(workspace, window=WINDOW, name=NAME) -> list[AuditFile]:
    """Extract, load and audit tickets."""
    load_window(workspace, name, "tickets", read(workspace, window, name).window)
    return audit_window(workspace, name, "tickets", window)


# --- Entries --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_version_is_one_entry_and_nothing_new_is_none(workspace, desk):
    tickets_of(workspace)
    assert [entry["kind"] for entry in entries_of(workspace)] == ["begin", "audit", "audit"]
    before = workspace.home.chain_of("acme").read_bytes()
    tickets_of(workspace)
    assert workspace.home.chain_of("acme").read_bytes() == before
    desk.records["tickets"][0] = ticket(1, "2024-03-01T13:00:00Z")
    added, _ = tickets_of(workspace)
    entry = entries_of(workspace)[3]
    folder = f"{NAME}/tickets/2024-03-01"
    assert list(entry["files"]) == [f"{folder}/v0002.csv", f"{folder}/v0002.json"]
    assert entry["files"][f"{folder}/v0002.csv"] == manifest(added)["sha256"]
    assert_whole(workspace, 4)
    with workspace.database.engine.connect() as connection:
        known = head(connection, "acme")
    assert known is not None
    assert (known.sequence, known.sha256) == (4, verified(workspace).chains[0].sha256)


@pytest.mark.slow
def test_each_tenant_has_a_chain_that_is_verified_alone(workspace, desk, tmp_path):
    tickets_of(workspace)
    with serving() as other:
        other.records["tickets"] = [ticket(9, NOON)]
        record = connect(workspace, other, "beta-helpdesk", entities=("tickets",))
        execute(workspace, "insert into bridge.tenants (name) values ('beta')")
        execute(workspace, "update bridge.connections set tenant = 'beta' where name = 'beta-helpdesk'")
        box = workspace.sealer.seal(flow.TOKEN, "beta", record.name, "api_token")
        execute(
            workspace,
            "update bridge.connections set secrets = cast(:box as jsonb) where name = 'beta-helpdesk'",
            box=json.dumps({"api_token": box}),
        )
        tickets_of(workspace, name="beta-helpdesk")
    found = verified(workspace)
    assert [(each.tenant, each.entries) for each in found.chains] == [("acme", 3), ("beta", 3)]
    assert found.findings == []
    shutil.copytree(workspace.home.audit / "beta", tmp_path / "handed-over")
    assert verify_folder(tmp_path / "handed-over").findings == []


def test_an_acceptance_is_signed(workspace, desk):
    batch = read(workspace)
    execute(workspace, "update bridge.batches set verdict = 'blocked' where id = :id", id=batch.id)
    accept_batch(workspace, batch.id, "Ann", "ada@example.com of the vendor confirmed it")
    accepted = entries_of(workspace)[1]
    assert accepted["facts"]["reason"] == "a…@… of the vendor confirmed it"
    assert (accepted["kind"], accepted["facts"]["batch"], accepted["facts"]["by"]) == (
        "accept",
        batch.id,
        "Ann",
    )
    assert_whole(workspace, 4)


def test_entries_of_other_kinds_and_removals(workspace, desk):
    tickets_of(workspace)
    target = workspace.home.audit_tenant("acme") / "certificates" / "0001.json"
    target.parent.mkdir()
    journal.write_durably(target, b"{}")
    with workspace.database.engine.begin() as connection:
        digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        files = {"certificates/0001.json": digest}
        append(workspace, connection, "acme", [Draft("certificate", files, {"connection": NAME})])
    export_chain(workspace, "acme")
    assert verified(workspace).findings == []
    target.write_bytes(b"{ }")
    assert [(each.what, each.where) for each in verified(workspace).findings] == [
        ("altered", "acme/certificates/0001.json")
    ]
    shutil.rmtree(target.parent)
    with workspace.database.engine.begin() as connection:
        append(workspace, connection, "acme", [Draft("purge", removed=["certificates"])])
    export_chain(workspace, "acme")
    assert_whole(workspace, 5)


def test_what_is_rolled_back_was_never_written(workspace, desk):
    tickets_of(workspace)
    with workspace.database.engine.connect() as connection:
        append(workspace, connection, "acme", [Draft("certificate")])
    export_chain(workspace, "acme")
    assert_whole(workspace, 3)


# --- L4 atomic, L5 alone --------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_line_that_was_not_finished_is_finished(workspace, desk, kept):
    tickets_of(workspace)
    path = workspace.home.chain_of("acme")
    whole = path.read_bytes()
    before = whole[: whole[:-1].rindex(b"\n") + 1]
    path.write_bytes(whole[:-1] if kept < 0 else before + whole[len(before) :][:kept])
    audit_window(workspace, NAME, "tickets", WINDOW)
    assert path.read_bytes() == whole
    path.unlink()
    audit_window(workspace, NAME, "tickets", WINDOW)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["last line", "behind"])
def test_a_chain_file_that_is_not_what_was_committed_is_left_and_named(workspace, desk, where):
    tickets_of(workspace)
    path = workspace.home.chain_of("acme")
    data = path.read_bytes()
    altered = data + b"{}\n" if where == "behind" else data.replace(b'"audit"', b'"other"')
    path.write_bytes(altered)
    with pytest.raises(ChainFileAltered, match="bridge audit verify"):
        audit_window(workspace, NAME, "tickets", WINDOW)
    assert path.read_bytes() == altered
    path.unlink()
    audit_window(workspace, NAME, "tickets", WINDOW)
    assert_whole(workspace, 3)


@pytest.mark.slow
def test_connections_of_one_tenant_audited_at_once_share_one_chain(workspace, desk):
    names = ["one", "two", "three"]
    for name in names:
        connect(workspace, desk, name, entities=("tickets",))
        read(workspace, name=name)
    meeting = flow.Meeting(len(names), "chain.signed")
    days = "2024-03-01", "2024-03-02"
    started = [start(flow.audit_together, meeting, name, "tickets", *days) for name in names]
    assert [ended(each) for each in started] == [0, 0, 0]
    assert meeting.together == 0
    assert_whole(workspace, 1 + 3 * 2)


@pytest.mark.slow
def test_who_brings_the_chain_file_up_to_an_older_entry_keeps_no_older_head(workspace, desk):
    def append_another() -> None:
        with workspace.database.engine.begin() as connection:
            append(workspace, connection, "acme", [Draft("note")])
        export_chain(workspace, "acme")

    with beside_at("chain.head", workspace, append_another) as others:
        tickets_of(workspace)
    others[0].result()
    assert_whole(workspace, 4)


# --- Keys -----------------------------------------------------------------------------------------


def _made(root) -> list[str]:
    ensure_signing_key(Home(root))
    return key_ids(Home(root))


def test_processes_that_make_the_signing_key_at_once_agree(tmp_path):
    # Dagster's handler, which a test before this one may have set, would keep one that is ended alive.
    default = (signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    with multiprocessing.get_context("fork").Pool(8, *default) as pool:
        made = pool.map(_made, [tmp_path] * 16, chunksize=1)
    (key,) = {tuple(each) for each in made}
    assert len(key) == 1
    (path,) = Home(tmp_path).signing.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_new_key_is_named_by_the_old_one_and_the_chain_goes_on(workspace, desk, capsys):
    tickets_of(workspace)
    (old,) = key_ids(workspace.home)
    capsys.readouterr()
    assert cli.execute(["audit", "rotate-key", "--json"]) == 0
    rotation = json.loads(capsys.readouterr().out)
    assert rotation["tenants"] == ["acme"]
    assert key_ids(workspace.home) == [rotation["key"]]
    entry = entries_of(workspace)[3]
    assert (entry["kind"], entry["key"], entry["facts"]["fingerprint"]) == ("rotate", old, rotation["key"])
    desk.records["tickets"][0] = ticket(1, "2024-03-01T13:00:00Z")
    tickets_of(workspace)
    assert entries_of(workspace)[4]["key"] == rotation["key"]
    assert_whole(workspace, 5)
    assert cli.execute(["audit", "verify", "--key", old]) == 0
    assert verify_folder(workspace.home.audit, key=rotation["key"]).findings == []


def test_a_rotation_removes_the_keys_that_killed_ones_left(workspace, desk, monkeypatch):
    tickets_of(workspace)

    def cut(*_arguments):
        raise KeyboardInterrupt

    for point in ("signer", "forget"):
        with monkeypatch.context() as patched:
            patched.setattr(signing, point, cut)
            with pytest.raises(KeyboardInterrupt):
                rotate_key(workspace)
    assert len(key_ids(workspace.home)) == 3
    made = rotate_key(workspace)
    assert key_ids(workspace.home) == [made.key]
    assert_whole(workspace, 5)


def test_a_chain_that_begins_beside_a_rotation_has_a_key_that_stays(workspace):
    ensure_signing_key(workspace.home)
    registry.add_tenant(workspace.database.engine, "acme")
    former, begun = key_ids(workspace.home), []

    def begin(point):
        found = key_ids(workspace.home)
        # Of two keys it takes the first, which only chance makes the former one.
        if point == "chain.rotate.committed" and (len(found) == 1 or found[0] in former):
            with workspace.database.engine.begin() as connection:
                append(workspace, connection, "acme", [Draft("note")])
                begun.append(head(connection, "acme"))

    with failpoints.listening(begin):
        while not begun:
            former = key_ids(workspace.home)
            rotate_key(workspace)
    assert key_ids(workspace.home) == [begun[0].key]


def test_a_key_changed_before_the_first_entry_signs_it(workspace, desk):
    ensure_signing_key(workspace.home)
    made = rotate_key(workspace)
    assert key_ids(workspace.home) == [made.key]
    tickets_of(workspace)
    assert entries_of(workspace)[0]["key"] == made.key


@pytest.mark.slow
def test_a_key_that_a_chain_is_about_to_begin_with_is_replaced_and_not_lost(workspace, desk):
    with beside_at("chain.signed", workspace, rotate_key, workspace) as others:
        tickets_of(workspace)
    rotation = others[0].result()
    assert (rotation.tenants, key_ids(workspace.home)) == (["acme"], [rotation.key])
    desk.records["tickets"][0] = ticket(1, "2024-03-01T13:00:00Z")
    tickets_of(workspace)
    assert_whole(workspace, 5)


def test_without_its_key_nothing_is_written_and_the_error_says_what_to_do(workspace, desk):
    tickets_of(workspace)
    (path,) = workspace.home.signing.iterdir()
    path.rename(workspace.home.root / "away.pem")
    desk.records["tickets"][0] = ticket(1, "2024-03-01T13:00:00Z")
    with pytest.raises(SigningError, match="bring it back"):
        tickets_of(workspace)
    (workspace.home.root / "away.pem").rename(path)
    audit_window(workspace, NAME, "tickets", WINDOW)
    assert_whole(workspace, 4)


def test_a_signed_document_holds_for_its_key_and_purpose_alone(tmp_path):
    signer, other = (signing.make_signing_key(Home(tmp_path)) for _ in range(2))
    document = signing.sign(signer, {"rows": 3, "day": date(2024, 3, 1)}, "certificate")
    signing.verify(json.loads(json.dumps(document)), signer.public_key, "certificate")
    wrong = [
        (document | {"rows": 4}, signer.public_key, "certificate"),
        (document | {"more": 1}, signer.public_key, "certificate"),
        (document, signer.public_key, "chain entry"),
        (document, other.public_key, "certificate"),
        (document | {"key": other.key_id}, other.public_key, "certificate"),
        (document | {"signature": document["signature"].upper()}, signer.public_key, "certificate"),
        ({"rows": 3}, signer.public_key, "certificate"),
        (document, "no key", "certificate"),
    ]
    for tampered, key, purpose in wrong:
        with pytest.raises(BadSignature):
            signing.verify(tampered, key, purpose)


# --- The head outside the folder ------------------------------------------------------------------


def test_a_cut_end_is_found_by_the_database_and_by_the_kept_head(workspace, desk, capsys):
    tickets_of(workspace)
    path = workspace.home.chain_of("acme")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    for ending in ("csv", "json"):
        (workspace.home.audit_of("acme", NAME, "tickets", date(2024, 3, 2)) / f"v0001.{ending}").unlink()
    assert [(each.what, each.why) for each in verified(workspace).findings] == [
        ("cut", "it ends with entry 2, and the database holds entry 3"),
        ("cut", "it ends with entry 2, and heads/acme.json holds entry 3"),
    ]
    assert cli.execute(["audit", "verify", str(path.parent)]) == 1
    assert "FIRST cut: chain.jsonl: it ends with entry 2" in capsys.readouterr().out


@pytest.mark.parametrize("text", [b"", b"[]", b'{"sequence":0}', b'{"sequence":-1}', b'{"sequence":1}'])
def test_a_kept_head_that_was_altered_is_found(workspace, text):
    with workspace.database.engine.begin() as connection:
        registry.ensure_tenant(connection, "acme")
        append(workspace, connection, "acme", [Draft("note")])
    export_chain(workspace, "acme")
    assert verified(workspace).findings == []
    workspace.home.head_of("acme").write_bytes(text)
    (found,) = verified(workspace).findings
    assert (found.what, "heads/acme.json" in found.why) == ("altered", True)


def test_a_folder_that_vanished_is_missed(workspace, desk, monkeypatch, capsys):
    tickets_of(workspace)
    shutil.rmtree(workspace.home.audit)
    # Without a database too: an address where nothing answers.
    monkeypatch.setenv("BRIDGE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert cli.execute(["audit", "verify"]) == 1
    assert "FIRST removed: acme/chain.jsonl: the chain is missing" in capsys.readouterr().out


def test_a_home_in_which_nothing_was_audited_is_whole(workspace, capsys):
    assert cli.execute(["audit", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chains"] == []


# --- Tombstones -----------------------------------------------------------------------------------

DELETED_AT = "2099-01-01T00:00:00.000000Z"


def delete(workspace, *ids: str):
    """What certify does: marks and tombstones in one transaction, then the chain's file."""
    with workspace.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "update desk.tickets set deleted_at = %s where id = any(%s)", (DELETED_AT, list(ids))
        )
        files = audit_records(workspace, connection, NAME, "tickets", ids)
    export_chain(workspace, "acme")
    return files


def test_deleted_records_become_tombstones_in_a_new_version_of_their_day(workspace, desk):
    first, _ = tickets_of(workspace)
    desk.records["tickets"][2] = ticket(3, "2024-03-02T09:00:00Z")
    tickets_of(workspace, day("2024-03-02"))
    files = delete(workspace, "2", "3", "unknown")
    assert [(str(file.day), file.version) for file in files] == [("2024-03-01", 2), ("2024-03-02", 3)]
    rows_of_first = {row["id"]: row for row in cells(files[0])}
    assert rows_of_first["1"]["deleted_at"] == ""
    assert rows_of_first["2"]["deleted_at"] == DELETED_AT
    kept = {"id", "deleted_at", "content_hash"}
    assert {value for name, value in rows_of_first["2"].items() if name not in kept} == {""}
    assert manifest(files[0])["left"] == [{"id": "2", "why": "deleted"}]
    assert (manifest(files[0])["tombstones"], manifest(files[0])["run"]["batch"]) == (
        1,
        manifest(first)["run"]["batch"],
    )
    for file in files:
        assert_true(workspace, file)
    assert_whole(workspace)
    assert [file.added for file in delete(workspace, "2", "3")] == [False, False]


@pytest.mark.slow
def test_a_tombstone_stays_while_the_record_is_gone_and_goes_when_it_is_seen_again(workspace, desk):
    tickets_of(workspace)
    execute(workspace, "update desk.tickets set deleted_at = now() where id = '2'")
    record = desk.records["tickets"].pop(1)
    second = tickets_of(workspace)[0]
    assert [(row["id"], bool(row["deleted_at"])) for row in cells(second)] == [
        ("1", False),
        ("2", True),
        ("3", False),
    ]
    assert not tickets_of(workspace)[0].added
    desk.records["tickets"].append(record)
    third = tickets_of(workspace)[0]
    assert [bool(row["deleted_at"]) for row in cells(third)] == [False, False, False]
    assert manifest(third)["left"] == []
    assert_whole(workspace)


def test_tombstones_that_are_rolled_back_leave_nothing_that_a_run_does_not_remove(workspace, desk):
    tickets_of(workspace)
    with workspace.database.engine.connect() as connection:
        connection.exec_driver_sql("update desk.tickets set deleted_at = now() where id = '2'")
        audit_records(workspace, connection, NAME, "tickets", ["2"])
    assert [each.what for each in verified(workspace).findings] == ["inserted", "inserted"]
    tickets_of(workspace)
    assert_whole(workspace, 3)


# --- Many days ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_year_is_chained_at_once(workspace, desk, monkeypatch):
    first = date(2023, 1, 1)
    desk.page_size = 1_000
    desk.records["tickets"] = [
        ticket(number + 1, f"{first + timedelta(days=number % 365)}T12:00:00Z") for number in range(730)
    ]
    window = day("2023-01-01", "2023-12-31")
    read(workspace, window)
    appended, entries = chain.append, []

    def counted(*arguments: Any) -> None:
        entries.append(len(arguments[-1]))
        appended(*arguments)

    monkeypatch.setattr(chain, "append", counted)
    audit_window(workspace, NAME, "tickets", window)
    assert entries == [365], "the head would be signed and sent out for each day"
    assert_whole(workspace, 366)


def test_an_acceptance_that_cannot_be_audited_yet_leaves_a_whole_chain(workspace, desk):
    desk.records["tickets"] = [
        *(ticket(number, "2024-03-01T10:00:00Z") for number in range(1, 91)),
        *(b'{"id": "no number %d", "updated_at": "2024-03-01T10:00:00Z"}' % n for n in range(10)),
    ]
    first = flow.land(workspace, "tickets", day("2024-03-01"))
    second = flow.land(workspace, "tickets", day("2024-03-01"))
    assert (first.verdict, second.verdict) == ("blocked", "blocked")
    with pytest.raises(BatchBlocked):
        accept_batch(workspace, first.id, "Ann", "the vendor confirmed it")
    assert verified(workspace).findings == []
