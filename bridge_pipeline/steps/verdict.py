"""The verdict of a report: five answers in plain words, and the next steps with who takes them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.steps.certificate import verdict_words
from bridge_pipeline.steps.findings import Findings, Part, last_day
from bridge_pipeline.steps.reasons import CONTENT, PIPELINE

OWNERS = {
    PIPELINE: "data-platform, who run the pipeline",
    CONTENT: "data-quality, who look after the content",
}
_MOST_NAMED = 5


@dataclass(frozen=True)
class Verdict:
    """`level` is good, fair or bad; `title` says it in a word or two, `text` in a sentence."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class Step:
    """What is to be done next, by whom, and the command that does it. `fact`: the command names a batch."""

    owner: str
    text: str
    command: str | None = None
    fact: bool = False


@dataclass(frozen=True)
class Answers:
    """What a reader wants to know first, in this order."""

    complete: str
    right: str
    wrong: tuple[str, ...]
    owners: tuple[str, ...]
    steps: tuple[Step, ...]


def verdict_of(part: Part) -> Verdict:
    """What to think of one entity."""
    batch = part.batch
    if batch is None:
        return Verdict("bad", "Not extracted", f"No {part.entity} were fetched for this day.")
    if not all(equation.holds for equation in part.equations):
        return Verdict("bad", "Not accounted for", "Records that were fetched are not accounted for.")
    if batch.verdict == "blocked":
        return Verdict("bad", "Blocked", "A check stops this data; tables, files and figures do not have it.")
    if batch.verdict == "pending":
        return Verdict("bad", "Not checked", "The checks have not run; nothing uses this data yet.")
    if any(equation.waiting for equation in part.equations):
        return Verdict("bad", "Not loaded", "The data may be used and is not in the tables yet.")
    if batch.verdict == "accepted":
        return Verdict("fair", "Accepted", "A check found fault, and a reviewer let the data through.")
    found, aside = len(part.failures), part.set_aside
    if found or aside:
        remarks = [f"{found} of {_checks(len(part.checks))} found something"] if found else []
        remarks += [f"{_records(aside)} set aside in quarantine"] if aside else []
        return Verdict("fair", "Usable, with remarks", f"{' and '.join(remarks)}.")
    if not part.checks:
        return Verdict("fair", "Usable, with remarks", "No check looked at it.")
    return Verdict("good", "Good", f"All {_checks(len(part.checks))} passed.")


def overall(parts: Iterable[Part], shortfall: Certificate | None = None) -> Verdict:
    """What to think of the day as a whole: the worst of its entities decides.

    Args:
        shortfall: a certificate that is not complete and speaks of this day.
    """
    each = {part.entity: verdict_of(part) for part in parts}
    bad = [f"{entity}: {verdict.title.lower()}" for entity, verdict in each.items() if verdict.level == "bad"]
    if shortfall is not None:
        bad.append(f"certificate {shortfall.number}: {verdict_words(shortfall.document)[0].lower()}")
    if bad:
        return Verdict("bad", "Do not rely on this data yet", f"{'; '.join(bad)}.".capitalize())
    if any(verdict.level == "fair" for verdict in each.values()):
        return Verdict(
            "fair",
            "Complete and usable, with remarks",
            "Every record is accounted for; some need somebody's attention.",
        )
    return Verdict("good", "Complete and good", "Every record is accounted for, and every check passed.")


def answers(findings: Findings) -> Answers:
    """The five answers of a day."""
    steps = tuple(_steps(findings))
    wrong = list(_wrong(findings))
    return Answers(
        complete=_complete(findings.parts, findings.shortfall),
        right=_right(findings.parts),
        wrong=tuple(_first(wrong)),
        owners=tuple(dict.fromkeys(OWNERS.get(step.owner, step.owner) for step in steps)),
        steps=steps,
    )


