-- What the hub itself needs: bans, the audit log, answers kept for repeated commands, LiveKit's webhooks on their way
-- in, and the few functions that look across tenants.
BEGIN;

------------------------------------------------------------------------------------------------------------ call_bans
CREATE TABLE IF NOT EXISTS call_bans (
    tenant_id  uuid NOT NULL DEFAULT app_tenant_id(),
    call_id    uuid NOT NULL,
    -- No foreign key: a ban may come before the person does, and outlives what is known of them.
    user_id    text NOT NULL CHECK (length(user_id) BETWEEN 1 AND 128),
    banned_by  text NOT NULL,
    reason     text CHECK (length(reason) <= 500),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- NULL: as long as the call.
    expires_at timestamptz,
    PRIMARY KEY (tenant_id, call_id, user_id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE
);

------------------------------------------------------------------------------------------------------------ audit_log
CREATE TABLE IF NOT EXISTS audit_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- No foreign key: what happened stays written, whatever becomes of the tenant.
    tenant_id   uuid NOT NULL DEFAULT app_tenant_id(),
    at          timestamptz NOT NULL DEFAULT now(),
    actor       text NOT NULL CHECK (length(actor) <= 128),
    action      text NOT NULL CHECK (length(action) <= 100),
    target_type text NOT NULL CHECK (length(target_type) <= 50),
    target_id   text CHECK (length(target_id) <= 257),
    reason      text CHECK (length(reason) <= 500),
    details     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object')
);
CREATE INDEX IF NOT EXISTS audit_newest ON audit_log (tenant_id, id DESC);
CREATE INDEX IF NOT EXISTS audit_of_actor ON audit_log (tenant_id, actor, id DESC);
CREATE INDEX IF NOT EXISTS audit_of_target ON audit_log (tenant_id, target_type, target_id, id DESC);

-- The app role has no UPDATE or DELETE here at all; the triggers hold the owner to the same.
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only' USING ERRCODE = 'insufficient_privilege';
END
$fn$;
CREATE OR REPLACE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE OR REPLACE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

------------------------------------------------------------------------------------------------------ command_results
-- The answer to a command that carried a key, for as long as the same key must have no second effect.
CREATE TABLE IF NOT EXISTS command_results (
    -- No foreign keys: the first command of a tenant comes before its row, and these rows go by themselves.
    tenant_id    uuid NOT NULL DEFAULT app_tenant_id(),
    user_id      text NOT NULL CHECK (length(user_id) BETWEEN 1 AND 128),
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    command      text NOT NULL,
    payload_hash bytea NOT NULL,
    -- NULL while the command runs; whoever runs it has until leased_until.
    answer       bytea,
    leased_until timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id, key)
);
CREATE INDEX IF NOT EXISTS command_results_expiring ON command_results (expires_at);

------------------------------------------------------------------------------------------------ livekit_webhook_inbox
-- Accepted is durable: LiveKit hears 200 only after its event stands here. It comes without a tenant, so the app
-- role writes it through the functions below only, and reads no row but those that turned out to be its tenant's.
CREATE TABLE IF NOT EXISTS livekit_webhook_inbox (
    event_id         text PRIMARY KEY,
    event            text NOT NULL,
    room_name        text,
    room_sid         text,
    participant_sid  text,
    track_sid        text,
    -- LiveKit's clock, whole seconds.
    event_created_at timestamptz,
    received_at      timestamptz NOT NULL DEFAULT now(),
    -- The body as it was signed. Not json: LiveKit passes on names that jsonb refuses (\u0000).
    payload          bytea NOT NULL,
    -- Of the call whose room it names; NULL for a room that is none of ours.
    tenant_id        uuid,
    call_id          uuid,
    status           text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'done', 'dead')),
    attempts         integer NOT NULL DEFAULT 0,
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),
    leased_until     timestamptz,
    last_error       text,
    finished_at      timestamptz
);
CREATE INDEX IF NOT EXISTS inbox_pending ON livekit_webhook_inbox (received_at, event_id) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS inbox_leased ON livekit_webhook_inbox (room_name) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS inbox_finished ON livekit_webhook_inbox (finished_at) WHERE status = 'done';
CREATE INDEX IF NOT EXISTS inbox_newest ON livekit_webhook_inbox (received_at DESC, event_id DESC);
CREATE INDEX IF NOT EXISTS inbox_of_tenant ON livekit_webhook_inbox (tenant_id, received_at DESC, event_id DESC);
CREATE INDEX IF NOT EXISTS inbox_unfinished ON livekit_webhook_inbox (tenant_id, status) WHERE status <> 'done';

------------------------------------------------------------------------------------------------------------ isolation
ALTER TABLE call_bans ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_bans FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
ALTER TABLE command_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE command_results FORCE ROW LEVEL SECURITY;
ALTER TABLE livekit_webhook_inbox ENABLE ROW LEVEL SECURITY;
ALTER TABLE livekit_webhook_inbox FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS bans_of_tenant ON call_bans;
CREATE POLICY bans_of_tenant ON call_bans
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS audit_of_tenant ON audit_log;
CREATE POLICY audit_of_tenant ON audit_log
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS results_of_user ON command_results;
CREATE POLICY results_of_user ON command_results
    USING (tenant_id = app_tenant_id() AND user_id = app_user_id())
    WITH CHECK (tenant_id = app_tenant_id() AND user_id = app_user_id());
