"""Partitions of two dimensions that tell quickly which of many keys are among them.

Imported by every process that has Dagster's storage: it knows nothing else of the pipeline.
"""

from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.utils.multi import MULTIPARTITION_KEY_DELIMITER


def by_dimension(partitions: dg.PartitionsDefinition) -> dg.PartitionsDefinition:
    """The same partitions; those of two dimensions tell quickly which of many keys are among them."""
    if not isinstance(partitions, dg.MultiPartitionsDefinition):
        return partitions
    return _ByDimension({each.name: each.partitions_def for each in partitions.partitions_defs})


class _ByDimension(dg.MultiPartitionsDefinition):
    def filter_valid_partition_keys(self, partition_keys: set[str]) -> set[Any]:
        """The valid ones, as texts: to make Dagster's object of each takes longer than all the rest."""
        split = {key: key.split(MULTIPARTITION_KEY_DELIMITER) for key in partition_keys}
        split = {key: parts for key, parts in split.items() if len(parts) == len(self.partitions_defs)}
        first, second = (
            each.partitions_def.filter_valid_partition_keys({parts[place] for parts in split.values()})
            for place, each in enumerate(self.partitions_defs)
        )
        return {key for key, parts in split.items() if parts[0] in first and parts[1] in second}
