"""Project Bridge: extract a service desk whole, checked and provable.

The library: everything below `connectors` and `steps` knows nothing of Dagster.
Nothing here is opened, read or logged in to at import.
"""

from bridge_pipeline.imports import without_pydantic_plugins
from bridge_pipeline.memory import keep_small

keep_small()
without_pydantic_plugins()
