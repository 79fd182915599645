"""Connections: from the file that declares them to the registry.

A file is read and checked whole before anything is opened or written, and the environment
variables it names leave the environment then, so that no child process inherits them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from bridge_pipeline import naming
from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.sealing import SealingError
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.redaction import MASK, remember

Action = Literal["created", "changed", "unchanged"]
_SECTIONS = ("connections", "tenants")
_NAMED = " and ".join(f"`{section}`" for section in _SECTIONS)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_Model = TypeVar("_Model", bound=BaseModel)
Key = Annotated[str, StringConstraints(pattern=naming.KEY_PATTERN)]


class InvalidConnections(ValueError):
    """The declaration of a connection is wrong; the message says which, where and how."""


@dataclass(frozen=True)
class ConnectionDraft:
    """A checked connection and its credentials in clear, not yet written anywhere."""

    record: ConnectionRecord
    secrets: Mapping[str, str] = field(repr=False)
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Applied:
    """What `apply` did with one connection."""

    name: str
    action: Action


class _Quota(BaseModel):
    model_config = ConfigDict(extra="forbid")

    requests_per_minute: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    # Share of every limit that is left to the customer's other integrations.
    reserve: Annotated[float, Field(ge=0, lt=1)] = 0.2


class _Entry(BaseModel):
    """One item of the file's list `connections`."""

    model_config = ConfigDict(extra="forbid")

    name: Key
    tenant: Key
    connector: str
    config: dict[str, Any]
    quota: _Quota | None = None
    entities: tuple[str, ...] | None = Field(None, min_length=1)
    exclude: tuple[str, ...] = ()
    first_day: date | None = None
    schedule: bool = True


def parse_connections(
    path: Path, environ: MutableMapping[str, str], lookup: Callable[[str], Connector]
) -> list[ConnectionDraft]:
    """Reads a file of connections; the variables it names are removed from `environ`.

    Call it before a workspace is opened: the server that may start then keeps its environment.
    `lookup` finds a connector by name and raises ValueError where there is none.

    Raises:
        InvalidConnections: the file cannot be read, or something in it is wrong.
    """
    items = items_of(path, "connections")
    drafts = [_draft(item, number, environ, lookup) for number, item in enumerate(items, start=1)]
    for variable in {variable for draft in drafts for variable in draft.variables}:
        del environ[variable]
    names = [draft.record.name for draft in drafts]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConnections(f"{path} declares more than once: {', '.join(repeated)}")
    return drafts


def draft_connection(
    item: dict[str, Any],
    environ: MutableMapping[str, str],
    lookup: Callable[[str], Connector],
    typed: Mapping[str, Any] | None = None,
) -> ConnectionDraft:
    """Reads one declared connection; the variables it names are removed from `environ`.

    Args:
        typed: further values of its config, taken as they are: `${VAR}` means nothing in them.

    Raises:
        InvalidConnections: something in it is wrong.
    """
    place, used = f"connection {item.get('name')!r}", set()
    whole = expanded(item, environ, place, "", used)
    whole["config"] = {**whole["config"], **(typed or {})}
    with hidden_in_errors(environ[name] for name in used):
        draft = _checked(whole, place, lookup, tuple(sorted(used)))
    for variable in used:
        del environ[variable]
    return draft


def apply(workspace: Workspace, drafts: list[ConnectionDraft]) -> list[Applied]:
    """Writes connections that are new or differ, credentials sealed.

    Raises:
        TenantFixed: a connection is known for another tenant; nothing was written.
    """
    engine = workspace.database.engine
    known = {record.name: record for record in registry.list_connections(engine, include_removed=True)}
    for draft in drafts:
        _refuse_move(draft.record, known.get(draft.record.name))
    return [_apply(workspace, draft, known.get(draft.record.name)) for draft in drafts]


