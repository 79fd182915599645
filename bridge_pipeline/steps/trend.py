"""The trend line of the report: the records of each of the last 30 days, as points of an inline SVG."""

from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from bridge_pipeline.database import tables as t

DAYS = 30
WIDTH, HEIGHT = 240, 48
_MARGIN = 4


@dataclass(frozen=True)
class Trend:
    """`lines` and `dots` are in the picture's units; a gap is a day without data.

    `text` says the same for those who do not see it.
    """

    lines: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    text: str


def trend(connection: sa.Connection, name: str, entity: str, day: date) -> Trend:
    """The records that changed on each of the 30 days up to `day`, by the current audit files."""
    a = t.audit_files
    first = day - timedelta(days=DAYS - 1)
    query = (
        sa.select(a.c.day, a.c.rows)
        .ext(distinct_on(a.c.day))
        .where(a.c.connection == name, a.c.entity == entity, a.c.day.between(first, day))
        .order_by(a.c.day, a.c.version.desc())
    )
    counts = {row.day: int(row.rows) for row in connection.execute(query)}
    return drawn(entity, [counts.get(first + timedelta(days=n)) for n in range(DAYS)])


def drawn(entity: str, counts: list[int | None]) -> Trend:
    """The picture of counts per day, the last one at the right; None is a day without data."""
    most = max((count for count in counts if count is not None), default=0)
    step = (WIDTH - 2 * _MARGIN) / max(len(counts) - 1, 1)
    points = [
        None
        if count is None
        else (
            round(_MARGIN + index * step, 1),
            round(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * count / max(most, 1), 1),
        )
        for index, count in enumerate(counts)
    ]
    lines: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            lines.append([])
        else:
            lines[-1].append(point)
    dots = [line[0] for line in lines if len(line) == 1]
    if points and points[-1] is not None:
        dots.append(points[-1])
    return Trend(
        tuple(" ".join(f"{x},{y}" for x, y in line) for line in lines if len(line) > 1),
        tuple(dict.fromkeys(dots)),
        _text(entity, counts),
    )


def _text(entity: str, counts: list[int | None]) -> str:
    known = [count for count in counts if count is not None]
    if not known:
        return f"No day of the last {len(counts)} has data for {entity}."
    missing = len(counts) - len(known)
    last = "no data" if counts[-1] is None else f"{counts[-1]:,}"
    gaps = f"; {missing} of {len(counts)} days without data" if missing else ""
    return (
        f"{entity.capitalize()} per day, last {len(counts)} days: lowest {min(known):,}, "
        f"highest {max(known):,}, this day {last}{gaps}."
    )
