"""What can be switched in how a simulated account behaves (vendor-apis F, FS-1 to FS-10)."""

from dataclasses import dataclass

from bridge_pipeline.connector_kit.simulator import SimulatorOptions


@dataclass(frozen=True)
class Behaviour:
    """One account's ways. What is marked `I` or `?` in vendor-apis B is a matter of choice here.

    Attributes:
        plan: whose limits it has.
        limits: whether requests over a limit are refused; headers are sent either way.
        misleading: whether `Retry-After` is sometimes no number, nought, negative or a time that is over.
        deepest: the last page number that is answered.
        ordered: whether `order_by` is honoured; `refused` answers it with 400.
        since: whether `updated_since` is honoured.
        late: for how many answers a changed ticket stays in the lists as it was before.
        speaking: whether what is said in a ticket moves its change time.
        links: whether lists name their next page.
        forbidden: lists that the key may not read, by the last part of their path.
        workspaces: how many there are; every other ticket is not in the primary one.
        calm_after: changes stop after so many answers; None for never.
    """

    plan: str = "enterprise"
    limits: bool = True
    misleading: bool = False
    deepest: int = 300
    ordered: str = "yes"
    since: bool = True
    late: int = 0
    speaking: bool = True
    links: bool = True
    forbidden: frozenset[str] = frozenset()
    workspaces: int = 1
    calm_after: int | None = None

    @classmethod
    def of(cls, options: SimulatorOptions) -> "Behaviour":
        """What goes with the options' profile of faults: a hostile account does all it may do."""
        if options.faults != "hostile":
            return cls()
        return cls(
            misleading=True,
            late=3,
            ordered=("yes", "yes", "no", "refused")[options.seed % 4],
            since=options.seed % 5 != 4,
            speaking=options.seed % 3 != 2,
        )
