{#
    Fails on each value that `field` of `to` does not hold in the same connection. Ids are only unique
    within a connection, so that dbt's own `relationships` would accept another connection's record.
#}
{% test refers_to(model, column_name, to, field) %}

with children as (
    select distinct connection, {{ column_name }} as reference
    from {{ model }}
    where {{ column_name }} is not null
)

select children.connection, children.reference
from children
left join {{ to }} as parents
    on children.connection = parents.connection and children.reference = parents.{{ field }}
where parents.connection is null

{% endtest %}
