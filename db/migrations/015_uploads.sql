-- Files on their way in: what was asked for, how much of it is durable, and who writes. A file's own row is made when its
-- bytes are whole and checked, so nothing of an upload is to be seen before. With the space that files and uploads take,
-- counted where it is written, and the looks across tenants that sweeping and scanning need.
BEGIN;

-------------------------------------------------------------------------------------------------------------- uploads
CREATE TABLE IF NOT EXISTS uploads (
    -- The id of the transfer, and of the file that it becomes.
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id        uuid NOT NULL DEFAULT app_tenant_id(),
    call_id          uuid NOT NULL,
    uploader_id      text NOT NULL,
    source           text NOT NULL CHECK (source IN ('rest', 'presigned', 'frames', 'copy', 'recording')),
    name             text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    mime_type        text NOT NULL CHECK (length(mime_type) <= 255),
    -- What is reserved of the quotas: the size, or where a form does not say it the most that may come.
    size_bytes       bigint NOT NULL CHECK (size_bytes >= 0),
    -- What the sender says the whole hashes to.
    sha256           text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    access_level     text NOT NULL CHECK (access_level IN ('public', 'call_participants', 'private')),
    expires_in_hours integer CHECK (expires_in_hours > 0),
    -- Where the bytes go. For a client that puts them itself another key than the one that the file is served from.
    storage_key      text NOT NULL CHECK (storage_key ~ '^[A-Za-z0-9/_.-]+$' AND length(storage_key) <= 512),
    -- The store's name of the multipart upload, once begun.
    multipart_id     text CHECK (length(multipart_id) <= 1024),
    -- The parts that are durable, in order: [{"number", "etag", "size_bytes"}].
    parts            jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(parts) = 'array'),
    stored_bytes     bigint NOT NULL DEFAULT 0 CHECK (stored_bytes >= 0),
    -- One writer at a time: whoever takes over counts on, and a smaller number is refused from then on.
    fence            bigint NOT NULL DEFAULT 0,
    writer           text CHECK (length(writer) <= 200),
    -- Somebody is making the file of it until then; nobody writes meanwhile.
    completing_until timestamptz,
    -- Until when a client may still put bytes under the key by itself.
    open_until       timestamptz,
    expires_at       timestamptz NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, uploader_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT
);
CREATE INDEX IF NOT EXISTS uploads_of_call ON uploads (tenant_id, call_id);
CREATE INDEX IF NOT EXISTS uploads_of_uploader ON uploads (tenant_id, uploader_id);
CREATE INDEX IF NOT EXISTS uploads_expiring ON uploads (expires_at);

CREATE OR REPLACE TRIGGER uploads_touch BEFORE UPDATE ON uploads
    FOR EACH ROW WHEN (OLD IS DISTINCT FROM NEW) EXECUTE FUNCTION touch_updated_at();

ALTER TABLE file_tombstones ADD COLUMN IF NOT EXISTS multipart_id text;

-- Whatever becomes of an upload, its bytes do not stay: unless they are those of the file that was made of it.
CREATE OR REPLACE FUNCTION uploads_leave_tombstones() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO file_tombstones (tenant_id, file_id, storage_key, multipart_id, next_attempt_at)
    SELECT b.tenant_id, b.id, b.storage_key, b.multipart_id, greatest(now(), b.open_until)
    FROM before b
    WHERE NOT EXISTS (SELECT FROM files f
                      WHERE f.tenant_id = b.tenant_id AND f.id = b.id AND f.storage_key = b.storage_key);
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER uploads_leave_tombstones AFTER DELETE ON uploads
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION uploads_leave_tombstones();