def run_command(name: str, first: date, last: date, entities: Iterable[str]) -> str:
    """The command that extracts days again."""
    return f"bridge run {name} --from {first} --to {last} --entities {','.join(entities)}"


def owner_of_block(part: Part) -> str:
    """Who decides about a blocked batch: the owner of the check that blocks."""
    return next((each.owner for each in part.failures if each.severity == "block"), PIPELINE)


def share(count: int, of: int) -> str:
    """A share in per cent, never rounded to none or all where that is not true."""
    if not of:
        return ""
    percent = 100 * count / of
    if 0 < percent < 0.1:
        shown = "under 0.1"
    elif 99.9 < percent < 100:
        shown = "over 99.9"
    else:
        shown = f"{percent:.1f}".removesuffix(".0")
    # The sign stays with its number at the end of a line.
    return f"{shown}\u00a0%"


def _complete(parts: tuple[Part, ...], shortfall: Certificate | None) -> str:
    missing = [part.entity for part in parts if part.batch is None]
    lost = [part.entity for part in parts if not all(equation.holds for equation in part.equations)]
    waiting = [part.entity for part in parts if any(equation.waiting for equation in part.equations)]
    if missing:
        return f"No. {_listed(missing).capitalize()} were never fetched for this day."
    if lost:
        return f"No. Records of {_listed(lost)} were fetched and cannot be accounted for."
    if shortfall is not None:
        return f"No. By certificate {shortfall.number}: {verdict_words(shortfall.document)[1]}"
    count = sum(part.records for part in parts)
    if waiting:
        return (
            f"Not yet. All {_records(count)} that the service desk sent are kept, but those of "
            f"{_listed(waiting)} have not reached the tables."
        )
    aside, replayed = sum(part.set_aside for part in parts), sum(part.replayed for part in parts)
    kept = f"; {aside:,} of them set aside in quarantine, nothing thrown away" if aside else ""
    kept += f"; {replayed:,} of them set aside at first and loaded since by replay" if replayed else ""
    return f"Yes. Every one of the {_records(count)} that the service desk sent is accounted for{kept}."


def _right(parts: tuple[Part, ...]) -> str:
    checks = [check for part in parts for check in part.checks]
    unchecked = [part.entity for part in parts if part.batch is not None and not part.checks]
    if not checks:
        return "Not known. No check has looked at it."
    failed = [check for check in checks if not check.passed]
    found = f"{len(failed)} of {_checks(len(checks))} found something"
    if not failed:
        said = f"Yes. All {_checks(len(checks))} passed"
    elif blocking := sum(check.severity == "block" for check in failed):
        said = f"No. {found}, {blocking} of them so grave that the data is held back"
    else:
        said = f"Mostly. {found}; none of it stops the data"
    return f"{said}; {_listed(unchecked)} not checked yet." if unchecked else f"{said}."


def _wrong(findings: Findings) -> Iterable[str]:
    parts = findings.parts
    if findings.shortfall is not None:
        title, text = verdict_words(findings.shortfall.document)
        yield f"certificate {findings.shortfall.number}, {title.lower()}: {text}"
    for part in parts:
        if part.batch is None:
            yield f"{part.entity}: nothing was fetched for this day."
        if part.batch is not None and part.batch.verdict == "pending":
            yield f"{part.entity}: the checks have not run."
        if not all(equation.holds for equation in part.equations):
            yield f"{part.entity}: records are missing from the reckoning."
    failures = [(part, failure) for part in parts for failure in part.failures]
    order = {"block": 0, "quarantine": 1, "warn": 2}
    for part, failure in sorted(failures, key=lambda each: order[each[1].severity]):
        yield f"{part.entity}: {_failing(failure.sentence, failure.unexpected, failure.evaluated)}"
    for part in parts:
        for rejection in part.rejections:
            yield f"{part.entity}: {rejection.reason.sentence} ({_records(rejection.count)} set aside)"


