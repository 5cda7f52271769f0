-- Whom somebody may see: their own accepted contacts. A contact's list is closed to them by row level security, so that
-- they do not learn who blocked them; the hub has to know it.
BEGIN;

DROP POLICY IF EXISTS contacts_for_system ON contacts;
CREATE POLICY contacts_for_system ON contacts FOR SELECT TO hub_system USING (true);
GRANT SELECT (tenant_id, owner_id, contact_user_id, status, updated_at) ON contacts TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- Within the caller's tenant, of the caller's own contacts.
CREATE OR REPLACE FUNCTION contacts_shown(wanted text[])
    RETURNS TABLE (contact_user_id text, hidden_since timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT mine.contact_user_id, theirs.updated_at
        FROM public.contacts mine
        LEFT JOIN public.contacts theirs
               ON theirs.tenant_id = mine.tenant_id AND theirs.owner_id = mine.contact_user_id
              AND theirs.contact_user_id = mine.owner_id AND theirs.status = 'blocked'
        WHERE mine.tenant_id = public.app_tenant_id() AND mine.owner_id = public.app_user_id()
          AND mine.contact_user_id = ANY (wanted) AND mine.status = 'accepted'
    $$;

REVOKE ALL ON FUNCTION contacts_shown(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION contacts_shown(text[]) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
