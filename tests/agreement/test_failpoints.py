"""Every function that writes passes a failpoint, and every declared point stands in the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_pipeline.failpoints import POINTS, TRANSACTIONS
from bridge_pipeline.settings import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "bridge_pipeline"
# Where data, its ledger and its keys are written.
SCOPE = ("connector_kit", "database", "steps")
# Calls that begin a transaction, or make a file or its name durable.
WRITES = {"fsync", "rename", "write_bytes", "write_text"}
# Functions that write without a point of their own, and why they may.
EXEMPT = {
    "connector_kit/simulator.py": "the truth of a simulator, which is no data of ours",
    "database/embedded.py": "the server is attacked as a whole: tests/integration/test_embedded.py",
    "database/engine.py:transaction": "passes the points of every transaction",
    "database/exclusive.py": "holds a lock and writes nothing",
    "database/migrate.py": "one transaction, attacked in tests/integration/test_migrations.py",
    "database/readers.py": "makes a role; no data depends on it",
    "database/upgrade.py": "begins without a database to be cut off: tests/integration/test_upgrade.py",
    "database/tokens.py": "attacked with its sources in tests/integration/test_tokens.py",
}


def modules() -> list[Path]:
    return [
        path
        for folder in SCOPE
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        if "migrations" not in path.parts
    ]


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls within a node by the last part of what is called."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            target = each.func
            yield target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""), each


def is_write(name: str, call: ast.Call) -> bool:
    # `Path.replace` takes one argument, `str.replace` two, and those of dates and dataclasses keywords.
    moves = name == "replace" and len(call.args) == 1 and not call.keywords
    begins = name == "begin" and not call.args
    return name in WRITES or moves or begins


def named() -> list[str]:
    """The points that the code names, as often as it does."""
    found = []
    for path in modules():
        for name, call in calls(ast.parse(path.read_text())):
            if name == "reach" and isinstance(call.args[0], ast.Constant):
                found.append(call.args[0].value)
            if name == "transaction" and len(call.args) == 2 and isinstance(call.args[1], ast.Constant):
                found += [f"{call.args[1].value}.{moment}" for moment in ("committing", "committed")]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_function_that_writes_passes_a_failpoint(path):
    place = path.relative_to(PACKAGE).as_posix()
    for function in functions(path):
        found = dict(calls(function))
        writes = any(is_write(name, call) for name, call in calls(function))
        if writes and not {place, f"{place}:{function.name}"} & EXEMPT.keys():
            assert "reach" in found, f"{function.name} in {place} writes: name its point in failpoints.py"


def test_every_declared_point_stands_in_the_code_exactly_once():
    assert len(POINTS) == len(set(POINTS))
    assert sorted(named()) == sorted(POINTS)


def test_every_exemption_is_needed():
    for place in EXEMPT:
        path, _, function = place.partition(":")
        names = [each for each in functions(PACKAGE / path) if function in ("", each.name)]
        assert any(is_write(name, call) for each in names for name, call in calls(each)), place


def test_transactions_have_names_of_their_own():
    assert list(TRANSACTIONS) == sorted(set(TRANSACTIONS))
