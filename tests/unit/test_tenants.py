"""The tenants of a file: who is told, what is refused, and that no address is shown."""

from textwrap import dedent

import pytest
from apprise import Apprise

from bridge_pipeline import connectors
from bridge_pipeline.steps.connect import InvalidConnections, parse_connections
from bridge_pipeline.steps.tenants import TenantDraft, parse_tenants, variables_of

HOOK = "slack://T1JJ3T3L2/A1BRTD4JD/canaryCanaryCanaryCanary1/#desk"
FULL = """
    tenants:
      - name: acme
        show_personal_data: false
        reviewers:
          - {to: "mailto:maria@acme.example", on: [blocked, failed, daily]}
          - {to: "${ACME_SLACK_URL}", on: [blocked, blocked, weekly]}
      - name: beta
"""


@pytest.fixture
def parse(tmp_path):
    def parse(text, **environ):
        path = tmp_path / "connections.yaml"
        path.write_text(dedent(text))
        return parse_tenants(path, environ)

    return parse


def reviewer(entry: str) -> str:
    return f"tenants: [{{name: acme, reviewers: [{entry}]}}]"


def test_a_whole_declaration(parse):
    acme, beta = parse(FULL, ACME_SLACK_URL=HOOK, OTHER="x")
    assert (acme.name, acme.show_personal_data) == ("acme", False)
    assert [(r.channel, r.address, r.shown, r.events, r.variables) for r in acme.reviewers] == [
        ("mail", "maria@acme.example", "m…@acme.example", ("blocked", "failed", "daily"), ()),
        ("slack", HOOK, "slack://…", ("blocked", "weekly"), ("ACME_SLACK_URL",)),
    ]
    assert beta == TenantDraft("beta", None)
    assert variables_of([acme, beta]) == {"ACME_SLACK_URL"}
    assert "maria" not in repr(acme)
    assert "canary" not in repr(acme)


def test_a_file_may_hold_connections_and_tenants_or_one_of_them(parse, tmp_path):
    assert parse("connections: []") == []
    assert parse("connections: []\ntenants: [{name: acme, reviewers: []}]") == [TenantDraft("acme", ())]
    assert parse_connections(tmp_path / "connections.yaml", {}, connectors.get) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenants: {}", ["list"]),
        ("tenants: []\ntenant: []", ["unknown keys", "tenant"]),
        ("tenants: [{name: Acme}]", ["tenant 'Acme'", "a-z"]),
        ("tenants: [{name: acme}, {name: acme}]", ["more than once", "acme"]),
        ("tenants: [{name: acme, reviewer: []}]", ["reviewer", "'reviewers'"]),
        ("tenants: [{name: acme, show_personal_data: perhaps}]", ["show_personal_data"]),
        (reviewer("{to: 'mailto:a@b.example'}"), ["reviewers[0]", "on", "required"]),
        (reviewer("{to: 'mailto:a@b.example', on: []}"), ["reviewers[0]", "on"]),
        (reviewer("{to: 'mailto:a@b.example', on: [always]}"), ["on", "'blocked'"]),
        (reviewer("{to: 'mailto:a@b.example', on: [daily], cc: x}"), ["reviewers[0]", "cc", "unknown key"]),
        (reviewer("{to: '${NONE}', on: [daily]}"), ["reviewers[0]", "to", "NONE", "not set"]),
        (reviewer("just text"), ["reviewers[0]"]),
        (
            reviewer("{to: 'mailto:a@b.example', on: [daily]}, {to: 'mailto:a@b.example', on: [failed]}"),
            ["reviewers[1]", "before"],
        ),
        (reviewer("{to: 'mailto://u:canary@h.example', on: [daily]}"), ["BRIDGE_SMTP_URL"]),
        (reviewer("{to: 'exec://canary', on: [daily]}"), ["no URL that Apprise"]),
        (reviewer("{to: 'file:///etc/canary', on: [daily]}"), ["no URL that Apprise"]),
        (reviewer("{to: 'canary', on: [daily]}"), ["mailto:name@host"]),
        (reviewer("{to: '${CANARY}', on: [daily]}"), ["reviewers[0]: to:"]),
        (reviewer("{to: 'slack://T1JJ3T3L2/A1BRTD4JD/x?template=/canary', on: [daily]}"), ["?template="]),
        (reviewer("{to: 'fcm://project/x?keyfile=/canary', on: [daily]}"), ["?keyfile="]),
    ],
)
def test_what_is_wrong_is_refused_and_named_without_the_address(parse, text, words):
    with pytest.raises(InvalidConnections) as caught:
        parse(text, CANARY="no-schema://canary-canary")
    for word in words:
        assert word in str(caught.value)
    assert "canary" not in str(caught.value)


def test_services_of_the_sending_machine_are_refused(parse):
    schemas = {
        schema
        for service in Apprise().details(show_disabled=True)["schemas"]
        # Those that need no address.
        if "{schema}://" in service["details"]["templates"]
        for schema in (service["protocols"] or ())
    }
    assert {"syslog", "dbus", "windows"} <= schemas
    for schema in schemas:
        with pytest.raises(InvalidConnections, match="tells only the machine that sends"):
            parse(reviewer(f"{{to: '{schema}://', on: [daily]}}"))
