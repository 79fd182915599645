"""The file of connections: what is accepted, what is refused, and with which words."""

import dataclasses
from datetime import date
from textwrap import dedent

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from bridge_pipeline import connectors, redaction
from bridge_pipeline.steps.connect import InvalidConnections, parse_connections


class DemoConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base_url: str
    api_token: SecretStr
    second_token: SecretStr | None = None
    allow_private: bool = False


DEMO = dataclasses.replace(connectors.get("helpdesk"), name="demo", config=DemoConfig)


def lookup(name):
    if name != "demo":
        raise ValueError(f"there is no connector {name!r}; there are: demo")
    return DEMO


@pytest.fixture
def parse(tmp_path):
    def parse(text, **environ):
        path = tmp_path / "connections.yaml"
        path.write_text(dedent(text))
        return parse_connections(path, environ, lookup)

    return parse


FULL = """
    connections:
      - name: acme-helpdesk
        tenant: acme
        connector: demo
        config: {base_url: "https://${HOST}/api", api_token: "${ACME_TOKEN}"}
        quota: {requests_per_minute: 300}
        entities: [tickets, accounts]
        exclude: [tickets.*_password]
        first_day: 2016-03-01
        schedule: false
"""


def entry(**changes):
    """A file with one connection; a value None leaves the key out."""
    parts = {
        "name": "acme-helpdesk",
        "tenant": "acme",
        "connector": "demo",
        "config": "{base_url: https://h, api_token: literal-secret}",
    } | changes
    return "connections:\n- " + "\n  ".join(f"{key}: {value}" for key, value in parts.items() if value)


def test_a_whole_declaration(parse):
    (draft,) = parse(FULL, HOST="acme.example.com", ACME_TOKEN="12-hunter2")
    record = draft.record
    assert (record.name, record.tenant, record.connector) == ("acme-helpdesk", "acme", "demo")
    assert record.config == {
        "base_url": "https://acme.example.com/api",
        "second_token": None,
        "allow_private": False,
    }
    assert (record.requests_per_minute, record.quota_reserve) == (300, 0.2)
    assert record.entities == ("accounts", "tickets")
    assert record.exclude == ("tickets.*_password",)
    assert record.first_day == date(2016, 3, 1)
    assert not record.scheduled
    assert draft.secrets == {"api_token": "12-hunter2"}
    assert draft.variables == ("ACME_TOKEN", "HOST")


def test_a_secret_is_in_no_config_and_no_repr_and_is_redacted(parse):
    drafts = parse(FULL, HOST="h", ACME_TOKEN="12-hunter2")
    assert "hunter2" not in repr(drafts)
    assert "hunter2" not in redaction.redact("12-hunter2")


def test_a_literal_secret_is_accepted_and_kept_apart(parse):
    (draft,) = parse(entry())
    assert draft.secrets == {"api_token": "literal-secret"}
    assert "api_token" not in draft.record.config
    assert draft.variables == ()


def test_without_entities_all_of_the_connector_are_read(parse):
    (draft,) = parse(entry())
    assert draft.record.entities == ("accounts", "users", "tickets")


def test_used_variables_leave_the_environment_and_others_stay(tmp_path):
    path = tmp_path / "connections.yaml"
    second = entry(name="beta", config='{base_url: "https://b", api_token: "x${TOKEN}y"}').partition("\n")[2]
    path.write_text(entry(config='{base_url: "https://a", api_token: "${TOKEN}"}') + "\n" + second)
    environ = {"TOKEN": "hunter2", "PATH": "/bin"}
    drafts = parse_connections(path, environ, lookup)
    assert [draft.secrets["api_token"] for draft in drafts] == ["hunter2", "xhunter2y"]
    assert environ == {"PATH": "/bin"}


def test_the_value_of_a_variable_is_not_expanded_again(parse):
    (draft,) = parse(FULL, HOST="h", ACME_TOKEN="${HOST}")
    assert draft.secrets["api_token"] == "${HOST}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            entry(config='{base_url: "https://${HOST}", api_token: x}'),
            ["acme-helpdesk", "config.base_url", "HOST"],
        ),
        (entry(exclude='["${A}", "tickets.x"]'), ["exclude[0]", "variable A"]),
        (entry(config='{base_url: "${not a name}", api_token: x}'), ["config.base_url", "${not a name}"]),
        (entry(name="Acme"), ["name", "a-z"]),
        (entry(name="../x"), ["name", "a-z"]),
        (entry(tenant='"a|b"'), ["tenant", "a-z"]),
        (entry(tenant=None), ["acme-helpdesk", "tenant", "required"]),
        (entry(quotas="{requests_per_minute: 3}"), ["quotas", "unknown key", "'quota'"]),
        (entry(quota="{request_per_minute: 3}"), ["quota", "'requests_per_minute'"]),
        (entry(quota="{requests_per_minute: 0}"), ["quota.requests_per_minute", "greater than 0"]),
        (entry(quota="{reserve: 1}"), ["quota.reserve", "less than 1"]),
        (entry(connector="zendisk"), ["acme-helpdesk", "zendisk", "there are: demo"]),
        (entry(config="{base_url: https://h, api_tokn: x}"), ["config.api_tokn", "'api_token'"]),
        (entry(config="{base_url: https://h}"), ["config.api_token", "required"]),
        (entry(config="{base_url: https://h, api_token: 123}"), ["config.api_token", "string"]),
        (entry(entities="[tickets, invoices]"), ["entities", "invoices", "accounts, users, tickets"]),
        (entry(entities="[]"), ["entities"]),
        (entry(exclude="[password]"), ["exclude", "'password'"]),
        (entry(exclude="[invoices.password]"), ["exclude", "accounts, users, tickets"]),
        (entry(entities="[users]", exclude="[tickets.subject]"), ["exclude", "entities users"]),
        (entry() + "\n" + entry().partition("\n")[2], ["more than once", "acme-helpdesk"]),
        ("connections:\n- just text", ["number 1"]),
        ("connections: {}", ["list"]),
        ("", ["list"]),
        ("connection: []\nconnections: []", ["unknown keys", "connection"]),
    ],
)
def test_what_is_wrong_is_refused_and_named(parse, text, words):
    with pytest.raises(InvalidConnections) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "connections:\n- {name: a, config: {api_token: hunter2-hunter2}}}",
        entry(config="{base_url: [hunter2-hunter2], api_token: hunter2-hunter2}"),
        entry(config="hunter2-hunter2"),
        entry(config='{base_url: "https://h", api_token: {a: "${TOKEN}"}}'),
        entry(name='"${TOKEN}"'),
        entry(connector='"${TOKEN}"'),
        entry(exclude='["${TOKEN}"]'),
    ],
)
def test_no_error_shows_a_credential(parse, text):
    with pytest.raises(InvalidConnections) as caught:
        parse(text, TOKEN="hunter2 HUNTER2")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidConnections, match=r"absent\.yaml"):
        parse_connections(tmp_path / "absent.yaml", {}, lookup)
