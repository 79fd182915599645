"""How an instance behaves beside the faults of the kit, by profile."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """What instances do to their readers (vendor-apis D, F).

    Attributes:
        hidden_per_mille: rows that access rules hide, scattered.
        hidden_run: rows in a row that they hide, so that whole pages are empty.
        cancels_above: answers of more rows than this are cancelled after 60 seconds.
        token_uses: a token is revoked after so many requests, whatever it said of its life.
        forbidden: tables that the user may not read at all.
        unaudited: tables whose deletions leave no trace.
        no_rows: a query with a part that is not understood gives no rows, instead of dropping the
            part (`glide.invalid_query.returns_no_rows`).
        no_time_queries: the time of changes cannot be queried; a part that asks for it is not understood.
        rotates: each refresh token is good once.
        malformed: some rows hold what is no time.
    """

    hidden_per_mille: int = 0
    hidden_run: int = 0
    cancels_above: int | None = None
    token_uses: int | None = None
    forbidden: tuple[str, ...] = ()
    unaudited: tuple[str, ...] = ()
    no_rows: bool = False
    no_time_queries: bool = False
    rotates: bool = True
    malformed: bool = False


HABITS = {
    "calm": Habits(),
    "typical": Habits(hidden_per_mille=5, token_uses=60, forbidden=("sys_audit_delete",), malformed=True),
    "hostile": Habits(
        hidden_per_mille=20,
        hidden_run=600,
        cancels_above=300,
        token_uses=9,
        malformed=True,
    ),
}
