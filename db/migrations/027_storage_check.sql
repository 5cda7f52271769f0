-- What the store has to hold, over all tenants: for the comparison of what is kept with what is known of it.
BEGIN;

GRANT SELECT (size_bytes, sha256) ON files TO hub_system;
GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_stored_files(after uuid, at_most integer)
    RETURNS TABLE (tenant_id uuid, file_id uuid, storage_key text, preview_storage_key text, size_bytes bigint,
                   sha256 text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT f.tenant_id, f.id, f.storage_key,
               CASE WHEN f.preview_status = 'ready' THEN f.preview_storage_key END, f.size_bytes, f.sha256
        FROM public.files f WHERE f.status = 'ready' AND f.id > after ORDER BY f.id LIMIT at_most
    $$;
REVOKE ALL ON FUNCTION system_stored_files(uuid, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_stored_files(uuid, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
