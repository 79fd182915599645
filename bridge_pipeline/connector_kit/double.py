"""What the conformance kit has to know of a connector's simulator to put the connector to the test.

A connector's `simulator` module exports one such value as `DOUBLE`; with it the connector is held to
everything in `tests/conformance`. Nothing here is used by a run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge_pipeline.connector_kit.simulator import Dialect, Refusals, SimulatorOptions

# Records per page of the kit's small desks, whose tickets fill several pages.
PAGE_SIZE = 3


@dataclass(frozen=True)
class Wrong:
    """A configuration that must not work.

    Attributes:
        config: what differs from the good one; a field that is None is left out.
        reason: words that the refusal must hold, whether the config itself or the API refuses.
    """

    config: Mapping[str, Any] = field(repr=False)
    reason: str


@dataclass(frozen=True)
class Double:
    """A simulator as the conformance kit drives it.

    Attributes:
        dialect: builds the simulated API with these options at its calmest: no limits of its own, pages
            of `page_size` records where its client does not choose their size.
        config: of a connection that it accepts; `base_url` and `allow_private` are added. Where the
            client chooses the size of pages, it says here to ask for `PAGE_SIZE` records.
        token: the secret in `config` which, as `SimulatorOptions.token`, is the only one accepted.
        wrong: configurations that must be refused, each with the reason; one with a wrong secret at least.
        delete: takes the dialect, an entity and an id, and deletes that record for good.
        refusals: the vendor's words for 429 and 5xx.
        looked_up: a regular expression of paths at which listed records are asked for one by one: that one
            is not found there, as it may have been deleted meanwhile, does not end a reading.
    """

    dialect: Callable[[SimulatorOptions], Dialect]
    config: Mapping[str, Any] = field(repr=False)
    token: str = field(repr=False)
    wrong: tuple[Wrong, ...]
    delete: Callable[[Any, str, str], None]
    refusals: Refusals = field(default_factory=Refusals)
    looked_up: str | None = None
