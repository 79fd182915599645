{{ config(meta={'dagster': {'ref': {'name': 'fct_backlog_daily'}}}) }}

with newest as (
    select distinct on (connection)
        connection,
        day,
        backlog
    from {{ ref('fct_backlog_daily') }}
    order by connection asc, day desc
),

counted as (
    select
        newest.connection,
        count(tickets.ticket_id) as backlog
    from newest
    left join {{ ref('fct_tickets') }} as tickets
        on
            newest.connection = tickets.connection
            and not tickets.is_deleted
            and {{ utc_day('tickets.created_at') }} <= newest.day
            and (tickets.resolved_at is null or {{ utc_day('tickets.resolved_at') }} > newest.day)
    group by newest.connection
)

select
    newest.connection,
    newest.day,
    newest.backlog,
    counted.backlog as counted
from newest
inner join counted on newest.connection = counted.connection
where newest.backlog <> counted.backlog