---------------------------------------------------------------------------------------------------------------- usage
-- Counted beside every change, private files of others included, so that a quota is one row to look at and to lock.
CREATE TABLE IF NOT EXISTS tenant_file_usage (
    tenant_id uuid PRIMARY KEY DEFAULT app_tenant_id() REFERENCES tenants ON DELETE RESTRICT,
    bytes     bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    files     bigint NOT NULL DEFAULT 0 CHECK (files >= 0)
);
CREATE TABLE IF NOT EXISTS call_file_usage (
    tenant_id uuid NOT NULL DEFAULT app_tenant_id(),
    call_id   uuid NOT NULL,
    bytes     bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    files     bigint NOT NULL DEFAULT 0 CHECK (files >= 0),
    PRIMARY KEY (tenant_id, call_id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES calls (tenant_id, id) ON DELETE CASCADE
);

-- The call before the tenant, always: two that wait for each other would be a deadlock.
CREATE OR REPLACE FUNCTION count_file_bytes_in() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO call_file_usage AS known (tenant_id, call_id, bytes, files)
    SELECT tenant_id, call_id, sum(size_bytes), count(*) FROM after GROUP BY tenant_id, call_id ORDER BY call_id
    ON CONFLICT (tenant_id, call_id) DO UPDATE
    SET bytes = known.bytes + excluded.bytes, files = known.files + excluded.files;
    INSERT INTO tenant_file_usage AS known (tenant_id, bytes, files)
    SELECT tenant_id, sum(size_bytes), count(*) FROM after GROUP BY tenant_id
    ON CONFLICT (tenant_id) DO UPDATE
    SET bytes = known.bytes + excluded.bytes, files = known.files + excluded.files;
    RETURN NULL;
END
$fn$;
-- A call that is deleted may take its own count away first: so this never makes a row.
CREATE OR REPLACE FUNCTION count_file_bytes_out() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    UPDATE call_file_usage u SET bytes = greatest(0, u.bytes - d.bytes), files = greatest(0, u.files - d.files)
    FROM (SELECT tenant_id, call_id, sum(size_bytes) AS bytes, count(*) AS files
          FROM before GROUP BY tenant_id, call_id) d
    WHERE u.tenant_id = d.tenant_id AND u.call_id = d.call_id;
    UPDATE tenant_file_usage u SET bytes = greatest(0, u.bytes - d.bytes), files = greatest(0, u.files - d.files)
    FROM (SELECT tenant_id, sum(size_bytes) AS bytes, count(*) AS files FROM before GROUP BY tenant_id) d
    WHERE u.tenant_id = d.tenant_id;
    RETURN NULL;
END
$fn$;
-- Moved to another call, within the tenant.
CREATE OR REPLACE FUNCTION count_file_bytes_moved() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO call_file_usage AS known (tenant_id, call_id, bytes, files)
    VALUES (NEW.tenant_id, NEW.call_id, NEW.size_bytes, 1)
    ON CONFLICT (tenant_id, call_id) DO UPDATE SET bytes = known.bytes + excluded.bytes, files = known.files + 1;
    UPDATE call_file_usage u SET bytes = greatest(0, u.bytes - OLD.size_bytes), files = greatest(0, u.files - 1)
    WHERE u.tenant_id = OLD.tenant_id AND u.call_id = OLD.call_id;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER files_count_in AFTER INSERT ON files
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION count_file_bytes_in();
CREATE OR REPLACE TRIGGER files_count_out AFTER DELETE ON files
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION count_file_bytes_out();
CREATE OR REPLACE TRIGGER files_count_moved AFTER UPDATE OF call_id ON files
    FOR EACH ROW WHEN (OLD.call_id <> NEW.call_id) EXECUTE FUNCTION count_file_bytes_moved();
CREATE OR REPLACE TRIGGER uploads_count_in AFTER INSERT ON uploads
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION count_file_bytes_in();
CREATE OR REPLACE TRIGGER uploads_count_out AFTER DELETE ON uploads
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION count_file_bytes_out();

------------------------------------------------------------------------------------------------------------- scanning
-- Work on a file after it is there (scan, then preview) is leased to one node at a time.
ALTER TABLE files ADD COLUMN IF NOT EXISTS work_attempts integer NOT NULL DEFAULT 0;
ALTER TABLE files ADD COLUMN IF NOT EXISTS work_after timestamptz NOT NULL DEFAULT now();
DROP INDEX IF EXISTS files_to_scan;
CREATE INDEX IF NOT EXISTS files_to_work_on ON files (work_after)
    WHERE scan_status = 'pending' OR preview_status = 'pending';

-- By which the store is compared with what is known of it.
CREATE INDEX IF NOT EXISTS files_by_key ON files (storage_key);
CREATE INDEX IF NOT EXISTS files_by_preview_key ON files (preview_storage_key) WHERE preview_storage_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS uploads_by_key ON uploads (storage_key);
CREATE INDEX IF NOT EXISTS file_tombstones_by_key ON file_tombstones (storage_key);
CREATE INDEX IF NOT EXISTS file_tombstones_by_preview_key ON file_tombstones (preview_storage_key)
    WHERE preview_storage_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS file_tombstones_of_file ON file_tombstones (tenant_id, file_id);

------------------------------------------------------------------------------------------------------------ isolation
ALTER TABLE uploads ENABLE ROW LEVEL SECURITY;
ALTER TABLE uploads FORCE ROW LEVEL SECURITY;
ALTER TABLE tenant_file_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_file_usage FORCE ROW LEVEL SECURITY;
ALTER TABLE call_file_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_file_usage FORCE ROW LEVEL SECURITY;

-- An upload is its uploader's alone until it is a file.
DROP POLICY IF EXISTS uploads_of_uploader ON uploads;
CREATE POLICY uploads_of_uploader ON uploads
    USING (tenant_id = app_tenant_id() AND uploader_id = app_user_id())
    WITH CHECK (tenant_id = app_tenant_id() AND uploader_id = app_user_id());
DROP POLICY IF EXISTS usage_of_tenant ON tenant_file_usage;
CREATE POLICY usage_of_tenant ON tenant_file_usage
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS usage_of_call ON call_file_usage;
CREATE POLICY usage_of_call ON call_file_usage
    USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
GRANT SELECT, INSERT, UPDATE, DELETE ON uploads, tenant_file_usage, call_file_usage TO hub_app;

-- hub_system sees every tenant, and only the columns that its functions need.
DROP POLICY IF EXISTS files_for_system ON files;
CREATE POLICY files_for_system ON files TO hub_system USING (true) WITH CHECK (true);
DROP POLICY IF EXISTS uploads_for_system ON uploads;
CREATE POLICY uploads_for_system ON uploads FOR SELECT TO hub_system USING (true);
DROP POLICY IF EXISTS tombstones_for_system ON file_tombstones;
CREATE POLICY tombstones_for_system ON file_tombstones FOR SELECT TO hub_system USING (true);
GRANT SELECT (id, tenant_id, call_id, uploader_id, access_level, status, scan_status, preview_status, expires_at,
              storage_key, preview_storage_key, work_after, work_attempts) ON files TO hub_system;
GRANT UPDATE (work_after, work_attempts) ON files TO hub_system;
GRANT SELECT (id, tenant_id, uploader_id, expires_at, completing_until, storage_key) ON uploads TO hub_system;
GRANT SELECT (id, tenant_id, file_id, storage_key, preview_storage_key, multipart_id, attempts, next_attempt_at)
    ON file_tombstones TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_expired_uploads(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, uploader_id text, upload_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT u.tenant_id, u.uploader_id, u.id FROM public.uploads u
        WHERE u.expires_at <= until AND (u.completing_until IS NULL OR u.completing_until <= until)
        ORDER BY u.expires_at LIMIT at_most
    $$;

CREATE OR REPLACE FUNCTION system_expired_files(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, uploader_id text, call_id uuid, file_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT f.tenant_id, f.uploader_id, f.call_id, f.id FROM public.files f
        WHERE f.expires_at <= until ORDER BY f.expires_at LIMIT at_most
    $$;

CREATE OR REPLACE FUNCTION system_due_tombstones(until timestamptz, at_most integer)
    RETURNS TABLE (tenant_id uuid, tombstone_id bigint, storage_key text, preview_storage_key text,
                   multipart_id text, attempts integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT t.tenant_id, t.id, t.storage_key, t.preview_storage_key, t.multipart_id, t.attempts
        FROM public.file_tombstones t WHERE t.next_attempt_at <= until ORDER BY t.next_attempt_at LIMIT at_most
    $$;

-- Files to be scanned or shown in small, each in one node's hands for the lease.
CREATE OR REPLACE FUNCTION system_claim_files(until timestamptz, at_most integer, lease interval)
    RETURNS TABLE (tenant_id uuid, uploader_id text, file_id uuid, attempts integer)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        UPDATE public.files f SET work_after = until + lease, work_attempts = f.work_attempts + 1
        WHERE f.id = ANY (ARRAY(
            SELECT w.id FROM public.files w
            WHERE (w.scan_status = 'pending' OR w.preview_status = 'pending') AND w.work_after <= until
            ORDER BY w.work_after LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING f.tenant_id, f.uploader_id, f.id, f.work_attempts
    $$;

-- Of these keys, those that belong to something: a file, its preview, an upload, or bytes that are to be deleted.
CREATE OR REPLACE FUNCTION system_known_keys(keys text[]) RETURNS TABLE (storage_key text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT f.storage_key FROM public.files f WHERE f.storage_key = ANY (keys)
        UNION SELECT f.preview_storage_key FROM public.files f WHERE f.preview_storage_key = ANY (keys)
        UNION SELECT u.storage_key FROM public.uploads u WHERE u.storage_key = ANY (keys)
        UNION SELECT t.storage_key FROM public.file_tombstones t WHERE t.storage_key = ANY (keys)
        UNION SELECT t.preview_storage_key FROM public.file_tombstones t WHERE t.preview_storage_key = ANY (keys)
    $$;

-- Who may be told nothing else of it: the file that anybody may have, by an id that nobody can guess.
CREATE OR REPLACE FUNCTION system_public_file(wanted uuid) RETURNS TABLE (tenant_id uuid, call_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT f.tenant_id, f.call_id FROM public.files f WHERE f.id = wanted AND f.access_level = 'public'
    $$;

DO $$
DECLARE
    made regprocedure;
BEGIN
    FOR made IN SELECT oid FROM pg_proc WHERE proowner = 'hub_system'::regrole AND prosecdef
                AND pronamespace = 'public'::regnamespace
                AND proname IN ('system_expired_uploads', 'system_expired_files', 'system_due_tombstones',
                                'system_claim_files', 'system_known_keys', 'system_public_file') LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO hub_app', made);
    END LOOP;
END
$$;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
