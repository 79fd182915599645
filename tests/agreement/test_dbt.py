"""The dbt project says the same as the Python declarations it stands on.

Reads the manifest of a real `dbt parse`, run without settings and without a database.
"""

import json
import os
import subprocess
import sys

import pytest
from dagster_dbt import DbtCliResource
from sqlalchemy.dialects import postgresql

from assets.building import known_models
from assets.models import model_assets
from bridge_pipeline import naming
from bridge_pipeline.database.tables import metadata
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.settings import PROJECT_ROOT
from resources.dbt import MANIFEST, DbtResource

PROJECT = PROJECT_ROOT / "dbt_project"
DESK_TABLES = {table.name: table for table in metadata.tables.values() if table.schema == naming.DESK_SCHEMA}
MODELS = sorted(path.stem for path in PROJECT.glob("models/*/*.sql"))
MARTS = sorted(path.stem for path in PROJECT.glob("models/marts/*.sql"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("dbt")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from dbt.cli.main import cli; cli()", "parse", "--quiet"),
            *("--project-dir", PROJECT, "--profiles-dir", PROJECT),
            *("--target-path", scratch / "target", "--log-path", scratch / "logs"),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("DBT_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((scratch / "target" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def sources(manifest):
    return {
        node["name"]: node for node in manifest["sources"].values() if node["schema"] == naming.DESK_SCHEMA
    }


@pytest.fixture(scope="module")
def models(manifest):
    return {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}


def is_personal(column):
    return column["config"]["meta"].get("personal", False)


@pytest.mark.slow
def test_the_version_of_dbt_that_nobody_is_asked_for_is_that_of_the_command():
    command = DbtResource().open()
    asked = DbtCliResource(
        project_dir=command.project_dir,
        profiles_dir=command.profiles_dir,
        dbt_executable=command.dbt_executable,
    )
    assert command._cli_version == asked._cli_version


def test_every_desk_table_is_a_source_and_every_source_a_desk_table(sources):
    assert sorted(sources) == sorted(DESK_TABLES)


@pytest.mark.parametrize("table", sorted(DESK_TABLES))
def test_a_source_lists_the_columns_of_its_table_with_their_types(sources, table):
    declared = {
        column.name: column.type.compile(dialect=postgresql.dialect()).lower()
        for column in DESK_TABLES[table].columns
    }
    documented = {name: column["data_type"] for name, column in sources[table]["columns"].items()}
    assert documented == declared


@pytest.mark.parametrize("table", sorted(DESK_TABLES))
def test_a_source_describes_its_table_in_the_words_of_the_declaration(sources, table):
    assert sources[table]["description"] == DESK_TABLES[table].comment
    for column in DESK_TABLES[table].columns:
        description = sources[table]["columns"][column.name]["description"]
        assert description == column.comment if column.comment else description, column.name


@pytest.mark.parametrize("entity", ENTITIES.values(), ids=lambda entity: entity.name)
def test_personal_columns_are_marked_in_source_and_staging(sources, models, entity):
    declared = {column.name for column in entity.columns if column.personal}
    for node in (sources[entity.name], models[f"stg_{entity.name}"]):
        assert {name for name, column in node["columns"].items() if is_personal(column)} == declared


@pytest.mark.parametrize("entity", ENTITIES.values(), ids=lambda entity: entity.name)
def test_staging_passes_on_every_canonical_column(models, entity):
    expected = {name for name in entity.column_names if name != "id"}
    expected |= {f"{entity.name.removesuffix('s')}_id", "custom_fields", "is_placeholder", "is_deleted"}
    assert expected <= models[f"stg_{entity.name}"]["columns"].keys()


def test_every_model_file_is_a_model_in_the_schema_of_the_marts(models):
    assert sorted(models) == MODELS
    assert {node["schema"] for node in models.values()} == {naming.MARTS_SCHEMA}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_states_its_grain_its_owner_and_what_each_column_means(models, model):
    node = models[model]
    assert "Grain:" in node["description"]
    assert node["config"]["meta"]["owner"]
    assert [name for name, column in node["columns"].items() if not column["description"]] == []


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_a_contract_a_tested_primary_key_and_a_tenant(manifest, models, model):
    node = models[model]
    # An enforced contract is what makes the documented columns the columns that are built.
    assert node["config"]["contract"]["enforced"]
    assert "tenant" in node["columns"]
    keys = [
        test["test_metadata"]["kwargs"]["columns"]
        for test in manifest["nodes"].values()
        if test.get("attached_node") == node["unique_id"] and test["test_metadata"]["name"] == "primary_key"
    ]
    assert len(keys) == 1
    assert set(keys[0]) <= node["columns"].keys()
    if model in MARTS:
        assert [c["columns"] for c in node["constraints"] if c["type"] == "primary_key"] == keys


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_protected_by_its_last_hook(models, model):
    assert [hook["sql"] for hook in models[model]["config"]["post-hook"]][-1] == "{{ protect() }}"


@pytest.mark.parametrize("mart", MARTS)
def test_a_mart_has_a_unit_test(manifest, mart):
    assert mart in {test["model"] for test in manifest["unit_tests"].values()}


def test_the_models_are_declared_as_dagster_dbt_declares_them():
    ours, theirs = model_assets(MANIFEST), known_models(MANIFEST)
    assert {spec.key: declared(spec) for spec in ours.specs} == {
        spec.key: declared(spec) for spec in theirs.specs
    }
    assert {spec.key: spec for spec in ours.check_specs} == {spec.key: spec for spec in theirs.check_specs}
    assert (ours.can_subset, ours.op.tags) == (theirs.can_subset, theirs.op.tags)


def declared(spec):
    """All that a spec says, but for what dagster-dbt notes there for its own use at run time."""
    said = {name: getattr(spec, name) for name in spec._fields}
    # Of its dependencies only which they are: their columns stand at the tables.
    said["deps"] = {dep.asset_key for dep in spec.deps}
    run_time = {"dagster_dbt/manifest", "dagster_dbt/dagster_dbt_translator"}
    said["metadata"] = {name: value for name, value in spec.metadata.items() if name not in run_time}
    return said
