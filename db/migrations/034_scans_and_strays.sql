-- A node without a scanner leaves what is to be scanned to those that have one; and what lies in a store that others
-- use as well is this database's only where its call is.
BEGIN;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- The one with three arguments stays: nodes of the version before ask by it.
CREATE OR REPLACE FUNCTION system_claim_files(until timestamptz, at_most integer, lease interval, scans boolean)
    RETURNS TABLE (tenant_id uuid, uploader_id text, file_id uuid, attempts integer)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        UPDATE public.files f SET work_after = until + lease, work_attempts = f.work_attempts + 1
        WHERE f.id = ANY (ARRAY(
            SELECT w.id FROM public.files w
            WHERE (w.scan_status = 'pending' OR w.preview_status = 'pending') AND w.work_after <= until
              AND (scans OR w.scan_status <> 'pending')
            ORDER BY w.work_after LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING f.tenant_id, f.uploader_id, f.id, f.work_attempts
    $$;
REVOKE ALL ON FUNCTION system_claim_files(timestamptz, integer, interval, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_claim_files(timestamptz, integer, interval, boolean) TO hub_app;

CREATE OR REPLACE FUNCTION system_known_calls(tenant_ids uuid[], call_ids uuid[])
    RETURNS TABLE (tenant_id uuid, call_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT DISTINCT c.tenant_id, c.id FROM unnest(tenant_ids, call_ids) AS asked (tenant_id, id)
        JOIN public.calls c ON c.tenant_id = asked.tenant_id AND c.id = asked.id
    $$;
REVOKE ALL ON FUNCTION system_known_calls(uuid[], uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_known_calls(uuid[], uuid[]) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
