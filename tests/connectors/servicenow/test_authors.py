"""Comments name their authors, as far as the instance tells whose login it is."""

from urllib.parse import unquote

import pytest

from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connectors.servicenow import CONNECTOR
from bridge_pipeline.connectors.servicenow.simulator.habits import Habits
from tests.connectors.servicenow.reading import BASIC, instance, open_client, read

STREAM = CONNECTOR.stream("comments")
AUTHOR = STREAM.fields[STREAM.entity.column_names.index("author_id")]


def authors(rows):
    """The author of each row, beside the login that it came with."""
    return {key: (row["sys_created_by"], AUTHOR.read(row)) for key, row in rows.items()}


def logins(dialect):
    table = dialect.world.tables["sys_user"]
    return {table.value(row, "user_name"): row.id for row in table.rows.values()}


def asked(simulator):
    paths = [unquote(line["path"]) for line in simulator.requests]
    return [path for path in paths if "/table/sys_user?" in path]


def test_a_login_is_the_user_who_has_it_and_is_asked_for_once(tmp_path):
    with instance() as (simulator, dialect):
        found = authors(read(open_client(simulator.url, page_size=40, **BASIC), "comments", tmp_path))
        known = logins(dialect)
        # Of fifty logins about half are those of a user.
        assert {login for login, _ in found.values()} - set(known)
        assert found
        assert all(author == known.get(login) for login, author in found.values())
        assert {author for _, author in found.values()} - {None}
        names = [
            name
            for path in asked(simulator)
            for name in path.split("user_nameIN")[1].split("^")[0].split(",")
        ]
        assert len(names) > 40
        assert len(names) == len(set(names))


def test_a_killed_reading_names_the_same_authors_and_asks_for_none_again(tmp_path):
    with instance() as (simulator, _):
        whole = authors(read(open_client(simulator.url, page_size=40, **BASIC), "comments", tmp_path))
        before = len(asked(simulator))
        again = authors(read(open_client(simulator.url, page_size=40, **BASIC), "comments", tmp_path))
        assert again == whole
        assert len(asked(simulator)) == before


def test_a_single_comment_names_its_author(tmp_path):
    with instance() as (simulator, dialect):
        client, known = open_client(simulator.url, **BASIC), logins(dialect)
        table = dialect.world.tables["sys_journal_field"]
        row = next(row for row in table.rows.values() if table.value(row, "sys_created_by") in known)
        page = client.read_one(STREAM, row.id, Journal(tmp_path))
        assert AUTHOR.read(page.content.records[0]) == known[table.value(row, "sys_created_by")]


def shared_by_two(dialect):
    table = dialect.world.tables["sys_user"]
    build = table.build
    table.build = lambda row: build(row) | {"user_name": "user.1"}


@pytest.mark.parametrize(
    ("habits", "exclude", "change", "most"),
    [
        (Habits(forbidden=("sys_user",)), (), lambda dialect: None, 1),
        (Habits(), ("users.user_name",), lambda dialect: None, 2),
        (Habits(), (), shared_by_two, 2),
    ],
    ids=["users may not be read", "logins are excluded", "users share a login"],
)
def test_without_a_certain_author_the_login_stays_and_nothing_else(habits, exclude, change, most, tmp_path):
    with instance(habits) as (simulator, dialect):
        change(dialect)
        found = authors(read(open_client(simulator.url, exclude, **BASIC), "comments", tmp_path))
        assert found
        assert {author for _, author in found.values()} == {None}
        assert all(login for login, _ in found.values())
        assert 1 <= len(asked(simulator)) <= most


def test_a_login_that_would_change_the_question_is_not_asked_for(tmp_path):
    with instance() as (simulator, dialect):
        table = dialect.world.tables["sys_journal_field"]
        build = table.build
        table.build = lambda row: build(row) | {"sys_created_by": "user.1^ORuser_nameISNOTEMPTY"}
        found = authors(read(open_client(simulator.url, **BASIC), "comments", tmp_path))
        assert {author for _, author in found.values()} == {None}
        assert asked(simulator) == []


def test_long_logins_are_asked_for_in_addresses_that_an_instance_takes(tmp_path):
    with instance() as (simulator, dialect):
        table = dialect.world.tables["sys_journal_field"]
        build, long = table.build, "x" * 6_000
        lengths = [6_000, 2_000, 300, 20]
        table.build = lambda row: (
            build(row) | {"sys_created_by": f"{row.number}{long}"[: lengths[row.number % 4]]}
        )
        found = authors(read(open_client(simulator.url, **BASIC), "comments", tmp_path))
        assert set(map(len, dict(found.values()))) == set(lengths)
        assert max(len(line["path"]) for line in simulator.requests) < 10_000
        assert not any(long in path for path in asked(simulator))
        assert any("x" * 1_990 in path for path in asked(simulator))