DROP POLICY IF EXISTS inbox_of_tenant ON livekit_webhook_inbox;
CREATE POLICY inbox_of_tenant ON livekit_webhook_inbox FOR SELECT USING (tenant_id = app_tenant_id());

GRANT SELECT, INSERT, UPDATE, DELETE ON call_bans, command_results TO hub_app;
GRANT SELECT, INSERT ON audit_log TO hub_app;
GRANT SELECT ON livekit_webhook_inbox TO hub_app;

-- hub_system sees every tenant, and only the columns that its functions need.
DROP POLICY IF EXISTS calls_for_system ON calls;
CREATE POLICY calls_for_system ON calls FOR SELECT TO hub_system USING (true);
DROP POLICY IF EXISTS tenants_for_system ON tenants;
CREATE POLICY tenants_for_system ON tenants FOR SELECT TO hub_system USING (true);
DROP POLICY IF EXISTS results_for_system ON command_results;
CREATE POLICY results_for_system ON command_results TO hub_system USING (true);
DROP POLICY IF EXISTS inbox_for_system ON livekit_webhook_inbox;
CREATE POLICY inbox_for_system ON livekit_webhook_inbox TO hub_system USING (true) WITH CHECK (true);
GRANT SELECT (id, tenant_id, livekit_room_name, status, region, created_at, due_at) ON calls TO hub_system;
GRANT SELECT (id) ON tenants TO hub_system;
DROP POLICY IF EXISTS links_for_system ON shareable_links;
CREATE POLICY links_for_system ON shareable_links FOR SELECT TO hub_system USING (true);
GRANT SELECT (id, tenant_id, enable_recording, enable_screen_share, enable_chat, enable_files)
    ON shareable_links TO hub_system;
-- UPDATE, because locking a row asks for it.
GRANT SELECT, UPDATE, DELETE ON command_results TO hub_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON livekit_webhook_inbox TO hub_system;

