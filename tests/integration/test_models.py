"""What a build leaves beside rows: keys, and what the planner knows. Who may read is in `test_apart`."""

import pytest

from tests.integration.flow import rows
from tests.integration.test_apart import build, fill

KEYS = """
    select conrelid::regclass::text as mart, pg_get_constraintdef(oid) as key from pg_constraint
    where contype = 'p' and connamespace = 'marts'::regnamespace order by 1
"""
UNKNOWN = """
    select relname from pg_class
    where relkind = 'r' and relnamespace = 'marts'::regnamespace and reltuples < 0
"""
MARTS = {
    "dim_accounts": "connection, account_id",
    "dim_users": "connection, user_id",
    "fct_account_volume": "connection, account_id, month",
    "fct_backlog_daily": "connection, day",
    "fct_resolution_times": "connection, resolved_on, priority",
    "fct_tickets": "connection, ticket_id",
}


@pytest.mark.slow
def test_a_build_gives_each_mart_its_key_and_the_planner_its_statistics_each_time(workspace):
    fill(workspace, "apart")
    for _ in range(2):
        build(workspace)
        found = {row["mart"].removeprefix("marts."): row["key"] for row in rows(workspace, KEYS)}
        assert found == {mart: f"PRIMARY KEY ({columns})" for mart, columns in MARTS.items()}
        assert rows(workspace, UNKNOWN) == []
        known = rows(workspace, "select count(*) as columns from pg_stats where tablename = 'fct_tickets'")
        assert known[0]["columns"] > 0
