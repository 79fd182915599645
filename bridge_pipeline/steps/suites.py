"""Which expectations hold for a connection, and who says so: suite, connector, then the tenant's file.

The file is `expectations/<tenant>.yaml` in the home. It may change thresholds, severities (within what
rule 14 allows), owners, and switch expectations off. A file that is wrong in any point is refused
whole: nobody may believe in thresholds that are not in force.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from bridge_pipeline import connectors
from bridge_pipeline.connector_kit.connector import Connector
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.model.expectation import FACTS, LOADED, SUITES, Expectation, of_tables

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
_Hours = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
# What each threshold may be, by its name in the file.
_THRESHOLDS: dict[str, TypeAdapter[Any]] = {
    "allowed_share": TypeAdapter(_Share),
    "max_share": TypeAdapter(_Share),
    "drop": TypeAdapter(Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]),
    "max_length": TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]),
    "minimum": TypeAdapter(_Count),
    "busy": TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]),
    "weekdays": TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=12)]),
    "values": TypeAdapter(Annotated[list[_Text], Field(min_length=1, max_length=1_000)]),
    "pattern": TypeAdapter(Annotated[str, Field(strict=True, min_length=1, max_length=1_000)]),
    "max_age_hours": TypeAdapter(_Hours),
    "max_quiet_hours": TypeAdapter(_Hours | None),
}
_SETTABLE = ("severity", "enabled", "owner", "reason")


class InvalidExpectations(ValueError):
    """A tenant's file of expectations is wrong; the message says where and how."""


class _File(BaseModel):
    """The outer form of the file: entity -> expectation -> what is changed, for all or one connection."""

    model_config = ConfigDict(extra="forbid", strict=True)

    expectations: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    connections: dict[str, dict[str, dict[str, dict[str, Any]]]] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Overrides:
    """A checked file; `path` is None where the tenant has none."""

    path: Path | None = None
    file: _File = field(default_factory=_File)

    def of(self, connection: str, entity: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Place, expectation and changes, those of one connection after those of all."""
        for name, changes in self.file.expectations.get(entity, {}).items():
            yield f"expectations.{entity}.{name}", name, changes
        for name, changes in self.file.connections.get(connection, {}).get(entity, {}).items():
            yield f"connections.{connection}.{entity}.{name}", name, changes


def declared(connector: Connector, entity: str) -> tuple[Expectation, ...]:
    """What holds of an entity before any tenant's file: of its rows, batches, loads and tables.

    The connector's additions replace those of the same name.
    """
    added = tuple(replace(e, source="connector") for e in connector.expectations.get(entity, ()))
    names = {expectation.name for expectation in added}
    own = (*SUITES.get(entity, ()), *FACTS, LOADED, *of_tables(ENTITIES[entity]))
    return (*(e for e in own if e.name not in names), *added)


def suite_of(workspace: Workspace, record: ConnectionRecord, entity: str) -> tuple[Expectation, ...]:
    """The expectations in force for an entity of a connection, those switched off among them.

    Raises:
        InvalidExpectations: the tenant's file is wrong.
    """
    overrides = _overrides(workspace, record.tenant)
    suite = _with_settings(workspace, declared(connectors.get(record.connector), entity))
    found = {expectation.name: expectation for expectation in suite}
    for place, name, changes in overrides.of(record.name, entity):
        if name in found:
            found[name] = _changed(found[name], changes, f"{overrides.path}: {place}")
    return tuple(found.values())


def _with_settings(workspace: Workspace, suite: tuple[Expectation, ...]) -> tuple[Expectation, ...]:
    settings = workspace.settings
    share = {"max_share": settings.max_quarantined_share, "minimum": settings.quarantine_minimum}
    return tuple(replace(e, arguments=share) if e.name == "quarantined_share" else e for e in suite)


def _overrides(workspace: Workspace, tenant: str) -> _Overrides:
    """The tenant's file, checked whole: also what it says of other entities and connections."""
    path = workspace.home.expectations_of(tenant)
    if not path.is_file():
        _refuse_lookalikes(path)
        return _Overrides()
    file = _parsed(path)
    of_tenant = {
        record.name: record
        for record in registry.list_connections(workspace.database.engine, include_removed=True)
        if record.tenant == tenant
    }
    every = list(connectors.all_connectors().values())
    for entity, named in file.expectations.items():
        _check(path, f"expectations.{entity}", entity, named, every)
    for name, entities in file.connections.items():
        if name not in of_tenant:
            raise _wrong(path, f"connections.{name}", "is no connection of the tenant", name, of_tenant)
        connector = connectors.get(of_tenant[name].connector)
        for entity, named in entities.items():
            _check(path, f"connections.{name}.{entity}", entity, named, [connector])
    return _Overrides(path, file)


def _refuse_lookalikes(path: Path) -> None:
    """A file that is nearly called so was meant to count."""
    for other in (path.with_suffix(".yml"), path.with_suffix(".json"), path.with_suffix(".YAML")):
        if other.exists():
            raise InvalidExpectations(f"{other} is not read: rename it to {path.name}")
    if path.exists() or path.is_symlink():
        raise InvalidExpectations(f"{path} is not a file that can be read")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; by itself the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if not isinstance(key, str):
                problem = f"the key {key!r} is not a text"
                raise yaml.MarkedYAMLError(None, None, problem, key_node.start_mark)
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(None, None, f"{key!r} stands twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


def _parsed(path: Path) -> _File:
    try:
        # A loader of safe types; see above.
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidExpectations(f"cannot read {path}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise InvalidExpectations(f"{path}{line} is not usable: {problem}") from None
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, part['loc'])) or 'the file'}: {part['msg']}"
            for part in error.errors(include_input=False)
        )
        hint = "it must hold `expectations` and/or `connections`; see docs/operations.md"
        raise InvalidExpectations("\n".join([*lines, hint])) from None


