-- An upload's bytes are those of a file where a file has its key, whichever file that is: one that is moved to another call
-- keeps its id.
BEGIN;

CREATE OR REPLACE FUNCTION uploads_leave_tombstones() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    INSERT INTO file_tombstones (tenant_id, file_id, storage_key, multipart_id, next_attempt_at)
    SELECT b.tenant_id, b.id, b.storage_key, b.multipart_id, greatest(now(), b.open_until)
    FROM before b
    WHERE NOT EXISTS (SELECT FROM files f WHERE f.tenant_id = b.tenant_id AND f.storage_key = b.storage_key);
    RETURN NULL;
END
$fn$;

COMMIT;
