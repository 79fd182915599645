"""What Dagster loads: without anything around it, and exactly what is listed here."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from bridge_pipeline.definitions import defs
from bridge_pipeline.settings import PROJECT_ROOT
from resources.dbt import MANIFEST

ENTITIES = ("accounts", "users", "groups", "tickets", "comments", "assets", "problems", "changes")
MODELS = (
    "dim_accounts",
    "dim_users",
    "fct_account_volume",
    "fct_backlog_daily",
    "fct_resolution_times",
    "fct_tickets",
    "stg_accounts",
    "stg_assets",
    "stg_changes",
    "stg_comments",
    "stg_groups",
    "stg_problems",
    "stg_ticket_users",
    "stg_tickets",
    "stg_users",
)
ASSETS = {
    *(f"{layer}/{entity}" for layer in ("extracted", "tables", "audit") for entity in ENTITIES),
    *(f"models/{model}" for model in MODELS),
    "quality/certificate",
    "quality/report",
}
FACTS = {
    "equation",
    "landing_intact",
    "versions_unique",
    "quarantined_share",
    "declared_fields",
    "newest_day_filled",
}
NOTES = {"other_fields", "day_volume"}
LOADED = {"equation_loaded", "freshness"}
CHECKS = {
    "extracted/accounts": FACTS
    | NOTES
    | {
        "created_at_before_updated_at",
        "created_at_present",
        "name_length",
        "name_present",
        "updated_at_present",
    },
    "extracted/users": FACTS
    | NOTES
    | {
        "created_at_before_updated_at",
        "created_at_present",
        "email_present",
        "email_shape",
        "name_length",
        "name_present",
        "role_known",
        "role_present",
        "status_known",
        "updated_at_present",
    },
    "extracted/tickets": FACTS
    | NOTES
    | {
        "account_id_present",
        "created_at_before_resolved_at",
        "created_at_before_responded_at",
        "created_at_before_updated_at",
        "created_at_present",
        "description_length",
        "priority_known",
        "priority_present",
        "resolved_at_before_closed_at",
        "status_known",
        "status_present",
        "subject_length",
        "subject_present",
    },
    "extracted/groups": FACTS
    | NOTES
    | {
        "created_at_before_updated_at",
        "created_at_present",
        "name_length",
        "name_present",
        "updated_at_present",
    },
    "extracted/comments": FACTS
    | NOTES
    | {
        "author_id_present",
        "body_length",
        "body_present",
        "created_at_before_updated_at",
        "created_at_present",
        "ticket_id_present",
    },
    "extracted/assets": FACTS
    | NOTES
    | {
        "created_at_before_updated_at",
        "created_at_present",
        "name_length",
        "name_present",
        "type_present",
    },
    "extracted/problems": FACTS
    | NOTES
    | {
        "created_at_before_resolved_at",
        "created_at_before_updated_at",
        "created_at_present",
        "priority_known",
        "resolved_at_before_closed_at",
        "status_known",
        "status_present",
        "subject_length",
        "subject_present",
    },
    "extracted/changes": FACTS
    | NOTES
    | {
        "created_at_before_closed_at",
        "created_at_before_updated_at",
        "created_at_present",
        "planned_start_at_before_planned_end_at",
        "priority_known",
        "status_known",
        "status_present",
        "subject_length",
        "subject_present",
        "type_known",
    },
    "quality/certificate": {"everything_explained"},
    "tables/accounts": LOADED,
    "tables/users": LOADED,
    "tables/groups": LOADED,
    "tables/tickets": LOADED
    | {"accounts_exist", "accounts_known", "users_exist", "users_known", "requesters_have_email"},
    "tables/comments": LOADED | {"tickets_exist", "tickets_known", "users_exist", "users_known"},
    "tables/assets": LOADED | {"accounts_exist", "accounts_known", "users_exist", "users_known"},
    "tables/problems": LOADED | {"accounts_exist", "accounts_known"},
    "tables/changes": LOADED | {"accounts_exist", "accounts_known"},
}
LIBRARY = ("connector_kit", "connectors", "database", "model", "steps")


@pytest.fixture(scope="module")
def nodes() -> dict[str, dg.AssetSpec]:
    """Every asset by its key."""
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def python(code: str, folder: Path, **variables: str) -> str:
    """What a fresh interpreter prints that has nothing in its environment but these variables."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_ROOT)} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_load_without_secret_database_or_home(tmp_path):
    code = """
import json, sys
from bridge_pipeline.definitions import defs
keys = defs.resolve_asset_graph().get_all_asset_keys()
slow = {"great_expectations", "dagster_dbt", "dbt", "dlt", "dagster_postgres", "pandas", "scipy", "alembic"}
print(json.dumps({"slow": sorted(slow & sys.modules.keys()), "keys": len(keys)}))
"""
    variables = {
        "BRIDGE_HOME": str(tmp_path / "home"),
        "BRIDGE_DATABASE_URL": "postgresql://nobody@192.0.2.1/none",
    }
    told = json.loads(python(code, tmp_path, **variables))
    assert told == {"slow": [], "keys": len(ASSETS)}
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_the_library_does_not_import_dagster(tmp_path):
    code = f"""
import importlib, pkgutil, sys
for name in {LIBRARY}:
    package = importlib.import_module("bridge_pipeline." + name)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".migrations." not in module.name:
            importlib.import_module(module.name)
            assert not any(loaded.split(".")[0].startswith("dagster") for loaded in sys.modules), module.name
print("done")
"""
    assert python(code, tmp_path) == "done\n"


