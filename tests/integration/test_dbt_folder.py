"""What one call of dbt leaves for the next, and what not."""

import pytest

from resources.dbt import PARSED, target_folder


def test_what_dbt_has_parsed_is_there_for_the_next_call_and_nothing_else(workspace):
    with target_folder(workspace) as first:
        assert list(first.iterdir()) == []
        for name in (PARSED, "run_results.json"):
            (first / name).write_bytes(b"first")
    with target_folder(workspace) as second:
        assert [path.name for path in second.iterdir()] == [PARSED]
        assert (second / PARSED).read_bytes() == b"first"
        assert second != first
        assert not first.exists()


def test_a_call_that_fails_leaves_what_was_parsed_and_a_call_that_is_killed_too(workspace):
    with target_folder(workspace) as folder:
        (folder / PARSED).write_bytes(b"parsed")
    with pytest.raises(ZeroDivisionError), target_folder(workspace):
        raise ZeroDivisionError
    killed = workspace.home.work / "dbt-killed"
    killed.mkdir()
    (killed / PARSED).write_bytes(b"half")
    with target_folder(workspace) as folder:
        assert (folder / PARSED).read_bytes() == b"parsed"
        assert not killed.exists()
