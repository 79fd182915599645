-- Tickets that count on the same days are counted together: millions of them have few days.
with tickets as (
    select
        tenant,
        connection,
        entered_backlog_on,
        left_backlog_on,
        case
            when closed_at is not null and left_backlog_on is null
                then {{ utc_day('greatest(closed_at, created_at)') }}
        end as closed_unresolved_on,
        max(as_of) as as_of,
        count(*) as tickets
    from {{ ref('fct_tickets') }}
    where not is_deleted and entered_backlog_on is not null
    group by tenant, connection, entered_backlog_on, left_backlog_on, closed_unresolved_on
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
        tickets as created,
        0 as resolved,
        0 as closed_unresolved
    from tickets
    union all
    select
        connection,
        left_backlog_on as day,
        0 as created,
        tickets as resolved,
        0 as closed_unresolved
    from tickets
    where left_backlog_on is not null
    union all
    select
        connection,
        closed_unresolved_on as day,
        0 as created,
        0 as resolved,
        tickets as closed_unresolved
    from tickets
    where closed_unresolved_on is not null
),

changes as (
    select
        connection,
        day,
        cast(sum(created) as bigint) as created,
        cast(sum(resolved) as bigint) as resolved,
        cast(sum(closed_unresolved) as bigint) as closed_unresolved
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
