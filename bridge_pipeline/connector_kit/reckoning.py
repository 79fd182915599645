"""What a certificate asks of a client: the source's ids, a count, and what became of one record.

Every client can be asked, by what `Client` has. One that knows a cheaper or surer way says so by
having a method more: `list_ids`, `count`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, runtime_checkable

from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.connector import Client, Page, Reading, Stream
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.session import SourceError

State = Literal["found", "archived", "deleted", "forbidden", "failed"]
_GONE = (404, 410)
_FORBIDDEN = 403
# The source knows no such question.
NOT_OFFERED = (400, 405, 501)


@runtime_checkable
class ListsIds(Protocol):
    """A client that lists ids more cheaply than by reading all records whole."""

    def list_ids(self, reading: Reading, proof: dict[str, Any]) -> Iterator[Page]:
        """As `Client.read` without a window; records need no more than what the stream's columns `id`
        and `updated_at` and its `state` are read from. `hidden_by_access_rules` in `proof` says how many
        more the source counts and does not show, where it is known that this is why.

        Raises:
            SourceError: the source did not answer, or its listing never became whole.
        """
        ...


@runtime_checkable
class CountsRecords(Protocol):
    """A client whose source says how many records there are."""

    def count(self, stream: Stream) -> int | None:
        """The source's own count of an entity; None where it gives none.

        Raises:
            SourceError: the source did not answer.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What a lookup by id said, and when it was asked: `failed` if that is not known.

    `status` is the HTTP status of a lookup that failed.
    """

    state: State
    evidence: str
    asked_at: datetime
    status: int | None = None


def id_pages(client: Client, reading: Reading, proof: dict[str, Any], narrow: bool) -> Iterator[Page]:
    """Pages that together name every record the source lists; with `narrow` by the client's cheaper way.

    Raises:
        SourceError: the source did not answer, or its listing never became whole.
    """
    if narrow and isinstance(client, ListsIds):
        return client.list_ids(reading, proof)
    return client.read(reading, proof)


def count(client: Client, stream: Stream) -> int | None:
    """The source's own count of an entity; None where it gives none.

    Raises:
        SourceError: the source did not answer.
    """
    if not isinstance(client, CountsRecords):
        return None
    try:
        return client.count(stream)
    except SourceError as error:
        if error.status not in NOT_OFFERED:
            raise
        return None


def look_up(
    client: Client, stream: Stream, record_id: str, journal: Journal, mark: int | None = None
) -> tuple[Outcome, Page | None]:
    """Asks for one record: what the source says of it, and the record where it gives one, also one that
    calls itself deleted.

    Args:
        mark: the change mark that a listing has shown of it, in µs since 1970; the record gets it where
            it shows an older one only because the source leaves it out here.

    Raises:
        SourceError: it said nothing of the record; 404 and 410 are "gone", 403 is "forbidden".
    """
    asked_at = datetime.now(UTC)
    try:
        page = client.read_one(stream, record_id, journal)
    except SourceError as error:
        if error.status == _FORBIDDEN:
            return Outcome("forbidden", f"HTTP {error.status}", asked_at), None
        if error.status not in _GONE:
            raise
        page = None
    if page is None:
        return Outcome("deleted", "a lookup by id found nothing", asked_at), None
    if mark is not None:
        page = _marked(stream, page, mark)
    state = state_of(stream, page.content.records[0])
    if state == "deleted":
        # It was read like every other record, and is counted as one.
        return Outcome("deleted", "a lookup by id calls it deleted", asked_at), page
    return Outcome("archived" if state == "archived" else "found", "a lookup by id", asked_at), page


def _marked(stream: Stream, page: Page, mark: int) -> Page:
    record, exact = page.content.records[0], page.content.exact
    members = stream.listed_mark(record, mark) if stream.listed_mark and isinstance(record, dict) else {}
    if not members or not exact:
        return page
    raw = pages.with_members(exact[0], members)
    return replace(page, content=PageContent([pages.parse_record(raw)], exact=[raw]))


def state_of(stream: Stream, record: Any) -> str | None:
    """`deleted` or `archived` where the record says so itself."""
    return stream.state(record) if stream.state and isinstance(record, dict) else None