def test_the_assets_are_those_listed(nodes):
    assert set(nodes) == ASSETS


def test_the_checks_are_those_listed():
    found: dict[str, set[str]] = {}
    for check in defs.resolve_asset_graph().asset_check_keys:
        found.setdefault(check.asset_key.to_user_string(), set()).add(check.name)
    own = {asset: names for asset, names in found.items() if not asset.startswith("models/")}
    assert own == CHECKS
    assert {asset for asset in found if asset.startswith("models/")} == {
        f"models/{model}" for model in MODELS
    }


def test_only_facts_of_a_batch_block():
    graph = defs.resolve_asset_graph()
    blocking = {
        key.name
        for key in graph.asset_check_keys
        if key.asset_key.path[0] != "models" and graph.get_check_spec(key).blocking
    }
    assert blocking == FACTS | {"equation_loaded"}


def test_jobs_schedules_and_sensors_are_those_listed():
    repository = defs.get_repository_def()
    assert {name for name in repository.job_names if not name.startswith("__")} == {"daily", "certify"}
    schedules = {schedule.name: schedule.default_status for schedule in repository.schedule_defs}
    running = dg.DefaultScheduleStatus.RUNNING
    assert schedules == {"settled_days": running, "certificates": running}
    assert [sensor.name for sensor in repository.sensor_defs] == [
        "deliveries",
        "failed_runs",
        "follow_upstream",
        "partition_summaries",
    ]
    assert {sensor.default_status for sensor in repository.sensor_defs} == {dg.DefaultSensorStatus.RUNNING}


@pytest.mark.parametrize("key", sorted(ASSETS))
def test_every_asset_says_what_it_is(nodes, key):
    spec = nodes[key]
    assert spec.description
    # dbt's descriptions are followed by the SQL.
    assert spec.description.split("\n")[0].endswith(".")
    assert spec.group_name == key.split("/")[0]
    assert spec.owners
    assert all(owner.startswith("team:") for owner in spec.owners)
    assert spec.kinds
    if not key.startswith("quality/"):
        columns = spec.metadata["dagster/column_schema"].columns
        assert columns
        assert all(column.description for column in columns)


@pytest.mark.parametrize(
    ("key", "parents"),
    [
        ("extracted/tickets", set()),
        ("tables/tickets", {"extracted/tickets"}),
        ("audit/tickets", {"extracted/tickets", "tables/tickets"}),
        ("models/stg_tickets", {"tables/tickets"}),
        ("models/stg_ticket_users", {"tables/tickets"}),
        ("quality/report", {f"audit/{entity}" for entity in ENTITIES}),
        ("quality/certificate", {f"audit/{entity}" for entity in ENTITIES}),
    ],
)
def test_the_lineage_goes_from_source_to_models(nodes, key, parents):
    assert {dependency.asset_key.to_user_string() for dependency in nodes[key].deps} == parents


def test_entities_are_partitioned_by_connection_and_day(nodes):
    for key in ASSETS:
        definition = nodes[key].partitions_def
        if key.startswith("models/"):
            assert definition is None
        elif key == "quality/certificate":
            assert isinstance(definition, dg.DynamicPartitionsDefinition)
        else:
            assert isinstance(definition, dg.MultiPartitionsDefinition)
            assert [dimension.name for dimension in definition.partitions_defs] == ["connection", "day"]


def test_columns_of_personal_data_are_marked(nodes):
    marked = {
        column.name
        for column in nodes["tables/users"].metadata["dagster/column_schema"].columns
        if column.tags
    }
    assert marked == {"name", "email"}


def decorated_functions() -> dict[str, ast.FunctionDef]:
    """The functions of `assets/` that Dagster calls."""
    found = {}
    for path in sorted((PROJECT_ROOT / "assets").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                names = ast.unparse(node.decorator_list[0])
                if "asset" in names:
                    found[f"{path.name}:{node.name}"] = node
    return found


def test_asset_functions_are_ten_lines_or_less():
    lengths = {
        name: (node.end_lineno or 0) - node.body[0].lineno + 1 for name, node in decorated_functions().items()
    }
    assert len(lengths) >= 6
    assert {name: lines for name, lines in lengths.items() if lines > 10} == {}


def test_a_missing_manifest_says_how_to_build_it(tmp_path):
    from bridge_pipeline.definitions import build_definitions

    assert MANIFEST.is_file()
    with pytest.raises(FileNotFoundError, match="make install"):
        build_definitions(manifest=tmp_path / "manifest.json")
