"""Every write has a failpoint of its own beside it, and every declared point stands in the code."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge_pipeline.failpoints import POINTS, TRANSACTIONS
from bridge_pipeline.settings import PROJECT_ROOT

# What the installation runs.
SCOPE = ("bridge_pipeline", "assets", "resources")
# Calls that commit, write a file or make it durable, put it in place or take it away. Not `mkdir`: nothing
# reads an empty folder, and nothing in it is there before one of these.
WRITES = {
    "commit",
    "fsync",
    "hardlink_to",
    "rename",
    "rmdir",
    "rmtree",
    "symlink_to",
    "truncate",
    "unlink",
    "write_bytes",
    "write_text",
}
# The same, and more, as functions of these modules: also where they are only named, for another to call.
OF_MODULES = {
    "os": {"fdatasync", "fsync", "ftruncate", "link", "remove", "removedirs", "rename", "renames", "replace"}
    | {"rmdir", "symlink", "sync", "truncate", "unlink"},
    "shutil": {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree"},
}
# Where each statement of a connection needs a point as well, and how a connection is called there.
OF_LOADS = {"bridge_pipeline/steps/load.py", "bridge_pipeline/database/copying.py"}
STATEMENTS = {"execute", "exec_driver_sql", "scalar", "scalars"}
CONNECTIONS = {"connection", "_connection"}
# Has its points inside: none of them is anybody else's.
TRANSACTION = "transaction"
Function = ast.FunctionDef | ast.AsyncFunctionDef


# Code, and the writes in it that have no point of their own.
SEEN = [
    ("with engine.begin() as c: c.execute(a)", ["begin"]),
    ("with engine.begin() as c: reach('x')", []),
    ("with engine.connect() as c: c.commit()", ["commit"]),
    ("with engine.begin() as c: ...\nwith transaction(engine, 'y'): reach('x')", ["begin"]),
    ("driver.execute('commit;')", ["commit;"]),
    ("engine.execution_options(isolation_level='AUTOCOMMIT')", ["autocommit"]),
    ("connection.execute(a)", ["execute"]),
    ("self._connection.scalars(a); reach('x')", []),
    ("cursor.copy('copy t from stdin')", ["copy"]),
    ("os.replace(a, b)", ["replace"]),
    ("a.replace(b)", ["replace"]),
    ("text.replace('a', 'b'); moment.replace(hour=1); values.copy(); values.remove(1)", []),
    ("pool.map(os.fsync, files)", ["fsync"]),
    ("from shutil import move", ["import"]),
    ("shutil.copyfile(a, b); shutil.rmtree(a)", ["copyfile", "rmtree"]),
    ("with path.open('wb') as file: file.write(data)", ["open"]),
    ("open(path, mode='a')", ["open"]),
    ("open(path); path.open('rb'); os.open(path, os.O_RDONLY)", []),
    ("os.open(path, flags)", ["open"]),
    ("a.unlink(); reach('x'); b.unlink()", []),
    ("reach('x'); a.rename(b); b.rename(c)", ["rename"]),
    ("reach('x')\nfor each in found: each.unlink()", ["unlink"]),
    ("for each in found:\n    reach('x')\n    each.unlink()", []),
    ("reach('x')\nif old: a.hardlink_to(b)\nelse: reach('y')", ["hardlink_to"]),
    ("try: a.unlink()\nfinally: reach('x')", []),
    ("try: reach('x')\nexcept OSError: a.unlink()", ["unlink"]),
]
# Writes without a point of their own by why they may, each as often as it stands there.
EXEMPT = {
    "scratch of one process, removed by the next": (
        "bridge_pipeline/connectors/servicenow/keyset.py:add:commit",
        "bridge_pipeline/steps/audit.py:_write_days:rmtree",
        "bridge_pipeline/steps/audit.py:_write_days:rmtree",
        "bridge_pipeline/steps/census.py:__exit__:commit",
        "bridge_pipeline/steps/census.py:__init__:unlink",
        "bridge_pipeline/steps/certify.py:run:rmtree",
        "bridge_pipeline/steps/certify.py:run:rmtree",
        "bridge_pipeline/steps/extract.py:run:rmtree",
        "bridge_pipeline/steps/extract.py:run:rmtree",
        "bridge_pipeline/steps/held.py:_learn:commit",
        "bridge_pipeline/steps/listed.py:__post_init__:unlink",
        "bridge_pipeline/steps/listed.py:enter:commit",
        "bridge_pipeline/steps/ordering.py:_by_shares:unlink",
        "bridge_pipeline/steps/places.py:__init__:open",
        "bridge_pipeline/steps/places.py:__init__:truncate",
        "resources/dbt.py:target_folder:copyfile",
        "resources/dbt.py:target_folder:replace",
        "resources/dbt.py:target_folder:rmtree",
        "resources/dbt.py:target_folder:rmtree",
    ),
    "a draft, under a name that nothing reads and the next process clears": (
        "bridge_pipeline/connector_kit/journal.py:_remove_drafts:unlink",
        "bridge_pipeline/connector_kit/journal.py:write_durably:unlink",
        "bridge_pipeline/connector_kit/journal.py:written_durably:unlink",
        "bridge_pipeline/steps/audit.py:_write:unlink",
        "bridge_pipeline/steps/backup.py:_draft:open",
        "bridge_pipeline/steps/backup.py:_draft:truncate",
        "bridge_pipeline/steps/backup.py:_draft:unlink",
        "bridge_pipeline/steps/backup.py:_remove_drafts:open",
        "bridge_pipeline/steps/backup.py:_remove_drafts:unlink",
    ),
    "the caller passes audit.exported or audit.manifest_written": (
        "bridge_pipeline/steps/audit.py:_write_hashed:open",
    ),
    "purge.folder_removed follows both": (
        "bridge_pipeline/steps/purge.py:_remove_folder:rmtree",
        "bridge_pipeline/steps/purge.py:_remove_folder:unlink",
    ),
    "the caller passes report.workbook": ("bridge_pipeline/steps/workbook.py:write_workbook:unlink",),
    "the caller passes backup.written": ("bridge_pipeline/steps/archive.py:__init__:open",),
    "the caller passes restore.unpacked, before which nothing of it is read": (
        "bridge_pipeline/steps/restore.py:_take:copyfileobj",
        "bridge_pipeline/steps/restore.py:_take:open",
    ),
    "what an unfinished restore has built: the next one clears it again": (
        "bridge_pipeline/steps/restore.py:_clear:rmtree",
        "bridge_pipeline/steps/restore.py:_clear:rmtree",
        "bridge_pipeline/steps/restore.py:_clear:unlink",
        "bridge_pipeline/steps/restore.py:_give_up:rmtree",
    ),
    "until then the next run meets the contradiction again": (
        "bridge_pipeline/connector_kit/journal.py:abandon:unlink",
    ),
    "copies out of the database": (
        "bridge_pipeline/steps/audit.py:_reasons:copy",
        "bridge_pipeline/steps/certificate.py:table_digest:copy",
    ),
    "fills a table that goes with its transaction": ("bridge_pipeline/steps/reckon.py:_copy:copy",),
    "a lock, which holds no data": (
        "bridge_pipeline/automation/executing.py:forget:unlink",
        "bridge_pipeline/automation/runs.py:_settle_dead_runs_elsewhere:begin",
        "bridge_pipeline/database/exclusive.py:exclusively:begin",
        "bridge_pipeline/database/locks.py:file_lock:open",
        "bridge_pipeline/steps/restore.py:_alone:unlink",
    ),
    "killed as a whole in tests/integration/test_embedded.py": (
        "bridge_pipeline/database/embedded.py:_alive:open",
        "bridge_pipeline/database/embedded.py:_initdb:rename",
        "bridge_pipeline/database/embedded.py:_initdb:rmtree",
        "bridge_pipeline/database/embedded.py:_serve:unlink",
        "bridge_pipeline/database/embedded.py:_spawn:open",
        "bridge_pipeline/database/embedded.py:_spawn:open",
        "bridge_pipeline/database/embedded.py:_spawn:replace",
        "bridge_pipeline/database/embedded.py:_stop:rmtree",
    ),
    "killed in tests/integration/test_upgrade.py": (
        "bridge_pipeline/database/upgrade.py:_bring_over:rename",
        "bridge_pipeline/database/upgrade.py:_bring_readers:begin",
        "bridge_pipeline/database/upgrade.py:_clear:rmtree",
        "bridge_pipeline/database/upgrade.py:_copied:begin",
        "bridge_pipeline/database/upgrade.py:_create:autocommit",
        "bridge_pipeline/database/upgrade.py:_put_aside:rename",
        "bridge_pipeline/database/upgrade.py:discard_old:rmtree",
        "bridge_pipeline/database/upgrade.py:upgrade:rename",
        "bridge_pipeline/database/upgrade.py:upgrade:rmtree",
    ),
    "attacked with its sources in tests/integration/test_tokens.py": (
        "bridge_pipeline/database/tokens.py:_mark_sent:begin",
        "bridge_pipeline/database/tokens.py:_obtained:begin",
        "bridge_pipeline/database/tokens.py:renewed:begin",
        "bridge_pipeline/database/tokens.py:renewed:begin",
    ),
    "one transaction, attacked in tests/integration/test_migrations.py": (
        "bridge_pipeline/database/migrate.py:migrate:begin",
    ),
    "makes a role or an empty database; no data depends on it": (
        "bridge_pipeline/database/engine.py:_create_missing:autocommit",
        "bridge_pipeline/database/readers.py:bring_back:begin",
        "bridge_pipeline/database/readers.py:make_login:begin",
    ),
    "counts requests, each by one statement: one that is lost is allowance, not data": (
        "bridge_pipeline/database/quota.py:__init__:autocommit",
    ),
    "Dagster's own runs and events, which no data depends on": (
        "bridge_pipeline/automation/purging.py:_forget:rmtree",
        "bridge_pipeline/automation/storage.py:_make_tables:begin",
        "bridge_pipeline/automation/storage.py:kept:autocommit",
    ),
    "logs, and notes of processes that are looked for before they are believed": (
        "bridge_pipeline/commands/demo.py:_simulator:open",
        "bridge_pipeline/logs.py:_open:open",
        "bridge_pipeline/logs.py:_open:open",
        "bridge_pipeline/logs.py:_rotate:replace",
        "bridge_pipeline/logs.py:_rotate:replace",
        "bridge_pipeline/logs.py:_rotate:unlink",
        "bridge_pipeline/processes.py:forget:unlink",
    ),
    "pipes and streams, no files": (
        "bridge_pipeline/commands/answers.py:outlast_readers:open",
        "bridge_pipeline/workers.py:channel:fdopen",
    ),
    "a file for whoever gave the command, who sees whether it ended": (
        "bridge_pipeline/commands/doctor.py:_home:unlink",
        "bridge_pipeline/commands/doctor.py:_home:write_bytes",
        "bridge_pipeline/commands/new_connector.py:write_connector:rename",
        "bridge_pipeline/commands/new_connector.py:write_connector:rmtree",
        "bridge_pipeline/commands/new_connector.py:write_connector:rmtree",
        "bridge_pipeline/commands/new_connector.py:write_connector:write_text",
        "bridge_pipeline/commands/quarantine.py:_write_new:open",
    ),
    "the truth of a simulator, which is no data of ours": (
        "bridge_pipeline/connector_kit/simulator.py:__init__:open",
        "bridge_pipeline/connector_kit/simulator.py:_write:open",
        "bridge_pipeline/connector_kit/simulator.py:_write:replace",
    ),
}


@dataclass(frozen=True)
class Step:
    """A write, or a point (which has no name), and the statements with which it stands or falls."""

    name: str
    block: int


def modules() -> list[Path]:
    return [
        path
        for folder in SCOPE
        for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))
        if not {"migrations", "templates"} & set(path.parts)
    ]


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The statements of each function by its name, and those outside of any."""
    yield "", tree.body
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node.name, node.body


