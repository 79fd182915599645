{#
    What the planner knows of tables. Postgres looks at them by itself a minute later or so: until then it
    plans for a few hundred different values, sorts millions of rows to disk, and may loop over them.
#}

{# Statistics of the sources that have changed by as much as Postgres itself waits for. #}
{% macro analyze_sources() %}
    do $$
    declare
        changed regclass;
    begin
        for changed in
            select relid
            from pg_stat_user_tables
            inner join pg_class on pg_class.oid = relid
            where schemaname = 'desk' and n_mod_since_analyze > 50 + 0.1 * greatest(reltuples, 0)
        loop
            execute format('analyze %s', changed);
        end loop;
    end
    $$;
{% endmacro %}


{# Statistics of a table that has just been built. #}
{% macro analyze() %}
    {% if model.config.materialized != 'view' %}
        analyze {{ this }};
    {% endif %}
{% endmacro %}
