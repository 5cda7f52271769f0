-- What LiveKit said about the rooms of calls, keyed by LiveKit's own sids. Facts once known stay; the states in calls and
-- call_participants are derived from them. `at` columns are LiveKit's time, `known_at` is when the hub heard of it.
BEGIN;

ALTER TABLE calls
    -- LiveKit answered, and did not list the room of this call.
    ADD COLUMN IF NOT EXISTS room_absent_since  timestamptz,
    -- LiveKit did not answer at all.
    ADD COLUMN IF NOT EXISTS media_silent_since timestamptz;

ALTER TABLE call_participants
    -- Earlier stays by socket, oldest first, as [begin, end] in seconds since 1970: their time in the call is the union
    -- of these with the LiveKit sessions.
    ADD COLUMN IF NOT EXISTS attachments           jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(attachments) = 'array'),
    -- What the client said about its devices. LiveKit tells nobody about a mute until it is asked.
    ADD COLUMN IF NOT EXISTS reported_at           timestamptz,
    ADD COLUMN IF NOT EXISTS reported_microphone   boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS reported_camera       boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS reported_screen_share boolean NOT NULL DEFAULT false;

------------------------------------------------------------------------------------------------ call_room_incarnations
-- One life of a call's LiveKit room; LiveKit or the hub may make the room again under the same name and a new sid.
CREATE TABLE IF NOT EXISTS call_room_incarnations (
    tenant_id     uuid NOT NULL DEFAULT app_tenant_id(),
    call_id       uuid NOT NULL,
    room_sid      text NOT NULL CHECK (length(room_sid) BETWEEN 1 AND 64),
    first_seen    timestamptz NOT NULL,
    known_at      timestamptz NOT NULL,
    finished_at   timestamptz,
    -- By webhook or by our own order it is final; what a sweep concluded, a later sweep may revoke.
    finished_by   text CHECK (finished_by IN ('webhook', 'api', 'sweep')),
    finish_reason text CHECK (length(finish_reason) <= 64),
    miss          smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, call_id, room_sid),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    CHECK ((finished_by IS NULL) = (finished_at IS NULL))
);

---------------------------------------------------------------------------------------------------- participant_sessions
-- One LiveKit session (PA_…) of an identity. A full reconnect is a new one.
CREATE TABLE IF NOT EXISTS participant_sessions (
    tenant_id      uuid NOT NULL DEFAULT app_tenant_id(),
    call_id        uuid NOT NULL,
    part_sid       text NOT NULL CHECK (length(part_sid) BETWEEN 1 AND 64),
    room_sid       text NOT NULL,
    identity       text NOT NULL CHECK (length(identity) <= 257),
    -- NULL: an identity that the hub never gave out, an agent or a recorder for one.
    participant_id uuid,
    known_at       timestamptz NOT NULL,
    -- Media was up. Without it the session never counted.
    joined         boolean NOT NULL DEFAULT false,
    joined_at      timestamptz,
    -- Somebody who fills a seat; NULL while only tracks were heard of.
    countable      boolean,
    left_at        timestamptz,
    left_by        text CHECK (left_by IN ('webhook', 'sweep')),
    reason         text CHECK (length(reason) <= 64),
    miss           smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, call_id, part_sid),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, call_id, room_sid)
        REFERENCES call_room_incarnations (tenant_id, call_id, room_sid) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, participant_id)
        REFERENCES call_participants (tenant_id, id) ON DELETE SET NULL (participant_id),
    CHECK ((left_by IS NULL) = (left_at IS NULL))
);
CREATE INDEX IF NOT EXISTS sessions_of_room ON participant_sessions (tenant_id, call_id, room_sid);
CREATE INDEX IF NOT EXISTS sessions_of_participant ON participant_sessions (tenant_id, participant_id);

---------------------------------------------------------------------------------------------------------- session_tracks
CREATE TABLE IF NOT EXISTS session_tracks (
    tenant_id      uuid NOT NULL DEFAULT app_tenant_id(),
    call_id        uuid NOT NULL,
    track_sid      text NOT NULL CHECK (length(track_sid) BETWEEN 1 AND 64),
    part_sid       text NOT NULL,
    source         text NOT NULL
                   CHECK (source IN ('microphone', 'camera', 'screen_share', 'screen_share_audio', 'unknown')),
    known_at       timestamptz NOT NULL,
    unpublished_by text CHECK (unpublished_by IN ('webhook', 'sweep')),
    muted          boolean NOT NULL DEFAULT false,
    muted_at       timestamptz,
    miss           smallint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, call_id, track_sid),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, call_id, part_sid)
        REFERENCES participant_sessions (tenant_id, call_id, part_sid) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS tracks_of_session ON session_tracks (tenant_id, call_id, part_sid);

---------------------------------------------------------------------------------------------------------------- isolation
ALTER TABLE call_room_incarnations ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_room_incarnations FORCE ROW LEVEL SECURITY;
ALTER TABLE participant_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE participant_sessions FORCE ROW LEVEL SECURITY;
ALTER TABLE session_tracks ENABLE ROW LEVEL SECURITY;
ALTER TABLE session_tracks FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS incarnations_of_tenant ON call_room_incarnations;
CREATE POLICY incarnations_of_tenant ON call_room_incarnations
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS sessions_of_tenant ON participant_sessions;
CREATE POLICY sessions_of_tenant ON participant_sessions
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS tracks_of_tenant ON session_tracks;
CREATE POLICY tracks_of_tenant ON session_tracks
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());

GRANT SELECT, INSERT, UPDATE, DELETE ON call_room_incarnations, participant_sessions, session_tracks TO hub_app;

COMMIT;
