"""What a connector says of itself: its folder, its config, its streams, and which credentials work."""

import re
from pathlib import Path
from typing import Any

import pytest

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.double import Double
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps.connect import InvalidConnections, validated
from tests.conformance.faultproxy import proxying
from tests.conformance.faults import refusal
from tests.conformance.reading import CONNECTION, HOW, Subject, config_of, opened, secrets_of

_FILES = ("__init__", "client", "streams", "expectations", "simulator")
_LEFT = re.compile(r"\bWRITE\b:?\s*(.*)")


def folder_of(subject: Subject) -> Path:
    return next(path for each in connectors.__path__ if (path := Path(each, subject.connector.name)).is_dir())


def test_the_folder_has_its_files(subject):
    folder = folder_of(subject)
    missing = [name for name in _FILES if not any((folder / f"{name}{end}").exists() for end in ("", ".py"))]
    assert missing == [], f"{folder} has no {', '.join(missing)}: {HOW}"
    assert (folder / "README.md").is_file()


def test_nothing_is_left_to_write(subject):
    folder = folder_of(subject)
    texts = (path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".md"))
    left = [
        f"{path.relative_to(folder)}:{number}: {found[1]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := _LEFT.search(line))
    ]
    assert left == [], "still to be written:\n" + "\n".join(left)


def test_the_readme_names_its_entities_and_its_config(subject):
    text = (folder_of(subject) / "README.md").read_text(encoding="utf-8")
    named = [*subject.connector.entities, *subject.connector.config.model_fields]
    assert [each for each in named if each not in text] == []


def test_the_config_is_strict_and_explains_itself(subject):
    config = subject.connector.config
    assert config.model_config.get("extra") == "forbid"
    assert {"base_url", "allow_private"} <= set(config.model_fields)
    assert [name for name, each in config.model_fields.items() if not each.description] == []
    assert config.model_fields["allow_private"].default is False


def test_credentials_are_secret(subject):
    values = config_of(subject, "https://desk.example")
    config = subject.connector.config.model_validate(values)
    assert subject.double.token in secrets_of(config).values(), "credentials are SecretStr fields"
    shown = f"{config!r} {config.model_dump(mode='json', exclude=set(secrets_of(config)))}"
    assert subject.double.token not in shown


def test_streams_are_of_known_entities_parents_first(subject):
    order = [name for name in ENTITIES if name in subject.connector.entities]
    assert list(subject.connector.entities) == order
    for stream in subject.connector.streams:
        assert stream.entity is ENTITIES[stream.entity.name]
        assert {"id", "updated_at"} <= set(stream.keys), f"{stream.entity.name}: say what these are read from"
        assert stream.names
        assert stream.single_names


def test_expectations_are_of_its_entities_and_only_warn(subject):
    expectations = subject.connector.expectations
    assert set(expectations) <= set(subject.connector.entities)
    for entity, each in ((entity, each) for entity, several in expectations.items() for each in several):
        assert each.severity in ("warn", "quarantine"), f"{entity}: {each.name} is no fact of a batch"


def test_good_credentials_may_read_every_entity(subject, simulator):
    with opened(subject, simulator.url) as client:
        for stream in subject.connector.streams:
            assert client.check(stream) >= 0


def refusal_of(subject: Subject, url: str, **changes: Any) -> str:
    """Why a config is refused: by itself, or by the API; nothing if it works."""
    try:
        validated(subject.connector.config, config_of(subject, url, **changes), "", "config.")
        with opened(subject, url, **changes) as client:
            client.check(subject.connector.streams[0])
    except (InvalidConnections, SourceError) as error:
        return str(error)
    return ""


def test_wrong_credentials_are_refused_with_the_reason(subject, simulator):
    wrong = subject.double.wrong
    assert isinstance(subject.double, Double)
    assert any("401" in each.reason for each in wrong), "Double.wrong must hold a wrong secret"
    for each in wrong:
        said = refusal_of(subject, simulator.url, **each.config)
        assert each.reason in said, f"refused with other words, or not at all: {said!r}"
        given = (str(value) for value in each.config.values() if value)
        assert not any(value in said for value in given if "//" not in value)
        assert subject.double.token not in said


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_api_refuses_is_no_empty_list(subject, simulator, status):
    with proxying(simulator.url) as proxy, opened(subject, proxy.url) as client:
        proxy.arm(refusal(status), lasting=True)
        with pytest.raises(SourceError, match=rf"^{CONNECTION}: .*HTTP {status}, ") as caught:
            client.check(subject.connector.stream(subject.entity))
        assert caught.value.status == status


def test_private_addresses_need_to_be_allowed(subject, simulator):
    assert "allow_private" in refusal_of(subject, simulator.url, allow_private=False)


def test_an_unknown_setting_is_refused_by_name(subject, simulator):
    assert "tokenn" in refusal_of(subject, simulator.url, tokenn="x")