def _failing(sentence: str, unexpected: int, evaluated: int) -> str:
    part = share(unexpected, evaluated)
    count = (
        f"{unexpected:,} of {evaluated:,}" + (f", {part}" if part else "") if evaluated else f"{unexpected:,}"
    )
    return f"expected: “{sentence}” Not so for {count}."


def _first(found: list[str]) -> list[str]:
    if len(found) <= _MOST_NAMED + 1:
        return found
    return [*found[:_MOST_NAMED], f"and {len(found) - _MOST_NAMED:,} more, listed below."]


def _steps(findings: Findings) -> Iterable[Step]:
    name, day = findings.record.name, findings.day
    missing = [part.entity for part in findings.parts if part.batch is None]
    if missing:
        text = f"Fetch {_listed(missing)} of this day."
        yield Step(PIPELINE, text, run_command(name, day, day, missing))
    for part in findings.parts:
        if part.batch is not None:
            yield from _repairs(part, part.batch)
    if findings.shortfall is not None:
        yield from _reckonings(findings.shortfall)
    for batch in findings.blocked_elsewhere[:_MOST_NAMED]:
        last = last_day(batch)
        text = f"Decide about {batch.entity} of {batch.window_start.date()} to {last}, too: still blocked."
        yield Step(PIPELINE, text, f"bridge report {name} --day {last}")
    for part in findings.parts:
        yield from _remarks(name, part)


def _repairs(part: Part, batch: Batch) -> Iterable[Step]:
    """What must be done before the data can be used."""
    again = run_command(batch.connection, batch.window_start.date(), last_day(batch), [part.entity])
    if any(not equation.holds for equation in part.equations):
        yield Step(PIPELINE, f"Find out why {part.entity} do not add up, and fetch them again.", again)
    elif batch.verdict == "blocked":
        owner = owner_of_block(part)
        text = f"Decide about the blocked {part.entity}. After the cause is corrected, fetch them again."
        yield Step(owner, text, again)
        text = f"Or, if the {part.entity} are right as they are, let them through; name and reason are kept."
        yield Step(owner, text, f'bridge accept {batch.id} --by "YOUR NAME" --reason "WHY"', fact=True)
    elif batch.verdict == "pending" or any(equation.waiting for equation in part.equations):
        yield Step(PIPELINE, f"Let the checks and the load of {part.entity} run.", again)


def _reckonings(shortfall: Certificate) -> Iterable[Step]:
    """What must be done until a certificate is complete."""
    command = shortfall.document["command"]
    names = f"The page of certificate {shortfall.number} names them"
    if shortfall.verdict == "blocked":
        text = (
            f"Find out why records are gone from the service desk. {names}. If they are back, reckon again."
        )
        yield Step(CONTENT, text, command)
        text = "Or, if they may be deleted, accept it; name and reason are kept."
        yield Step(CONTENT, text, f'{command} --accept-deletions --by "YOUR NAME" --reason "WHY"')
    else:
        text = f"Find out what became of the records that are not accounted for. {names}. Then reckon again."
        yield Step(PIPELINE, text, command)


def _remarks(name: str, part: Part) -> Iterable[Step]:
    """What should be corrected, although the data can be used."""
    for owner in dict.fromkeys(each.owner for each in part.failures if each.severity != "block"):
        text = f"Go through the examples of {part.entity} below and have them corrected in the service desk."
        yield Step(owner, text)
    for rejection in part.rejections:
        text = f"{_records(rejection.count)} of {part.entity} set aside: {rejection.reason.sentence}"
        command = f"bridge quarantine list {name} --reason {rejection.code}"
        yield Step(rejection.reason.owner, f"{text} {rejection.reason.remedy}", command)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _records(count: int) -> str:
    return f"{count:,} record" if count == 1 else f"{count:,} records"


def _checks(count: int) -> str:
    return f"{count:,} check" if count == 1 else f"{count:,} checks"
