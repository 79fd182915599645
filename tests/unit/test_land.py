"""Landing: the files that a batch's tables become."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_pipeline.model import ENTITIES
from bridge_pipeline.steps import dlt_pipeline
from bridge_pipeline.steps.land import land, read_landed

SCHEMA = ENTITIES["accounts"].landing_schema


def test_what_lands_depends_on_no_setting_of_dlt_in_environment_or_folder(tmp_path, monkeypatch):
    # Either alone would cut the batch into files of one row.
    monkeypatch.setenv("DATA_WRITER__FILE_MAX_ITEMS", "1")
    (tmp_path / ".dlt").mkdir()
    (tmp_path / ".dlt" / "config.toml").write_text("[data_writer]\nfile_max_items = 1\n")
    monkeypatch.chdir(tmp_path)
    values = {pa.int64(): [0, 1, 2], pa.string(): ["1", "2", "3"]}
    columns = [pa.array(values.get(field.type, [0, 0, 0])).cast(field.type) for field in SCHEMA]
    parts = pa.Table.from_arrays(columns, schema=SCHEMA).to_batches(max_chunksize=1)

    def tables():
        for part in parts:
            yield pa.Table.from_batches([part])

    folder = tmp_path / "landing" / "7"
    files = land("accounts", tables, folder, tmp_path / "work")
    assert [file["rows"] for file in files] == [3]
    (rows,) = read_landed(folder, files, "accounts", ("id",))
    assert rows["id"].to_pylist() == ["1", "2", "3"]
    assert pq.read_schema(folder / files[0]["path"]).names == SCHEMA.names
    assert not (tmp_path / "work").exists()


def test_settings_of_dlt_that_cannot_be_read_are_not_read(tmp_path, monkeypatch):
    (tmp_path / ".dlt").mkdir()
    (tmp_path / ".dlt" / "config.toml").write_text("= nonsense")
    monkeypatch.chdir(tmp_path)
    # As in a process that lands its first batch.
    dlt_pipeline._settle_dlt.cache_clear()
    rows = pa.Table.from_arrays([pa.array([0]).cast(field.type) for field in SCHEMA], schema=SCHEMA)
    assert land("accounts", lambda: iter([rows]), tmp_path / "landing" / "7", tmp_path / "work")


def test_a_batch_leaves_its_files_and_nothing_else(tmp_path):
    columns = [pa.array([0, 1]).cast(field.type) for field in SCHEMA]
    folder, work = tmp_path / "landing" / "7", tmp_path / "work"
    files = land("accounts", lambda: iter([pa.Table.from_arrays(columns, schema=SCHEMA)]), folder, work)
    assert [path.name for path in folder.iterdir()] == [files[0]["path"]]
    assert not work.exists()
    assert pq.read_schema(folder / files[0]["path"]) == SCHEMA


def test_what_makes_the_tables_fail_is_raised_as_it_is(tmp_path):
    class Cut(RuntimeError):
        pass

    def tables():
        columns = [pa.array([0]).cast(field.type) for field in SCHEMA]
        yield pa.Table.from_arrays(columns, schema=SCHEMA)
        raise Cut("the answer was cut") from OSError("connection reset")

    with pytest.raises(Cut, match="the answer was cut") as raised:
        land("accounts", tables, tmp_path / "landing" / "7", tmp_path / "work")
    assert isinstance(raised.value.__cause__, OSError)
    assert not list(tmp_path.rglob("*.parquet"))
