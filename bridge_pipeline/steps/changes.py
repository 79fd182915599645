"""What changed since the last report of a connection: kept in the ledger, without run facts.

A report is compared with the one of this day as it last differed, else with the newest of an
earlier day. As long as its own state stays the same it stays compared with the same one: the same
data gives the same report (rule 30).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from bridge_pipeline.database import tables as t
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.steps.findings import Part

State = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One difference; `kind` is new, worse, better, mended or other."""

    kind: str
    entity: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """The differences from the report of `day`; None for the first report of a connection."""

    day: date | None
    changes: tuple[Change, ...]


def state_of(parts: Iterable[Part], titles: dict[str, str]) -> State:
    """What a report says, as far as a later one is compared with it. `titles` are the verdicts.

    What was not looked at is None: it is neither wrong nor mended.
    """
    return {part.entity: _state_of(part, titles[part.entity]) for part in parts}


def _state_of(part: Part, title: str) -> State:
    checked = part.batch is not None and part.batch.verdict != "pending"
    failing = {each.name: [each.unexpected, each.sentence] for each in part.failures}
    rejected = {each.code: [each.count, each.reason.sentence] for each in part.rejections}
    return {
        "verdict": title,
        "records": part.records if part.batch else None,
        "failing": failing if checked else None,
        "rejected": rejected if checked else None,
    }


def compare(connection: sa.Connection, record: ConnectionRecord, day: date, state: State) -> Comparison:
    """Compares with the report before, and keeps this one."""
    r = t.reports
    mine = sa.select(r).where(r.c.connection == record.name, r.c.day == day)
    own = connection.execute(mine).one_or_none()
    if own is not None and own.state == state:
        return _comparison(own.compared_day, own.compared_state, state)
    before = own or _earlier(connection, record.name, day)
    compared_day, compared_state = (before.day, before.state) if before is not None else (None, None)
    values = {
        "state": state,
        "compared_day": compared_day,
        "compared_state": compared_state,
        "written_at": sa.func.now(),
    }
    statement = insert(r).values(connection=record.name, day=day, tenant=record.tenant, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["connection", "day"], set_=values))
    return _comparison(compared_day, compared_state, state)


def _earlier(connection: sa.Connection, name: str, day: date) -> sa.Row[Any] | None:
    r = t.reports
    query = sa.select(r).where(r.c.connection == name, r.c.day < day).order_by(r.c.day.desc())
    return connection.execute(query.limit(1)).one_or_none()


def _comparison(day: date | None, before: State | None, now: State) -> Comparison:
    if before is None:
        return Comparison(None, ())
    return Comparison(day, tuple(differences(before, now)))


def differences(before: State, now: State) -> Iterable[Change]:
    """The differences between two states, entity by entity."""
    for entity in dict.fromkeys([*now, *before]):
        old, new = before.get(entity), now.get(entity)
        if old is None or new is None:
            kind, text = (
                ("new", "is reported on now") if old is None else ("other", "is not reported on any more")
            )
            yield Change(kind, entity, text)
            continue
        if old["verdict"] != new["verdict"]:
            yield Change("other", entity, f"Verdict: “{new['verdict']}”, before “{old['verdict']}”.")
        yield from _counts(entity, old["failing"], new["failing"], "failing")
        yield from _counts(entity, old["rejected"], new["rejected"], "set aside")
        if None not in (old["records"], new["records"]) and old["records"] != new["records"]:
            yield Change("other", entity, f"{new['records']:,} records, before {old['records']:,}.")


def _counts(entity: str, old: State | None, new: State | None, what: str) -> Iterable[Change]:
    if new is None:
        return
    old = old or {}
    for name in dict.fromkeys([*new, *old]):
        count, sentence = new.get(name) or [0, old[name][1]]
        past = old.get(name, [0])[0]
        if name not in old:
            yield Change("new", entity, f"{sentence} {count:,} {what}.")
        elif name not in new:
            yield Change("mended", entity, f"{sentence} None {what} any more, before {past:,}.")
        elif count != past:
            kind = "worse" if count > past else "better"
            yield Change(kind, entity, f"{sentence} {count:,} {what}, before {past:,}.")
