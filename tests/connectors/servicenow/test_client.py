"""What is extracted is what the instance holds, whatever it does meanwhile."""

import json
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from bridge_pipeline.connector_kit.connector import Page
from bridge_pipeline.connector_kit.journal import Journal
from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connector_kit.session import SourceError
from bridge_pipeline.connectors.servicenow import CONNECTOR, keyset
from bridge_pipeline.connectors.servicenow.simulator.habits import HABITS, Habits
from bridge_pipeline.model import Window
from tests.connectors.servicenow.reading import (
    BASIC,
    OAUTH,
    collected,
    instance,
    open_client,
    read,
    reading,
    rows,
    truth,
)

ENTITIES = CONNECTOR.entities
DAYS = {"first_day": date(2025, 1, 1), "last_day": date(2025, 1, 12)}
HOSTILE = replace(HABITS["hostile"], hidden_run=60, cancels_above=40)


@pytest.mark.parametrize(("entity", "seed"), [("users", 1), ("tickets", 2), ("comments", 1)])
def test_a_full_read_of_a_hostile_instance_is_the_truth(entity, seed, tmp_path):
    with instance(HOSTILE, faults="hostile", seed=seed) as (simulator, _):
        landed, collector, journal = collected(
            open_client(simulator.url, **BASIC, **OAUTH), entity, tmp_path, None
        )
        true, held = truth(simulator, entity), simulator.truth()
        gone = set(held["deleted"][entity])
        assert set(true) - set(landed) == set()
        assert set(landed) - set(true) <= gone
        malformed = {m["id"] for m in held["malformed"] if m["entity"] == entity}
        counts = collector.counts
        assert counts.quarantined >= len(malformed) - len(gone)
        assert journal.records == counts.fetched


def test_rows_that_change_while_a_window_is_read_are_met_in_one_of_them(tmp_path):
    with instance(Habits(), faults="hostile", seed=3, **DAYS) as (simulator, _):
        client, landed = open_client(simulator.url, page_size=20), {}
        for day in [*Window.of_days(date(2025, 1, 1), date(2025, 1, 13)).days(), date(2025, 1, 13)]:
            found, _, _ = collected(
                client, "tickets", tmp_path / str(time.monotonic_ns()), Window.of_days(day, day)
            )
            landed |= found
        assert set(truth(simulator, "tickets")) - set(landed) == set()


def test_a_killed_extraction_resumes_at_every_page_and_spends_nothing_twice(tmp_path):
    with instance(replace(HOSTILE, token_uses=None, malformed=False)) as (simulator, _):
        whole = tmp_path / "whole"
        expected = read(open_client(simulator.url), "tickets", whole)
        files = len(Journal(whole)._numbers)
        assert files > 5
        for killed in range(1, files):
            folder, before = tmp_path / str(killed), len(simulator.requests)
            folder.mkdir()
            for path in sorted(whole.glob("*.json.zst"))[:killed]:
                (folder / path.name).write_bytes(path.read_bytes())
            assert read(open_client(simulator.url), "tickets", folder) == expected
            # What is in the journal is not asked again, and at least one whole listing of keys is live.
            # An answer that is cancelled is no answer: it is asked again when none is kept of its kind.
            spent = len(simulator.requests) - before
            assert 1 <= spent <= files - killed + 6


def test_pages_that_access_rules_empty_are_not_the_end(tmp_path):
    with instance(Habits(hidden_run=150)) as (simulator, _):
        client = open_client(simulator.url, page_size=20, **BASIC)
        proof = {}
        found = rows(client.read(reading("tickets", tmp_path), proof))
        assert set(found) == set(truth(simulator, "tickets"))
        assert len(found) == 90
        assert proof["hidden_by_access_rules"] == 150


def test_more_ties_in_a_second_than_a_page_holds_are_all_read(tmp_path):
    with instance() as (simulator, dialect):
        for row in dialect.world.tables["incident"].rows.values():
            row.updated = "2025-01-05 12:00:00"
        found = read(open_client(simulator.url, page_size=7, **BASIC), "tickets", tmp_path)
        assert len(found) == 240


