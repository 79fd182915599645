"""Every reason has words, shares are never rounded to a lie, and the comparison says what is true."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import bridge_pipeline
from bridge_pipeline.database.ledger import Batch, CheckResult
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.model import Window
from bridge_pipeline.steps.changes import Change, differences
from bridge_pipeline.steps.findings import Equation, Findings, Part, Rejection
from bridge_pipeline.steps.reasons import REASONS, reason_of
from bridge_pipeline.steps.report import markdown_text
from bridge_pipeline.steps.trend import drawn
from bridge_pipeline.steps.verdict import answers, overall, share, verdict_of

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


NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
DAY = Window.of_days(NOON.date(), NOON.date())
CHECK = CheckResult("named", "warn", "Everything has a name.", "content", True, 3, 0, [])
ACCOUNTED = "Every record is accounted for"
OTHERS = {"outside": 0, "duplicate": 0, "requests": 1, "pages": 1, "sweeps": 1, "quarantined": 0, "landed": 3}


def part(verdict: str | None = "passed", loaded: int = 3, waiting: int = 0, **more: Any) -> Part:
    """An entity of which three records were fetched."""
    if verdict is None:
        return Part("tickets", None, drawn("tickets", []), 0, 0)
    batch = Batch(
        id=7,
        tenant="acme",
        connection="acme-helpdesk",
        entity="tickets",
        kind="window",
        window_start=DAY.start,
        window_end=DAY.end,
        extraction=1,
        fetched=3,
        **OTHERS,
        proof={},
        files=[],
        excluded=[],
        fetched_from=NOON,
        fetched_to=NOON,
        run_id=None,
        verdict=verdict,
    )
    equations = (Equation(batch, {"loaded": loaded}, waiting),)
    found = {"checks": (CHECK,), "equations": equations} | more
    return Part("tickets", batch, drawn("tickets", [3]), 3, 0, **found)


def findings(*parts: Part) -> Findings:
    record = ConnectionRecord("acme-helpdesk", "acme", "helpdesk", {}, ("tickets",))
    return Findings(record, NOON.date(), parts, (), (), None, True, {})


@pytest.mark.parametrize(
    ("found", "level", "title", "wrong", "first_step"),
    [
        (part(None), "bad", "Not extracted", 1, "Fetch tickets of this day."),
        (part(loaded=2), "bad", "Not accounted for", 1, "Find out why tickets do not add up"),
        (part("blocked"), "bad", "Blocked", 0, "Decide about the blocked tickets."),
        (part("pending"), "bad", "Not checked", 1, "Let the checks and the load of tickets run."),
        (part(loaded=0, waiting=3), "bad", "Not loaded", 0, "Let the checks and the load of tickets run."),
        (part("accepted"), "fair", "Accepted", 0, None),
        (part(checks=()), "fair", "Usable, with remarks", 0, None),
        (part(), "good", "Good", 0, None),
    ],
)
def test_the_verdict_and_the_first_step_are_those_of_what_happened(found, level, title, wrong, first_step):
    verdict, told = verdict_of(found), answers(findings(found))
    assert (verdict.level, verdict.title) == (level, title)
    assert len(told.wrong) == wrong
    first = told.steps[0].text if told.steps else None
    assert first == first_step or first.startswith(first_step)


def test_only_what_there_is_to_remark_is_remarked():
    aside = part(rejections=(Rejection("odd", reason_of("odd", {}, {}), 2, ()),))
    assert verdict_of(aside).text == "2 records set aside in quarantine."


@pytest.mark.parametrize(
    ("parts", "level", "text"),
    [
        ((part(), part("accepted"), part("blocked")), "bad", "Tickets: blocked."),
        (
            (part(), part("accepted")),
            "fair",
            "Every record is accounted for; some need somebody's attention.",
        ),
        ((part(), part()), "good", f"{ACCOUNTED}, and every check passed."),
    ],
)
def test_the_worst_entity_decides_about_the_day(parts, level, text):
    named = [replace(each, entity=f"tickets{'_' * place}") for place, each in enumerate(reversed(parts))]
    assert (overall(named).level, overall(named).text) == (level, text)


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
