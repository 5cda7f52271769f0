-- Contacts as two people have them: each has a row of their own, which the other cannot read. What one of them does to
-- the other's row (a request that arrives, a word of agreement, a parting) goes through functions that know only that.
BEGIN;

-- `pending`: one of the two has asked. With `incoming` it was the other one, and the row's owner may agree.
ALTER TABLE contacts ADD COLUMN IF NOT EXISTS incoming boolean NOT NULL DEFAULT false;
-- While blocked: what was before, and comes back; NULL for a stranger.
ALTER TABLE contacts ADD COLUMN IF NOT EXISTS kept_status text CHECK (kept_status IN ('pending', 'accepted'));
ALTER TABLE contacts ADD COLUMN IF NOT EXISTS blocked_at timestamptz;
UPDATE contacts SET blocked_at = updated_at WHERE status = 'blocked' AND blocked_at IS NULL;

-- Requests that wait for their owner: they are counted before another one is let in.
CREATE INDEX IF NOT EXISTS contacts_incoming ON contacts (tenant_id, owner_id) WHERE incoming;

DROP POLICY IF EXISTS contacts_for_system ON contacts;
CREATE POLICY contacts_for_system ON contacts TO hub_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON contacts TO hub_system;

GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- All of them within the caller's tenant, and only about the two: the transaction's user and `other`.

-- As before, but a block is dated by itself: a note on somebody blocked must not look like a sign of life.
CREATE OR REPLACE FUNCTION contacts_shown(wanted text[])
    RETURNS TABLE (contact_user_id text, hidden_since timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT mine.contact_user_id, coalesce(theirs.blocked_at, theirs.updated_at)
        FROM public.contacts mine
        LEFT JOIN public.contacts theirs
               ON theirs.tenant_id = mine.tenant_id AND theirs.owner_id = mine.contact_user_id
              AND theirs.contact_user_id = mine.owner_id AND theirs.status = 'blocked'
        WHERE mine.tenant_id = public.app_tenant_id() AND mine.owner_id = public.app_user_id()
          AND mine.contact_user_id = ANY (wanted) AND mine.status = 'accepted'
    $$;

-- Who of these blocks the caller.
CREATE OR REPLACE FUNCTION contacts_blocking(wanted text[]) RETURNS TABLE (user_id text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT theirs.owner_id FROM public.contacts theirs
        WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.contact_user_id = public.app_user_id()
          AND theirs.owner_id = ANY (wanted) AND theirs.status = 'blocked'
    $$;

-- The other's row about the caller.
CREATE OR REPLACE FUNCTION contact_of_other(other text) RETURNS SETOF contacts
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT theirs.* FROM public.contacts theirs
        WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
          AND theirs.contact_user_id = public.app_user_id()
    $$;

-- The caller asks. The other's row as it now is, where that changed: a request that arrived, or, where they had asked
-- too, a contact. Nothing where they block the caller, or have as many requests as anybody can look through.
CREATE OR REPLACE FUNCTION contact_ask(other text, at_most integer) RETURNS SETOF contacts
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        RETURN QUERY
            UPDATE public.contacts theirs SET status = 'accepted'
            WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
              AND theirs.contact_user_id = public.app_user_id() AND theirs.status = 'pending' AND NOT theirs.incoming
            RETURNING theirs.*;
        IF FOUND THEN
            RETURN;
        END IF;
        RETURN QUERY
            INSERT INTO public.contacts (tenant_id, owner_id, contact_user_id, status, incoming)
            SELECT public.app_tenant_id(), other, public.app_user_id(), 'pending', true
            WHERE (SELECT count(*) FROM (SELECT FROM public.contacts full_of
                                         WHERE full_of.tenant_id = public.app_tenant_id() AND full_of.owner_id = other
                                           AND full_of.incoming LIMIT at_most) waiting) < at_most
            ON CONFLICT (tenant_id, owner_id, contact_user_id) DO NOTHING
            RETURNING *;
    END
    $fn$;

-- The caller agrees to what the other asked. The other's row, where it changed for them to see; one who blocks the caller
-- meanwhile finds it so when they no longer do.
CREATE OR REPLACE FUNCTION contact_agree(other text) RETURNS SETOF contacts
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        UPDATE public.contacts theirs SET kept_status = 'accepted'
            WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
              AND theirs.contact_user_id = public.app_user_id() AND theirs.status = 'blocked'
              AND theirs.kept_status = 'pending';
        RETURN QUERY
            UPDATE public.contacts theirs SET status = 'accepted', incoming = false
            WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
              AND theirs.contact_user_id = public.app_user_id() AND theirs.status = 'pending'
            RETURNING theirs.*;
    END
    $fn$;

-- The caller parts from the other. The other's row that is gone; a block of theirs stays, and forgets what was before.
CREATE OR REPLACE FUNCTION contact_part(other text) RETURNS SETOF contacts
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        UPDATE public.contacts theirs SET kept_status = NULL, incoming = false
            WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
              AND theirs.contact_user_id = public.app_user_id() AND theirs.status = 'blocked';
        RETURN QUERY
            DELETE FROM public.contacts theirs
            WHERE theirs.tenant_id = public.app_tenant_id() AND theirs.owner_id = other
              AND theirs.contact_user_id = public.app_user_id() AND theirs.status <> 'blocked'
            RETURNING theirs.*;
    END
    $fn$;

REVOKE ALL ON FUNCTION contacts_shown(text[]), contacts_blocking(text[]), contact_of_other(text),
    contact_ask(text, integer), contact_agree(text), contact_part(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION contacts_shown(text[]), contacts_blocking(text[]), contact_of_other(text),
    contact_ask(text, integer), contact_agree(text), contact_part(text) TO hub_app;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

COMMIT;
