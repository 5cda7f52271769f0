-- Who opens links: counted by hour, by where from and with what. Nobody's address is kept: a visitor is a hash under a
-- salt of the day, and hashes and salt are forgotten two days later.
BEGIN;

CREATE TABLE IF NOT EXISTS link_visitors (
    tenant_id uuid NOT NULL DEFAULT app_tenant_id(),
    link_id   uuid NOT NULL,
    day       date NOT NULL,
    visitor   bytea NOT NULL CHECK (length(visitor) = 16),
    -- They opened it, and no validation has followed yet: the next one is part of the same click.
    opened    boolean NOT NULL,
    PRIMARY KEY (tenant_id, link_id, day, visitor),
    FOREIGN KEY (tenant_id, link_id) REFERENCES shareable_links (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS link_visitors_by_day ON link_visitors (day);

CREATE TABLE IF NOT EXISTS link_hours (
    tenant_id uuid NOT NULL DEFAULT app_tenant_id(),
    link_id   uuid NOT NULL,
    hour      timestamptz NOT NULL,
    clicks    bigint NOT NULL DEFAULT 0 CHECK (clicks >= 0),
    visitors  bigint NOT NULL DEFAULT 0 CHECK (visitors >= 0),
    uses      bigint NOT NULL DEFAULT 0 CHECK (uses >= 0),
    PRIMARY KEY (tenant_id, link_id, hour),
    FOREIGN KEY (tenant_id, link_id) REFERENCES shareable_links (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS link_hours_by_hour ON link_hours (hour);

CREATE TABLE IF NOT EXISTS link_sources (
    tenant_id uuid NOT NULL DEFAULT app_tenant_id(),
    link_id   uuid NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('referrer', 'device')),
    source    text NOT NULL CHECK (length(source) BETWEEN 1 AND 253),
    clicks    bigint NOT NULL DEFAULT 0 CHECK (clicks >= 0),
    PRIMARY KEY (tenant_id, link_id, kind, source),
    FOREIGN KEY (tenant_id, link_id) REFERENCES shareable_links (tenant_id, id) ON DELETE CASCADE
);

-- Of no tenant: one salt a day for all. Nobody reads it but by visitor_salt.
CREATE TABLE IF NOT EXISTS visitor_salts (
    day  date PRIMARY KEY,
    salt bytea NOT NULL CHECK (length(salt) = 32)
);

ALTER TABLE link_visitors ENABLE ROW LEVEL SECURITY;
ALTER TABLE link_visitors FORCE ROW LEVEL SECURITY;
ALTER TABLE link_hours ENABLE ROW LEVEL SECURITY;
ALTER TABLE link_hours FORCE ROW LEVEL SECURITY;
ALTER TABLE link_sources ENABLE ROW LEVEL SECURITY;
ALTER TABLE link_sources FORCE ROW LEVEL SECURITY;
ALTER TABLE visitor_salts ENABLE ROW LEVEL SECURITY;
ALTER TABLE visitor_salts FORCE ROW LEVEL SECURITY;

-- Whoever sees the link sees these.
DROP POLICY IF EXISTS visitors_of_link ON link_visitors;
CREATE POLICY visitors_of_link ON link_visitors
    USING (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id))
    WITH CHECK (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id));
DROP POLICY IF EXISTS hours_of_link ON link_hours;
CREATE POLICY hours_of_link ON link_hours
    USING (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id))
    WITH CHECK (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id));
DROP POLICY IF EXISTS sources_of_link ON link_sources;
CREATE POLICY sources_of_link ON link_sources
    USING (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id))
    WITH CHECK (tenant_id = app_tenant_id() AND EXISTS (SELECT FROM shareable_links l WHERE l.id = link_id));
DROP POLICY IF EXISTS visitors_for_system ON link_visitors;
CREATE POLICY visitors_for_system ON link_visitors TO hub_system USING (true);
DROP POLICY IF EXISTS hours_for_system ON link_hours;
CREATE POLICY hours_for_system ON link_hours TO hub_system USING (true);
DROP POLICY IF EXISTS salts_for_system ON visitor_salts;
CREATE POLICY salts_for_system ON visitor_salts TO hub_system USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON link_visitors, link_hours, link_sources TO hub_app;
-- By its policies the app role reads no salt; the right to ask lets a test say so.
GRANT SELECT ON visitor_salts TO hub_app;
GRANT SELECT, INSERT, DELETE ON visitor_salts TO hub_system;
-- UPDATE, because locking a row asks for it.
GRANT SELECT, UPDATE, DELETE ON link_visitors, link_hours TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- The salt of a day: the first who asks brings it.
CREATE OR REPLACE FUNCTION visitor_salt(wanted date, candidate bytea) RETURNS bytea
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    DECLARE
        found bytea;
    BEGIN
        SELECT s.salt INTO found FROM public.visitor_salts s WHERE s.day = wanted;
        IF found IS NULL THEN
            INSERT INTO public.visitor_salts (day, salt) VALUES (wanted, candidate) ON CONFLICT DO NOTHING;
            SELECT s.salt INTO found FROM public.visitor_salts s WHERE s.day = wanted;
        END IF;
        RETURN found;
    END
    $fn$;

-- Visitors and salts of before `until`, and hours of before `old`, some at a time.
CREATE OR REPLACE FUNCTION system_forget_visits(until date, old timestamptz, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH salts AS (DELETE FROM public.visitor_salts WHERE day < until),
        visitors AS (
            DELETE FROM public.link_visitors WHERE ctid = ANY (ARRAY(
                SELECT v.ctid FROM public.link_visitors v
                WHERE v.day < until ORDER BY v.day LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1),
        hours AS (
            DELETE FROM public.link_hours WHERE ctid = ANY (ARRAY(
                SELECT h.ctid FROM public.link_hours h
                WHERE h.hour < old ORDER BY h.hour LIMIT at_most FOR UPDATE SKIP LOCKED))
            RETURNING 1)
        SELECT (SELECT count(*) FROM visitors) + (SELECT count(*) FROM hours)
    $$;

REVOKE ALL ON FUNCTION visitor_salt(date, bytea), system_forget_visits(date, timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION visitor_salt(date, bytea), system_forget_visits(date, timestamptz, integer) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
