-- A host's decision whose telling is not known to have happened: the node that took it may have died right after the
-- commit, and whoever waits would never hear of it.
BEGIN;

ALTER TABLE lobby_entries ADD COLUMN IF NOT EXISTS untold_since timestamptz;
CREATE INDEX IF NOT EXISTS lobby_untold ON lobby_entries (untold_since) WHERE untold_since IS NOT NULL;
GRANT SELECT (untold_since) ON lobby_entries TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- Calls at whose door somebody has waited long enough, waits for a call that is over, or was not told what was decided.
-- Two walks down two small indexes.
CREATE OR REPLACE FUNCTION system_lobbies_due(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, call_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT d.tenant_id, d.call_id FROM (
            SELECT e.tenant_id, e.call_id FROM public.lobby_entries e
            WHERE e.status = 'waiting'
              AND (e.expires_at <= until
                   OR (SELECT c.status FROM public.calls c WHERE c.tenant_id = e.tenant_id AND c.id = e.call_id)
                      = 'ended')
            UNION
            SELECT e.tenant_id, e.call_id FROM public.lobby_entries e
            WHERE e.untold_since IS NOT NULL AND e.untold_since <= until - interval '5 seconds') d
        LIMIT at_most
    $$;

REVOKE ALL ON FUNCTION system_lobbies_due(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_lobbies_due(timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