def pending(workspace: Workspace, drafts: list[ConnectionDraft]) -> list[ConnectionDraft]:
    """Those connections that are new or differ from what is registered.

    Raises:
        TenantFixed: a connection is known for another tenant.
    """
    engine = workspace.database.engine
    known = {record.name: record for record in registry.list_connections(engine, include_removed=True)}
    for draft in drafts:
        _refuse_move(draft.record, known.get(draft.record.name))
    return [draft for draft in drafts if _differs(workspace, draft, known.get(draft.record.name))]


def _differs(workspace: Workspace, draft: ConnectionDraft, known: ConnectionRecord | None) -> bool:
    name = draft.record.name
    return (
        known != draft.record
        or draft.secrets != _known_secrets(workspace, name)
        or set(draft.variables) != registry.secret_variables(workspace.database.engine, name)
    )


def _apply(workspace: Workspace, draft: ConnectionDraft, known: ConnectionRecord | None) -> Applied:
    record = draft.record
    engine = workspace.database.engine
    if not _differs(workspace, draft, known):
        return Applied(record.name, "unchanged")
    boxes = {
        name: workspace.sealer.seal(secret, record.tenant, record.name, name)
        for name, secret in draft.secrets.items()
    }
    registry.put(engine, record, boxes, draft.variables)
    return Applied(record.name, "changed" if known else "created")


def _known_secrets(workspace: Workspace, name: str) -> dict[str, str] | None:
    try:
        return registry.secrets(workspace.database.engine, workspace.sealer, name)
    except SealingError:
        # The key is lost or another one: applying the file again is how credentials come back.
        return None


def _refuse_move(record: ConnectionRecord, known: ConnectionRecord | None) -> None:
    if known and known.tenant != record.tenant:
        raise registry.TenantFixed(
            f"the connection {record.name!r} belongs to the tenant {known.tenant!r} and cannot move to "
            f"{record.tenant!r}: give the new one another name"
        )


# --- The file ---------------------------------------------------------------------------------


