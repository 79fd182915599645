"""DuckDB as the steps open it: kept for few rows, apart for many, and within its memory in both cases."""

import threading

import duckdb
import pytest

from bridge_pipeline.steps import duck

# More than memory holds; what was sorted goes to disk.
_LARGE = "select n from (select hash(i) as n from range(6_000_000) t(i)) order by n limit 1 offset 5_000_000"
FEW, MANY = 1, 10_000_000


def folder_of(db):
    return db.execute("select current_setting('temp_directory')").fetchone()[0]


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_nothing_of_one_use_is_there_in_the_next(rows, tmp_path):
    for _ in range(2):
        with duck.opened(rows, tmp_path) as db:
            db.execute("create temporary table found as select 1 as number")
            assert db.execute("select number from found").fetchall() == [(1,)]


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_each_use_has_its_own_folder_whatever_it_is_called(rows, tmp_path):
    for name in ("one", "it's another"):
        with duck.opened(rows, tmp_path / name) as db:
            assert folder_of(db) == str(tmp_path / name)


def test_few_rows_that_need_the_disk_get_it_and_the_next_ones_another(tmp_path):
    for name in ("one", "two"):
        with duck.opened(FEW, tmp_path / name) as db:
            assert db.execute(_LARGE).fetchone() is not None
            assert list((tmp_path / name).iterdir())


def test_few_rows_do_not_start_it_again_and_many_have_one_of_their_own(tmp_path):
    with duck.opened(FEW, tmp_path) as first:
        first.execute("create table kept as select 1")
    with duck.opened(FEW, tmp_path) as second:
        second.execute("drop table kept")
    with duck.opened(MANY, tmp_path) as apart, pytest.raises(duckdb.CatalogException):
        apart.execute("drop table kept")


def test_one_that_answers_nothing_any_more_is_replaced(tmp_path):
    with duck.opened(FEW, tmp_path):
        duck._kept.instance.close()
    with duck.opened(FEW, tmp_path) as db:
        assert db.execute("select 1").fetchall() == [(1,)]


def test_threads_have_one_each(tmp_path):
    found = []

    def look():
        with duck.opened(FEW, tmp_path / "other") as db:
            found.append(folder_of(db))

    with duck.opened(FEW, tmp_path / "own") as db:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert (folder_of(db), found) == (str(tmp_path / "own"), [str(tmp_path / "other")])
