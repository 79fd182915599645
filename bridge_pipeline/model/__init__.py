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
_SUBJECT = Column("subject", Kind.TEXT, "One-line summary.", personal=True)
_STATUS = Column("status", Kind.TEXT, "Name of the status at the source.")
_PRIORITY = Column("priority", Kind.TEXT, "Name of the priority at the source.")
_CLOSED = Column("is_closed", Kind.BOOLEAN, "Whether the source counts the status as closed.")

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
        _SUBJECT,
        Column("description", Kind.TEXT, "The request as it was written.", personal=True),
        _STATUS,
        _PRIORITY,
        Column("tags", Kind.JSON, "Tags as a list of texts."),
        Column("account_id", Kind.TEXT, "The account the ticket belongs to.", references="accounts"),
        _CREATED,
        _UPDATED,
        Column("resolved_at", Kind.TIMESTAMP, "When the ticket was resolved; null while it is not."),
        Column("responded_at", Kind.TIMESTAMP, "When the first response was given."),
        Column("closed_at", Kind.TIMESTAMP, "When the ticket was closed."),
        _CLOSED,
    ),
    people=True,
)

GROUPS = Entity(
    "groups",
    "Teams of agents that tickets are assigned to.",
    (
        _ID,
        Column("name", Kind.TEXT, "Name of the group."),
        Column("description", Kind.TEXT, "What the group is for."),
        _CREATED,
        _UPDATED,
    ),
    reference=True,
)

COMMENTS = Entity(
    "comments",
    "What was said and noted in tickets.",
    (
        _ID,
        Column("ticket_id", Kind.TEXT, "The ticket the comment belongs to.", references="tickets"),
        Column("author_id", Kind.TEXT, "The user who wrote it.", references="users"),
        Column("body", Kind.TEXT, "The comment as it was written.", personal=True),
        Column("is_public", Kind.BOOLEAN, "Whether the requester may read it."),
        _CREATED,
        _UPDATED,
    ),
)

ASSETS = Entity(
    "assets",
    "Configuration items: devices, software and services that tickets are about.",
    (
        _ID,
        Column("name", Kind.TEXT, "Name of the asset."),
        Column("type", Kind.TEXT, "Kind of asset at the source."),
        Column("status", Kind.TEXT, "State of the asset at the source."),
        Column("serial_number", Kind.TEXT, "The manufacturer's serial number."),
        Column("account_id", Kind.TEXT, "The account the asset belongs to.", references="accounts"),
        Column("user_id", Kind.TEXT, "The user the asset is assigned to.", references="users"),
        _CREATED,
        _UPDATED,
    ),
)

PROBLEMS = Entity(
    "problems",
    "Causes behind several tickets.",
    (
        _ID,
        _SUBJECT,
        Column("description", Kind.TEXT, "The problem as it was written.", personal=True),
        _STATUS,
        _PRIORITY,
        Column("account_id", Kind.TEXT, "The account the problem belongs to.", references="accounts"),
        _CREATED,
        _UPDATED,
        Column("resolved_at", Kind.TIMESTAMP, "When the problem was resolved; null while it is not."),
        Column("closed_at", Kind.TIMESTAMP, "When the problem was closed."),
        _CLOSED,
    ),
)

CHANGES = Entity(
    "changes",
    "Planned changes to what the desk looks after.",
    (
        _ID,
        _SUBJECT,
        Column("description", Kind.TEXT, "The change as it was written.", personal=True),
        _STATUS,
        _PRIORITY,
        Column("type", Kind.TEXT, "Kind of change at the source, such as standard or emergency."),
        Column("risk", Kind.TEXT, "Risk of the change at the source."),
        Column("account_id", Kind.TEXT, "The account the change belongs to.", references="accounts"),
        Column("planned_start_at", Kind.TIMESTAMP, "When the change is planned to begin."),
        Column("planned_end_at", Kind.TIMESTAMP, "When the change is planned to end."),
        _CREATED,
        _UPDATED,
        Column("closed_at", Kind.TIMESTAMP, "When the change was closed."),
        _CLOSED,
    ),
)

ENTITIES: dict[str, Entity] = {
    entity.name: entity for entity in (ACCOUNTS, USERS, GROUPS, TICKETS, COMMENTS, ASSETS, PROBLEMS, CHANGES)
}

__all__ = [
    "ACCOUNTS",
    "ASSETS",
    "CHANGES",
    "COMMENTS",
    "ENTITIES",
    "GROUPS",
    "PROBLEMS",
    "TICKETS",
    "USERS",
    "Column",
    "Entity",
    "Kind",
    "Window",
]
