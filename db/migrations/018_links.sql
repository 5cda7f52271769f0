-- Shareable links at work: found by their code across tenants, and what binds those who came by one, as it is now.
BEGIN;

-- What its creator was to the call when the link was made or changed: it never gives more. 'host' also for an admin of
-- the tenant, who needs no part in the call.
ALTER TABLE shareable_links ADD COLUMN IF NOT EXISTS granted_as text NOT NULL DEFAULT 'participant'
    CHECK (granted_as IN ('host', 'moderator', 'participant', 'viewer', 'admin'));

GRANT SELECT (short_code, creator_id, call_id, active_from, expires_at, revoked_at, default_role, require_approval)
    ON shareable_links TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- A code that leads nowhere is not found, for whatever reason: nobody learns which. The time is the database's, the same
-- for all nodes.
CREATE OR REPLACE FUNCTION live_link(code text) RETURNS TABLE (tenant_id uuid, link_id uuid, creator_id text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT l.tenant_id, l.id, l.creator_id
        FROM public.shareable_links l JOIN public.calls c ON c.tenant_id = l.tenant_id AND c.id = l.call_id
        WHERE l.short_code = code AND l.revoked_at IS NULL AND c.status <> 'ended'
          AND (l.active_from IS NULL OR l.active_from <= now()) AND (l.expires_at IS NULL OR l.expires_at > now())
    $$;

-- Within the caller's tenant: what a link says of those who came by it. Only its creator sees the link itself.
-- A later migration gives it more columns: whoever applies all of them once more begins anew here.
DROP FUNCTION IF EXISTS link_terms(uuid);
CREATE FUNCTION link_terms(wanted uuid)
    RETURNS TABLE (revoked boolean, default_role text, require_approval boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT l.revoked_at IS NOT NULL, l.default_role, l.require_approval
        FROM public.shareable_links l WHERE l.id = wanted AND l.tenant_id = public.app_tenant_id()
    $$;

REVOKE ALL ON FUNCTION live_link(text), link_terms(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION live_link(text), link_terms(uuid) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
