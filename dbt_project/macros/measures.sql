{# The UTC day of a moment, whatever the time zone of the session. #}
{% macro utc_day(moment) -%}
    cast({{ moment }} at time zone 'UTC' as date)
{%- endmacro %}


{# The first day of the month of a date. #}
{% macro month_of(day) -%}
    cast(date_trunc('month', cast({{ day }} as timestamp)) as date)
{%- endmacro %}


{# The time from one moment to another in units of `seconds` each. #}
{% macro elapsed(earlier, later, seconds) -%}
    cast(extract(epoch from {{ later }} - {{ earlier }}) / {{ seconds }} as numeric(14, 2))
{%- endmacro %}


{# An interpolated percentile over the rows of a group in which `measure` is known. #}
{% macro percentile(measure, fraction) -%}
    cast(percentile_cont({{ fraction }}) within group (order by {{ measure }}) as numeric(14, 2))
{%- endmacro %}