def test_a_row_that_moves_to_the_end_is_met_again(tmp_path):
    with instance() as (simulator, dialect):
        table, client = dialect.world.tables["incident"], open_client(simulator.url, page_size=30, **BASIC)
        seen = []
        for page in client.read(reading("tickets", tmp_path), {}):
            seen += [row["sys_id"] for row in page.content.records]
            if len(seen) == 30:
                table.touch(table.rows[seen[0]], "2025-03-05 00:00:00")
        assert seen.count(seen[0]) == 2
        assert set(seen) == set(table.rows)


def test_a_row_committed_late_under_an_earlier_stamp_is_found_by_its_key(tmp_path):
    with instance() as (simulator, dialect):
        table = dialect.world.tables["incident"]
        late = min(table.rows.values(), key=lambda row: row.updated)
        late.appears = 3
        client = open_client(simulator.url, page_size=50, **BASIC)
        dialect._changes = None
        assert late.id in read(client, "tickets", tmp_path)


def dropping(dialect, pattern):
    """Makes an instance drop the parts of a query that match."""
    original = dialect._found
    dialect._found = lambda table, text: original(table, re.sub(pattern, "sys_id!=nothing", text))


def test_a_server_that_drops_the_cursor_is_found_out_and_read_by_keys(tmp_path):
    with instance() as (simulator, dialect):
        dropping(dialect, r"sys_updated_on[>=][^^]*")
        proof = {}
        client = open_client(simulator.url, page_size=50, **BASIC)
        assert set(rows(client.read(reading("tickets", tmp_path), proof))) == set(truth(simulator, "tickets"))
        assert proof["cursor_refused"]


def test_an_answer_that_is_refused_is_counted_with_its_rows(tmp_path):
    with instance() as (simulator, dialect):
        dropping(dialect, r"sys_updated_on[>=][^^]*")
        client = open_client(simulator.url, page_size=50, **BASIC)
        landed, collector, journal = collected(client, "tickets", tmp_path, None)
        assert landed == truth(simulator, "tickets")
        counts = collector.counts
        parts = counts.outside + counts.duplicate + counts.quarantined + counts.landed
        assert journal.records == counts.fetched == parts


@pytest.mark.parametrize("dropped", [r"sys_id>\w*", r"sys_idIN[^^]*"])
def test_a_server_that_drops_keys_is_never_believed(dropped, tmp_path):
    with instance() as (simulator, dialect):
        dropping(dialect, r"sys_updated_on[>=][^^]*")
        dropping(dialect, dropped)
        with pytest.raises(SourceError, match="rows that the query excludes"):
            read(open_client(simulator.url, page_size=10, **BASIC), "tickets", tmp_path)


def changing(dialect, change):
    """Makes an instance, or what stands before it, answer listings otherwise."""
    original = dialect._list

    def changed(table, request, version):
        return change(lambda asked: original(table, asked, version), request)

    dialect._list = changed


def at_most(rows):
    """A gateway that gives no more rows than these, whatever `sysparm_limit` says."""

    def change(answer, request):
        limit = min(int(request.query["sysparm_limit"]), rows)
        return answer(replace(request, query={**request.query, "sysparm_limit": str(limit)}))

    return change


def counted(count):
    """`X-Total-Count` as something else has it."""

    def change(answer, request):
        found = answer(request)
        total = str(count(int(dict(found.headers)["X-Total-Count"])))
        return replace(found, headers=(("X-Total-Count", total),))

    return change


def hide(dialect, first, last):
    """Lets access rules hide the incidents from one place to another, by their ids."""
    for row in sorted(dialect.world.tables["incident"].rows.values(), key=lambda row: row.id)[first:last]:
        row.hidden = True


def listings(simulator):
    return [line["path"] for line in simulator.requests if "/table/incident?" in line["path"]]


HIDDEN = [(0, 0), (0, 170), (60, 200), (130, 240)]
HIDING = ["nothing hidden", "the first", "some between", "the last"]


@pytest.mark.parametrize("hidden", HIDDEN, ids=HIDING)
@pytest.mark.parametrize("cap", [15, 50, 240])
def test_a_gateway_that_gives_fewer_rows_than_asked_for_loses_none(cap, hidden, tmp_path):
    with instance() as (simulator, dialect):
        hide(dialect, *hidden)
        changing(dialect, at_most(cap))
        client, proof = open_client(simulator.url, page_size=100), {}
        found = rows(client.read(reading("tickets", tmp_path), proof))
        assert set(found) == set(truth(simulator, "tickets"))
        assert proof["hidden_by_access_rules"] == 240 - len(found)


