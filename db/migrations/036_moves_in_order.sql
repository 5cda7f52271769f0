-- A file that goes from one call to another and one that comes back: both lock the counts in one order.
BEGIN;

CREATE OR REPLACE FUNCTION count_file_bytes_moved() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM 1 FROM call_file_usage u
    WHERE u.tenant_id = NEW.tenant_id AND u.call_id IN (OLD.call_id, NEW.call_id) ORDER BY u.call_id FOR UPDATE;
    INSERT INTO call_file_usage AS known (tenant_id, call_id, bytes, files)
    VALUES (NEW.tenant_id, NEW.call_id, NEW.size_bytes, 1)
    ON CONFLICT (tenant_id, call_id) DO UPDATE SET bytes = known.bytes + excluded.bytes, files = known.files + 1;
    UPDATE call_file_usage u SET bytes = greatest(0, u.bytes - OLD.size_bytes), files = greatest(0, u.files - 1)
    WHERE u.tenant_id = OLD.tenant_id AND u.call_id = OLD.call_id;
    RETURN NULL;
END
$fn$;

COMMIT;
