"""Encoded queries (`sysparm_query`), as an instance reads them (vendor-apis D.2).

A part that it does not understand is dropped without a word, and the rest runs.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Longer ones first: `>=` also begins with `>`.
_OPERATORS = (
    "NOT IN",
    "NOT LIKE",
    "ISNOTEMPTY",
    "ISEMPTY",
    "STARTSWITH",
    "ENDSWITH",
    "BETWEEN",
    "LIKE",
    "IN",
    "!=",
    ">=",
    "<=",
    "=",
    ">",
    "<",
)
_TERM = re.compile(rf"([a-z_][a-z0-9_.]*)({'|'.join(_OPERATORS)})(.*)", re.DOTALL)
_GENERATED = re.compile(r"javascript:gs\.dateGenerate\('([\d-]+)','([\d:]+)'\)")
_NUMBER = re.compile(r"-?\d+")
Value = Callable[[Any, str], str]


@dataclass(frozen=True)
class Term:
    """One condition: `field`, `operator`, `value`."""

    field: str
    operator: str
    value: str

    def holds(self, found: str) -> bool:
        """Whether a row with that value fulfils it. Empty values are smaller and larger than none."""
        test = _TESTS.get(self.operator)
        if test:
            return test(found, self.value)
        if self.operator == "BETWEEN":
            low, _, high = self.value.partition("@")
            return found != "" and _comparable(found, low) >= 0 and _comparable(found, high) <= 0
        if found == "":
            return False
        order = _comparable(found, self.value)
        return {">": order > 0, ">=": order >= 0, "<": order < 0, "<=": order <= 0}[self.operator]


@dataclass(frozen=True)
class Query:
    """Alternatives of conjunctions of alternatives, the order of rows, and whether something was dropped."""

    alternatives: tuple[tuple[tuple[Term, ...], ...], ...]
    order: tuple[tuple[str, bool], ...]
    dropped: bool

    def matches(self, row: Any, value: Value) -> bool:
        """Whether a row belongs to the answer."""
        return any(
            all(any(term.holds(value(row, term.field)) for term in group) for group in alternative)
            for alternative in self.alternatives
        )


def parse(text: str, known: Callable[[str], bool]) -> Query:
    """Takes an encoded query apart; `known` says of a field whether the table has it."""
    alternatives: list[tuple[tuple[Term, ...], ...]] = []
    order: list[tuple[str, bool]] = []
    dropped = False
    for block in text.split("^NQ"):
        groups: list[list[Term]] = []
        for part in block.split("^"):
            if part in ("", "EQ"):
                continue
            if part.startswith("ORDERBY"):
                dropped |= not _order(part, known, order)
                continue
            alternative = part.startswith("OR") and bool(groups)
            term = _term(part.removeprefix("OR") if alternative else part, known)
            if term is None:
                dropped = True
            elif alternative:
                groups[-1].append(term)
            else:
                groups.append([term])
        alternatives.append(tuple(tuple(group) for group in groups))
    return Query(tuple(alternatives), tuple(order), dropped)


def _order(part: str, known: Callable[[str], bool], order: list[tuple[str, bool]]) -> bool:
    descending = part.startswith("ORDERBYDESC")
    field = part.removeprefix("ORDERBYDESC" if descending else "ORDERBY")
    if known(field):
        order.append((field, descending))
    return known(field)


def _term(part: str, known: Callable[[str], bool]) -> Term | None:
    found = _TERM.fullmatch(part)
    if found is None or not known(found[1]):
        return None
    value = _GENERATED.sub(r"\1 \2", found[3])
    return Term(found[1], found[2], value)


def _comparable(found: str, value: str) -> int:
    """-1, 0 or 1; whole numbers by their size, all else as text."""
    if _NUMBER.fullmatch(found) and _NUMBER.fullmatch(value):
        return (int(found) > int(value)) - (int(found) < int(value))
    return (found > value) - (found < value)


def _listed(value: str) -> Iterable[str]:
    return value.split(",")


_TESTS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda found, value: found == value,
    "!=": lambda found, value: found != value,
    "LIKE": lambda found, value: value.lower() in found.lower(),
    "NOT LIKE": lambda found, value: value.lower() not in found.lower(),
    "STARTSWITH": lambda found, value: found.lower().startswith(value.lower()),
    "ENDSWITH": lambda found, value: found.lower().endswith(value.lower()),
    "IN": lambda found, value: found in _listed(value),
    "NOT IN": lambda found, value: found not in _listed(value),
    "ISEMPTY": lambda found, value: found == "",
    "ISNOTEMPTY": lambda found, value: found != "",
}
