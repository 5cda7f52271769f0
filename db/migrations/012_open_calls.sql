-- What the sweep has to look at. A waiting call whose LiveKit room is known to be gone, and in which nobody is or wants to be,
-- stays as it is until somebody asks for it; there may be thousands of those.
BEGIN;

DROP POLICY IF EXISTS participants_for_system ON call_participants;
CREATE POLICY participants_for_system ON call_participants FOR SELECT TO hub_system USING (true);
GRANT SELECT (tenant_id, call_id, status, hub_joined_at, hub_left_at) ON call_participants TO hub_system;
GRANT SELECT (livekit_room_sid, room_absent_since) ON calls TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- Beside system_open_calls(), which nodes of the version before go on calling. `listed`: the rooms that LiveKit has now.
CREATE OR REPLACE FUNCTION system_moving_calls(listed text[])
    RETURNS TABLE (tenant_id uuid, call_id uuid, room_name text, region text, status text, created_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT c.tenant_id, c.id, c.livekit_room_name, c.region, c.status, c.created_at
        FROM public.calls c
        WHERE c.status <> 'ended'
          AND (c.status <> 'waiting' OR c.livekit_room_sid IS NOT NULL OR c.room_absent_since IS NULL
               OR c.livekit_room_name = ANY (listed)
               -- Not EXISTS, which may be answered by reading everybody there ever was.
               OR (SELECT true FROM public.call_participants p
                   WHERE p.tenant_id = c.tenant_id AND p.call_id = c.id
                     AND (p.status IN ('joining', 'joined', 'reconnecting')
                         OR (p.hub_joined_at IS NOT NULL AND p.hub_left_at IS NULL))
                   LIMIT 1))
        ORDER BY c.created_at
    $$;

REVOKE ALL ON FUNCTION system_moving_calls(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_moving_calls(text[]) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
