select
    tenant,
    connection,
    id as comment_id,
    ticket_id,
    author_id,
    body,
    is_public,
    created_at,
    updated_at,
    custom_fields,
    placeholder as is_placeholder,
    deleted_at is not null as is_deleted,
    deleted_at,
    fetched_at,
    loaded_at,
    batch_id
from {{ source('desk', 'comments') }}
