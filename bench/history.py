"""A long history of Dagster: what years of many connections leave in its database.

The rows are those that Dagster itself wrote for one real run of one day, multiplied by SQL, so
nothing of them is made up; only their times stay those of that run. What the pipeline keeps of
the source's data is not in here.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import psycopg

from bench.records import FIRST_DAY, NAME
from bridge_pipeline import naming

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class History:
    """What is to have been: each connection began with one backfill of all its days but the newest
    `daily`, each of which then had a run of its own.
    """

    connections: int
    days: int
    daily: int = 30

    @property
    def first_day(self) -> date:
        """The first of the days, of which yesterday (UTC) is the last."""
        return datetime.now(UTC).date() - self.days * _DAY

    @property
    def names(self) -> list[str]:
        """The connections."""
        return [f"desk-{number:03d}" for number in range(self.connections)]


def write(database: str, history: History) -> int:
    """Writes the history beside the only run there is; returns the number of events in the log.

    Args:
        database: of Dagster, in libpq's form; it holds the run of `FIRST_DAY` of the bench's connection.
    """
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in _TEMPLATE:
            connection.execute(statement)
        for name in history.names:
            with connection.transaction():
                for statement in _CONNECTION:
                    connection.execute(statement, _values(history, name))
        for statement in _AFTERWARDS:
            connection.execute(statement)
        counted = connection.execute("select count(*) from event_logs").fetchone()
    assert counted is not None
    return int(counted[0])


def _values(history: History, name: str) -> dict[str, object]:
    newest = history.first_day + max(history.days - history.daily, 1) * _DAY
    return {
        "template_name": NAME,
        "template_day": FIRST_DAY.isoformat(),
        "template_key": naming.partition_key(NAME, FIRST_DAY),
        "name": name,
        "first": history.first_day,
        "newest": newest,
        "last": history.first_day + (history.days - 1) * _DAY,
        "dimension": naming.CONNECTION_DIMENSION,
    }


# The rows of the run; `place` numbers its events within a day, or within the run.
_TEMPLATE = (
    """
    create temp table template as
    select *, row_number() over (partition by partition is not null order by id) as place
    from event_logs
    """,
    "create temp table template_tags as select * from asset_event_tags",
    "create temp table template_checks as select * from asset_check_executions",
    "create temp table template_run as select * from runs",
    "create temp table template_run_tags as select * from run_tags",
    "create temp table template_keys as select * from asset_keys",
    "create temp table run (run_id text, first date, last date, base bigint, per_day bigint, once bigint)",
    # `id` in the log; `source` in the template.
    "create temp table event (id bigint, source bigint, run_id text, day date)",
)
_AFTERWARDS = (
    # The newest materialisation of each asset is that of the last run.
    """
    update asset_keys k set last_run_id = e.run_id, cached_status_data = null, last_materialization = replace(
        replace(t.last_materialization, t.last_run_id, e.run_id),
        '"storage_id": ' || e.source, '"storage_id": ' || e.id
    )
    from template_keys t join template l on l.asset_key = t.asset_key
        and l.dagster_event_type = 'ASSET_MATERIALIZATION'
        join (select distinct on (source) * from event order by source, id desc) e on e.source = l.id
    where k.asset_key = t.asset_key
    """,
    "select setval('event_logs_id_seq', (select max(id) from event_logs))",
    # As autovacuum has done long before so much has come together.
    "vacuum analyze",
)
_CONNECTION = (
    "truncate run, event",
    # A backfill of all days but the newest, and a run for each of these.
    """
    insert into run (run_id, first, last)
    select gen_random_uuid(), %(first)s::date, %(newest)s::date - 1
    union all
    select gen_random_uuid(), day, day from generate_series(%(newest)s::timestamp, %(last)s, '1 day') day
    """,
    """
    update run set per_day = t.per_day, once = t.once from (
        select count(partition) as per_day, count(*) - count(partition) as once from template
    ) t
    """,
    """
    update run set base = b.base from (
        select run_id, (select max(id) from event_logs)
            + sum(once + per_day * (last - first + 1)) over (order by last)
            - (once + per_day * (last - first + 1)) as base
        from run
    ) b where b.run_id = run.run_id
    """,
    """
    insert into event
    select r.base + t.place, t.id, r.run_id, r.last
    from run r cross join template t where t.partition is null
    union all
    select r.base + r.once + r.per_day * day + t.place, t.id, r.run_id, r.first + day
    from run r cross join lateral generate_series(0, r.last - r.first) day cross join template t
    where t.partition is not null
    """,
    """
    insert into event_logs
        (id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    select e.id, e.run_id, replace(replace(replace(t.event, t.run_id, e.run_id),
            %(template_name)s, %(name)s), %(template_day)s, e.day::text),
        t.dagster_event_type, t.timestamp, t.step_key, t.asset_key,
        replace(replace(t.partition, %(template_name)s, %(name)s), %(template_day)s, e.day::text)
    from event e join template t on t.id = e.source
    order by e.id
    """,
    """
    insert into asset_event_tags (event_id, asset_key, key, value, event_timestamp)
    select e.id, t.asset_key, t.key,
        replace(replace(t.value, %(template_name)s, %(name)s), %(template_day)s, e.day::text),
        t.event_timestamp
    from event e join template_tags t on t.event_id = e.source
    order by e.id
    """,
    """
    insert into asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id,
        materialization_event_storage_id, create_timestamp)
    select t.asset_key, t.check_name, t.partition, r.run_id, t.execution_status,
        replace(replace(t.evaluation_event, t.run_id, r.run_id), %(template_name)s, %(name)s),
        t.evaluation_event_timestamp, evaluated.id, materialised.id, t.create_timestamp
    from run r cross join template_checks t
        left join event evaluated
            on (evaluated.source, evaluated.run_id) = (t.evaluation_event_storage_id, r.run_id)
        left join event materialised on (materialised.source, materialised.run_id, materialised.day)
            = (t.materialization_event_storage_id, r.run_id, r.last)
    """,
    """
    insert into runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition,
        partition_set, create_timestamp, update_timestamp, start_time, end_time, backfill_id)
    select r.run_id, t.snapshot_id, t.pipeline_name, t.mode, t.status,
        replace(replace(replace(replace(t.run_body,
            'range_end": "' || %(template_key)s, 'range_end": "' || %(name)s || '|' || r.last),
            t.run_id, r.run_id),
            %(template_name)s, %(name)s), %(template_day)s, r.first::text),
        t.partition, t.partition_set, t.create_timestamp, t.update_timestamp, t.start_time, t.end_time,
        t.backfill_id
    from run r cross join template_run t
    """,
    """
    insert into run_tags (run_id, key, value)
    select r.run_id, t.key, replace(replace(t.value, %(template_name)s, %(name)s), %(template_day)s,
        (case when t.key like '%%range_end' then r.last else r.first end)::text)
    from run r cross join template_run_tags t
    """,
    """
    insert into dynamic_partitions (partitions_def_name, partition) values (%(dimension)s, %(name)s)
    """,
)
