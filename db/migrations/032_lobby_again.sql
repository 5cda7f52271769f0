-- When somebody who was denied may knock again: a no that was meant for a link holds nobody up who comes by another one.
BEGIN;

ALTER TABLE lobby_entries ADD COLUMN IF NOT EXISTS again_at timestamptz;

COMMIT;
