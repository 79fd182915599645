"""What is expected of the data, and who may set which threshold: declared once.

Expectations of rows name a class of Great Expectations and are run by it in `steps.rows`. Those of
a batch as a whole are judged in `steps.facts`, of its load in `steps.load`, of the tables in
`steps.references`. A tenant's file may change thresholds: `steps.suites`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge_pipeline.model.entity import Entity

Severity = Literal["block", "quarantine", "warn"]
Subject = Literal["rows", "batch", "load", "tables"]
Source = Literal["suite", "connector", "tenant"]

# Only facts of a batch block (rule 14).
_SEVERITIES: dict[Subject, tuple[Severity, ...]] = {
    "rows": ("quarantine", "warn"),
    "batch": ("block", "warn"),
    "load": ("block",),
    "tables": ("warn",),
}


@dataclass(frozen=True)
class Expectation:
    """One expectation of the rows of a batch, or of what `subject` says.

    `severity`: `block` keeps the whole batch out, `quarantine` takes the failing rows out, `warn` only
    reports. `kind` is a class of `great_expectations.expectations` with its `arguments`; `columns` are
    those it must see. `adjustable` names the thresholds that a tenant may set and the argument each one
    is. `description` may hold `{threshold}`.

    `fixed` ones may not be changed by anyone. `replaced` and `reason` say what a tenant's file changed.
    """

    name: str
    severity: Severity
    description: str
    kind: str
    columns: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    owner: str = "data-quality"
    subject: Subject = "rows"
    adjustable: Mapping[str, str] = field(default_factory=dict)
    allowed_share: float = 0.0
    fixed: bool = False
    enabled: bool = True
    source: Source = "suite"
    replaced: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        if self.severity not in self.severities:
            raise ValueError(
                f"{self.name}: severity {self.severity!r} is not allowed here, only "
                f"{' or '.join(self.severities)}: rows are quarantined or warned of, only a batch is blocked"
            )

    @property
    def severities(self) -> tuple[Severity, ...]:
        """The severities that rule 14 allows for what this speaks of."""
        return _SEVERITIES[self.subject]

    @property
    def counts_rows(self) -> bool:
        """Whether it counts rows, so that a share of them may be allowed to fail."""
        return self.subject == "rows"

    @property
    def thresholds(self) -> dict[str, Any]:
        """What it holds the data to, by the names that a tenant's file uses."""
        found = {name: self.arguments.get(argument) for name, argument in self.adjustable.items()}
        return found | ({"allowed_share": self.allowed_share} if self.counts_rows else {})

    @property
    def sentence(self) -> str:
        """The description with the thresholds in force."""
        return self.description.format(**self.thresholds) if "{" in self.description else self.description


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
        adjustable={"pattern": "regex"},
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
        adjustable={"values": "value_set"},
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
        adjustable={"max_length": "max_value"},
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


def fact(
    name: str, severity: Severity, description: str, subject: Subject = "batch", **thresholds: Any
) -> Expectation:
    """Something that holds of a whole batch, its load, or the tables; all its thresholds may be set."""
    return Expectation(
        name,
        severity,
        description,
        "",
        (),
        thresholds,
        "data-platform",
        subject,
        {name: name for name in thresholds},
        fixed=name in _NEVER_CHANGED,
    )


# Without these nothing else can be believed.
_NEVER_CHANGED = {"equation", "equation_loaded", "landing_intact", "versions_unique"}

FACTS = (
    fact(
        "equation", "block", "Every record fetched is outside the window, a duplicate, quarantined or landed."
    ),
    fact("landing_intact", "block", "The landing files are those the ledger lists, to the byte."),
    fact("versions_unique", "block", "No version of a record is landed twice."),
    fact(
        "quarantined_share",
        "block",
        "Of {minimum:,} records or more, at most {max_share:.1%} are rejected.",
        max_share=0.05,
        minimum=100,
    ),
    fact(
        "declared_fields",
        "block",
        "The fields that the columns are read from are there, and have the types they had.",
    ),
    fact("other_fields", "warn", "The source sends the fields that it sent before, with the same types."),
    fact(
        "day_volume",
        "warn",
        "No day has {drop:.0%} or more fewer records than is usual for its weekday.",
        drop=0.7,
        weekdays=4,
        busy=20,
    ),
    fact(
        "newest_day_filled",
        "block",
        "The newest settled day of a busy desk is not empty.",
        weekdays=4,
        busy=20,
    ),
)

