"""The canonical entities: one declaration each, from which all their schemas derive.

To add an entity, declare it here, in the order parents before children; see README.
"""

from bridge_pipeline.model.entity import Column, Entity, Kind
from bridge_pipeline.model.window import Window

_ID = Column("id", Kind.TEXT, "The source's key of the record.")
_CREATED = Column("created_at", Kind.TIMESTAMP, "When the source says the record was created.")
_UPDATED = Column(
    "updated_at", Kind.TIMESTAMP, "The change mark: when the source says the record last changed."
)

ACCOUNTS = Entity(
    "accounts",
    "Customer organisations that own tickets.",
    (
        _ID,
        Column("name", Kind.TEXT, "Name of the organisation."),
        _CREATED,
        _UPDATED,
    ),
    reference=True,
)

USERS = Entity(
    "users",
    "People: requesters, agents and watchers of tickets.",
    (
        _ID,
        Column("name", Kind.TEXT, "Full name.", personal=True),
        Column("email", Kind.TEXT, "E-mail address.", personal=True),
        Column("role", Kind.TEXT, "Role at the desk; several are separated by commas."),
        Column("status", Kind.TEXT, "Whether the user may sign in: active or locked."),
        _CREATED,
        _UPDATED,
    ),
    reference=True,
)

TICKETS = Entity(
    "tickets",
    "Requests for help, in the newest version that the source has shown.",
    (
        _ID,
        Column("subject", Kind.TEXT, "One-line summary.", personal=True),
        Column("description", Kind.TEXT, "The request as it was written.", personal=True),
        Column("status", Kind.TEXT, "Name of the status at the source."),
        Column("priority", Kind.TEXT, "Name of the priority at the source."),
        Column("tags", Kind.JSON, "Tags as a list of texts."),
        Column("account_id", Kind.TEXT, "The account the ticket belongs to.", references="accounts"),
        _CREATED,
        _UPDATED,
        Column("resolved_at", Kind.TIMESTAMP, "When the ticket was resolved; null while it is not."),
        Column("responded_at", Kind.TIMESTAMP, "When the first response was given."),
        Column("closed_at", Kind.TIMESTAMP, "When the ticket was closed."),
        Column("is_closed", Kind.BOOLEAN, "Whether the source counts the status as closed."),
    ),
    people=True,
)

ENTITIES: dict[str, Entity] = {entity.name: entity for entity in (ACCOUNTS, USERS, TICKETS)}

__all__ = ["ACCOUNTS", "ENTITIES", "TICKETS", "USERS", "Column", "Entity", "Kind", "Window"]
