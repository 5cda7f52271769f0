-- A link binds the tokens that it gave: those from before a change of who may come by it, or from before an eviction,
-- let nobody in any more. And the heads of a call see and revoke the links that lead into it.
BEGIN;

-- The version of the settings since which tokens are good. A version and no time: no two clocks, and no transaction
-- that began before the change and ended after it.
ALTER TABLE shareable_links ADD COLUMN IF NOT EXISTS valid_from bigint NOT NULL DEFAULT 0;

CREATE OR REPLACE TRIGGER links_keep_version BEFORE UPDATE ON shareable_links
    FOR EACH ROW
    WHEN ((OLD.title, OLD.access_type, OLD.password_hash, OLD.allowed_user_ids, OLD.allowed_emails,
           OLD.allowed_domains, OLD.default_role, OLD.max_uses, OLD.enable_recording, OLD.enable_screen_share,
           OLD.enable_chat, OLD.enable_files, OLD.auto_join, OLD.require_approval, OLD.metadata, OLD.active_from,
           OLD.expires_at, OLD.revoked_at, OLD.valid_from)
          IS DISTINCT FROM
          (NEW.title, NEW.access_type, NEW.password_hash, NEW.allowed_user_ids, NEW.allowed_emails,
           NEW.allowed_domains, NEW.default_role, NEW.max_uses, NEW.enable_recording, NEW.enable_screen_share,
           NEW.enable_chat, NEW.enable_files, NEW.auto_join, NEW.require_approval, NEW.metadata, NEW.active_from,
           NEW.expires_at, NEW.revoked_at, NEW.valid_from))
    EXECUTE FUNCTION next_version();

-- The call whose links a transaction may see besides its user's own: set by who has found out that the user heads it.
CREATE OR REPLACE FUNCTION app_headed_call() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(pg_catalog.current_setting('app.headed_call', true), '')::uuid $$;
DROP POLICY IF EXISTS links_of_headed_call ON shareable_links;
CREATE POLICY links_of_headed_call ON shareable_links
    USING (tenant_id = app_tenant_id() AND call_id = app_headed_call())
    WITH CHECK (tenant_id = app_tenant_id() AND call_id = app_headed_call());

GRANT SELECT (granted_as, valid_from) ON shareable_links TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- Within the caller's tenant: what a link says of those who came by it, who made it, and into which call it leads.
DROP FUNCTION IF EXISTS link_terms(uuid);
CREATE FUNCTION link_terms(wanted uuid)
    RETURNS TABLE (revoked boolean, expired boolean, default_role text, require_approval boolean, granted_as text,
                   creator_id text, call_id uuid, valid_from bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT l.revoked_at IS NOT NULL, coalesce(l.expires_at <= now(), false), l.default_role, l.require_approval,
               l.granted_as, l.creator_id, l.call_id, l.valid_from
        FROM public.shareable_links l WHERE l.id = wanted AND l.tenant_id = public.app_tenant_id()
    $$;

REVOKE ALL ON FUNCTION link_terms(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION link_terms(uuid) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