@pytest.mark.parametrize("hidden", HIDDEN, ids=HIDING)
@pytest.mark.parametrize("cap", [15, 30])
def test_a_gateway_that_gives_fewer_keys_than_asked_for_loses_none(cap, hidden, tmp_path):
    with instance() as (simulator, dialect):
        hide(dialect, *hidden)
        changing(dialect, at_most(cap))
        client, proof = open_client(simulator.url, page_size=5), {}
        pages = client.list_ids(reading("tickets", tmp_path), proof)
        found = {row["sys_id"] for page in pages for row in page.content.records}
        assert found == set(truth(simulator, "tickets"))
        assert proof["hidden_by_access_rules"] == 240 - len(found)


@pytest.mark.parametrize("hidden", [None, (235, 240), (0, 240)], ids=["nothing", "some", "all"])
def test_an_instance_that_gives_what_it_is_asked_for_is_asked_little(hidden, tmp_path):
    with instance() as (simulator, dialect):
        hide(dialect, *(hidden or (0, 0)))
        found = read(open_client(simulator.url, page_size=1_000, **BASIC), "tickets", tmp_path)
        assert set(found) == set(truth(simulator, "tickets"))
        # The rows and their keys; where fewer keys came than counted, what is behind the last of them.
        behind = 1 if hidden == (235, 240) else 0
        assert len(listings(simulator)) == 2 + behind


def test_a_count_below_what_is_shown_ends_nothing(tmp_path):
    with instance() as (simulator, dialect):
        changing(dialect, counted(lambda total: min(total, 5)))
        client = open_client(simulator.url, page_size=10, **BASIC)
        assert set(read(client, "tickets", tmp_path)) == set(truth(simulator, "tickets"))


def test_a_count_below_what_is_shown_proves_no_end_behind_hidden_rows(tmp_path):
    with instance() as (simulator, dialect):
        hide(dialect, 100, 200)
        changing(dialect, counted(lambda total: min(total, 5)))
        with pytest.raises(SourceError, match="whether rows follow cannot be known"):
            read(open_client(simulator.url, page_size=10, **BASIC), "tickets", tmp_path)


@pytest.mark.parametrize("hidden", [0, 240], ids=["rows are shown", "none is"])
def test_a_count_that_never_falls_is_not_walked_through(hidden, tmp_path):
    with instance() as (simulator, dialect):
        hide(dialect, 0, hidden)
        changing(dialect, counted(lambda total: 10_000_000))
        with pytest.raises(
            SourceError, match=r"X-Total-Count says 10000000 .* 10000000 where one id is asked"
        ):
            read(open_client(simulator.url), "tickets", tmp_path)
        assert len(simulator.requests) < 12


def test_rows_that_change_before_their_keys_are_listed_are_all_read_again(tmp_path):
    with instance() as (simulator, dialect):
        table, touched = dialect.world.tables["incident"], []

        def change(answer, request):
            if request.query.get("sysparm_fields") and not touched:
                touched.extend(list(table.rows.values())[:130])
                for row in touched:
                    table.touch(row, "2025-03-05 00:00:00")
            return answer(request)

        changing(dialect, change)
        found = read(open_client(simulator.url, page_size=10, **BASIC), "tickets", tmp_path)
        assert {found[row.id]["sys_updated_on"] for row in touched} == {"2025-03-05 00:00:00"}
        # They came, and so the keys need not be listed again.
        assert sum("sysparm_fields" in path and "offset=0" in path for path in listings(simulator)) == 3


