-- What a writer of an upload has in hand and is less than a part: laid aside as an object of its own when its socket
-- breaks, so that the next writer goes on there. Each such object has a tombstone from before it is there, which comes due
-- as soon as nobody needs it.
BEGIN;

ALTER TABLE uploads ADD COLUMN IF NOT EXISTS tail_key text
    CHECK (tail_key ~ '^[A-Za-z0-9/_.-]+$' AND length(tail_key) <= 512);
ALTER TABLE uploads ADD COLUMN IF NOT EXISTS tail_bytes integer NOT NULL DEFAULT 0 CHECK (tail_bytes >= 0);

CREATE OR REPLACE FUNCTION uploads_drop_tail() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    -- Somebody may be reading it still.
    UPDATE file_tombstones SET next_attempt_at = least(next_attempt_at, now() + interval '10 seconds')
    WHERE tenant_id = OLD.tenant_id AND file_id = OLD.id AND storage_key = OLD.tail_key;
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER uploads_drop_tail AFTER UPDATE OF tail_key ON uploads
    FOR EACH ROW WHEN (OLD.tail_key IS NOT NULL AND OLD.tail_key IS DISTINCT FROM NEW.tail_key)
    EXECUTE FUNCTION uploads_drop_tail();

-- Those as well that were put and never named: their writer was too late, or died.
CREATE OR REPLACE FUNCTION uploads_drop_tails() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    UPDATE file_tombstones t SET next_attempt_at = least(t.next_attempt_at, now() + interval '10 seconds')
    FROM before b
    WHERE t.tenant_id = b.tenant_id AND t.file_id = b.id AND starts_with(t.storage_key, b.storage_key || '.tail-');
    RETURN NULL;
END
$fn$;
CREATE OR REPLACE TRIGGER uploads_drop_tails AFTER DELETE ON uploads
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION uploads_drop_tails();
CREATE INDEX IF NOT EXISTS file_tombstones_of_file ON file_tombstones (tenant_id, file_id);

COMMIT;
