"""A connection that cannot be read is told what exactly is wrong; one that is wrong is not stored."""

import ipaddress
import json
import os
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bridge_pipeline import cli
from bridge_pipeline.connector_kit.diagnosis import narrowed
from bridge_pipeline.database import registry
from bridge_pipeline.steps.extract import open_source
from bridge_pipeline.steps.metering import quota_of
from bridge_pipeline.steps.probe import probe_connection
from tests.integration.desk import TOKEN
from tests.integration.flow import NAME, connect, rows

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=30)
LIST = b'{"data": [{"id": 1}]}'


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("BRIDGE_ATTEMPTS", "1")
    # Set by what is tested; so they are taken back afterwards.
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("BRIDGE_DAGSTER_STORAGE_URL", "")


@pytest.fixture
def workspace(_quick, workspace):
    return workspace


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, headers, body = self.server.answer(self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that do not like a certificate hang up."""


@contextmanager
def serving(answer=lambda path: (200, {}, LIST), tls=None):
    """The address of a server on loopback that answers so."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.answer = answer
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


UNHEARD_OF = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")

OTHER_USES = (
    "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
    "encipher_only", "decipher_only",
)  # fmt: skip


def made(subject, issuer=None, host="localhost", ends=NOW + timedelta(days=1), demands=()):
    """A certificate and its key, with all that RFC 5280 asks for; signed by itself without an issuer.

    Args:
        demands: extensions that whoever accepts it must understand.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signer = issuer[1] if issuer else key
    uses = dict.fromkeys(OTHER_USES, False)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(LONG_AGO)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=issuer is None, **uses), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension in demands:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256()), key


def pem(certificate, key=None):
    text = certificate.public_bytes(serialization.Encoding.PEM)
    if key is None:
        return text
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return text + key.private_bytes(serialization.Encoding.PEM, kind, none)


def told(workspace, address, **config):
    record = connect(workspace, address)
    if config:
        box = workspace.sealer.seal(TOKEN, record.tenant, record.name, "api_token")
        changed = registry.ConnectionRecord(
            NAME, "acme", "helpdesk", {"base_url": address, **config}, record.entities
        )
        registry.put(workspace.database.engine, changed, {"api_token": box})
    return probe_connection(workspace, NAME)


@pytest.mark.parametrize(
    ("trusted", "made_for", "problem"),
    [
        (True, {}, None),
        (True, {"ends": LONG_AGO + timedelta(days=1)}, "tls_expired"),
        (True, {"host": "elsewhere.example"}, "tls_wrong_host"),
        (False, {}, "tls_unknown_authority"),
        (False, {"self_signed": True}, "tls_self_signed"),
        (True, {"demands": [UNHEARD_OF]}, "tls_certificate"),
    ],
)
def test_certificates_are_told_apart(workspace, tmp_path, monkeypatch, trusted, made_for, problem):
    authority = made("authority")
    self_signed = made_for.pop("self_signed", False)
    own = made("server", None if self_signed else authority, **made_for)
    (tmp_path / "server.pem").write_bytes(pem(*own))
    (tmp_path / "authority.pem").write_bytes(pem(authority[0] if trusted else made("other")[0]))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    with serving(tls=tls) as address:
        assert told(workspace, address).problem == problem


def test_tls_to_a_port_that_speaks_none(workspace):
    with serving() as address:
        assert told(workspace, address.replace("http:", "https:")).problem == "tls"


ANSWERS = {
    "credentials": (401, {}, b'{"error": "no"}'),
    "scope": (403, {}, b'{"error": "not allowed"}'),
    "plan": (402, {}, b"pay"),
    "not_found": (404, {}, b"nothing"),
    "proxy": (407, {}, b"who are you"),
    "throttled": (429, {}, b"later"),
    "server": (503, {}, b"away"),
    "not_this_api": (200, {"Content-Type": "text/html"}, b"<!doctype html><title>Log in</title>"),
    "redirect": (302, {"Location": "https://elsewhere.example/"}, b""),
    "other": (418, {}, b"short and stout"),
}


@pytest.mark.parametrize("problem", ANSWERS)
def test_answers_are_told_apart(workspace, problem):
    with serving(lambda _: ANSWERS[problem]) as address:
        found = told(workspace, address)
    assert {each.problem for each in found.entities} == {problem}
    assert all(each.advice for each in found.entities)
    assert found.wrong == (problem not in ("throttled", "server"))
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("address", "config", "problem"),
    [
        ("https://no-such-host.invalid", {"allow_private": True}, "dns"),
        ("https://127.0.0.1:1", {"allow_private": False}, "private_address"),
        ("http://desk.example.com", {"allow_private": False}, "plain_http"),
    ],
)
def test_addresses_are_told_apart(workspace, address, config, problem):
    assert told(workspace, address, **config).problem == problem


def test_a_port_where_nothing_listens(workspace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert told(workspace, f"http://127.0.0.1:{free.getsockname()[1]}").problem == "refused"


def test_a_source_that_does_not_answer(workspace, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("BRIDGE_READ_TIMEOUT", "0.2")
        changed = type(workspace)(
            workspace.settings.model_copy(update={"read_timeout": 0.2}),
            workspace.home,
            workspace.database,
            workspace.sealer,
        )
        assert told(changed, f"http://127.0.0.1:{silent.getsockname()[1]}").problem == "timeout"


def test_a_vendor_s_word_for_the_plan_tells_it_from_a_permission():
    assert narrowed("scope", '403: {"code": "Require_Feature"}', ("require_feature",)) == "plan"
    assert narrowed("scope", '403: {"code": "access_denied"}', ("require_feature",)) == "scope"


def test_each_entity_is_asked_for(workspace, capsys):
    def answer(path):
        return ANSWERS["scope"] if "/users" in path else (200, {}, LIST)

    with serving(answer) as address:
        connect(workspace, address)
        assert cli.execute(["connections", "test", NAME, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["readable"], document["problem"]) == (False, "scope")
    assert {each["entity"]: each["problem"] for each in document["entities"]} == {
        "accounts": None,
        "users": "scope",
        "tickets": None,
    }


def test_what_is_refused_is_not_stored_and_what_is_good_or_away_is(workspace, tmp_path, capsys, monkeypatch):
    def answer(path):
        return ANSWERS["credentials"] if "12-wrong" in path else (200, {}, LIST)

    with serving(answer) as address:
        entry = (
            "{{name: {}, tenant: acme, connector: helpdesk, config: {{base_url: '{}', api_token: '${{{}}}', "
        )
        entry += "allow_private: true}}}}"
        lines = [
            entry.format("good", address, "GOOD"),
            entry.format("bad", address, "BAD"),
            entry.format("away", "http://127.0.0.1:1", "GOOD"),
        ]
        path = tmp_path / "connections.yaml"
        path.write_text("connections:\n" + "\n".join(f"- {line}" for line in lines))
        monkeypatch.setenv("GOOD", TOKEN)
        monkeypatch.setenv("BAD", "12-wrong")
        assert cli.execute(["connections", "apply", str(path), "--json"]) == 1
        out, err = capsys.readouterr()
        found = {each["name"]: (each["action"], each["problem"]) for each in json.loads(out)}
        assert found == {
            "good": ("created", None),
            "bad": ("refused", "credentials"),
            "away": ("created", "refused"),
        }
        assert "12-wrong" not in out + err
        assert "BAD" not in os.environ
        engine = workspace.database.engine
        assert [each.name for each in registry.list_connections(engine)] == ["away", "good"]
        monkeypatch.setenv("BAD", "12-wrong")
        monkeypatch.setenv("GOOD", TOKEN)
        assert cli.execute(["connections", "apply", str(path), "--no-test"]) == 0
    assert [each.name for each in registry.list_connections(engine)] == ["away", "bad", "good"]


def test_a_refused_change_leaves_the_quota_with_the_credential_that_is_stored(
    workspace, tmp_path, monkeypatch
):
    def answer(path):
        return ANSWERS["credentials"] if "12-wrong" in path else (200, {}, LIST)

    def state():
        users = rows(workspace, "select connection, credential from bridge.quota_connections")
        return users, quota_of(workspace, registry.get(workspace.database.engine, NAME))[0]["limit"]

    with serving(answer) as address:
        connect(workspace, address, requests_per_minute=600)
        assert probe_connection(workspace, NAME).problem is None
        before = state()
        path = tmp_path / "connections.yaml"
        path.write_text(
            f"connections: [{{name: {NAME}, tenant: acme, connector: helpdesk,"
            " quota: {requests_per_minute: 900},"
            f" config: {{base_url: '{address}', api_token: '${{BAD}}', allow_private: true}}}}]"
        )
        monkeypatch.setenv("BAD", "12-wrong")
        assert cli.execute(["connections", "apply", str(path)]) == 1
    assert state() == before
    assert before[1] == 600


def test_a_connection_whose_source_asked_to_wait_is_not_called_wrong(workspace):
    """The hold is longer than somebody at the keyboard waits, and shorter than an extraction would."""
    with serving() as address:
        assert told(workspace, address).problem is None
        with open_source(workspace, NAME) as source:
            source.quota.hold(30)
        found = probe_connection(workspace, NAME)
    assert found.problem == "throttled"
    assert not found.wrong
