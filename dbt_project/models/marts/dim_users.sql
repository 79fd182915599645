with users as (
    select * from {{ ref('stg_users') }}
    where not is_placeholder
),

parts as (
    select
        ticket_users.connection,
        ticket_users.user_id,
        count(*) filter (where ticket_users.part = 'requester') as tickets_requested,
        count(*) filter (where ticket_users.part = 'assignee') as tickets_assigned
    from {{ ref('stg_ticket_users') }} as ticket_users
    inner join {{ ref('fct_tickets') }} as tickets
        on ticket_users.connection = tickets.connection and ticket_users.ticket_id = tickets.ticket_id
    where not tickets.is_deleted
    group by ticket_users.connection, ticket_users.user_id
)

select
    users.tenant,
    users.connection,
    users.user_id,
    users.name,
    users.email,
    users.role,
    users.status,
    users.created_at,
    users.updated_at,
    users.is_deleted,
    users.deleted_at,
    coalesce(parts.tickets_requested, 0) as tickets_requested,
    coalesce(parts.tickets_assigned, 0) as tickets_assigned
from users
left join parts
    on users.connection = parts.connection and users.user_id = parts.user_id
