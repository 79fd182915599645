"""The quota as a ledger: what each credential has used of each of its source's buckets, and who waits."""

from alembic import op

revision = "0012"
down_revision = "0011"

DDL = """
drop table bridge.quota_slots;
drop table bridge.quota_holds;

create sequence bridge.quota_tickets;

create table bridge.quota_connections (
    connection text not null,
    tenant text not null,
    credential text not null,
    served_at timestamptz,
    constraint quota_connections_pkey primary key (connection),
    constraint quota_connections_connection_fkey foreign key (connection)
        references bridge.connections (name) on delete cascade
);
create index quota_connections_credential_idx on bridge.quota_connections (credential);

create table bridge.quota_buckets (
    credential text not null,
    bucket text not null,
    units bigint,
    seconds double precision not null,
    told_units bigint,
    told_seconds double precision,
    told_at timestamptz,
    used bigint not null default 0,
    others bigint not null default 0,
    others_until timestamptz,
    held_until timestamptz,
    constraint quota_buckets_pkey primary key (credential, bucket)
);

create table bridge.quota_uses (
    use bigint not null,
    bucket text not null,
    credential text not null,
    units bigint not null,
    used_with_it bigint not null,
    answered boolean not null default false,
    free_at timestamptz not null,
    constraint quota_uses_pkey primary key (use, bucket)
);
create index quota_uses_credential_bucket_free_at_idx on bridge.quota_uses (credential, bucket, free_at);

create table bridge.quota_waiters (
    ticket bigint not null,
    credential text not null,
    connection text not null,
    wanted jsonb not null,
    due_at timestamptz not null,
    constraint quota_waiters_pkey primary key (ticket)
);
create index quota_waiters_credential_due_at_idx on bridge.quota_waiters (credential, due_at);

alter table bridge.connections
    add column quota_reserve double precision not null default 0.2,
    add constraint connections_quota_reserve_check check (quota_reserve >= 0 and quota_reserve < 1);
alter table bridge.batches add column quota jsonb not null default '{}';

alter table bridge.quota_connections enable row level security;
create policy analysts on bridge.quota_connections for select using (
    exists (select from pg_roles where rolname = 'bridge_analyst' and pg_has_role(oid, 'usage'))
);
create policy tenants on bridge.quota_connections for select using (
    'bridge_tenant_' || tenant in (
        select cast(rolname as text) from pg_roles where pg_has_role(oid, 'usage')
    )
);
"""

# All that is done for one credential is done one after the other: the row of the bucket `requests`, which
# every request takes from and every quota makes first, is the lock, held for the one statement that calls
# the function.
TAKE = """
create function bridge.quota_take(
    ident text,
    asker text,
    asked jsonb,
    reserve double precision,
    longest_request double precision,
    longest_pause double precision,
    place bigint
) returns table (taken bigint, pause double precision, held double precision, line bigint, lacking text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    moment timestamptz;
    turn timestamptz;
    this record;
    ours bigint;
    free bigint;
    ahead bigint;
    need bigint;
    wait double precision;
begin
    perform from bridge.quota_buckets as b where b.credential = ident and b.bucket = 'requests' for update;
    moment := clock_timestamp();
    insert into bridge.quota_buckets (credential, bucket, units, seconds)
    select ident, wish.key, cast(wish.value ->> 'units' as bigint),
        cast(wish.value ->> 'seconds' as double precision)
    from jsonb_each(asked) as wish order by wish.key
    on conflict do nothing;

    with freed as (
        delete from bridge.quota_uses as u where u.credential = ident and u.free_at <= moment
        returning u.bucket, u.units
    ),
    summed as (select f.bucket, sum(f.units) as units from freed as f group by f.bucket)
    update bridge.quota_buckets as b set used = b.used - summed.units
    from summed where b.credential = ident and b.bucket = summed.bucket;

    select c.served_at into turn from bridge.quota_connections as c where c.connection = asker;
    pause := 0;
    held := 0;
    for this in
        select b.*, cast(wish.value ->> 'cost' as bigint) as cost,
            bridge.quota_limit(b, moment, cast(wish.value ->> 'units' as bigint)) as most,
            coalesce(b.told_seconds, b.seconds) as span
        from bridge.quota_buckets as b join jsonb_each(asked) as wish on wish.key = b.bucket
        where b.credential = ident order by b.bucket
    loop
        wait := greatest(0, extract(epoch from this.held_until - moment));
        held := greatest(held, wait);
        if this.most is not null then
            ours := greatest(1, floor(this.most * (1 - reserve)));
            free := least(ours, this.most - case when this.others_until > moment then this.others else 0 end)
                - this.used;
            need := least(this.cost, ours);
            -- Those who were told to come now, and come before this one: of connections that were served
            -- longer ago. Who does not come within a second has died, or comes later.
            select coalesce(sum(cast(w.wanted ->> this.bucket as bigint)), 0) into ahead
            from bridge.quota_waiters as w
            left join bridge.quota_connections as c on c.connection = w.connection
            where w.credential = ident and w.ticket is distinct from place
                and w.due_at <= moment and w.due_at > moment - interval '1 second'
                and (coalesce(c.served_at, '-infinity'), w.ticket)
                    < (coalesce(turn, '-infinity'), coalesce(place, 9223372036854775807));
            if free - ahead < need then
                wait := greatest(wait, coalesce((
                    select extract(epoch from min(gone.at) - moment)
                    from (
                        select due.at, sum(due.units) over (order by due.at) as units
                        from (
                            -- One under way is given back after its answer, long before its lease ends.
                            select u.units, case when u.answered then u.free_at
                                else least(u.free_at, moment + make_interval(secs => this.span)) end as at
                            from bridge.quota_uses as u
                            where u.credential = ident and u.bucket = this.bucket
                        ) as due
                    ) as gone
                    where gone.units >= need + ahead - free
                ), 1));
                if this.others_until > moment and this.others > 0 then
                    wait := least(wait, extract(epoch from this.others_until - moment));
                end if;
                if ahead > 0 then
                    wait := least(wait, 1);
                end if;
                wait := greatest(wait, 0.001, extract(epoch from this.held_until - moment));
            end if;
        end if;
        if wait > pause then
            pause := wait;
            lacking := this.bucket;
        end if;
    end loop;

    if pause > 0 then
        line := coalesce(place, nextval('bridge.quota_tickets'));
        insert into bridge.quota_waiters (ticket, credential, connection, wanted, due_at)
        values (
            line, ident, asker,
            (select jsonb_object_agg(wish.key, wish.value -> 'cost') from jsonb_each(asked) as wish),
            moment + make_interval(secs => least(pause, longest_pause))
        )
        on conflict (ticket) do update set due_at = excluded.due_at;
        delete from bridge.quota_waiters as w
        where w.credential = ident and w.due_at < moment - interval '1 minute';
    else
        taken := nextval('bridge.quota_tickets');
        insert into bridge.quota_uses (use, bucket, credential, units, used_with_it, free_at)
        select taken, b.bucket, ident, cast(wish.value ->> 'cost' as bigint),
            b.used + cast(wish.value ->> 'cost' as bigint),
            moment + make_interval(secs => longest_request + bridge.quota_span(b))
        from bridge.quota_buckets as b join jsonb_each(asked) as wish on wish.key = b.bucket
        where b.credential = ident;
        update bridge.quota_buckets as b set used = b.used + cast(wish.value ->> 'cost' as bigint)
        from jsonb_each(asked) as wish where b.credential = ident and b.bucket = wish.key;
        update bridge.quota_connections as c set served_at = moment where c.connection = asker;
        delete from bridge.quota_waiters as w where w.ticket = place;
    end if;
    return next;
end
$$
"""

