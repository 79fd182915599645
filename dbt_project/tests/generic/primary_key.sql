{#
    Fails on each combination of `columns` that occurs twice or has a null in it.

    Where Postgres itself keeps that from happening, by a primary key of just these columns, no row is read.
#}
{% test primary_key(model, columns) %}

select
    {{ columns | join(', ') }},
    count(*) as occurrences
from {{ model }}
where
    not exists (
        select
        from pg_index
        where
            indrelid = to_regclass('{{ model }}')
            and indisprimary
            and array(
                select cast(attname as text) from pg_attribute
                where attrelid = indrelid and attnum = any(indkey)
                order by attname
            ) = array['{{ columns | sort | join("', '") }}']
    )
group by {{ columns | join(', ') }}
having count(*) > 1 or num_nulls({{ columns | join(', ') }}) > 0

{% endtest %}
