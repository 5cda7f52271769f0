-- Out of how many reports a score is the mean, and the forgetting of reports.
BEGIN;

ALTER TABLE calls ADD COLUMN IF NOT EXISTS quality_reports bigint NOT NULL DEFAULT 0 CHECK (quality_reports >= 0);
ALTER TABLE call_participants
    ADD COLUMN IF NOT EXISTS quality_reports bigint NOT NULL DEFAULT 0 CHECK (quality_reports >= 0);

DROP POLICY IF EXISTS quality_for_system ON quality_metrics;
CREATE POLICY quality_for_system ON quality_metrics TO hub_system USING (true);
-- Never what was measured. UPDATE of one column, because locking a row asks for it.
GRANT SELECT (id, recorded_at), UPDATE (recorded_at), DELETE ON quality_metrics TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

CREATE OR REPLACE FUNCTION system_forget_quality(recorded_before timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM public.quality_metrics WHERE id = ANY (ARRAY(
                SELECT m.id FROM public.quality_metrics m
                WHERE m.recorded_at < recorded_before LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT count(*) FROM gone
    $$;

REVOKE ALL ON FUNCTION system_forget_quality(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_forget_quality(timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