def items_of(path: Path, section: str) -> list[Any]:
    """The items of one section of a file; none if it does not have the section.

    Raises:
        InvalidConnections: the file cannot be read, or is not made of lists under known keys.
    """
    content = _content(path)
    held = {key: content[key] for key in _SECTIONS if key in content} if isinstance(content, dict) else {}
    if not held or not all(isinstance(items, list) for items in held.values()):
        raise InvalidConnections(f"{path} must hold a list under the key `connections` or `tenants`")
    if unknown := [str(key) for key in content if key not in _SECTIONS]:
        raise InvalidConnections(f"{path} holds unknown keys beside {_NAMED}: {', '.join(unknown)}")
    return held.get(section, [])


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConnections(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        # Its own text quotes the file, which may hold a credential.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise InvalidConnections(f"{path}{line} is not YAML: {problem or 'it cannot be parsed'}") from None


def _draft(
    item: Any,
    number: int,
    environ: Mapping[str, str],
    lookup: Callable[[str], Connector],
) -> ConnectionDraft:
    name = item.get("name") if isinstance(item, dict) else None
    place = f"connection {name!r}" if isinstance(name, str) else f"connection number {number}"
    used: set[str] = set()
    expanded_item = expanded(item, environ, place, "", used)
    with hidden_in_errors(environ[name] for name in used):
        return _checked(expanded_item, place, lookup, tuple(sorted(used)))


@contextmanager
def hidden_in_errors(values: Iterable[str]) -> Iterator[None]:
    """Takes these values out of an error's text, where any may be quoted."""
    values = sorted(values, key=len, reverse=True)
    try:
        yield
    except InvalidConnections as error:
        text = str(error)
        for value in values:
            # Very short ones would mask ordinary words.
            text = text.replace(value, MASK) if len(value) > 3 else text
        raise InvalidConnections(text) from None


def _checked(
    item: Any, place: str, lookup: Callable[[str], Connector], variables: tuple[str, ...]
) -> ConnectionDraft:
    entry = validated(_Entry, item, place, "")
    try:
        connector = lookup(entry.connector)
    except ValueError as error:
        raise InvalidConnections(f"{place}: connector: {error}") from None
    config = validated(connector.config, entry.config, place, "config.")
    secrets = _secrets(config)
    for secret in secrets.values():
        remember(secret)
    entities, quota = _entities(entry, connector, place), entry.quota or _Quota()
    record = ConnectionRecord(
        name=entry.name,
        tenant=entry.tenant,
        connector=entry.connector,
        config=config.model_dump(mode="json", exclude=set(secrets)),
        entities=entities,
        exclude=_exclude(entry, entities, place),
        requests_per_minute=quota.requests_per_minute,
        quota_reserve=quota.reserve,
        first_day=entry.first_day,
        scheduled=entry.schedule,
    )
    return ConnectionDraft(record, secrets, variables)


def expanded(value: Any, environ: Mapping[str, str], place: str, path: str, used: set[str]) -> Any:
    """`value` with every `${VAR}` in its strings replaced; the variables are added to `used`.

    Raises:
        InvalidConnections: one is not set; `place` and `path` say where it stands.
    """
    if isinstance(value, dict):
        return {
            key: expanded(part, environ, place, f"{path}.{key}" if path else str(key), used)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [expanded(part, environ, place, f"{path}[{i}]", used) for i, part in enumerate(value)]
    if not isinstance(value, str):
        return value

    def from_environment(match: re.Match[str]) -> str:
        variable = match[1]
        if not _VARIABLE_NAME.fullmatch(variable):
            raise InvalidConnections(f"{place}: {path}: ${{{variable}}} does not name a variable")
        if not environ.get(variable):
            raise InvalidConnections(
                f"{place}: {path}: the environment variable {variable} is not set or empty"
            )
        used.add(variable)
        return environ[variable]

    return _VARIABLE.sub(from_environment, value)


def validated(model: type[_Model], value: Any, place: str, prefix: str) -> _Model:
    """`value` as a model.

    Raises:
        InvalidConnections: it is not one; the message quotes no value.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Only places and messages: the errors themselves quote values, and those may be secret.
        lines = [_complaint(problem, model, prefix) for problem in error.errors(include_input=False)]
    raise InvalidConnections("\n".join(f"{place}: {line}" for line in lines))


def _complaint(problem: Any, model: type[BaseModel], prefix: str) -> str:
    where = prefix + ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = list((_Quota if len(problem["loc"]) > 1 else model).model_fields)
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["loc"] in {("name",), ("tenant",)} and problem["type"] == "string_pattern_mismatch":
        return f"{where}: use 1 to 41 of a-z, 0-9, '-' and '_', starting with a letter or digit"
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _secrets(config: BaseModel) -> dict[str, str]:
    values = ((name, getattr(config, name)) for name in type(config).model_fields)
    return {name: value.get_secret_value() for name, value in values if isinstance(value, SecretStr)}


def _entities(entry: _Entry, connector: Connector, place: str) -> tuple[str, ...]:
    """The entities asked for, in the connector's order: parents before children."""
    offered = connector.entities
    if entry.entities is None:
        return offered
    if unknown := [name for name in entry.entities if name not in offered]:
        raise InvalidConnections(
            f"{place}: entities: the connector {connector.name} has no {', '.join(unknown)}; "
            f"it has: {', '.join(offered)}"
        )
    return tuple(name for name in offered if name in entry.entities)


def _exclude(entry: _Entry, entities: tuple[str, ...], place: str) -> tuple[str, ...]:
    for pattern in entry.exclude:
        entity, dot, fields = pattern.partition(".")
        if entity not in entities or not dot or not fields:
            raise InvalidConnections(
                f"{place}: exclude: {pattern!r} must be entity.field, such as {entities[-1]}.*_password, "
                f"with one of the entities {', '.join(entities)}"
            )
    return tuple(entry.exclude)
