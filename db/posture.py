"""Whether row level security holds the role we run as. Asked at every start: a hub it does not hold must not serve."""

from __future__ import annotations

from db.pool import Transaction

# Each arm finds one way around the policies. Tables of other products in the same schema are none of our business:
# ours are those with a tenant_id, and tenants.
FIND = """
WITH me AS (SELECT oid, rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user),
ours AS (
    SELECT c.oid, c.relname, c.relkind, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.reloptions
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
      AND (c.relname = 'tenants'
           OR EXISTS (SELECT FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)))
SELECT format('role %s is a superuser', rolname) FROM me WHERE rolsuper
UNION ALL
SELECT format('role %s has BYPASSRLS', rolname) FROM me WHERE rolbypassrls
UNION ALL
SELECT format('role %s may become hub_system', rolname) FROM me
WHERE NOT rolsuper AND pg_has_role(oid, to_regrole('hub_system')::oid, 'MEMBER')
UNION ALL
SELECT format('role %s owns table %s', me.rolname, ours.relname) FROM me, ours
WHERE NOT me.rolsuper AND ours.relkind IN ('r', 'p') AND pg_has_role(me.oid, ours.relowner, 'MEMBER')
UNION ALL
SELECT format('table %s does not force row level security', relname) FROM ours
WHERE relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)
UNION ALL
SELECT format('view %s is not security_invoker', relname) FROM ours
WHERE relkind = 'v' AND NOT coalesce(reloptions && ARRAY['security_invoker=true', 'security_invoker=on'], false)
UNION ALL
SELECT format('materialized view %s shows every tenant', relname) FROM ours WHERE relkind = 'm'
UNION ALL
SELECT format('function %s runs as its owner without a fixed search_path', p.oid::regprocedure) FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
  AND NOT EXISTS (SELECT FROM unnest(p.proconfig) setting WHERE setting LIKE 'search_path=%')
UNION ALL
SELECT 'there are no tables: the migrations have not been applied' WHERE NOT EXISTS (SELECT FROM ours)
ORDER BY 1
"""


async def check(tx: Transaction) -> list[str]:
    """What is wrong, in words; empty when everything holds. Needs no tenant."""
    return [row[0] for row in await tx.fetch(FIND)]
