"""`bridge new-connector`: the folder of a connector for another system, with what is to be written in it.

What stands in the folder is `templates/connector`; what then has to be done is docs/adding-a-connector.md.
"""

import keyword
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import Json, answer, examples

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.model.entity import Column, Entity

_TEMPLATES = Path(__file__).with_name("templates") / "connector"
# A package's name, which is also shown, stored and typed.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_DEFAULT = "accounts,users,tickets"
_GUIDE = "docs/adding-a-connector.md"


class NotWritten(ValueError):
    """The folder of a connector cannot be written so; the message says why."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("new-connector", epilog=_EXAMPLES)(new_connector)


_EXAMPLES = examples(
    "`bridge new-connector jira`", "`bridge new-connector jira --entities users,tickets,comments --json`"
)


def new_connector(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the folder and of the connector.")],
    into: Annotated[
        Path | None, typer.Option(help="The folder to write it into; default: bridge_pipeline/connectors.")
    ] = None,
    entities: Annotated[str, typer.Option(help="What the system has, separated by commas.")] = _DEFAULT,
    json_output: Json = False,
) -> None:
    """Write the folder of a connector for another system; the tests then say what is missing in it."""
    from bridge_pipeline import connectors

    parent = into or Path(connectors.__path__[0])
    written = write_connector(name, parent, [each.strip() for each in entities.split(",")])
    document = {
        "name": name,
        "folder": str(parent / name),
        "files": [str(path) for path in written],
        "next": [
            f"read {_GUIDE}",
            f"pytest tests/conformance -k {name}: each failure says what to write, and where",
            f"bridge simulate {name} --port 8800",
        ],
    }
    answer(document, json_output, lambda console: _show(document, console))


def write_connector(name: str, parent: Path, entities: list[str]) -> list[Path]:
    """Writes the folder `parent/name`, whole or not at all; returns its files.

    Raises:
        NotWritten: the name or an entity cannot be, or the folder exists.
    """
    chosen = _checked(name, parent, entities)
    folder, partial = parent / name, parent / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for template in sorted(_TEMPLATES.glob("*.j2")):
            text = _rendered(template.name, name, chosen)
            (partial / template.stem).write_text(text, encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.iterdir())


def _checked(name: str, parent: Path, entities: list[str]) -> "list[Entity]":
    from bridge_pipeline import connectors
    from bridge_pipeline.model import ENTITIES

    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise NotWritten(f"{name!r} cannot be a connector: use 1 to 41 of a-z, 0-9 and '_', from a letter on")
    if not parent.is_dir():
        raise NotWritten(f"there is no folder {parent}")
    if (parent / name).exists() or name in connectors.all_connectors():
        raise NotWritten(f"there is a connector {name!r} already; nothing was written")
    if unknown := [each for each in entities if each not in ENTITIES]:
        raise NotWritten(f"there is no entity {', '.join(unknown)}; there are: {', '.join(ENTITIES)}")
    return [entity for entity in ENTITIES.values() if entity.name in entities]


def _rendered(template: str, name: str, entities: "list[Entity]") -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # What is written is Python, not HTML.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    words = name.split("_")
    values = {
        "name": name,
        "title": " ".join(word.capitalize() for word in words),
        "class": "".join(word.capitalize() for word in words),
        "people": any(entity.people for entity in entities),
        "entities": [_described(entity) for entity in entities],
    }
    return environment.get_template(template).render(values)


def _described(entity: "Entity") -> dict[str, Any]:
    """An entity as the templates see it; columns as calls of `connector_kit.fields`."""
    columns = [_field(column) for column in entity.columns]
    return {
        "name": entity.name,
        "constant": entity.name.upper(),
        "people": entity.people,
        "columns": columns,
    }


def _field(column: "Column") -> str:
    from bridge_pipeline.model import Kind

    if column.name == "id":
        return "fields.identity()"
    if column.references:
        return f'fields.reference("{column.name}")'
    kinds = {Kind.TEXT: "text", Kind.TIMESTAMP: "instant", Kind.BOOLEAN: "boolean", Kind.JSON: "array"}
    return f'fields.{kinds[column.kind]}("{column.name}")'


def _show(document: dict[str, Any], console: "Console") -> None:
    console.print(f"wrote {document['folder']}")
    for path in document["files"]:
        console.print(f"  {Path(path).name}")
    console.print("next:")
    for step in document["next"]:
        console.print(f"  {step}")
