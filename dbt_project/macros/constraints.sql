{#
    The constraints of a contract that concern a whole table, such as its primary key, are added once it is
    filled. dbt declares them on the empty table: then each row is put into the index by itself, in no order,
    and an index that is larger than the server's buffers is read and written back page by page. A million
    tickets took Postgres a minute so, and two seconds the other way.
#}

{# dbt's own, without those constraints: what is declared of the empty table. #}
{% macro postgres__get_table_columns_and_constraints() -%}
    ({{ adapter.render_raw_columns_constraints(raw_columns=model['columns']) | join(', ') }})
{%- endmacro %}


{# The constraints of the table that has just been filled, in the transaction that builds it. #}
{% macro add_constraints() %}
    {% for constraint in adapter.render_raw_model_constraints(raw_constraints=model['constraints']) %}
        alter table {{ this }} add {{ constraint }};
    {% endfor %}
{% endmacro %}
