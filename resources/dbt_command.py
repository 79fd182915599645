"""dbt's command line as dagster-dbt calls it, without what it does beforehand and nobody here needs.

Apart, because dagster-dbt's import takes seconds.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from typing import Any

from dagster_dbt import DbtCliResource
from packaging.version import Version


class DbtCommand(DbtCliResource):
    """A `DbtCliResource` whose command is that of this environment."""

    @cached_property
    def _cli_version(self) -> Version:
        # dagster-dbt would start the command to ask for it, which takes as long as half a build.
        return Version(metadata.version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> Any:
        # It reads the project again, for metadata that `assets.described` asks Postgres for.
        return None
