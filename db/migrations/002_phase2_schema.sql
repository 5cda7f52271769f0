-- Calls and what happens in them: participants, files, links, quality, contacts; their isolation, their counting.
--
-- Keys: `id` is the primary key, and UNIQUE (tenant_id, id) is what children point at, so that no row can ever refer to
-- another tenant's. The two names that the outside looks up without knowing a tenant (LiveKit's room name, a link's
-- short code) are random, made by the hub, and unique over all tenants: they reveal nothing. Every other unique key
-- holds the tenant.
BEGIN;

---------------------------------------------------------------------------------------------------------------- calls
CREATE TABLE IF NOT EXISTS calls (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id              uuid NOT NULL DEFAULT app_tenant_id() REFERENCES tenants ON DELETE RESTRICT,
    owner_id               text NOT NULL,
    name                   text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    call_type              text NOT NULL DEFAULT 'group' CHECK (call_type IN ('one_to_one', 'group', 'webinar')),
    status                 text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'active', 'ended')),
    livekit_room_name      text NOT NULL UNIQUE CHECK (livekit_room_name ~ '^room_[a-z0-9]+_[0-9]+$'),
    livekit_room_sid       text,
    region                 text,
    max_participants       integer NOT NULL DEFAULT 100 CHECK (max_participants BETWEEN 1 AND 10000),
    recording_enabled      boolean NOT NULL DEFAULT false,
    screen_sharing_enabled boolean NOT NULL DEFAULT true,
    file_sharing_enabled   boolean NOT NULL DEFAULT true,
    chat_enabled           boolean NOT NULL DEFAULT true,
    locked                 boolean NOT NULL DEFAULT false,
    lobby_enabled          boolean NOT NULL DEFAULT false,
    metadata               jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    -- Kept by a trigger on call_participants: rows that are joined or reconnecting.
    participant_count      integer NOT NULL DEFAULT 0 CHECK (participant_count >= 0),
    peak_participant_count integer NOT NULL DEFAULT 0,
    quality_score          double precision CHECK (quality_score BETWEEN 0 AND 5),
    created_at             timestamptz NOT NULL DEFAULT now(),
    started_at             timestamptz,
    ended_at               timestamptz,
    -- Kept by a trigger: set once, with ended_at.
    duration_seconds       double precision CHECK (duration_seconds >= 0),
    end_reason             text CHECK (length(end_reason) <= 200),
    -- Since when a call that was active has had nobody in it.
    empty_since            timestamptz,
    -- When this call next changes by the mere passing of time.
    due_at                 timestamptz,
    waiting_expires_at     timestamptz,
    updated_at             timestamptz NOT NULL DEFAULT now(),
    -- The ETag: counts what somebody decided (settings, status), not what is measured (counts, scores).
    version                bigint NOT NULL DEFAULT 1,
    UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, owner_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT,
    CHECK ((status = 'ended') = (ended_at IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS calls_newest ON calls (tenant_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS calls_of_owner ON calls (tenant_id, owner_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS calls_by_status ON calls (tenant_id, status, created_at DESC, id DESC);
-- What is open is few, whatever the history holds; sweep and timers read only these.
CREATE INDEX IF NOT EXISTS calls_open ON calls (created_at) WHERE status <> 'ended';
CREATE INDEX IF NOT EXISTS calls_due ON calls (due_at) WHERE due_at IS NOT NULL;

------------------------------------------------------------------------------------------------------ shareable_links
CREATE TABLE IF NOT EXISTS shareable_links (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id           uuid NOT NULL DEFAULT app_tenant_id(),
    call_id             uuid NOT NULL,
    creator_id          text NOT NULL,
    link_type           text NOT NULL DEFAULT 'call' CHECK (link_type IN ('call')),
    short_code          text NOT NULL UNIQUE CHECK (short_code ~ '^[A-Za-z0-9_-]{8}$'),
    title               text CHECK (length(title) <= 200),
    access_type         text NOT NULL DEFAULT 'public' CHECK (access_type IN ('public', 'password', 'restricted')),
    -- The shape of a bcrypt hash: a plain password cannot get in here.
    password_hash       text CHECK (password_hash ~ '^\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}$'),
    allowed_user_ids    text[] NOT NULL DEFAULT '{}',
    allowed_emails      text[] NOT NULL DEFAULT '{}',
    allowed_domains     text[] NOT NULL DEFAULT '{}',
    default_role        text NOT NULL DEFAULT 'participant'
                        CHECK (default_role IN ('host', 'moderator', 'participant', 'viewer')),
    max_uses            integer CHECK (max_uses > 0),
    use_count           integer NOT NULL DEFAULT 0 CHECK (use_count >= 0),
    click_count         bigint NOT NULL DEFAULT 0 CHECK (click_count >= 0),
    unique_visitors     bigint NOT NULL DEFAULT 0 CHECK (unique_visitors >= 0),
    enable_recording    boolean NOT NULL DEFAULT true,
    enable_screen_share boolean NOT NULL DEFAULT true,
    enable_chat         boolean NOT NULL DEFAULT true,
    enable_files        boolean NOT NULL DEFAULT true,
    auto_join           boolean NOT NULL DEFAULT false,
    require_approval    boolean NOT NULL DEFAULT false,
    metadata            jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    active_from         timestamptz,
    expires_at          timestamptz,
    revoked_at          timestamptz,
    last_used_at        timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    version             bigint NOT NULL DEFAULT 1,
    UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, creator_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT,
    CHECK (access_type <> 'password' OR password_hash IS NOT NULL),
    CHECK (use_count <= max_uses)
);
CREATE INDEX IF NOT EXISTS links_of_creator ON shareable_links (tenant_id, creator_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS links_of_call ON shareable_links (tenant_id, call_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS links_expiring ON shareable_links (expires_at) WHERE expires_at IS NOT NULL;

---------------------------------------------------------------------------------------------------- call_participants
CREATE TABLE IF NOT EXISTS call_participants (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id          uuid NOT NULL DEFAULT app_tenant_id(),
    call_id            uuid NOT NULL,
    user_id            text NOT NULL,
    -- LiveKit's name of this person: the user id, or user_id:device_id.
    identity           text NOT NULL CHECK (length(identity) BETWEEN 1 AND 257),
    device_id          text CHECK (length(device_id) BETWEEN 1 AND 128),
    role               text NOT NULL DEFAULT 'participant'
                       CHECK (role IN ('host', 'moderator', 'participant', 'viewer')),
    status             text NOT NULL DEFAULT 'invited'
                       CHECK (status IN ('invited', 'joining', 'joined', 'reconnecting', 'left', 'kicked')),
    display_name       text CHECK (length(display_name) <= 200),
    metadata           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    client_info        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(client_info) = 'object'),
    via_link_id        uuid,
    -- Facts that the hub wrote down.
    token_issued_at    timestamptz,
    token_expires_at   timestamptz,
    hub_joined_at      timestamptz,
    hub_left_at        timestamptz,
    hub_left_reason    text CHECK (length(hub_left_reason) <= 64),
    leave_requested_at timestamptz,
    kick_requested_at  timestamptz,
    kick_reason        text CHECK (length(kick_reason) <= 500),
    kicked_by          text,
    readmitted_at      timestamptz,
    hand_raised_at     timestamptz,
    -- Derived from the facts.
    joined_at          timestamptz,
    left_at            timestamptz,
    left_reason        text CHECK (length(left_reason) <= 64),
    duration_seconds   double precision CHECK (duration_seconds >= 0),
    is_audio_enabled   boolean NOT NULL DEFAULT false,
    is_video_enabled   boolean NOT NULL DEFAULT false,
    is_screen_sharing  boolean NOT NULL DEFAULT false,
    quality_score      double precision CHECK (quality_score BETWEEN 0 AND 5),
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    -- The call's created_at, put here by a trigger: it lets one index answer "my calls, newest first".
    call_created_at    timestamptz NOT NULL,
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, call_id, identity),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT,
    FOREIGN KEY (tenant_id, via_link_id) REFERENCES shareable_links (tenant_id, id) ON DELETE SET NULL (via_link_id)
);
CREATE INDEX IF NOT EXISTS participants_by_status ON call_participants (tenant_id, call_id, status);
CREATE INDEX IF NOT EXISTS participants_of_user
    ON call_participants (tenant_id, user_id, call_created_at DESC, call_id DESC);
CREATE INDEX IF NOT EXISTS participants_of_link ON call_participants (tenant_id, via_link_id);
CREATE INDEX IF NOT EXISTS participants_with_hand ON call_participants (tenant_id, call_id, hand_raised_at, id)
    WHERE hand_raised_at IS NOT NULL;

---------------------------------------------------------------------------------------------------------------- files
CREATE TABLE IF NOT EXISTS files (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id           uuid NOT NULL DEFAULT app_tenant_id(),
    call_id             uuid NOT NULL,
    uploader_id         text NOT NULL,
    -- As the person named it; it never becomes part of a key or a path.
    name                text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    size_bytes          bigint NOT NULL CHECK (size_bytes >= 0),
    mime_type           text NOT NULL CHECK (length(mime_type) <= 255),
    detected_mime_type  text CHECK (length(detected_mime_type) <= 255),
    sha256              text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    -- Keys are made by the hub; some stores refuse anything but these characters.
    storage_key         text NOT NULL CHECK (storage_key ~ '^[A-Za-z0-9/_.-]+$' AND length(storage_key) <= 512),
    access_level        text NOT NULL DEFAULT 'call_participants'
                        CHECK (access_level IN ('public', 'call_participants', 'private')),
    source              text NOT NULL DEFAULT 'rest' CHECK (source IN ('rest', 'presigned', 'frames', 'copy', 'recording')),
    status              text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'ready', 'failed')),
    scan_status         text NOT NULL DEFAULT 'pending'
                        CHECK (scan_status IN ('pending', 'clean', 'infected', 'failed', 'skipped')),
    scan_result         text CHECK (length(scan_result) <= 500),
    scanned_at          timestamptz,
    preview_status      text NOT NULL DEFAULT 'none' CHECK (preview_status IN ('none', 'pending', 'ready', 'failed')),
    preview_storage_key text CHECK (preview_storage_key ~ '^[A-Za-z0-9/_.-]+$' AND length(preview_storage_key) <= 512),
    download_count      bigint NOT NULL DEFAULT 0 CHECK (download_count >= 0),
    metadata            jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    expires_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    completed_at        timestamptz,
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, storage_key),
    -- The row goes with its call; a trigger leaves a tombstone, so that the bytes can follow.
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, uploader_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT,
    CHECK (status <> 'ready' OR sha256 IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS files_of_call ON files (tenant_id, call_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS files_of_uploader ON files (tenant_id, uploader_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS files_to_scan ON files (created_at) WHERE scan_status = 'pending';

-- Bytes whose row is gone. Whoever deletes them from the store deletes the tombstone; until then it is retried.
CREATE TABLE IF NOT EXISTS file_tombstones (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id           uuid NOT NULL DEFAULT app_tenant_id() REFERENCES tenants ON DELETE RESTRICT,
    file_id             uuid NOT NULL,
    storage_key         text NOT NULL,
    preview_storage_key text,
    deleted_at          timestamptz NOT NULL DEFAULT now(),
    attempts            integer NOT NULL DEFAULT 0,
    next_attempt_at     timestamptz NOT NULL DEFAULT now(),
    last_error          text
);
CREATE INDEX IF NOT EXISTS file_tombstones_of_tenant ON file_tombstones (tenant_id, id);
CREATE INDEX IF NOT EXISTS file_tombstones_due ON file_tombstones (next_attempt_at);

------------------------------------------------------------------------------------------------------ quality_metrics
CREATE TABLE IF NOT EXISTS quality_metrics (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id          uuid NOT NULL DEFAULT app_tenant_id(),
    call_id            uuid NOT NULL,
    participant_id     uuid NOT NULL,
    recorded_at        timestamptz NOT NULL DEFAULT now(),
    window_ms          integer CHECK (window_ms > 0),
    direction          text CHECK (direction IN ('uplink', 'downlink')),
    -- NaN is above every number for PostgreSQL, so an upper bound keeps it out.
    packet_loss_pct    double precision CHECK (packet_loss_pct BETWEEN 0 AND 100),
    jitter_ms          double precision CHECK (jitter_ms BETWEEN 0 AND 600000),
    latency_ms         double precision CHECK (latency_ms BETWEEN 0 AND 600000),
    bandwidth_kbps     double precision CHECK (bandwidth_kbps BETWEEN 0 AND 100000000),
    video_width        integer CHECK (video_width BETWEEN 0 AND 32768),
    video_height       integer CHECK (video_height BETWEEN 0 AND 32768),
    video_fps          double precision CHECK (video_fps BETWEEN 0 AND 1000),
    audio_bitrate_kbps double precision CHECK (audio_bitrate_kbps BETWEEN 0 AND 100000000),
    video_bitrate_kbps double precision CHECK (video_bitrate_kbps BETWEEN 0 AND 100000000),
    connection_type    text CHECK (connection_type IN ('udp', 'tcp', 'relay')),
    ice_state          text CHECK (ice_state IN
                       ('new', 'checking', 'connected', 'completed', 'disconnected', 'failed', 'closed')),
    quality_score      double precision NOT NULL CHECK (quality_score BETWEEN 0 AND 5),
    r_factor           double precision CHECK (r_factor BETWEEN 0 AND 100),
    score_version      smallint NOT NULL DEFAULT 1,
    region             text,
    node_id            text,
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, participant_id) REFERENCES call_participants (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS quality_of_call ON quality_metrics (tenant_id, call_id, recorded_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS quality_of_participant
    ON quality_metrics (tenant_id, participant_id, recorded_at DESC, id DESC);
-- Retention deletes by age; a block range index costs next to nothing on a table that is written in time order.
CREATE INDEX IF NOT EXISTS quality_by_time ON quality_metrics USING brin (recorded_at);

------------------------------------------------------------------------------------------------------------- contacts
CREATE TABLE IF NOT EXISTS contacts (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id       uuid NOT NULL DEFAULT app_tenant_id(),
    owner_id        text NOT NULL,
    contact_user_id text NOT NULL,
    display_name    text CHECK (length(display_name) <= 200),
    status          text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'accepted', 'blocked')),
    favorite        boolean NOT NULL DEFAULT false,
    notes           text CHECK (length(notes) <= 2000),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, owner_id, contact_user_id),
    -- A person's own list goes with them; that they stand in others' lists keeps them from being deleted.
    FOREIGN KEY (tenant_id, owner_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, contact_user_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT,
    CHECK (owner_id <> contact_user_id)
);
CREATE INDEX IF NOT EXISTS contacts_of_owner ON contacts (tenant_id, owner_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS contacts_of_contact ON contacts (tenant_id, contact_user_id);

------------------------------------------------------------------------------------------------------------- triggers
CREATE OR REPLACE FUNCTION seconds_between(first timestamptz, last timestamptz) RETURNS double precision
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT greatest(0, extract(epoch FROM $2 - $1))::double precision $$;

-- A call ends once: status and ended_at go together, a second ended_at is not taken, and a late write of another status
-- does not bring the call back. Only taking ended_at away opens it again, and its duration with it.
CREATE OR REPLACE FUNCTION calls_keep_end() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.ended_at IS NOT NULL AND NEW.ended_at IS NOT NULL THEN
        NEW.status := 'ended';
        NEW.ended_at := OLD.ended_at;
        NEW.duration_seconds := OLD.duration_seconds;
        RETURN NEW;
    END IF;
    IF NEW.ended_at IS NOT NULL THEN
        NEW.status := 'ended';
    ELSIF NEW.status = 'ended' AND (TG_OP = 'INSERT' OR OLD.status <> 'ended') THEN
        NEW.ended_at := now();
    END IF;
    -- Where nobody was ever there, the call lasted 0 s.
    NEW.duration_seconds := seconds_between(coalesce(NEW.started_at, NEW.ended_at), NEW.ended_at);
    RETURN NEW;
END
$fn$;
CREATE OR REPLACE TRIGGER calls_keep_end BEFORE INSERT OR UPDATE OF status, ended_at, duration_seconds ON calls
    FOR EACH ROW EXECUTE FUNCTION calls_keep_end();

CREATE OR REPLACE FUNCTION next_version() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.updated_at := now();
    RETURN NEW;
END
$fn$;
CREATE OR REPLACE TRIGGER calls_keep_version BEFORE UPDATE ON calls
    FOR EACH ROW
    WHEN ((OLD.name, OLD.call_type, OLD.status, OLD.max_participants, OLD.recording_enabled,
           OLD.screen_sharing_enabled, OLD.file_sharing_enabled, OLD.chat_enabled, OLD.locked, OLD.lobby_enabled,
           OLD.metadata, OLD.owner_id, OLD.region)
          IS DISTINCT FROM
          (NEW.name, NEW.call_type, NEW.status, NEW.max_participants, NEW.recording_enabled,
           NEW.screen_sharing_enabled, NEW.file_sharing_enabled, NEW.chat_enabled, NEW.locked, NEW.lobby_enabled,
           NEW.metadata, NEW.owner_id, NEW.region))
    EXECUTE FUNCTION next_version();

CREATE OR REPLACE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$fn$;
CREATE OR REPLACE TRIGGER participants_touch BEFORE UPDATE ON call_participants
    FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION touch_updated_at();
CREATE OR REPLACE TRIGGER files_touch BEFORE UPDATE ON files
    FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION touch_updated_at();
CREATE OR REPLACE TRIGGER contacts_touch BEFORE UPDATE ON contacts
    FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION touch_updated_at();

-- Uses and clicks are measured, not decided: they leave the version of a link alone.
CREATE OR REPLACE TRIGGER links_keep_version BEFORE UPDATE ON shareable_links
    FOR EACH ROW
    WHEN ((OLD.title, OLD.access_type, OLD.password_hash, OLD.allowed_user_ids, OLD.allowed_emails,
           OLD.allowed_domains, OLD.default_role, OLD.max_uses, OLD.enable_recording, OLD.enable_screen_share,
           OLD.enable_chat, OLD.enable_files, OLD.auto_join, OLD.require_approval, OLD.metadata, OLD.active_from,
           OLD.expires_at, OLD.revoked_at)
          IS DISTINCT FROM
          (NEW.title, NEW.access_type, NEW.password_hash, NEW.allowed_user_ids, NEW.allowed_emails,
           NEW.allowed_domains, NEW.default_role, NEW.max_uses, NEW.enable_recording, NEW.enable_screen_share,
           NEW.enable_chat, NEW.enable_files, NEW.auto_join, NEW.require_approval, NEW.metadata, NEW.active_from,
           NEW.expires_at, NEW.revoked_at))
    EXECUTE FUNCTION next_version();

CREATE OR REPLACE FUNCTION participants_know_their_call() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    SELECT c.created_at INTO NEW.call_created_at
    FROM calls c WHERE c.tenant_id = NEW.tenant_id AND c.id = NEW.call_id;
    -- No such call: the foreign key says so, and better than NOT NULL would.
    NEW.call_created_at := coalesce(NEW.call_created_at, NEW.created_at, now());
    RETURN NEW;
END
$fn$;
CREATE OR REPLACE TRIGGER participants_know_their_call BEFORE INSERT OR UPDATE OF call_id ON call_participants
    FOR EACH ROW EXECUTE FUNCTION participants_know_their_call();

-- The first leave sets the duration. A person who comes and goes several times has the sum of their stays, which only
-- the LiveKit sessions tell: whoever knows it writes duration_seconds, and what is written stays.
CREATE OR REPLACE FUNCTION participants_keep_duration() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    IF NEW.left_at IS NOT NULL AND NEW.duration_seconds IS NULL THEN
        NEW.duration_seconds := seconds_between(coalesce(NEW.joined_at, NEW.left_at), NEW.left_at);
    END IF;
    RETURN NEW;
END
$fn$;
CREATE OR REPLACE TRIGGER participants_keep_duration
    BEFORE INSERT OR UPDATE OF joined_at, left_at, duration_seconds ON call_participants
    FOR EACH ROW EXECUTE FUNCTION participants_keep_duration();

-- Counting is by difference, once a statement: the UPDATE waits for the call's row, so concurrent joins add up, and a
-- statement that moves a hundred people writes the call once.
CREATE OR REPLACE FUNCTION participants_count_inserted() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    UPDATE calls c
    SET participant_count = c.participant_count + d.delta,
        peak_participant_count = greatest(c.peak_participant_count, c.participant_count + d.delta)
    FROM (SELECT tenant_id, call_id, count(*)::integer AS delta
          FROM after WHERE status IN ('joined', 'reconnecting') GROUP BY tenant_id, call_id) d
    WHERE c.tenant_id = d.tenant_id AND c.id = d.call_id;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE FUNCTION participants_count_updated() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    UPDATE calls c
    SET participant_count = c.participant_count + d.delta,
        peak_participant_count = greatest(c.peak_participant_count, c.participant_count + d.delta)
    FROM (SELECT tenant_id, call_id, sum(one)::integer AS delta
          FROM (SELECT tenant_id, call_id, 1 AS one FROM after WHERE status IN ('joined', 'reconnecting')
                UNION ALL
                SELECT tenant_id, call_id, -1 FROM before WHERE status IN ('joined', 'reconnecting')) moved
          GROUP BY tenant_id, call_id HAVING sum(one) <> 0) d
    WHERE c.tenant_id = d.tenant_id AND c.id = d.call_id;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE FUNCTION participants_count_deleted() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    UPDATE calls c
    SET participant_count = c.participant_count - d.delta
    FROM (SELECT tenant_id, call_id, count(*)::integer AS delta
          FROM before WHERE status IN ('joined', 'reconnecting') GROUP BY tenant_id, call_id) d
    WHERE c.tenant_id = d.tenant_id AND c.id = d.call_id;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER participants_count_inserted AFTER INSERT ON call_participants
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION participants_count_inserted();
CREATE OR REPLACE TRIGGER participants_count_updated AFTER UPDATE ON call_participants
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION participants_count_updated();
CREATE OR REPLACE TRIGGER participants_count_deleted AFTER DELETE ON call_participants
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION participants_count_deleted();

CREATE OR REPLACE FUNCTION files_leave_tombstones() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO file_tombstones (tenant_id, file_id, storage_key, preview_storage_key)
    SELECT tenant_id, id, storage_key, preview_storage_key FROM before;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER files_leave_tombstones AFTER DELETE ON files
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION files_leave_tombstones();

------------------------------------------------------------------------------------------------------------ isolation
ALTER TABLE calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE calls FORCE ROW LEVEL SECURITY;
ALTER TABLE call_participants ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_participants FORCE ROW LEVEL SECURITY;
ALTER TABLE files ENABLE ROW LEVEL SECURITY;
ALTER TABLE files FORCE ROW LEVEL SECURITY;
ALTER TABLE file_tombstones ENABLE ROW LEVEL SECURITY;
ALTER TABLE file_tombstones FORCE ROW LEVEL SECURITY;
ALTER TABLE shareable_links ENABLE ROW LEVEL SECURITY;
ALTER TABLE shareable_links FORCE ROW LEVEL SECURITY;
ALTER TABLE quality_metrics ENABLE ROW LEVEL SECURITY;
ALTER TABLE quality_metrics FORCE ROW LEVEL SECURITY;
ALTER TABLE contacts ENABLE ROW LEVEL SECURITY;
ALTER TABLE contacts FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS calls_of_tenant ON calls;
CREATE POLICY calls_of_tenant ON calls
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS participants_of_tenant ON call_participants;
CREATE POLICY participants_of_tenant ON call_participants
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS quality_of_tenant ON quality_metrics;
CREATE POLICY quality_of_tenant ON quality_metrics
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS tombstones_of_tenant ON file_tombstones;
CREATE POLICY tombstones_of_tenant ON file_tombstones
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());

-- What belongs to one person is seen by that person only. A transaction without a user sees none of it.
DROP POLICY IF EXISTS files_of_tenant ON files;
CREATE POLICY files_of_tenant ON files
    USING (tenant_id = app_tenant_id() AND (access_level <> 'private' OR uploader_id = app_user_id()))
    WITH CHECK (tenant_id = app_tenant_id() AND (access_level <> 'private' OR uploader_id = app_user_id()));
DROP POLICY IF EXISTS links_of_creator ON shareable_links;
CREATE POLICY links_of_creator ON shareable_links
    USING (tenant_id = app_tenant_id() AND creator_id = app_user_id())
    WITH CHECK (tenant_id = app_tenant_id() AND creator_id = app_user_id());
DROP POLICY IF EXISTS contacts_of_owner ON contacts;
CREATE POLICY contacts_of_owner ON contacts
    USING (tenant_id = app_tenant_id() AND owner_id = app_user_id())
    WITH CHECK (tenant_id = app_tenant_id() AND owner_id = app_user_id());

---------------------------------------------------------------------------------------------------------------- views
-- security_invoker: the reader's own policies hold, not those of the view's owner.
CREATE OR REPLACE VIEW active_calls WITH (security_invoker = true) AS
SELECT c.id AS call_id, c.tenant_id, c.owner_id, c.name, c.call_type, c.status, c.livekit_room_name, c.livekit_room_sid,
       c.region, c.max_participants, c.participant_count, c.peak_participant_count, c.quality_score, c.created_at,
       c.started_at, c.empty_since, seconds_between(c.started_at, now()) AS duration_seconds
FROM calls c
WHERE c.status = 'active';

-- A person's own past: calls they own or were part of.
CREATE OR REPLACE VIEW call_history WITH (security_invoker = true) AS
SELECT c.id AS call_id, c.tenant_id, c.owner_id, c.name, c.call_type, c.status, c.livekit_room_name, c.region,
       c.created_at, c.started_at, c.ended_at, c.duration_seconds, c.end_reason, c.peak_participant_count,
       people.total AS total_participants, c.quality_score
FROM calls c
CROSS JOIN LATERAL (SELECT count(*) AS total FROM call_participants p
                    WHERE p.tenant_id = c.tenant_id AND p.call_id = c.id AND p.joined_at IS NOT NULL) people
WHERE c.status = 'ended'
  AND (c.owner_id = app_user_id()
       OR EXISTS (SELECT FROM call_participants p
                  WHERE p.tenant_id = c.tenant_id AND p.call_id = c.id AND p.user_id = app_user_id()));

GRANT SELECT, INSERT, UPDATE, DELETE
    ON calls, call_participants, files, file_tombstones, shareable_links, quality_metrics, contacts TO hub_app;
GRANT SELECT ON active_calls, call_history TO hub_app;

COMMIT;