------------------------------------------------------------------------------------------------ across the tenants
-- Made as hub_system, so that they run as hub_system and as nobody greater. search_path is pinned and every name is
-- written out: a caller's own objects are never found. CREATE is lent for as long as the making takes.
GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_call_by_room_name(wanted text) RETURNS TABLE (tenant_id uuid, call_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT c.tenant_id, c.id FROM public.calls c WHERE c.livekit_room_name = wanted $$;

CREATE OR REPLACE FUNCTION system_tenant_of_call(wanted uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT c.tenant_id FROM public.calls c WHERE c.id = wanted $$;

CREATE OR REPLACE FUNCTION system_open_calls()
    RETURNS TABLE (tenant_id uuid, call_id uuid, room_name text, region text, status text, created_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT c.tenant_id, c.id, c.livekit_room_name, c.region, c.status, c.created_at
        FROM public.calls c WHERE c.status <> 'ended' ORDER BY c.created_at
    $$;

CREATE OR REPLACE FUNCTION system_due_calls(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, call_id uuid, due_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT c.tenant_id, c.id, c.due_at FROM public.calls c WHERE c.due_at <= until ORDER BY c.due_at LIMIT at_most $$;

CREATE OR REPLACE FUNCTION system_next_due() RETURNS timestamptz
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT min(c.due_at) FROM public.calls c $$;

-- Of these room names, those that no open call has.
CREATE OR REPLACE FUNCTION system_orphan_rooms(names text[]) RETURNS TABLE (room_name text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT n FROM unnest(names) n
        WHERE NOT EXISTS (SELECT FROM public.calls c WHERE c.livekit_room_name = n AND c.status <> 'ended')
    $$;

CREATE OR REPLACE FUNCTION system_tenants_seen() RETURNS TABLE (tenant_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT t.id FROM public.tenants t ORDER BY t.id $$;

-- Within the caller's tenant: what a link takes away binds whoever came by it, and only its creator sees the link.
CREATE OR REPLACE FUNCTION link_features_off(wanted uuid) RETURNS text[]
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT array_remove(ARRAY[
            CASE WHEN NOT l.enable_recording THEN 'recording' END,
            CASE WHEN NOT l.enable_screen_share THEN 'screen_share' END,
            CASE WHEN NOT l.enable_chat THEN 'chat' END,
            CASE WHEN NOT l.enable_files THEN 'files' END], NULL)
        FROM public.shareable_links l WHERE l.id = wanted AND l.tenant_id = public.app_tenant_id()
    $$;

CREATE OR REPLACE FUNCTION system_forget_results(until timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        -- By ctid, found and locked: a join would be planned for a tenth of the table, whatever the limit is.
        WITH gone AS (
            DELETE FROM public.command_results WHERE ctid = ANY (ARRAY(
                SELECT r.ctid FROM public.command_results r
                WHERE r.expires_at <= until ORDER BY r.expires_at LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT count(*) FROM gone
    $$;

-- False: this event was here already.
CREATE OR REPLACE FUNCTION inbox_store(
    event_id text, event text, room_name text, room_sid text, participant_sid text, track_sid text,
    event_created_at timestamptz, payload bytea) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        INSERT INTO public.livekit_webhook_inbox
            (event_id, event, room_name, room_sid, participant_sid, track_sid, event_created_at, payload, tenant_id, call_id)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, c.tenant_id, c.id
        FROM (SELECT) one LEFT JOIN public.calls c ON c.livekit_room_name = $3
        ON CONFLICT DO NOTHING;
        RETURN FOUND;
    END
    $fn$;

-- Events of one room are in one claimer's hands at a time, so that a room's story is told in one voice. Two claims at
-- once would not see each other's leases: they take turns.
CREATE OR REPLACE FUNCTION inbox_claim(at_most integer, lease interval) RETURNS SETOF livekit_webhook_inbox
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('livekit_webhook_inbox', 0));
        RETURN QUERY
            WITH ready AS (
                SELECT i.event_id FROM public.livekit_webhook_inbox i
                WHERE i.status = 'pending' AND i.next_attempt_at <= now()
                  AND NOT EXISTS (SELECT FROM public.livekit_webhook_inbox other
                                  WHERE other.status = 'pending' AND other.leased_until > now()
                                    AND (other.room_name = i.room_name OR other.event_id = i.event_id))
                ORDER BY i.received_at, i.event_id LIMIT at_most
                FOR UPDATE SKIP LOCKED),
            taken AS (
                UPDATE public.livekit_webhook_inbox i
                SET leased_until = now() + lease, attempts = i.attempts + 1
                FROM ready WHERE i.event_id = ready.event_id
                RETURNING i.*)
            SELECT * FROM taken ORDER BY taken.received_at, taken.event_id;
    END
    $fn$;

CREATE OR REPLACE FUNCTION inbox_finish(ids text[], outcome text, error text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH finished AS (
            UPDATE public.livekit_webhook_inbox i
            SET status = outcome, last_error = error, leased_until = NULL, finished_at = now()
            WHERE i.event_id = ANY (ids) AND i.status = 'pending' RETURNING 1)
        SELECT count(*) FROM finished
    $$;

CREATE OR REPLACE FUNCTION inbox_postpone(ids text[], error text, retry_at timestamptz) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH postponed AS (
            UPDATE public.livekit_webhook_inbox i
            SET next_attempt_at = retry_at, last_error = error, leased_until = NULL
            WHERE i.event_id = ANY (ids) AND i.status = 'pending' RETURNING 1)
        SELECT count(*) FROM postponed
    $$;

-- An operator's second chance for an event that was given up, or done wrongly.
CREATE OR REPLACE FUNCTION inbox_retry(wanted text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        UPDATE public.livekit_webhook_inbox i
        SET status = 'pending', attempts = 0, next_attempt_at = now(), leased_until = NULL, finished_at = NULL
        WHERE i.event_id = wanted;
        RETURN FOUND;
    END
    $fn$;

CREATE OR REPLACE FUNCTION inbox_list(
    wanted_status text, before_received_at timestamptz, before_event_id text, at_most integer)
    RETURNS SETOF livekit_webhook_inbox
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT i.* FROM public.livekit_webhook_inbox i
        WHERE (wanted_status IS NULL OR i.status = wanted_status)
          AND (before_received_at IS NULL OR (i.received_at, i.event_id) < (before_received_at, before_event_id))
        ORDER BY i.received_at DESC, i.event_id DESC LIMIT at_most
    $$;

CREATE OR REPLACE FUNCTION inbox_depth()
    RETURNS TABLE (pending bigint, dead bigint, oldest_pending_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT (SELECT count(*) FROM public.livekit_webhook_inbox WHERE status = 'pending'),
               (SELECT count(*) FROM public.livekit_webhook_inbox WHERE status = 'dead'),
               (SELECT min(received_at) FROM public.livekit_webhook_inbox WHERE status = 'pending')
    $$;

-- Done events are kept a while against LiveKit's repetitions; dead ones until an operator has looked.
CREATE OR REPLACE FUNCTION inbox_forget(finished_before timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM public.livekit_webhook_inbox WHERE ctid = ANY (ARRAY(
                SELECT i.ctid FROM public.livekit_webhook_inbox i
                WHERE i.status = 'done' AND i.finished_at < finished_before
                ORDER BY i.finished_at LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT count(*) FROM gone
    $$;

-- Only the app role may call them. (Before the role is given back: revoking is the owner's right.)
DO $$
DECLARE
    made regprocedure;
BEGIN
    FOR made IN SELECT oid FROM pg_proc WHERE proowner = 'hub_system'::regrole AND prosecdef
                AND pronamespace = 'public'::regnamespace LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO hub_app', made);
    END LOOP;
END
$$;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
