"""What Freshservice adds to the expectations of the entities.

The values are Freshservice's own (vendor-apis B.4); desks add statuses, so others are only warned of.
"""

from bridge_pipeline.connectors.freshservice.streams import (
    CHANGE_STATUSES,
    CHANGE_TYPES,
    PRIORITIES,
    PROBLEM_STATUSES,
    STATUSES,
)
from bridge_pipeline.model.expectation import Expectation, in_set, present


def _known(statuses: dict[int, str]) -> tuple[Expectation, ...]:
    return (
        in_set("status", tuple(statuses.values()), "The status is one of Freshservice's own."),
        in_set("priority", tuple(PRIORITIES.values()), "The priority is one of Freshservice's four."),
    )


EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "users": (
        in_set("role", ("Agent", "Requester"), "Users are agents or requesters."),
        in_set("status", ("active", "inactive"), "Users are active or deactivated."),
        present("role", "warn", "Every user is known as agent or requester."),
    ),
    "tickets": _known(STATUSES),
    "problems": _known(PROBLEM_STATUSES),
    "changes": (
        *_known(CHANGE_STATUSES),
        in_set("type", tuple(CHANGE_TYPES.values()), "The type is one of Freshservice's four."),
    ),
}