@pytest.mark.parametrize(
    "sign", ["\\ud800", "\\u0000", '", "sys_class_name": "incident", "state": NaN, "x": "']
)
def test_a_row_that_cannot_be_parsed_keeps_no_table_from_its_end(sign, tmp_path):
    with instance() as (simulator, dialect):
        bad = sorted(truth(simulator, "tickets"))[7]

        def change(answer, request):
            found = answer(request)
            body = found.body.replace(
                b'"sys_id":"%b",' % bad.encode(), b'"sys_id":"%b","x":"%b",' % (bad.encode(), sign.encode())
            )
            return found if request.query.get("sysparm_fields") else replace(found, body=body)

        changing(dialect, change)
        client = open_client(simulator.url, page_size=50, **BASIC)
        landed, collector, _ = collected(client, "tickets", tmp_path, None)
        assert set(landed) == set(truth(simulator, "tickets")) - {bad}
        assert collector.counts.quarantined == 1
        # Its key was read with it, and is not asked for again.
        assert not any("sys_idIN" in path for path in listings(simulator))


def test_versions_that_only_the_keys_show_are_never_taken_for_read(tmp_path):
    with instance() as (simulator, dialect):

        def change(answer, request):
            found = answer(request)
            if request.query.get("sysparm_fields"):
                shown = json.loads(found.body)["result"]
                for row in shown[:5]:
                    row["sys_updated_on"] = "2025-12-24 00:00:00"
                found = replace(found, body=json.dumps({"result": shown}).encode())
            return found

        changing(dialect, change)
        with pytest.raises(SourceError, match="0 unseen rows, and 5 newer than the source gives them"):
            read(open_client(simulator.url, page_size=1_000), "tickets", tmp_path)


def test_a_window_that_the_server_ignores_costs_only_time(tmp_path):
    with instance(Habits(), **DAYS) as (simulator, dialect):
        original = dialect._found
        dialect._found = lambda table, text: original(table, text.replace("<2025-01-07 00:00:00", "<2099"))
        window = Window.of_days(date(2025, 1, 5), date(2025, 1, 5))
        landed, collector, _ = collected(open_client(simulator.url), "tickets", tmp_path, window)
        expected = {k: v for k, v in truth(simulator, "tickets").items() if v.startswith("2025-01-05")}
        assert landed == expected
        assert collector.counts.outside > len(expected)


@pytest.mark.parametrize("no_rows", [False, True])
def test_an_instance_that_cannot_be_asked_by_time_is_read_whole(no_rows, tmp_path):
    habits = Habits(no_rows=no_rows, no_time_queries=True)
    with instance(habits, **DAYS) as (simulator, _):
        window = Window.of_days(date(2025, 1, 5), date(2025, 1, 5))
        landed, _, _ = collected(open_client(simulator.url), "tickets", tmp_path, window)
        expected = {k: v for k, v in truth(simulator, "tickets").items() if v.startswith("2025-01-05")}
        assert landed == expected
        assert expected


def test_an_empty_window_is_believed_because_the_filter_finds_other_rows(tmp_path):
    with instance(**DAYS) as (simulator, _):
        window = Window.of_days(date(2024, 6, 1), date(2024, 6, 1))
        assert read(open_client(simulator.url), "tickets", tmp_path, window) == {}
        asked = [line["path"] for line in simulator.requests]
        assert any("1970-01-01" in path for path in asked)


def test_an_answer_that_takes_too_long_is_asked_for_in_halves(tmp_path):
    with instance(Habits(cancels_above=30)) as (simulator, _):
        client = open_client(simulator.url, page_size=200, **BASIC)
        assert set(read(client, "tickets", tmp_path)) == set(truth(simulator, "tickets"))
        limits = [line["path"].split("sysparm_limit=")[1].split("&")[0] for line in simulator.requests]
        # 200, 100 and 50 once each, then what is quick enough; keys are never too many.
        assert limits[:4] == ["200", "100", "50", "25"]
        assert set(limits[4:]) == {"25", "2000"}


@pytest.mark.slow
def test_an_answer_that_never_comes_is_asked_for_in_halves_too(tmp_path):
    with instance() as (simulator, dialect):
        original = dialect._list

        def slow(table, request, version):
            if int(request.query["sysparm_limit"]) == 300:
                threading.Event().wait(3)
            return original(table, request, version)

        dialect._list = slow
        client = open_client(simulator.url, patience=2, attempts=1, page_size=300, **BASIC)
        assert set(read(client, "tickets", tmp_path)) == set(truth(simulator, "tickets"))


def test_an_instance_that_cancels_everything_is_named(tmp_path):
    with instance(Habits(cancels_above=1)) as (simulator, _), pytest.raises(SourceError) as caught:
        read(open_client(simulator.url), "tickets", tmp_path)
    assert "cancels even answers of 6 rows" in str(caught.value)