LOADED = fact(
    "equation_loaded",
    "block",
    "Every record fetched is outside the window, a duplicate, quarantined, loaded, unchanged or superseded.",
    "load",
)


def of_tables(entity: Entity) -> tuple[Expectation, ...]:
    """What is expected of the tables once an entity is loaded; nothing of it blocks."""
    found = [
        fact(
            "freshness",
            "warn",
            "The newest complete day ended not more than {max_age_hours:,} hours ago.",
            "tables",
            max_age_hours=48,
            max_quiet_hours=None,
        )
    ]
    for parent in entity.parent_entities:
        found += [
            fact(
                f"{parent}_known", "warn", f"All {parent} that {entity.name} refer to have arrived.", "tables"
            ),
            fact(
                f"{parent}_exist",
                "warn",
                f"The source has all {parent} that {entity.name} refer to.",
                "tables",
            ),
        ]
    if entity.people:
        text = f"Every user who requested {entity.name} has an e-mail address."
        found.append(fact("requesters_have_email", "warn", text, "tables"))
    return tuple(found)


_TIMES = in_order("created_at", "updated_at", "A record is not changed before it was created.")
_CREATED = present("created_at", "warn", "The source knows when the record was created.")
_CHANGED = present("updated_at", "warn", "The source knows when the record last changed.")

SUITES: dict[str, tuple[Expectation, ...]] = {
    "accounts": (
        present("name", "warn", "Every account has a name."),
        at_most("name", 500, "Names of accounts have at most {max_length:,} characters."),
        _CREATED,
        _CHANGED,
        _TIMES,
    ),
    "users": (
        present("name", "warn", "Every user has a name."),
        at_most("name", 500, "Names of users have at most {max_length:,} characters."),
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
        at_most("subject", 1_000, "Subjects have at most {max_length:,} characters."),
        at_most("description", 1_000_000, "Descriptions have at most {max_length:,} characters."),
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
        at_most("name", 500, "Names of groups have at most {max_length:,} characters."),
        _CREATED,
        _CHANGED,
        _TIMES,
    ),
    "comments": (
        present("ticket_id", "warn", "Every comment belongs to a ticket."),
        present("author_id", "warn", "Every comment has an author."),
        present("body", "warn", "Every comment says something."),
        at_most("body", 1_000_000, "Comments have at most {max_length:,} characters."),
        _CREATED,
        _TIMES,
    ),
    "assets": (
        present("name", "warn", "Every asset has a name."),
        at_most("name", 500, "Names of assets have at most {max_length:,} characters."),
        present("type", "warn", "Every asset has a type."),
        _CREATED,
        _TIMES,
    ),
    "problems": (
        present("subject", "warn", "Every problem has a subject."),
        at_most("subject", 1_000, "Subjects have at most {max_length:,} characters."),
        present("status", "warn", "Every problem has a status."),
        _CREATED,
        _TIMES,
        in_order("created_at", "resolved_at", "A problem is not resolved before it was created."),
        in_order("resolved_at", "closed_at", "A problem is not closed before it was resolved."),
    ),
    "changes": (
        present("subject", "warn", "Every change has a subject."),
        at_most("subject", 1_000, "Subjects have at most {max_length:,} characters."),
        present("status", "warn", "Every change has a status."),
        _CREATED,
        _TIMES,
        in_order("planned_start_at", "planned_end_at", "A change is not planned to end before it begins."),
        in_order("created_at", "closed_at", "A change is not closed before it was created."),
    ),
}
