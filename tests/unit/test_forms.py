"""Forms follow from each connector's config, at the terminal and as a document."""

import json

import pytest
import typer
from typer.testing import CliRunner

from bridge_pipeline import connectors
from bridge_pipeline.commands import forms

ALL = connectors.all_connectors().values()


@pytest.fixture
def asked():
    """Fills in a form as people do, line by line; gives what came of it and all that was shown."""

    def asked(connector, *lines, **given):
        app, found = typer.Typer(), {}
        app.command()(lambda: found.update(forms.ask(connectors.get(connector), given)))
        done = CliRunner().invoke(app, [], input="".join(f"{line}\n" for line in lines))
        return found, done

    return asked


@pytest.mark.parametrize("connector", ALL, ids=lambda each: each.name)
def test_a_form_is_a_document_with_help_and_hidden_credentials(connector):
    document = json.loads(json.dumps(forms.document(connector)))
    properties = document["config"]["properties"]
    assert list(properties) == list(connector.config.model_fields)
    assert [name for name, each in properties.items() if not each.get("description")] == []
    for name, field in connector.config.model_fields.items():
        said = json.dumps(properties[name])
        assert ("writeOnly" in said and "password" in said) == forms.is_secret(field), name
    assert any(forms.is_secret(field) for field in connector.config.model_fields.values())


def test_fields_are_asked_for_with_their_help_and_credentials_are_not_shown(asked):
    found, done = asked("helpdesk", "https://desk.example.com/", "12-hunter2", "n")
    assert found == {
        "base_url": "https://desk.example.com/",
        "api_token": "12-hunter2",
        "allow_private": False,
    }
    assert "Address of the desk" in done.output
    assert "hunter2" not in done.output


def test_a_wrong_answer_is_told_at_its_field_and_asked_for_again(asked):
    found, done = asked("helpdesk", "desk.example.com", "https://desk.example.com", "12-hunter2", "n")
    assert found["base_url"] == "https://desk.example.com"
    assert "base_url: Value error, must be an address" in done.output


def test_choices_and_defaults_are_shown(asked):
    lines = ["https://a.zendesk.com", "me@example.com", "token", "", "", "", "", "gold", "enterprise", "n"]
    found, done = asked("zendesk", *lines)
    assert found["plan"] == "enterprise"
    assert "One of: essential, team" in done.output
    assert "[team]" in done.output
    assert "client_secret" not in found


def test_fields_that_do_not_fit_each_other_are_asked_for_again(asked):
    first = ["https://a.zendesk.com", "", "token", "", "", "", "", "", "n"]
    second = ["https://a.zendesk.com", "me@example.com", "token", "", "", "", "", "", "n"]
    found, done = asked("zendesk", *first, *second)
    assert found["email"] == "me@example.com"
    assert "api_token needs email" in done.output
