{#
    Who may read what dbt builds.

    A rebuilt relation starts without row policies and grants; `protect` is the post-hook that gives
    them back in the transaction that builds it, so that no reader ever sees the relation without.

    Readers are the role `bridge_analyst`, which sees all tenants, and the roles
    `bridge_tenant_<tenant>`, which see their tenant's rows. A login is let in by membership, so the
    policies bind to the current role and to nothing that a session can set. They name no role that has
    to exist: whoever is no reader sees no row, and a role made later is granted by the next build.
#}
{% macro protect() %}
    {% if model.config.materialized == 'view' %}
        -- Read with the rights and row policies of whoever asks, not of the view's owner.
        alter view {{ this }} set (security_invoker = true);
    {% else %}
        alter table {{ this }} enable row level security;
        create policy analysts on {{ this }} for select using (
            exists (
                select from pg_roles
                where rolname = 'bridge_analyst' and pg_has_role(oid, 'usage')
            )
        );
        create policy tenants on {{ this }} for select using (
            'bridge_tenant_' || tenant in (
                select cast(rolname as text) from pg_roles where pg_has_role(oid, 'usage')
            )
        );
    {% endif %}
    {{ grant_to_readers('select on ' ~ this) }}
{% endmacro %}


{#
    Grants `privilege`, written as in `grant … to`, to those readers of this installation that exist. The
    server may have roles of others, and of tenants that were removed here.
#}
{% macro grant_to_readers(privilege) %}
    do $$
    declare
        reader name;
    begin
        for reader in
            select rolname from pg_roles
            where rolname = 'bridge_analyst' or rolname in (
                select 'bridge_tenant_' || name from bridge.tenants where removed_at is null
            )
        loop
            execute format('grant %s to %I', '{{ privilege }}', reader);
        end loop;
    end
    $$;
{% endmacro %}
