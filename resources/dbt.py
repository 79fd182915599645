"""dbt as a resource: the project, its manifest, and how it finds the database."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import dagster as dg

from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from resources.dbt_command import DbtCommand

PROJECT = PROJECT_ROOT / "dbt_project"
MANIFEST = PROJECT / "target" / "manifest.json"
# What dbt has parsed, by the name that it has in a target folder.
PARSED = "partial_parse.msgpack"


class DbtResource(dg.ConfigurableResource):
    """dbt's command line over the project of this repository."""

    def open(self) -> "DbtCommand":
        """What runs dbt's commands; importing it takes seconds."""
        from resources.dbt_command import DbtCommand

        # The command lies beside the interpreter, also where the environment was not activated.
        command = Path(sys.executable).with_name("dbt")
        return DbtCommand(project_dir=str(PROJECT), profiles_dir=str(PROJECT), dbt_executable=str(command))


@contextmanager
def target_folder(workspace: Workspace) -> Iterator[Path]:
    """A folder for the artefacts of one call: two calls cannot share one.

    What dbt parsed in the call before is there, and dbt parses what has changed since, or all if it must.
    Also tells dbt where the database is; its password reaches dbt through the environment only.
    """
    os.environ.update(connection_variables(workspace))
    for leftover in workspace.home.work.glob("dbt-*"):
        # Builds are exclusive, so this one is a killed build's.
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(mkdtemp(prefix="dbt-", dir=workspace.home.work))
    parsed, kept = folder / PARSED, workspace.home.work / PARSED
    try:
        if kept.exists():
            shutil.copyfile(kept, parsed)
        yield folder
    finally:
        if parsed.exists():
            parsed.replace(kept)
        shutil.rmtree(folder, ignore_errors=True)


def in_database(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The manifest for the database `name`; it was built without knowing which that would be."""

    def moved(node: dict[str, Any]) -> dict[str, Any]:
        relation = node.get("relation_name")
        if not relation:
            return node
        return node | {
            "database": name,
            "relation_name": relation.replace(f'"{node["database"]}".', f'"{name}".', 1),
        }

    return {**manifest} | {
        kind: {key: moved(node) for key, node in manifest[kind].items()} for kind in ("nodes", "sources")
    }


def connection_variables(workspace: Workspace) -> dict[str, str]:
    """The environment that `dbt_project/profiles.yml` reads."""
    url = workspace.database.url
    query = {key: str(value) for key, value in url.query.items()}
    return {
        "DBT_HOST": query.get("host") or url.host or "localhost",
        "DBT_PORT": str(query.get("port") or url.port or 5432),
        "DBT_USER": url.username or "postgres",
        "DBT_PASSWORD": url.password or "",
        "DBT_DATABASE": workspace.database.name,
        "DBT_SSLMODE": query.get("sslmode", "prefer"),
    }