def _check(
    path: Path, place: str, entity: str, named: Mapping[str, dict[str, Any]], among: list[Connector]
) -> None:
    if entity not in ENTITIES:
        raise _wrong(path, place, "is no entity", entity, ENTITIES)
    for name, changes in named.items():
        known = {e.name: e for connector in among for e in declared(connector, entity)}
        if name not in known:
            raise _wrong(path, f"{place}.{name}", f"is no expectation of {entity}", name, known)
        _changed(known[name], changes, f"{path}: {place}.{name}")


def _wrong(path: Path, place: str, problem: str, name: str, known: Any) -> InvalidExpectations:
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
    return InvalidExpectations(f"{path}: {place}: {name!r} {problem}; {hint}")


def _changed(expectation: Expectation, changes: dict[str, Any], place: str) -> Expectation:
    """The expectation as a tenant's file wants it.

    Raises:
        InvalidExpectations: a threshold it does not have, a value that cannot be, or one that is fixed.
    """
    if expectation.fixed:
        raise InvalidExpectations(f"{place}: this one cannot be changed: without it nothing can be believed")
    if not changes:
        raise InvalidExpectations(f"{place}: says nothing; give a threshold, severity, owner or enabled")
    current = expectation.thresholds | {
        "severity": expectation.severity, "enabled": expectation.enabled, "owner": expectation.owner
    }  # fmt: skip
    arguments, changed = dict(expectation.arguments), dict[str, Any]()
    for name, given in changes.items():
        if name not in current and name != "reason":
            known = [*expectation.thresholds, *_SETTABLE]
            raise InvalidExpectations(f"{place}: has no {name!r}; it has: {', '.join(known)}")
        value = _value(expectation, name, given, f"{place}.{name}")
        if name in expectation.adjustable:
            arguments[expectation.adjustable[name]] = value
        else:
            changed[name] = value
    replaced = {name: current[name] for name in changes if name != "reason"}
    return replace(
        expectation,
        arguments=arguments,
        source="tenant",
        # What was replaced by the file for all connections stays the value that held before any file.
        replaced=replaced | dict(expectation.replaced),
        **changed,
    )


def _value(expectation: Expectation, name: str, given: Any, place: str) -> Any:
    if name == "severity" and given not in expectation.severities:
        allowed = " or ".join(expectation.severities)
        raise InvalidExpectations(f"{place}: {given!r} is not allowed here, only {allowed}")
    if name == "enabled" and not isinstance(given, bool):
        raise InvalidExpectations(f"{place}: must be true or false")
    if isinstance(given, bool) and name != "enabled":
        raise InvalidExpectations(f"{place}: {given!r} cannot be; quote it if it is a text")
    if name in ("severity", "enabled"):
        return given
    try:
        value = _THRESHOLDS.get(name, TypeAdapter(_Text)).validate_python(given)
        if name == "pattern":
            re.compile(value)
    except ValidationError as error:
        told = "; ".join(part["msg"] for part in error.errors(include_input=False, include_url=False))
        raise InvalidExpectations(f"{place}: {told}") from None
    except re.error as error:
        raise InvalidExpectations(f"{place}: is no regular expression: {error}") from None
    return value


@dataclass(frozen=True)
class InForce:
    """An expectation as it holds for one entity of a connection, and why."""

    entity: str
    name: str
    subject: str
    severity: str
    owner: str
    sentence: str
    threshold: dict[str, Any]
    enabled: bool
    source: str
    replaced: dict[str, Any]
    reason: str
    set_by: str


def in_force(workspace: Workspace, name: str) -> list[InForce]:
    """Everything that is expected of a connection's entities, by entity in the order of loading.

    Raises:
        UnknownConnection: there is no such connection.
        InvalidExpectations: the tenant's file is wrong.
    """
    record = registry.get(workspace.database.engine, name)
    connector = connectors.get(record.connector)
    offered = [entity for entity in ENTITIES if entity in record.entities and connector.has(entity)]
    places = {
        "suite": "the suite of the entity",
        "connector": f"the connector {record.connector}",
        "tenant": str(workspace.home.expectations_of(record.tenant)),
    }
    return [
        InForce(
            entity=entity,
            name=e.name,
            subject=e.subject,
            severity=e.severity,
            owner=e.owner,
            sentence=e.sentence,
            threshold=e.thresholds,
            enabled=e.enabled,
            source=e.source,
            replaced=dict(e.replaced),
            reason=e.reason,
            set_by=places[e.source],
        )
        for entity in offered
        for e in suite_of(workspace, record, entity)
    ]
