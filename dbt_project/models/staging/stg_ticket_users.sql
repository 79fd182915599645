select
    tenant,
    connection,
    ticket_id,
    user_id,
    part
from {{ source('desk', 'ticket_users') }}