def test_an_answer_without_a_total_is_no_end(tmp_path):
    with instance() as (simulator, dialect):
        original = dialect._list
        dialect._list = lambda *args: replace(original(*args), headers=())
        with pytest.raises(SourceError, match="no X-Total-Count"):
            read(open_client(simulator.url), "tickets", tmp_path)


@pytest.mark.parametrize("entity", ENTITIES)
def test_one_forbidden_table_is_named_and_the_others_are_read(entity):
    table = CONNECTOR.stream(entity).path.rpartition("/")[2]
    with instance(Habits(forbidden=(table,)), tickets=20) as (simulator, _):
        client = open_client(simulator.url)
        for stream in CONNECTOR.streams:
            if stream.entity.name != entity:
                assert client.check(stream) >= 0
                continue
            with pytest.raises(SourceError) as caught:
                client.check(stream)
            assert caught.value.status == 403
            assert f"/api/now/table/{table}" in str(caught.value)
            assert "Failed API level ACL Validation" in str(caught.value)


def test_a_wrong_password_is_refused_exactly_and_never_shown(tmp_path):
    with instance(token="the-only-one") as (simulator, _), pytest.raises(SourceError) as caught:
        open_client(simulator.url).check(CONNECTOR.stream("tickets"))
    assert caught.value.status == 401
    assert "User Not Authenticated" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert len(simulator.requests) == 1


@pytest.mark.parametrize(
    "config",
    [
        BASIC,
        {"api_token": "a-static-bearer"},
        {"api_key": "an-api-key"},
        {**OAUTH, **BASIC},
        OAUTH,
        {**OAUTH, "refresh_token": "a-refresh-token-given-to-us"},
    ],
    ids=["basic", "bearer", "key", "password grant", "client credentials", "refresh token"],
)
def test_every_way_to_sign_in(config, tmp_path):
    with instance() as (simulator, _):
        found = read(open_client(simulator.url, **config), "tickets", tmp_path)
        assert set(found) == set(truth(simulator, "tickets"))


@pytest.mark.parametrize("config", [{**OAUTH, **BASIC}, OAUTH, {**OAUTH, "refresh_token": "a-refresh-token"}])
def test_a_token_that_ends_in_the_middle_is_renewed(config, tmp_path):
    with instance(Habits(token_uses=4)) as (simulator, _):
        found = read(open_client(simulator.url, page_size=20, **config), "tickets", tmp_path)
        assert set(found) == set(truth(simulator, "tickets"))
        statuses = [(line["path"].partition("?")[0], line["status"]) for line in simulator.requests]
        assert statuses.count(("/oauth_token.do", 200)) >= 3
        assert ("/api/now/table/incident", 401) in statuses


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"user": "me"},
        {"password": "x"},
        {"client_id": "a"},
        {"client_secret": "a", **BASIC},
        {"api_token": "a", "api_key": "b"},
        {"api_token": "a", **BASIC},
        {"refresh_token": "a"},
    ],
)
def test_a_config_without_one_clear_way_in_is_refused(config):
    with pytest.raises(ValueError, match=r"give one of|needs?|belong together"):
        CONNECTOR.config.model_validate({"base_url": "https://acme.service-now.com", **config})


def test_a_lookup_tells_a_deleted_row_from_a_hidden_one(tmp_path):
    with instance() as (simulator, dialect):
        table, client = dialect.world.tables["incident"], open_client(simulator.url)
        there, hidden, gone = list(table.rows.values())[:3]
        hidden.hidden = True
        table.remove(gone, "2025-03-05 00:00:00")
        stream, journal = CONNECTOR.stream("tickets"), Journal(tmp_path)
        page = client.read_one(stream, there.id, journal)
        assert page is not None
        assert json.loads(page.content.exact[0])["sys_id"] == there.id
        assert client.read_one(stream, gone.id, journal) is None
        with pytest.raises(SourceError, match="access rules hide this row") as caught:
            client.read_one(stream, hidden.id, journal)
        assert caught.value.status == 403


