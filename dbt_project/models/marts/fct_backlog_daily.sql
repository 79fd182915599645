with tickets as (
    select * from {{ ref('fct_tickets') }}
    where not is_deleted and entered_backlog_on is not null
),

spans as (
    select
        tenant,
        connection,
        min(entered_backlog_on) as first_day,
        {{ utc_day('max(as_of)') }} as last_day
    from tickets
    group by tenant, connection
),

days as (
    select
        tenant,
        connection,
        first_day + generate_series(0, last_day - first_day) as day
    from spans
),

events as (
    select
        connection,
        entered_backlog_on as day,
        1 as created,
        0 as resolved,
        0 as closed_unresolved
    from tickets
    union all
    select
        connection,
        left_backlog_on as day,
        0 as created,
        1 as resolved,
        0 as closed_unresolved
    from tickets
    where left_backlog_on is not null
    union all
    select
        connection,
        {{ utc_day('greatest(closed_at, created_at)') }} as day,
        0 as created,
        0 as resolved,
        1 as closed_unresolved
    from tickets
    where closed_at is not null and left_backlog_on is null
),

changes as (
    select
        connection,
        day,
        sum(created) as created,
        sum(resolved) as resolved,
        sum(closed_unresolved) as closed_unresolved
    from events
    group by connection, day
)

select
    days.tenant,
    days.connection,
    days.day,
    coalesce(changes.created, 0) as tickets_created,
    coalesce(changes.resolved, 0) as tickets_resolved,
    cast(sum(coalesce(changes.created - changes.resolved, 0)) over so_far as bigint) as backlog,
    cast(sum(coalesce(changes.closed_unresolved, 0)) over so_far as bigint) as backlog_closed_unresolved
from days
left join changes
    on days.connection = changes.connection and days.day = changes.day
window so_far as (partition by days.connection order by days.day)
