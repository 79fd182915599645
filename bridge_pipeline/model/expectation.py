"""What is expected of the data: declared once, run by Great Expectations in `steps.check`.

An expectation names a class of Great Expectations and its arguments. It speaks of the
landed rows of one batch; facts of the batch as a whole are in `steps.facts`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["block", "quarantine", "warn"]


@dataclass(frozen=True)
class Expectation:
    """One expectation of the rows of a batch.

    `severity`: `quarantine` takes the failing rows out, `warn` only reports them.
    `kind` is a class of `great_expectations.expectations`; `columns` are those it must see.
    """

    name: str
    severity: Severity
    description: str
    kind: str
    columns: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    owner: str = "data-quality"

    def __post_init__(self) -> None:
        if self.severity == "block":
            raise ValueError(f"{self.name}: rows are quarantined or warned of; only a batch is blocked")


def present(column: str, severity: Severity, description: str) -> Expectation:
    """The column has a value."""
    return Expectation(
        f"{column}_present",
        severity,
        description,
        "ExpectColumnValuesToNotBeNull",
        (column,),
        {"column": column},
    )


def matches(name: str, column: str, pattern: str, severity: Severity, description: str) -> Expectation:
    """Values, where there are any, match a regular expression."""
    return Expectation(
        name,
        severity,
        description,
        "ExpectColumnValuesToMatchRegex",
        (column,),
        {"column": column, "regex": pattern},
    )


def in_set(column: str, values: tuple[str, ...], description: str) -> Expectation:
    """Values, where there are any, are among those known."""
    return Expectation(
        f"{column}_known",
        "warn",
        description,
        "ExpectColumnValuesToBeInSet",
        (column,),
        {"column": column, "value_set": list(values)},
    )


def at_most(column: str, letters: int, description: str) -> Expectation:
    """Texts, where there are any, are not longer than `letters` characters."""
    return Expectation(
        f"{column}_length",
        "warn",
        description,
        "ExpectColumnValueLengthsToBeBetween",
        (column,),
        {"column": column, "max_value": letters},
    )


def in_order(earlier: str, later: str, description: str) -> Expectation:
    """Where both times are known, `later` does not lie before `earlier`."""
    return Expectation(
        f"{earlier}_before_{later}",
        "warn",
        description,
        "ExpectColumnPairValuesAToBeGreaterThanB",
        (later, earlier),
        {
            "column_A": later,
            "column_B": earlier,
            "or_equal": True,
            "ignore_row_if": "either_value_is_missing",
        },
    )


_TIMES = in_order("created_at", "updated_at", "A record is not changed before it was created.")
_CREATED = present("created_at", "warn", "The source knows when the record was created.")
_CHANGED = present("updated_at", "warn", "The source knows when the record last changed.")

SUITES: dict[str, tuple[Expectation, ...]] = {
    "accounts": (
        present("name", "warn", "Every account has a name."),
        at_most("name", 500, "Names of accounts have at most 500 characters."),
        _CREATED,
        _CHANGED,
        _TIMES,
    ),
    "users": (
        present("name", "warn", "Every user has a name."),
        at_most("name", 500, "Names of users have at most 500 characters."),
        present("email", "warn", "Every user has an e-mail address."),
        matches(
            "email_shape",
            "email",
            r"^[^@\s]+@[^@\s]+\.[^@\s.]+$",
            "warn",
            "E-mail addresses look like name@host.domain.",
        ),
        in_set("status", ("active", "locked"), "Users are active or locked."),
        _CREATED,
        _CHANGED,
        _TIMES,
    ),
    "tickets": (
        present("subject", "warn", "Every ticket has a subject."),
        at_most("subject", 1_000, "Subjects have at most 1,000 characters."),
        at_most("description", 1_000_000, "Descriptions have at most 1,000,000 characters."),
        present("status", "warn", "Every ticket has a status."),
        present("priority", "warn", "Every ticket has a priority."),
        present("account_id", "warn", "Every ticket belongs to an account."),
        _CREATED,
        _TIMES,
        in_order("created_at", "resolved_at", "A ticket is not resolved before it was created."),
        in_order("created_at", "responded_at", "A ticket is not answered before it was created."),
        in_order("resolved_at", "closed_at", "A ticket is not closed before it was resolved."),
    ),
    "groups": (
        present("name", "warn", "Every group has a name."),
        at_most("name", 500, "Names of groups have at most 500 characters."),
        _CREATED,
        _CHANGED,
        _TIMES,
    ),
    "comments": (
        present("ticket_id", "warn", "Every comment belongs to a ticket."),
        present("author_id", "warn", "Every comment has an author."),
        present("body", "warn", "Every comment says something."),
        at_most("body", 1_000_000, "Comments have at most 1,000,000 characters."),
        _CREATED,
        _TIMES,
    ),
    "assets": (
        present("name", "warn", "Every asset has a name."),
        at_most("name", 500, "Names of assets have at most 500 characters."),
        present("type", "warn", "Every asset has a type."),
        _CREATED,
        _TIMES,
    ),
    "problems": (
        present("subject", "warn", "Every problem has a subject."),
        at_most("subject", 1_000, "Subjects have at most 1,000 characters."),
        present("status", "warn", "Every problem has a status."),
        _CREATED,
        _TIMES,
        in_order("created_at", "resolved_at", "A problem is not resolved before it was created."),
        in_order("resolved_at", "closed_at", "A problem is not closed before it was resolved."),
    ),
    "changes": (
        present("subject", "warn", "Every change has a subject."),
        at_most("subject", 1_000, "Subjects have at most 1,000 characters."),
        present("status", "warn", "Every change has a status."),
        _CREATED,
        _TIMES,
        in_order("planned_start_at", "planned_end_at", "A change is not planned to end before it begins."),
        in_order("created_at", "closed_at", "A change is not closed before it was created."),
    ),
}
