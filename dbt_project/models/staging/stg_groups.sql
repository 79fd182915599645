select
    tenant,
    connection,
    id as group_id,
    name,
    description,
    created_at,
    updated_at,
    custom_fields,
    placeholder as is_placeholder,
    deleted_at is not null as is_deleted,
    deleted_at,
    fetched_at,
    loaded_at,
    batch_id
from {{ source('desk', 'groups') }}