def last(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def written(node: ast.AST, of_load: bool) -> str:
    """What writes, or would, if this does; else nothing."""
    if isinstance(node, ast.Attribute) and node.attr in OF_MODULES.get(last(node.value), ()):
        return node.attr
    if isinstance(node, ast.ImportFrom) and any(
        each.name in OF_MODULES.get(node.module or "", ()) for each in node.names
    ):
        return "import"
    if isinstance(node, ast.Constant) and str(node.value).strip("; \n").upper() in ("AUTOCOMMIT", "COMMIT"):
        return str(node.value).lower()
    if not isinstance(node, ast.Call):
        return ""
    name, of = last(node.func), last(node.func.value) or "?" if isinstance(node.func, ast.Attribute) else ""
    if opens_to_write(node, name, of):
        return name
    statement = of_load and name in STATEMENTS and of in CONNECTIONS
    return name if of not in OF_MODULES and (statement or is_write(node, name)) else ""


def is_write(call: ast.Call, name: str) -> bool:
    """Whether a call of something else than a module writes."""
    if name == "replace":
        # `str.replace` takes two arguments, and those of dates and dataclasses take keywords.
        return len(call.args) == 1 and not call.keywords
    # `dict.copy` takes none, and `begin` of other things than an engine some.
    return name in WRITES or (name == "copy" and bool(call.args)) or (name == "begin" and not call.args)


def opens_to_write(call: ast.Call, name: str, of: str) -> bool:
    """Whether a call opens a file to write it; one that is open as a descriptor was opened before."""
    if name not in ("open", "fdopen") or (call.args and last(call.args[0]) == "descriptor"):
        return False
    if of == "os" and name == "open":
        return not any(last(node) == "O_RDONLY" for node in ast.walk(call) if isinstance(node, ast.Attribute))
    modes = [each.value for each in call.keywords if each.arg == "mode"]
    modes += call.args[1:2] if of in ("", "os", "tarfile") else call.args[:1]
    return any(isinstance(mode, ast.Constant) and set("wax+") & set(str(mode.value)) for mode in modes)


def steps(body: Iterable[ast.stmt], of_load: bool) -> Iterator[Step]:
    """The writes and points of a function in order, those of each branch and loop by themselves."""
    blocks = [list(body)]
    for block in blocks:
        for node in straight(block, blocks):
            if isinstance(node, ast.Call) and last(node.func) == "reach":
                yield Step("", id(block))
            elif isinstance(node, ast.Call) and last(node.func) == "transaction":
                yield Step(TRANSACTION, id(block))
            elif name := written(node, of_load):
                yield Step(name, id(block))


def straight(block: Iterable[ast.stmt], branches: list[list[ast.stmt]]) -> Iterator[ast.AST]:
    """The expressions that a block comes to one after the other; adds what it may pass by, or repeat."""
    for node in block:
        if isinstance(node, Function):
            continue
        if isinstance(node, ast.If | ast.For | ast.AsyncFor | ast.While):
            branches += [node.body, node.orelse]
            yield from ast.walk(node.test if isinstance(node, ast.If | ast.While) else node.iter)
        elif isinstance(node, ast.Match):
            branches += [case.body for case in node.cases]
        elif isinstance(node, ast.With | ast.AsyncWith):
            yield from (each for item in node.items for each in ast.walk(item))
            yield from straight(node.body, branches)
        elif isinstance(node, ast.Try):
            branches += [handler.body for handler in node.handlers]
            yield from straight([*node.body, *node.orelse, *node.finalbody], branches)
        elif isinstance(node, ast.ClassDef):
            yield from straight(node.body, branches)
        else:
            yield from ast.walk(node)


def pointless(found: list[Step]) -> Iterator[str]:
    """The writes that have no point directly before or after them."""
    for block in {step.block: None for step in found}:
        own = ["?", *(step.name for step in found if step.block == block), "?"]
        for before, name, after in zip(own, own[1:], own[2:], strict=False):
            if name not in ("", TRANSACTION) and "" not in (before, after):
                yield name


def unmarked() -> list[str]:
    """All writes without a point, as `path:function:call`."""
    return [
        f"{place}:{function}:{name}"
        for path in modules()
        for place in [path.relative_to(PROJECT_ROOT).as_posix()]
        for function, body in functions(ast.parse(path.read_text()))
        for name in pointless(list(steps(body, place in OF_LOADS)))
    ]


def named() -> list[str]:
    """The points that the code names, as often as it does."""
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(point := node.args[-1], ast.Constant):
                if last(node.func) == "reach":
                    found.append(point.value)
                if last(node.func) == "transaction":
                    found += [f"{point.value}.{moment}" for moment in ("committing", "committed")]
    return found


def test_every_write_has_a_point_of_its_own_or_is_exempt():
    exempt = sorted(each for places in EXEMPT.values() for each in places)
    found = sorted(unmarked())
    more, fewer = Counter(found) - Counter(exempt), Counter(exempt) - Counter(found)
    assert not more, f"let a point of failpoints.py stand directly before or after: {sorted(more)}"
    assert not fewer, f"no longer to be exempt: {sorted(fewer)}"


def test_points_and_tests_that_exempt_a_write_are_there():
    for reason in EXEMPT:
        for word in reason.replace(",", "").split():
            assert "/" not in word or (PROJECT_ROOT / word).is_file(), word
            assert not re.fullmatch(r"[a-z]+\.[a-z_]+", word) or word in POINTS, word


@pytest.mark.parametrize(("code", "writes"), SEEN)
def test_writes_are_seen(code, writes):
    body = ast.parse(code).body
    assert list(pointless(list(steps(body, of_load=True)))) == writes


def test_every_declared_point_stands_in_the_code_exactly_once():
    assert len(POINTS) == len(set(POINTS))
    assert sorted(named()) == sorted(POINTS)


def test_transactions_have_names_of_their_own():
    assert list(TRANSACTIONS) == sorted(set(TRANSACTIONS))