@pytest.mark.parametrize(
    "name", ["global", "ACME\nCorp", "../../../logout.do", "x" * 70_000, f"{1:032x}?sysparm_view=x", ""]
)
def test_what_is_no_key_is_found_nowhere_without_being_asked_for(name, tmp_path):
    with instance() as (simulator, _):
        stream = CONNECTOR.stream("accounts")
        assert open_client(simulator.url).read_one(stream, name, Journal(tmp_path)) is None
        assert simulator.requests == []


def test_a_key_of_other_characters_is_asked_for_as_it_is(tmp_path):
    with instance() as (simulator, dialect):
        table, key = (
            dialect.world.tables["core_company"],
            "glide <base> row;1=2|3".replace(" ", "_").ljust(32, "_"),
        )
        row = next(iter(table.rows.values()))
        table.rows[key] = replace(row, id=key)
        page = open_client(simulator.url).read_one(CONNECTOR.stream("accounts"), key, Journal(tmp_path))
        assert page is not None
        assert json.loads(page.content.exact[0])["sys_id"] == key


def test_the_ids_are_listed_cheaply_and_counted_before_access_rules(tmp_path):
    with instance(Habits(hidden_run=30)) as (simulator, _):
        client, proof = open_client(simulator.url, page_size=5, **BASIC), {}
        wanted = reading("tickets", tmp_path)
        found = [row for page in client.list_ids(wanted, proof) for row in page.content.records]
        assert {row["sys_id"] for row in found} == set(truth(simulator, "tickets"))
        assert {tuple(sorted(row)) for row in found} == {("sys_id", "sys_updated_on")}
        assert wanted.journal.records == len(found) == 210
        assert len(simulator.requests) < 8
        assert client.count(CONNECTOR.stream("tickets")) == 240


def test_excluded_fields_are_never_journalled(tmp_path):
    with instance() as (simulator, _):
        client = open_client(simulator.url, exclude=("tickets.short_*",))
        assert not any("short_description" in row for row in read(client, "tickets", tmp_path).values())
        journal = Journal(tmp_path)
        assert not any(b"short_description" in journal.body(number) for number in journal._keys)


def test_metering_is_the_rule_of_the_instance_if_it_has_one():
    def config(**more):
        return CONNECTOR.config.model_validate({"base_url": "https://a.example", **BASIC, **more})

    metering = CONNECTOR.metering
    assert metering.buckets(config()) == ()
    (bucket,) = metering.buckets(config(requests_per_hour=5_000))
    assert (bucket.units, bucket.seconds) == (5_000, 3_600.0)
    assert metering.cost("/api/now/table/incident", {}) == {bucket.name: 1}
    soon = str(int(time.time()) + 100)
    (observed,) = metering.observed({"x-ratelimit-limit": "100", "x-ratelimit-reset": soon})
    assert (observed.bucket, observed.units, observed.left) == (bucket.name, 100, None)
    assert 98 <= observed.resets_in <= 100
    assert metering.observed({}) == metering.observed({"x-ratelimit-limit": "many"}) == ()


def test_of_versions_that_copies_give_the_newest_is_the_one_that_was_read():
    seen = keyset._Seen()
    seen.add([("2025-01-02 00:00:00", "a")])
    seen.add([("2025-01-01 00:00:00", "a")])
    states = [
        seen.state((f"2025-01-0{day} 00:00:00", record)) for day, record in ((2, "a"), (3, "a"), (1, "b"))
    ]
    assert states == [None, "older", "unseen"]
    seen.close()


@pytest.mark.parametrize(("shown", "ends"), [(2, False), (1, False), (3, False)])
def test_a_full_answer_and_one_with_hidden_rows_prove_no_end(shown, ends):
    page = Page(0, PageContent([{}] * shown), datetime.now(UTC))
    # Of two that were asked for: a full one may have more behind it, another one hides some.
    assert keyset.Part(page, total=2, size=2, live=True).ends(0) == ends
    assert keyset.Part(page, total=shown, size=shown + 1, live=True).ends(0)


@pytest.mark.parametrize(("rows", "size", "step"), [(0, 100, 100), (3, 100, 10), (40, 100, 40), (40, 20, 20)])
def test_no_more_rows_are_passed_over_than_answers_were_seen_to_cover(rows, size, step):
    assert keyset._Reach(rows).step(size) == step
