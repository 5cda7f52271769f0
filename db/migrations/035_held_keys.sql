-- Whether something still has its bytes under a key: asked before they are deleted.
BEGIN;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_held_keys(keys text[]) RETURNS TABLE (storage_key text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT f.storage_key FROM public.files f WHERE f.storage_key = ANY (keys)
        UNION SELECT f.preview_storage_key FROM public.files f WHERE f.preview_storage_key = ANY (keys)
        UNION SELECT u.storage_key FROM public.uploads u WHERE u.storage_key = ANY (keys)
    $$;
REVOKE ALL ON FUNCTION system_held_keys(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_held_keys(text[]) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
