"""What the measurements are made of: the source serves what the helpdesk serves, the page tells all."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from bench import source
from bench.__main__ import _arguments, _figures
from bench.browser import NoBrowser, program
from bench.measurements import Row, Sizes, _whole
from bench.page import rendered
from bench.records import PAGE, World, render
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connectors.helpdesk.streams import STREAMS
from bridge_pipeline.steps.parse import RecordParser

LATEST = 2**62


def served(folder, entity):
    """The records of every page of an entity, as the source sends them."""
    starts, data = source._starts(folder, entity), (folder / f"{entity}.pages").read_bytes()
    bodies = [data[begin:end] for begin, end in pairwise(starts)]
    return [pages.parse_list(body, ("data",)) for body in bodies]


def test_the_rendered_records_are_what_the_helpdesk_connector_reads(tmp_path):
    world = World(2 * PAGE + 1, 30)
    render(world, tmp_path / "world")
    for stream, count in zip(STREAMS, (world.accounts, world.users, world.tickets), strict=True):
        listing = served(tmp_path / "world", stream.entity.name)
        parser = RecordParser(stream)
        rows = [parser.batch(page.records, LATEST, None) for page in listing]
        assert [name for part in rows for name in part["id"].to_pylist()] == [
            str(number) for number in range(1, count + 1)
        ]
        assert [page.more for page in listing] == [True] * (len(listing) - 1) + [False]


def test_in_a_changed_world_the_first_of_every_hundred_has_another_version(tmp_path):
    versions = []
    for every in (0, 100):
        render(World(300, 30, every), tmp_path / str(every))
        (page,) = served(tmp_path / str(every), "tickets")
        parser = RecordParser(STREAMS[2])
        versions.append(parser.batch(page.records, LATEST, None)["content_hash"].to_pylist())
    before, after = versions
    assert [n for n, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [
        0,
        100,
        200,
    ]
    assert World(300, 30, 100).changed == 3
    assert World(301, 30, 100).changed == 4


def test_tickets_have_the_fields_of_another_data_set_in_turn(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('symptom,room\n"no ""link""",12\nstill none,\n', encoding="utf-8-sig")
    render(World(3, 30, rows=path), tmp_path / "world")
    (page,) = served(tmp_path / "world", "tickets")
    assert [(each["cf_data_symptom"], each["cf_data_room"]) for each in page.records] == [
        ('no "link"', "12"),
        ("still none", ""),
        ('no "link"', "12"),
    ]


def figures(at: str, *rows: Row) -> dict[str, object]:
    """What a run of the benchmark writes as JSON."""
    return {
        "at": at,
        "machine": "2 cores",
        "versions": {"Python": "3.11"},
        "command": f"python -m bench --rounds {len(rows)}",
        "rounds": 3,
        "notes": [f"the machine was busy at {at}"],
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


TIME = Row("a", "time of A", "B", 0.2, 0.25, False, shown={"a, s": 1.0}, told=("B was given up.",))
RATE = Row("a", "rate of C", "D", 4.5, 10, True, shown={"c rows/s": 12_345.6})


def test_the_page_says_which_aims_are_met_and_how_to_reproduce_it():
    page = rendered(figures("2026-01-01 12:00", TIME, RATE))
    assert "| time of A | B | 0.2 × | ≤ 0.25 × | yes | 2026-01-01 12:00 |" in page
    assert "| rate of C | D | 4.5 × | ≥ 10 × | **no** | 2026-01-01 12:00 |" in page
    for told in (
        "`python -m bench --rounds 2`",
        "2 cores",
        "Python 3.11",
        "the machine was busy",
        "c rows/s",
        "B was given up",
    ):
        assert told in page


def test_what_a_later_run_does_not_measure_keeps_its_row_and_says_of_which_run_it_is():
    first, second, third = "2026-01-01 12:00", "2026-01-02 12:00", "2026-01-03 12:00"
    # What explains the figures may have been put otherwise when the page was written.
    before = rendered(figures(first, TIME, RATE)).replace("Memory is the most", "It is the most")
    page = rendered(figures(second, replace(RATE, value=11.0, shown={"c rows/s": 7.0})), before)
    assert f"| time of A | B | 0.2 × | ≤ 0.25 × | yes | {first} |" in page
    assert f"| rate of C | D | 11 × | ≥ 10 × | yes | {second} |" in page
    assert "rate of C. c rows/s: 7." in page
    assert "time of A. a, s: 1. Beware: B was given up." in page
    for gone in ("1.235e+04", "4.5 ×"):
        assert gone in before
        assert gone not in page
    assert "It is the most" not in page
    for at in (first, second):
        assert f"busy at {at}" in page
    # Of a run none of whose rows is left nothing is told; the same figures again change nothing.
    last = rendered(figures(third, TIME), page)
    assert f"- **{first}**" not in last
    assert rendered(figures(third, TIME), last) == last


def test_runs_that_began_in_the_same_minute_are_told_apart(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench"])
    began = [datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC) for second in (1, 2)]
    first, second = (_figures([], Sizes(), _arguments(), each)["at"] for each in began)
    page = rendered(figures(second, RATE), rendered(figures(first, TIME)))
    assert page.count("the machine was busy") == 2


def test_a_data_set_of_any_name_has_a_row_that_a_later_run_takes_the_place_of(tmp_path):
    subject = f"40 tickets{Sizes(rows=tmp_path / 'odd. name|x.csv').data}: time"
    row = replace(TIME, subject=subject)
    page = rendered(figures("2026-01-01 12:00", row))
    assert f"| {subject} | B | 0.2 × | ≤ 0.25 × | yes |" in page
    assert rendered(figures("2026-01-01 12:00", row), page) == page


@pytest.mark.parametrize(
    "option",
    ["--rounds 0", "--tickets 40,", "--tickets x", "--memory 0,5", "--small=-1", "--rows no", "--rows latin"],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(monkeypatch, capsys, tmp_path, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin").write_bytes("name\nZoë\n".encode("latin-1"))
    monkeypatch.setattr("sys.argv", ["bench", *option.split()])
    with pytest.raises(SystemExit):
        _arguments()
    assert f"argument {option.replace('=', ' ').split()[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "loaded"), [(39, 40), (40, 39)])
def test_a_run_that_did_not_do_all_its_work_is_no_measurement(rows, loaded):
    assert _whole({"rows": 40, "loaded": 40}, 40, 40)
    with pytest.raises(RuntimeError, match="39"):
        _whole({"rows": rows, "loaded": loaded}, 40, 40)


def test_without_a_browser_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBrowser, match="install chromium"):
        program()