LIMITS = """
-- Units that a bucket holds: what the source said lately, else what the one who asks knows of it. What is
-- configured for one connection binds all that use its credential.
create function bridge.quota_limit(b bridge.quota_buckets, moment timestamptz, known bigint) returns bigint
language sql stable
as $$
    select case
        when b.told_units is not null and b.told_at > moment - make_interval(
            secs => greatest(3600, 2 * coalesce(b.told_seconds, b.seconds))
        ) then b.told_units
        when b.bucket = 'requests' then least(known, (
            select min(own.requests_per_minute)
            from bridge.quota_connections as c join bridge.connections as own on own.name = c.connection
            where c.credential = b.credential and own.removed_at is null
        ))
        else known
    end
$$;

-- Seconds for which a use counts from its answer on: the source's window, and a little for uneven clocks.
create function bridge.quota_span(b bridge.quota_buckets) returns double precision
language sql immutable
as $$ select 1.002 * coalesce(b.told_seconds, b.seconds) + 0.02 $$;
"""

SETTLE = """
create function bridge.quota_settle(ident text, done bigint, told jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    moment timestamptz;
    this record;
begin
    perform from bridge.quota_buckets as b where b.credential = ident and b.bucket = 'requests' for update;
    moment := clock_timestamp();
    for this in
        select * from jsonb_to_recordset(told)
            as x (
                bucket text, units bigint, "left" bigint, resets_in double precision, seconds double precision
            )
        order by bucket
    loop
        insert into bridge.quota_buckets as b
            (credential, bucket, seconds, told_units, told_seconds, told_at)
        values (
            ident, this.bucket, coalesce(this.seconds, greatest(60, this.resets_in)), this.units,
            this.seconds, case when this.units is not null then moment end
        )
        on conflict (credential, bucket) do update set
            told_units = coalesce(excluded.told_units, b.told_units),
            told_seconds = coalesce(excluded.told_seconds, b.told_seconds),
            told_at = coalesce(excluded.told_at, b.told_at);
        if this.left is not null then
            -- What the source has counted and we have not is others'.
            update bridge.quota_buckets as b set
                others = greatest(0, coalesce(this.units, bridge.quota_limit(b, moment, b.units)) - this.left
                    - greatest(b.used, coalesce((
                        select u.used_with_it from bridge.quota_uses as u
                        where u.use = done and u.bucket = b.bucket
                    ), 0))),
                others_until = moment + make_interval(
                    secs => least(coalesce(this.resets_in, bridge.quota_span(b)), bridge.quota_span(b))
                )
            where b.credential = ident and b.bucket = this.bucket
                and coalesce(this.units, bridge.quota_limit(b, moment, b.units)) is not null;
        end if;
    end loop;
    update bridge.quota_uses as u
    set answered = true, free_at = moment + make_interval(secs => bridge.quota_span(b))
    from bridge.quota_buckets as b
    where u.use = done and not u.answered and b.credential = u.credential and b.bucket = u.bucket;
end
$$
"""


def upgrade() -> None:
    for statement in (DDL, LIMITS, TAKE, SETTLE):
        op.execute(statement)
