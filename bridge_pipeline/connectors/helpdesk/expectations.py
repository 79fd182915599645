"""What Client Central adds to the expectations of the entities.

Status and priority names are configured by each tenant, so they are only warned of; the
names are those seen in recorded answers and usual in the product (vendor-apis A.4).
"""

from bridge_pipeline.model.expectation import Expectation, in_set

STATUSES = (
    "New",
    "In Progress",
    "Awaiting Customer",
    "Resolved",
    "Completed",
    "Closed",
    "Cancelled",
    "Change Failed",
    "Notification Sent",
    "Acknowledged",
)
PRIORITIES = ("Very High", "Critical", "High", "Medium", "Low")

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "tickets": (
        in_set("status", STATUSES, "The status is one of those known for Client Central."),
        in_set("priority", PRIORITIES, "The priority is one of those known for Client Central."),
    ),
}
