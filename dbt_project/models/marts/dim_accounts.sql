with accounts as (
    select * from {{ ref('stg_accounts') }}
    where not is_placeholder
),

tickets as (
    select
        connection,
        account_id,
        count(*) as tickets,
        count(*) filter (where not is_resolved) as open_tickets,
        max(created_at) as last_ticket_at
    from {{ ref('fct_tickets') }}
    where not is_deleted
    group by connection, account_id
)

select
    accounts.tenant,
    accounts.connection,
    accounts.account_id,
    accounts.name,
    accounts.created_at,
    accounts.updated_at,
    accounts.is_deleted,
    accounts.deleted_at,
    coalesce(tickets.tickets, 0) as tickets,
    coalesce(tickets.open_tickets, 0) as open_tickets,
    tickets.last_ticket_at
from accounts
left join tickets
    on accounts.connection = tickets.connection and accounts.account_id = tickets.account_id
