"""Row security on every table that carries a tenant: readers see all rows, or their tenant's.

The policies are those of `dbt_project/macros/protect.sql`: they bind to the current role and name
no role that has to exist. The owner of the tables, as which the pipeline works, is not subject to
them.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

PROTECT = """
do $$
declare
    protected regclass;
begin
    for protected in
        select attrelid::regclass from pg_attribute join pg_class on pg_class.oid = attrelid
        where attname = 'tenant' and not attisdropped and relkind = 'r'
            and relnamespace in ('desk'::regnamespace, 'bridge'::regnamespace)
    loop
        execute format('alter table %s enable row level security', protected);
        execute format(
            'create policy analysts on %s for select using (
                exists (
                    select from pg_roles
                    where rolname = ''bridge_analyst'' and pg_has_role(oid, ''usage'')
                )
            )', protected
        );
        execute format(
            'create policy tenants on %s for select using (
                ''bridge_tenant_'' || tenant in (
                    select cast(rolname as text) from pg_roles where pg_has_role(oid, ''usage'')
                )
            )', protected
        );
    end loop;
end
$$
"""


def upgrade() -> None:
    op.execute(PROTECT)
