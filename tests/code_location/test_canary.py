"""A secret that is like no other is in no file, table or output, whatever a source does with it (L7)."""

import base64
import itertools
import json
import pickle
import threading
from contextlib import contextmanager, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, quote_plus

import dagster as dg
import pyarrow.parquet
import pytest
import sqlalchemy as sa
import zstandard
from pydantic import SecretStr

from bridge_pipeline import cli, connectors
from bridge_pipeline.automation.jobs import DAILY_JOB, range_tags
from bridge_pipeline.automation.runs import add_partition, prepare_instance
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.definitions import defs
from bridge_pipeline.steps.connect import ConnectionDraft, apply
from bridge_pipeline.steps.extract import extract, open_source
from bridge_pipeline.steps.report import write_report
from tests.integration.flow import day

# Every character of it is written otherwise by some encoding.
CANARY = '73519-cAnary+/"xYzzY=&q'
NAME = "acme-canary"
DAY = date(2024, 3, 1)
# Ways to sign in besides the required fields of a config.
WAYS = {
    "zendesk": (
        {"email": "me@example.com", "api_token": CANARY},
        {"access_token": CANARY},
        {"client_id": "us", "client_secret": CANARY, "refresh_token": f"{CANARY}-2"},
    ),
    "servicenow": (
        {"user": "us", "password": CANARY},
        {"api_token": CANARY},
        {"api_key": CANARY},
        {"client_id": "us", "client_secret": CANARY},
    ),
}
# What a source that is neither of these connectors, or all of them at once, may answer.
EMPTY = {
    name: [] for name in ("data", "result", "organizations", "users", "groups", "tickets", "ticket_events")
}


def required(connector):
    """The required fields, each credential the canary."""
    fields = {name: field for name, field in connector.config.model_fields.items() if field.is_required()}
    return {
        name: CANARY if field.annotation is SecretStr else "us"
        for name, field in fields.items()
        if name != "base_url"
    }


CASES = [
    pytest.param(connector, way, id=f"{connector.name}-{'-'.join(sorted(way)) or 'required'}")
    for connector in connectors.all_connectors().values()
    for way in WAYS.get(connector.name, ({},))
]


class _Parrot(BaseHTTPRequestHandler):
    """Repeats all it was sent, in the form of the day."""

    def do_GET(self):
        self._answer("")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.server.mode == "good":
            self._send(200, json.dumps({"access_token": f"{CANARY}-token", "expires_in": 3600}).encode())
        else:
            self._answer(body)

    def _answer(self, body):
        said = f"{self.path} {dict(self.headers)} {body} {CANARY}"
        answers = {
            "good": (200, json.dumps({**EMPTY, "end_of_stream": True, "count": 0}).encode()),
            "record": (200, json.dumps({name: [{"id": 1, "name": said}] for name in EMPTY}).encode()),
            "refused": (401, said.encode()),
            "forbidden": (403, json.dumps({"error": said}).encode()),
            "failing": (500, base64.b64encode(said.encode())),
            "html": (200, f"<html>{said}</html>".encode()),
            "cut": (200, json.dumps({"data": [said]}).encode()[:-5]),
            "redirect": (302, b""),
        }
        self._send(*answers[self.server.mode])

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Total-Count", "0")
        if status == 302:
            self.send_header("Location", f"https://elsewhere.example/?token={quote(CANARY)}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


MODES = ("good", "record", "refused", "forbidden", "failing", "html", "cut", "redirect")


@contextmanager
def parrot():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Parrot)
    server.mode = "good"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def forms(secret):
    """The secret as it is, quoted for URLs, escaped for JSON, in hex, and in base64 at any offset."""
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    found |= {json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[1:-1], secret.encode().hex()}
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        # The first and last characters depend on what stands beside.
        found.add(coded[(4 if offset else 0) : -4])
        found.add(
            base64.urlsafe_b64encode(b"\0" * offset + secret.encode()).decode()[4 if offset else 0 : -4]
        )
    return {each.encode() for each in found}


NEEDLES = forms(CANARY)


def found_in(content, where):
    return [f"{where}: {needle!r}" for needle in NEEDLES if needle in content]


def in_files(root):
    found = []
    for path in (path for path in root.rglob("*") if path.is_file() and not path.is_socket()):
        content = path.read_bytes()
        if path.suffix == ".zst":
            content += zstandard.ZstdDecompressor().decompressobj().decompress(content)
        if path.suffix == ".parquet":
            content += str(pyarrow.parquet.read_table(path).to_pylist()).encode()
        found += found_in(content, path.relative_to(root))
    return found


def in_database(database):
    found = []
    tables = """
        select format('%I.%I', table_schema, table_name) from information_schema.tables
        where table_type = 'BASE TABLE' and table_schema not in ('pg_catalog', 'information_schema')
    """
    with database.engine.connect() as connection:
        for table in connection.scalars(sa.text(tables)).all():
            rows = connection.scalars(sa.text(f"select t::text from {table} t")).all()
            found += found_in("\n".join(rows).encode(), f"{database.name}: {table}")
    return found


def in_context(workspace):
    """What of an open source can be shown or pickled."""
    with open_source(workspace, NAME) as source:
        shown = [repr(source), repr(vars(source.client)), repr(source.record).encode("utf-8")]
        for part in (source, source.client, source.record):
            with suppress(TypeError, AttributeError, pickle.PicklingError):
                shown.append(pickle.dumps(part))
    return [
        hit for each in shown for hit in found_in(each if type(each) is bytes else each.encode(), "context")
    ]


@pytest.mark.parametrize("needle", sorted(NEEDLES))
def test_the_search_finds_every_form(needle, tmp_path):
    (tmp_path / "a.zst").write_bytes(zstandard.ZstdCompressor().compress(b"x" * 10 + needle + b"y" * 10))
    assert in_files(tmp_path)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Before the installation is opened, which reads the settings."""
    monkeypatch.setenv("BRIDGE_ATTEMPTS", "1")
    monkeypatch.setenv("BRIDGE_BACKOFF_INITIAL", "0")


@pytest.mark.long
@pytest.mark.parametrize(("connector", "way"), CASES)
def test_the_canary_is_nowhere(installation, connector, way, capfd):
    secrets = {key: value for key, value in {**required(connector), **way}.items() if CANARY in value}
    plain = {key: value for key, value in {**required(connector), **way}.items() if key not in secrets}
    with parrot() as (server, url):
        config = {"base_url": url, "allow_private": True, **plain}
        record = ConnectionRecord(NAME, "acme", connector.name, config, connector.entities)
        apply(installation, [ConnectionDraft(record, secrets)])
        add_partition(installation, NAME)
        instance, spoken = prepare_instance(installation), []
        for mode in MODES:
            server.mode = mode
            cli.execute(["connections", "test", NAME, "--json"])
            for entity in itertools.islice(connector.entities, 3):
                with suppress(SourceError):
                    extract(installation, NAME, entity, day(str(DAY)))
            spoken += in_context(installation)
        for mode in ("record", "failing"):
            server.mode = mode
            defs.resolve_job_def(DAILY_JOB).execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey(["extracted", connector.entities[0]])],
                tags=range_tags(NAME, f"{NAME}|{DAY}", f"{NAME}|{DAY}"),
                raise_on_error=False,
            )
    write_report(installation, NAME, DAY)
    cli.execute(["connections", "list", "--json"])
    said = capfd.readouterr()
    assert "acme-canary" in said.out
    spoken += found_in((said.out + said.err).encode(), "output")
    spoken += in_files(installation.home.root)
    spoken += in_database(installation.database) + in_database(installation.dagster_database)
    assert spoken == []
