-- Ringing: one row for each person who is called to a call, and what became of it. What rings is few; the rest is
-- everybody's call log.
BEGIN;

CREATE TABLE IF NOT EXISTS invites (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id        uuid NOT NULL DEFAULT app_tenant_id(),
    -- What was sent: the same for all who were called at once.
    invite_id        uuid NOT NULL,
    call_id          uuid NOT NULL,
    caller_id        text NOT NULL CHECK (length(caller_id) BETWEEN 1 AND 128),
    -- No foreign key: somebody may be called who was never here, and the caller hears no difference.
    callee_id        text NOT NULL CHECK (length(callee_id) BETWEEN 1 AND 128),
    status           text NOT NULL DEFAULT 'ringing'
                     CHECK (status IN ('ringing', 'accepted', 'declined', 'busy', 'canceled', 'missed')),
    -- The callee blocks the caller: it rings for the caller alone, and stands in no log but theirs.
    silent           boolean NOT NULL DEFAULT false,
    -- The caller may let people in: whoever accepts passes the lock and the lobby.
    admits           boolean NOT NULL DEFAULT false,
    created_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz NOT NULL,
    ended_at         timestamptz,
    -- Which of the callee's devices answered.
    answered_session text CHECK (length(answered_session) <= 128),
    answered_device  text CHECK (length(answered_device) <= 128),
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, invite_id, callee_id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    CHECK (caller_id <> callee_id),
    CHECK ((status = 'ringing') = (ended_at IS NULL))
);
CREATE INDEX IF NOT EXISTS invites_of_call ON invites (tenant_id, call_id, callee_id);
CREATE INDEX IF NOT EXISTS invites_of_caller ON invites (tenant_id, caller_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS invites_of_callee ON invites (tenant_id, callee_id, created_at DESC, id DESC);
-- Nobody rings the same person twice at once for the same call.
CREATE UNIQUE INDEX IF NOT EXISTS invites_ringing ON invites (tenant_id, callee_id, caller_id, call_id)
    WHERE status = 'ringing';
CREATE INDEX IF NOT EXISTS invites_expiring ON invites (expires_at) WHERE status = 'ringing';
CREATE INDEX IF NOT EXISTS invites_oldest ON invites (created_at) WHERE status <> 'ringing';

ALTER TABLE invites ENABLE ROW LEVEL SECURITY;
ALTER TABLE invites FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS invites_of_both ON invites;
CREATE POLICY invites_of_both ON invites
    USING (tenant_id = app_tenant_id()
           AND (caller_id = app_user_id() OR (callee_id = app_user_id() AND NOT silent)))
    WITH CHECK (tenant_id = app_tenant_id()
           AND (caller_id = app_user_id() OR (callee_id = app_user_id() AND NOT silent)));
DROP POLICY IF EXISTS invites_for_system ON invites;
CREATE POLICY invites_for_system ON invites TO hub_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON invites TO hub_app;
GRANT SELECT, UPDATE, DELETE ON invites TO hub_system;
DROP POLICY IF EXISTS users_for_system ON users;
CREATE POLICY users_for_system ON users FOR SELECT TO hub_system USING (true);
GRANT SELECT (tenant_id, id, display_name, avatar_url) ON users TO hub_system;
GRANT SELECT (name, call_type) ON calls TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- What has rung long enough is missed; what rings for a call that is over is canceled. Each is ended by one caller.
CREATE OR REPLACE FUNCTION system_end_ringing(until timestamptz, at_most integer) RETURNS SETOF invites
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        UPDATE public.invites i
        SET status = CASE WHEN i.expires_at <= until THEN 'missed' ELSE 'canceled' END, ended_at = until
        WHERE i.ctid = ANY (ARRAY(
            SELECT due.ctid FROM public.invites due
            WHERE due.status = 'ringing'
              AND (due.expires_at <= until
                   OR (SELECT c.status FROM public.calls c
                       WHERE c.tenant_id = due.tenant_id AND c.id = due.call_id) = 'ended')
            ORDER BY due.expires_at LIMIT at_most FOR UPDATE SKIP LOCKED))
          AND i.status = 'ringing'
        RETURNING i.*
    $$;

-- What rings for these people, given as two lists side by side, with what they are to be told of it.
CREATE OR REPLACE FUNCTION system_ringing(tenant_ids uuid[], user_ids text[], at_most integer)
    RETURNS TABLE (tenant_id uuid, callee_id text, invite_id uuid, call_id uuid, call_name text, call_type text,
                   caller_id text, caller_name text, avatar_url text, created_at timestamptz, expires_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT i.tenant_id, i.callee_id, i.invite_id, i.call_id, c.name, c.call_type, i.caller_id, u.display_name,
               u.avatar_url, i.created_at, i.expires_at
        FROM unnest(tenant_ids, user_ids) AS come (tenant_id, user_id)
        JOIN public.invites i ON i.tenant_id = come.tenant_id AND i.callee_id = come.user_id
        JOIN public.calls c ON c.tenant_id = i.tenant_id AND c.id = i.call_id
        LEFT JOIN public.users u ON u.tenant_id = i.tenant_id AND u.id = i.caller_id
        WHERE i.status = 'ringing' AND NOT i.silent AND i.expires_at > now() AND c.status <> 'ended'
        ORDER BY i.created_at LIMIT at_most
    $$;

CREATE OR REPLACE FUNCTION system_forget_invites(created_before timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM public.invites WHERE ctid = ANY (ARRAY(
                SELECT i.ctid FROM public.invites i
                WHERE i.status <> 'ringing' AND i.created_at < created_before
                ORDER BY i.created_at LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT count(*) FROM gone
    $$;

REVOKE ALL ON FUNCTION system_end_ringing(timestamptz, integer), system_ringing(uuid[], text[], integer),
    system_forget_invites(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_end_ringing(timestamptz, integer), system_ringing(uuid[], text[], integer),
    system_forget_invites(timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
