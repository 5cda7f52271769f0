-- When LiveKit was last asked of those absences that count: two looks in the same moment are one answer, not two.
BEGIN;

ALTER TABLE calls ADD COLUMN IF NOT EXISTS missed_at timestamptz;

COMMIT;
