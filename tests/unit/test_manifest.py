"""A manifest that says anything of its file that is not so is contradicted in words."""

import hashlib
import json

import pytest

from bridge_pipeline.steps.manifest import contradictions, read_manifest

PATH = "acme-desk/tickets/2024-03-01/v0001.csv"
ROWS = '"id","content_hash","deleted_at"\n"1","aa",\n"2","bb","2024-03-02T00:00:00.000000Z"\n'
TRUE = {
    "format": 1, "tenant": "acme", "connection": "acme-desk", "entity": "tickets", "day": "2024-03-01",
    "version": 1, "rows": 2, "tombstones": 1, "rows_sha256": hashlib.sha256(b"aa\nbb\n").hexdigest(),
    "columns": ["id", "content_hash", "deleted_at"], "sha256": "0" * 64, "previous": None,
}  # fmt: skip


def said(folder, text=ROWS, path=PATH, changes=()):
    """What is contradicted of a manifest with these changes; `nothing` leaves a member out."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    told = {name: value for name, value in (TRUE | dict(changes)).items() if value != "nothing"}
    target.with_suffix(".json").write_text(json.dumps(told))
    return list(contradictions(folder, "acme", path, "0" * 64, None))


def test_a_true_manifest_is_not_contradicted(tmp_path):
    assert said(tmp_path) == []


@pytest.mark.parametrize("name", TRUE)
@pytest.mark.parametrize("value", ["nothing", 7, {"version": 1, "sha256": "1" * 64}])
def test_each_lie_is_named(tmp_path, name, value):
    (found,) = said(tmp_path, changes={name: value})
    assert (f"not say {name}" if value == "nothing" else f"says {name} ") in found


@pytest.mark.parametrize(
    "rows",
    [ROWS + '"3","cc"\n', ROWS + '"3","cc",,\n', ROWS + '"3","c"c",\n', '"id","deleted_at"\n', ""],
    ids=["too few cells", "too many", "a stray quote", "no hash", "nothing"],
)
def test_a_file_that_is_none_is_named(tmp_path, rows):
    (found,) = said(tmp_path, rows)
    assert "cannot be read" in found


def test_a_long_cell_is_read(tmp_path):
    long = ROWS.replace('"1"', f'"{"1" * 200_000}"')
    assert said(tmp_path, long) == []


@pytest.mark.parametrize(
    "path", ["2024-03-01/v0001.csv", PATH.replace("v0001", "v1"), PATH.replace("v0001", "x")]
)
def test_what_is_no_place_of_an_audit_file_is_named(tmp_path, path):
    with pytest.raises(ValueError, match="is not the path"):
        said(tmp_path, path=path)


def test_ids_that_left_are_not_kept_and_looked_at_all_the_same(tmp_path):
    path = tmp_path / "v0002.json"
    whole = b'{\n  "format": 1,\n  "left": [\n    "1",\n    "2"\n  ],\n  "rows": 3\n}\n'
    path.write_bytes(whole)
    assert read_manifest(path) == {"format": 1, "left": [], "rows": 3}
    path.write_bytes(whole.replace(b'"2"', b'"2'))
    with pytest.raises(ValueError, match=r"unexpected end|EOF|control character"):
        read_manifest(path)
