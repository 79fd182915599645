"""Probing a connection: what of it can be read, and what exactly is wrong where it cannot.

Nothing is stored. A connection that is not registered yet is probed as it was drafted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bridge_pipeline.connector_kit.diagnosis import OF_THE_WHOLE, PASSING, Problem, advice, narrowed
from bridge_pipeline.connector_kit.session import AddressRefused, SourceError
from bridge_pipeline.database import registry
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.logs import run_context
from bridge_pipeline.settings import Settings
from bridge_pipeline.steps.connect import ConnectionDraft
from bridge_pipeline.steps.due import entities_of
from bridge_pipeline.steps.extract import Source, open_draft, open_source

# Somebody waits for the answer.
_ATTEMPTS = 2
_PATIENCE = 20.0


@dataclass(frozen=True)
class EntityProbe:
    """What the source said when it was asked for records of one entity.

    Attributes:
        records: how many came; None where none could be read.
        problem: what is wrong, None for nothing.
        detail: what was asked and answered.
        advice: what to do about the problem.
    """

    entity: str
    readable: bool
    records: int | None = None
    problem: Problem | None = None
    status: int | None = None
    detail: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Probe:
    """What was found of one connection."""

    connection: str
    connector: str
    entities: tuple[EntityProbe, ...]

    @property
    def readable(self) -> bool:
        """Whether all its entities can be read."""
        return all(each.readable for each in self.entities)

    @property
    def problem(self) -> Problem | None:
        """The first problem."""
        return next((each.problem for each in self.entities if each.problem), None)

    @property
    def wrong(self) -> bool:
        """Whether the connection as it is declared can read nothing, and not because something is away."""
        return not any(each.readable or each.problem in PASSING for each in self.entities)


def patient(settings: Settings) -> Settings:
    """The settings, for somebody who waits at the keyboard."""
    limits = {"attempts": min(settings.attempts, _ATTEMPTS)}
    waits = {"retry_after_budget": min(settings.retry_after_budget, _PATIENCE)}
    waits["read_timeout"] = min(settings.read_timeout, _PATIENCE)
    return settings.model_copy(update={**limits, **waits})


def probe_source(source: Source, entities: Iterable[str]) -> Probe:
    """Asks for records of each entity, until a problem is found that all of them have."""
    found: list[EntityProbe] = []
    for entity in entities:
        last = found[-1] if found else None
        if last and last.problem in OF_THE_WHOLE:
            found.append(
                EntityProbe(entity, False, None, last.problem, last.status, "not asked for", last.advice)
            )
        else:
            found.append(_probe(source, entity))
    return Probe(source.record.name, source.record.connector, tuple(found))


def probe_connection(workspace: Workspace, name: str) -> Probe:
    """Probes a registered connection.

    Raises:
        UnknownConnection: there is none of that name.
        SourceError: it was removed.
    """
    record = registry.get(workspace.database.engine, name)
    entities = entities_of(record)
    try:
        with open_source(workspace, name, patient(workspace.settings)) as source:
            return probe_source(source, entities)
    except AddressRefused as error:
        return _unopened(record, error)


def probe_draft(workspace: Workspace, draft: ConnectionDraft) -> Probe:
    """Probes a connection that is not stored yet."""
    record = draft.record
    try:
        with open_draft(workspace, record, draft.secrets, patient(workspace.settings)) as source:
            return probe_source(source, record.entities)
    except AddressRefused as error:
        return _unopened(record, error)


def _unopened(record: ConnectionRecord, error: AddressRefused) -> Probe:
    problem, said = error.problem, str(error)
    entities = tuple(
        EntityProbe(each, False, None, problem, None, said, advice(problem)) for each in record.entities
    )
    return Probe(record.name, record.connector, entities)


def _probe(source: Source, entity: str) -> EntityProbe:
    try:
        with run_context(connection=source.record.name, entity=entity):
            records = source.client.check(source.connector.stream(entity))
    except SourceError as error:
        problem = narrowed(error.problem, str(error), source.connector.plan_words)
        return EntityProbe(entity, False, None, problem, error.status, str(error), advice(problem))
    said = f"{records} records on the first page" if records else "it answered with an empty list"
    return EntityProbe(entity, True, records, detail=said)
