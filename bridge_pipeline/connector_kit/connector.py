"""The values that a connector is: `Connector`, its `Stream`s, and the client it opens.

A connector is one folder that exports `CONNECTOR`; nothing else knows its name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import BaseModel

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.fields import Field, Record, Refused
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.quota import Metering
from bridge_pipeline.connector_kit.session import SourceContext
from bridge_pipeline.model import Entity, Window
from bridge_pipeline.model.expectation import Expectation

if TYPE_CHECKING:
    from bridge_pipeline.connector_kit.simulator import SimulatorOptions


class Person(NamedTuple):
    """A user that takes part in a ticket: as requester, creator, assignee or watcher."""

    user: str
    part: str


# See `Stream`; of each person the user and the part.
AllPeople = Callable[[Sequence[Record]], "list[list[tuple[str, str]]] | None"]


@dataclass(frozen=True)
class Stream:
    """How one canonical entity is read from a source.

    `fields` covers every canonical column of `entity`. `people` lists the users of a record; `all_people`
    does so for many as `people` would one by one, or gives None where one of them is to be read alone.
    `names` are the envelope's keys that may hold the records of a list answer; `single_names`
    those of an answer with one record. `state` says `deleted` or `archived` of a record that the
    source still gives and marks so itself. `split` takes the exact bytes of the records out of a list
    answer where they are not the items of one list. `listed_mark` gives the members that a record asked
    for by its id lacks, where a listing has shown its change mark, in µs since 1970.
    """

    entity: Entity
    path: str
    select: str
    names: tuple[str, ...]
    single_names: tuple[str, ...]
    fields: tuple[Field, ...]
    people: Callable[[Record], list[Person]] | None = None
    state: Callable[[Record], str | None] | None = None
    split: Callable[[bytes], list[bytes]] | None = None
    all_people: AllPeople | None = None
    listed_mark: Callable[[Record, int], dict[str, Any]] | None = None

    @property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """The record's keys that each canonical column is read from, where its field names them."""
        return {field.column: found for field in self.fields if (found := field.reads or field.consumes)}

    def __post_init__(self) -> None:
        covered = tuple(field.column for field in self.fields)
        if covered != self.entity.column_names:
            raise ValueError(
                f"the stream of {self.entity.name} must read the columns {self.entity.column_names} "
                f"in this order, it reads {covered}"
            )

    def exact_records(self, body: bytes) -> list[bytes]:
        """The exact bytes of every record of a list answer, in order."""
        return self.split(body) if self.split else pages.exact_records(body, self.names)

    def single_record(self, body: bytes, record_id: str) -> tuple[Any, bytes]:
        """The one record of an answer, and its exact bytes.

        One that cannot be accepted is for quarantine, if it says of itself that it is the one asked for.

        Raises:
            UnreadableBody: there is none, it is another one, or it does not say which one it is.
        """
        record, raw = pages.parse_single(body, self.single_names)
        found = self._read_id(record) if isinstance(record, dict) else self.id_in(raw)
        if found is None:
            said = [value for key in self._id_keys for value in pages.values_under(raw, key)]
            # An id of a wrong type is no proper one, and still says which record it is.
            found = next((str(value) for value in said if str(value) == record_id), None)
        if found is None:
            raise pages.UnreadableBody(
                f"the record asked for is {record_id}, and this one has no id; {_said(record)}"
            )
        if found != record_id:
            raise pages.UnreadableBody(f"the record has the id {found}, not {record_id}")
        return record, raw

    def id_in(self, raw: bytes) -> str | None:
        """The id of a record that may be unacceptable otherwise; None where it has no proper one, or two."""
        said = {key: pages.values_under(raw, key) for key in self._id_keys}
        return self._read_id({key: values[0] for key, values in said.items() if len(values) == 1})

    def _read_id(self, record: Record) -> str | None:
        try:
            return self.fields[self._id].read(record)
        except Refused:
            return None

    @property
    def _id_keys(self) -> tuple[str, ...]:
        return self.keys.get("id", ("id",))

    @property
    def _id(self) -> int:
        return self.entity.column_names.index("id")


