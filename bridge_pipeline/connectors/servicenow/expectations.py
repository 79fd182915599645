"""What ServiceNow adds to the expectations of the entities.

Choices are configured by each instance, so others than the product's own are only warned of.
"""

from bridge_pipeline.connectors.servicenow.streams import (
    CHANGE_STATES,
    INCIDENT_STATES,
    PRIORITIES,
    PROBLEM_STATES,
)
from bridge_pipeline.model.expectation import Expectation, in_set


def _known(states: dict[str, str]) -> tuple[Expectation, ...]:
    return (
        in_set("status", tuple(states.values()), "The state is one of those that the product ships."),
        in_set(
            "priority", tuple(PRIORITIES.values()), "The priority is one of those that the product ships."
        ),
    )


EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "tickets": _known(INCIDENT_STATES),
    "problems": _known(PROBLEM_STATES),
    "changes": _known(CHANGE_STATES),
}
