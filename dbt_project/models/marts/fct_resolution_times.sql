with resolved as (
    select
        *,
        {{ utc_day('resolved_at') }} as resolved_on
    from {{ ref('fct_tickets') }}
    where not is_deleted and is_resolved
)

select
    tenant,
    connection,
    resolved_on,
    coalesce(priority, '(none)') as priority,
    count(*) as tickets_resolved,
    count(*) filter (where times_out_of_order) as tickets_out_of_order,
    count(resolution_minutes) as resolutions_measured,
    {{ percentile('resolution_minutes', 0.5) }} as resolution_minutes_median,
    {{ percentile('resolution_minutes', 0.9) }} as resolution_minutes_p90,
    cast(avg(resolution_minutes) as numeric(14, 2)) as resolution_minutes_mean,
    count(first_response_minutes) as first_responses_measured,
    {{ percentile('first_response_minutes', 0.5) }} as first_response_minutes_median,
    {{ percentile('first_response_minutes', 0.9) }} as first_response_minutes_p90,
    cast(avg(first_response_minutes) as numeric(14, 2)) as first_response_minutes_mean
from resolved
group by tenant, connection, resolved_on, coalesce(priority, '(none)')