def _said(record: Any) -> str:
    """What an answer holds in place of a record, for an error: its keys, and what it says of a failure."""
    if not isinstance(record, dict):
        return "it cannot be read"
    failed = pages.complaint(record)
    return f"its keys: {pages.keys_shown(record)}" + (f"; it says {failed}" if failed else "")


@dataclass(frozen=True)
class Page:
    """One journalled list or detail answer, taken apart.

    `number` counts the pages of an extraction from 0, in the order of reading.
    """

    number: int
    content: PageContent
    fetched_at: datetime


class Census(Protocol):
    """What an extraction knows of the records it has seen; the reader of a listing asks it.

    Who takes the pages enters them, and every answer is of all pages that were given to him. They may be
    parsed while the next is asked for: a client that asks the census after each page makes them wait.
    """

    @property
    def unseen(self) -> int:
        """Records of the window seen for the first time since `begin_sweep`."""
        ...

    @property
    def missed(self) -> int:
        """Records of the window seen in an earlier sweep and not since `begin_sweep`."""
        ...

    @property
    def in_window(self) -> int:
        """Ids of the window seen at all; rejected records, whose window is not known, do not count."""
        ...

    @property
    def swept_in_window(self) -> int:
        """Ids of the window seen since `begin_sweep`, likewise."""
        ...

    @property
    def repeats(self) -> int:
        """How many pages in a row, up to the last that had records, brought only what had been seen since
        `begin_sweep`."""
        ...

    @property
    def repeats_entered(self) -> int:
        """The same of those that are entered by now; nobody waits for the others."""
        ...

    def begin_sweep(self) -> None:
        """Starts counting `unseen` and `missed` anew."""
        ...


@dataclass(frozen=True)
class Reading:
    """One extraction as a client sees it.

    `window` None means all records of the entity. `filter_proven` says that an earlier
    extraction found the source's filter to hide nothing.
    """

    stream: Stream
    window: Window | None
    census: Census
    journal: Journal
    filter_proven: bool = False


class Client(Protocol):
    """An open, authenticated way to read one connection; made by `Connector.open`."""

    def read(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """Yields pages until all records have been seen, and says in `proof` how that is known.

        Raises:
            SourceError: the source did not answer, or its listing never became whole.
        """
        ...

    def read_one(self, stream: Stream, record_id: str, journal: Journal) -> Page | None:
        """The record with that id as a page of one; None where the source says there is none.

        Raises:
            SourceError: the source did not answer.
        """
        ...

    def check(self, stream: Stream) -> int:
        """Asks for one page to see whether the credential may read the entity; returns its records.

        Raises:
            SourceError: it may not, or the source cannot be reached.
        """
        ...

    def close(self) -> None:
        """Closes the connections to the source."""
        ...


@dataclass(frozen=True)
class Connector:
    """A vendor's API as a source.

    `config` is a pydantic model whose `SecretStr` fields are the credentials. `open` takes
    such a config and a `SourceContext` and returns a `Client`. `simulate` serves a double of the API.
    `expectations` adds to the entities' own suites, by entity. `metering` says how the source counts
    requests, where it publishes that. `logins` names the fields of a config that say, beside its secrets,
    who logs in: connections that differ in one do not share a quota. `record_url` takes the source's
    address, an entity and an id and gives the page on which people look at the record, where that is known.
    `plan_words` are what the source says in a refusal (403) where the account's plan lacks something.
    """

    name: str
    title: str
    config: type[BaseModel]
    streams: tuple[Stream, ...]
    open: Callable[[Any, SourceContext], Client]
    simulate: "Callable[[SimulatorOptions], None]"
    expectations: dict[str, tuple[Expectation, ...]]
    metering: Metering | None = None
    logins: tuple[str, ...] = ()
    record_url: Callable[[str, str, str], str | None] | None = None
    plan_words: tuple[str, ...] = ()

    def stream(self, entity: str) -> Stream:
        """The stream of an entity.

        Raises:
            KeyError: the connector does not have that entity.
        """
        for stream in self.streams:
            if stream.entity.name == entity:
                return stream
        raise KeyError(f"the connector {self.name} has no {entity}")

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities that the connector has, parents before children."""
        return tuple(stream.entity.name for stream in self.streams)

    def has(self, entity: str) -> bool:
        """Whether the connector has that entity."""
        return entity in self.entities
