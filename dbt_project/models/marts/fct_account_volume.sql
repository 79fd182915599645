-- Tickets of an account that count in the same months are counted together.
with tickets as (
    select
        tenant,
        connection,
        coalesce(account_id, '(none)') as account_id,
        {{ month_of('entered_backlog_on') }} as created_month,
        {{ month_of('left_backlog_on') }} as resolved_month,
        max(account_name) as account_name,
        max({{ month_of(utc_day('as_of')) }}) as last_month,
        count(*) as tickets
    from {{ ref('fct_tickets') }}
    where not is_deleted and entered_backlog_on is not null
    group by tenant, connection, coalesce(account_id, '(none)'), created_month, resolved_month
),

spans as (
    select
        tenant,
        connection,
        account_id,
        max(account_name) as account_name,
        cast(min(created_month) as timestamp) as first_month,
        cast(max(last_month) as timestamp) as last_month
    from tickets
    group by tenant, connection, account_id
),

months as (
    select
        tenant,
        connection,
        account_id,
        account_name,
        cast(generate_series(first_month, last_month, interval '1 month') as date) as month
    from spans
),

events as (
    select
        connection,
        account_id,
        created_month as month,
        tickets as created,
        0 as resolved
    from tickets
    union all
    select
        connection,
        account_id,
        resolved_month as month,
        0 as created,
        tickets as resolved
    from tickets
    where resolved_month is not null
),

changes as (
    select
        connection,
        account_id,
        month,
        cast(sum(created) as bigint) as created,
        cast(sum(resolved) as bigint) as resolved
    from events
    group by connection, account_id, month
)

select
    months.tenant,
    months.connection,
    months.account_id,
    months.account_name,
    months.month,
    coalesce(changes.created, 0) as tickets_created,
    coalesce(changes.resolved, 0) as tickets_resolved,
    cast(
        sum(coalesce(changes.created - changes.resolved, 0)) over (
            partition by months.connection, months.account_id order by months.month
        ) as bigint
    ) as open_at_month_end
from months
left join changes
    on
        months.connection = changes.connection
        and months.account_id = changes.account_id
        and months.month = changes.month
