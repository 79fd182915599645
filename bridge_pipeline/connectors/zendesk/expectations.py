"""What Zendesk adds to the expectations of the entities.

The values are Zendesk's own (vendor-apis C.5), in the words they are translated to.
"""

from bridge_pipeline.connectors.zendesk.streams import PRIORITIES, ROLES, STATUSES
from bridge_pipeline.model.expectation import Expectation, in_set, present

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "users": (
        in_set("role", tuple(ROLES.values()), "The role is one of Zendesk's three."),
        in_set(
            "status", ("active", "locked", "inactive"), "Users are active, locked (suspended) or deleted."
        ),
        present("role", "warn", "Every user has a role."),
    ),
    "tickets": (
        in_set("status", tuple(STATUSES.values()), "The status is one of Zendesk's."),
        in_set("priority", tuple(PRIORITIES.values()), "The priority is one of Zendesk's."),
    ),
}
