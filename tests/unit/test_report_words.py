"""Every reason has words, shares are never rounded to a lie, and the comparison says what is true."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge_pipeline
from bridge_pipeline.steps.changes import Change, differences
from bridge_pipeline.steps.reasons import REASONS, reason_of
from bridge_pipeline.steps.report import markdown_text
from bridge_pipeline.steps.trend import drawn
from bridge_pipeline.steps.verdict import share

SOURCES = sorted(Path(bridge_pipeline.__file__).parent.rglob("*.py"))
# Which argument of a call is the reason.
POSITIONS = {"Refused": 0, "Rejected": 1}


def reasons_in_the_code() -> Iterator[tuple[str, str]]:
    """Every reason that a `Refused` or `Rejected` is made with, and where."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        sources = {
            node.target.id: functions[node.value.func.id]
            for node in ast.walk(tree)
            if isinstance(node, ast.NamedExpr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
            and node.value.func.id in functions
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in POSITIONS:
                yield from ((code, path.name) for code in codes(node, sources))


def codes(call: ast.Call, sources: dict[str, ast.FunctionDef]) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    reason = given.get("reason") or call.args[POSITIONS[call.func.id]]  # type: ignore[attr-defined]
    if isinstance(reason, ast.Constant):
        yield reason.value
    elif isinstance(reason, ast.Name):
        returns = [node.value for node in ast.walk(sources[reason.id]) if isinstance(node, ast.Return)]
        for value in returns:
            yield from (
                part.value for part in ast.walk(value) if isinstance(part, ast.Constant) and part.value
            )
    else:
        assert ast.unparse(reason) == "refused.reason", f"give a reason by name, not {ast.unparse(reason)}"


def test_every_reason_that_the_code_gives_has_words_and_a_remedy():
    found = dict(reasons_in_the_code())
    assert len(found) > 10
    assert {code: place for code, place in found.items() if code not in REASONS} == {}
    assert [code for code in REASONS if code not in found] == [], "no words for what cannot happen"


def test_a_record_that_a_check_refused_is_explained_by_the_check():
    reason = reason_of("no_fire", {"no_fire": "Nothing burns."}, {"no_fire": "fire-brigade"})
    assert "Nothing burns." in reason.sentence
    assert reason.owner == "fire-brigade"
    assert "unheard" in reason_of("unheard", {}, {}).sentence


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [
        (0, 5, "0 %"),
        (1, 3, "33.3 %"),
        (5, 5, "100 %"),
        (1, 9_999, "under 0.1 %"),
        (9_999, 10_000, "over 99.9 %"),
        (1, 0, ""),
    ],
)
def test_a_share_is_neither_none_nor_all_unless_it_is(count, of, shown):
    assert share(count, of) == shown.replace(" %", "\u00a0%")


def entity(**changes):
    return {"verdict": "Good", "records": 10, "failing": {}, "rejected": {}} | changes


def test_what_is_new_worse_better_and_mended_is_told_apart():
    before = entity(failing={"a": [3, "A."], "b": [1, "B."], "c": [9, "C."]}, rejected={"nul": [1, "N."]})
    after = entity(failing={"b": [2, "B."], "c": [4, "C."], "d": [5, "D."]}, records=12)
    assert list(differences({"users": before}, {"users": after})) == [
        Change("worse", "users", "B. 2 failing, before 1."),
        Change("better", "users", "C. 4 failing, before 9."),
        Change("new", "users", "D. 5 failing."),
        Change("mended", "users", "A. None failing any more, before 3."),
        Change("mended", "users", "N. None set aside any more, before 1."),
        Change("other", "users", "12 records, before 10."),
    ]
    assert list(differences({"users": after}, {"users": after})) == []


def test_what_was_not_looked_at_is_not_called_mended():
    before = entity(failing={"a": [3, "A."]}, rejected={"nul": [1, "N."]})
    after = entity(verdict="Not checked", failing=None, rejected=None, records=None)
    (change,) = differences({"users": before}, {"users": after})
    assert (change.kind, "Not checked" in change.text) == ("other", True)


def test_the_trend_leaves_gaps_and_says_in_words_what_it_shows():
    trend = drawn("tickets", [3, 9, None, 4, None, 6, 7])
    assert [len(line.split()) for line in trend.lines] == [2, 2]
    assert len(trend.dots) == 2
    assert (
        trend.text
        == "Tickets per day, last 7 days: lowest 3, highest 9, this day 7; 2 of 7 days without data."
    )
    assert drawn("tickets", [None] * 30).lines == ()
    assert len(drawn("tickets", [0] * 30).lines) == 1


@pytest.mark.parametrize(
    "text", ["a|b", "<b>x</b>", "![x](http://evil.example)", "# head", "`code`", "two\nlines", "*x*"]
)
def test_nothing_of_a_value_is_markup_in_markdown(text):
    shown = markdown_text(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert all(shown[i - 1] == "\\" for i, letter in enumerate(shown) if letter in "|*`[]!")
