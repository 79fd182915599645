"""Forms made from a connector's typed config: for people at a terminal, and as a document for a UI.

Nothing here knows a connector: fields, help, defaults, choices and rules are those of its config.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from bridge_pipeline.commands.answers import note

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from bridge_pipeline.connector_kit.connector import Connector


def document(connector: "Connector") -> dict[str, Any]:
    """The form of a connector as JSON Schema; credentials have `writeOnly` and the format `password`."""
    return {
        "connector": connector.name,
        "title": connector.title,
        "entities": list(connector.entities),
        "config": connector.config.model_json_schema(),
    }


def ask(connector: "Connector", given: Mapping[str, Any]) -> dict[str, Any]:
    """Asks for the fields that are not given, until they fit each other; empty answers leave a field out."""
    from pydantic import ValidationError

    asked = {name: field for name, field in connector.config.model_fields.items() if name not in given}
    while True:
        answers = {name: _ask_field(name, field) for name, field in asked.items()}
        found = {name: value for name, value in answers.items() if value is not None}
        try:
            connector.config.model_validate({**given, **found})
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                place = ".".join(str(part) for part in problem["loc"])
                note(f"  {place}: {problem['msg']}" if place else f"  {problem['msg']}")
            if any(problem["loc"] and problem["loc"][0] in given for problem in error.errors()):
                raise typer.Exit(2) from None
            continue
        return found


def is_secret(field: "FieldInfo") -> bool:
    """Whether a field holds a credential."""
    from pydantic import SecretStr

    return SecretStr in (field.annotation, *get_args(field.annotation))


def _ask_field(name: str, field: "FieldInfo") -> Any:
    if field.description:
        note(f"  {field.description}")
    choices = _choices(field)
    if choices:
        note(f"  One of: {', '.join(choices)}")
    if field.annotation is bool:
        return typer.confirm(name, default=bool(field.default), err=True)
    # Nothing is shown as the default of a field that may be left out.
    default = "" if not field.is_required() and field.default is None else None
    if not field.is_required() and field.default is not None:
        default = str(field.default)
    while True:
        value = typer.prompt(
            name, default=default, hide_input=is_secret(field), show_default=bool(default), err=True
        )
        value = value.strip()
        if not value:
            return None
        if problem := _problem(field, value):
            note(f"  {name}: {problem}")
            continue
        return value


def _problem(field: "FieldInfo", value: str) -> str | None:
    """What is wrong with one answer by itself."""
    from pydantic import TypeAdapter, ValidationError

    annotated: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        TypeAdapter(annotated).validate_python(value)
    except ValidationError as error:
        return "; ".join(each["msg"] for each in error.errors(include_input=False, include_url=False))
    return None


def _choices(field: "FieldInfo") -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
