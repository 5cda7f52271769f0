-- Who waits to be let into a call, and what became of those who did. One row a person and call: a new knock is a new
-- ticket in the same row, so that a late word about the old one hits nothing.
BEGIN;

CREATE TABLE IF NOT EXISTS lobby_entries (
    tenant_id    uuid NOT NULL DEFAULT app_tenant_id(),
    call_id      uuid NOT NULL,
    -- No foreign key: who knocks may never have been seen before, and may never come in.
    user_id      text NOT NULL CHECK (length(user_id) BETWEEN 1 AND 128),
    ticket       uuid NOT NULL DEFAULT gen_random_uuid(),
    display_name text NOT NULL CHECK (length(display_name) <= 200),
    status       text NOT NULL DEFAULT 'waiting'
                 CHECK (status IN ('waiting', 'admitted', 'denied', 'canceled', 'timed_out')),
    -- The link they came by asks for it, whatever the call says. No foreign key: a link may be deleted meanwhile.
    by_link      boolean NOT NULL DEFAULT false,
    via_link_id  uuid,
    -- One clock for all nodes, read while the call's row is held: the order of the queue is the order of the knocks.
    knocked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    decided_at   timestamptz,
    decided_by   text CHECK (length(decided_by) <= 128),
    reason       text CHECK (length(reason) <= 500),
    PRIMARY KEY (tenant_id, call_id, user_id),
    UNIQUE (tenant_id, ticket),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS lobby_queue ON lobby_entries (tenant_id, call_id, knocked_at, ticket)
    WHERE status = 'waiting';
CREATE INDEX IF NOT EXISTS lobby_waiting ON lobby_entries (expires_at) WHERE status = 'waiting';

ALTER TABLE lobby_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE lobby_entries FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS lobby_of_tenant ON lobby_entries;
CREATE POLICY lobby_of_tenant ON lobby_entries
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
GRANT SELECT, INSERT, UPDATE, DELETE ON lobby_entries TO hub_app;

DROP POLICY IF EXISTS lobby_for_system ON lobby_entries;
CREATE POLICY lobby_for_system ON lobby_entries FOR SELECT TO hub_system USING (true);
GRANT SELECT (tenant_id, call_id, status, expires_at) ON lobby_entries TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- Calls at whose door somebody has waited long enough, or waits for a call that is over.
CREATE OR REPLACE FUNCTION system_lobbies_due(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, call_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT DISTINCT e.tenant_id, e.call_id FROM public.lobby_entries e
        WHERE e.status = 'waiting'
          AND (e.expires_at <= until
               OR (SELECT c.status FROM public.calls c WHERE c.tenant_id = e.tenant_id AND c.id = e.call_id) = 'ended')
        LIMIT at_most
    $$;

REVOKE ALL ON FUNCTION system_lobbies_due(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_lobbies_due(timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
