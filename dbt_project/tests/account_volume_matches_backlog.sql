{{ config(meta={'dagster': {'ref': {'name': 'fct_account_volume'}}}) }}

with volume as (
    select
        connection,
        sum(tickets_created) as tickets_created,
        sum(tickets_resolved) as tickets_resolved
    from {{ ref('fct_account_volume') }}
    group by connection
),

latest_volume as (
    select
        connection,
        month,
        sum(open_at_month_end) as open_at_month_end,
        row_number() over (partition by connection order by month desc) as age
    from {{ ref('fct_account_volume') }}
    group by connection, month
),

backlog as (
    select
        connection,
        sum(tickets_created) as tickets_created,
        sum(tickets_resolved) as tickets_resolved
    from {{ ref('fct_backlog_daily') }}
    group by connection
),

latest_backlog as (
    select
        connection,
        backlog,
        row_number() over (partition by connection order by day desc) as age
    from {{ ref('fct_backlog_daily') }}
)

select
    backlog.connection,
    backlog.tickets_created as backlog_created,
    volume.tickets_created as volume_created,
    backlog.tickets_resolved as backlog_resolved,
    volume.tickets_resolved as volume_resolved,
    latest_backlog.backlog,
    latest_volume.open_at_month_end
from backlog
inner join latest_backlog
    on backlog.connection = latest_backlog.connection and latest_backlog.age = 1
left join volume on backlog.connection = volume.connection
left join latest_volume
    on backlog.connection = latest_volume.connection and latest_volume.age = 1
where
    backlog.tickets_created is distinct from volume.tickets_created
    or backlog.tickets_resolved is distinct from volume.tickets_resolved
    or latest_backlog.backlog is distinct from latest_volume.open_at_month_end
