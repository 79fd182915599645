"""`.env.example` names every setting with its default, and nothing that is no setting."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter

from bridge_pipeline.settings import PROJECT_ROOT, Settings

EXAMPLE = PROJECT_ROOT / ".env.example"
# A setting is there commented out, so that copying the file changes nothing.
LINE = re.compile(r"^# ?([A-Z_]+)=(.*)$")


def documented() -> dict[str, str]:
    matches = (LINE.match(line) for line in EXAMPLE.read_text().splitlines())
    return {match[1]: match[2] for match in matches if match}


def environment_name(field: str) -> str:
    return "LOG_LEVEL" if field == "log_level" else f"BRIDGE_{field.upper()}"


def written(value: Any) -> str:
    """A default as it is written in the environment; what differs by machine is left empty."""
    if value is None or isinstance(value, SecretStr | Path):
        return ""
    if isinstance(value, timedelta):
        return TypeAdapter(timedelta).dump_python(value, mode="json")
    return str(value)


def test_every_setting_is_documented_and_nothing_else():
    assert sorted(documented()) == sorted(environment_name(field) for field in Settings.model_fields)


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_the_documented_default_is_the_default(field):
    assert documented()[environment_name(field)] == written(Settings.model_fields[field].default)


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_the_description_stands_above_it(field):
    text = " ".join(line.removeprefix("#").strip() for line in EXAMPLE.read_text().splitlines())
    description = Settings.model_fields[field].description or ""
    assert f"{description} {environment_name(field)}=" in " ".join(text.split())


def test_the_example_can_be_read_as_it_is(tmp_path, monkeypatch):
    values = [f"{name}={value}" for name, value in documented().items() if value]
    (tmp_path / ".env").write_text("\n".join(values))
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    assert Settings() == Settings(_env_file=None)  # type: ignore[call-arg]
