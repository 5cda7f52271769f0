-- The audit log as a chain: every entry is sealed with the hash of the one before, so that whoever changes, removes or
-- slips in an entry behind the hub's back breaks it, and `auralink-hub audit verify` says where.
--
-- The links stand beside the log, since a row of it is never changed. They are made when the transaction of the act
-- commits, by a deferred trigger: two acts of one tenant wait for each other only while they commit, and not from the
-- moment one of them is written down. So the order of the chain is the order of the commits.
BEGIN;

-- How far each tenant's chain goes. The lock on this row is what makes it one chain, and it is the last lock that a
-- transaction takes.
CREATE TABLE IF NOT EXISTS audit_heads (
    -- No foreign key: what happened stays written, whatever becomes of the tenant.
    tenant_id uuid PRIMARY KEY,
    seq       bigint NOT NULL CHECK (seq >= 0),
    hash      bytea NOT NULL CHECK (length(hash) = 32)
);

CREATE TABLE IF NOT EXISTS audit_chain (
    tenant_id uuid NOT NULL,
    -- 1, 2, 3 … without a hole.
    seq       bigint NOT NULL CHECK (seq > 0),
    audit_id  bigint NOT NULL UNIQUE REFERENCES audit_log (id) ON DELETE RESTRICT,
    -- Of the link before; 32 zero bytes before the first.
    prev_hash bytea NOT NULL CHECK (length(prev_hash) = 32),
    hash      bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (tenant_id, seq)
);

------------------------------------------------------------------------------------------------------------ isolation
ALTER TABLE audit_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_heads FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_chain ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_chain FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS audit_heads_of_tenant ON audit_heads;
CREATE POLICY audit_heads_of_tenant ON audit_heads USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS audit_chain_of_tenant ON audit_chain;
CREATE POLICY audit_chain_of_tenant ON audit_chain USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());
DROP POLICY IF EXISTS audit_for_system ON audit_log;
CREATE POLICY audit_for_system ON audit_log FOR SELECT TO hub_system USING (true);
DROP POLICY IF EXISTS audit_heads_for_system ON audit_heads;
CREATE POLICY audit_heads_for_system ON audit_heads TO hub_system USING (true) WITH CHECK (true);
DROP POLICY IF EXISTS audit_chain_for_system ON audit_chain;
CREATE POLICY audit_chain_for_system ON audit_chain TO hub_system USING (true) WITH CHECK (true);

-- The app role reads the chain and cannot write it. Nor does it say when something happened, or as the how manieth.
GRANT SELECT ON audit_heads, audit_chain TO hub_app;
REVOKE INSERT ON audit_log FROM hub_app;
GRANT INSERT (tenant_id, actor, action, target_type, target_id, reason, details) ON audit_log TO hub_app;
GRANT SELECT ON audit_log TO hub_system;
GRANT SELECT, INSERT ON audit_chain TO hub_system;
GRANT SELECT, INSERT, UPDATE ON audit_heads TO hub_system;

------------------------------------------------------------------------------------------------------- only ever grown
CREATE OR REPLACE TRIGGER audit_chain_is_append_only BEFORE UPDATE OR DELETE ON audit_chain
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE OR REPLACE TRIGGER audit_chain_is_not_emptied BEFORE TRUNCATE ON audit_chain
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE OR REPLACE FUNCTION audit_head_moves_on() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.tenant_id = OLD.tenant_id AND NEW.seq = OLD.seq + 1 THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'audit_heads only moves on' USING ERRCODE = 'insufficient_privilege';
END
$fn$;
CREATE OR REPLACE TRIGGER audit_head_moves_on BEFORE UPDATE OR DELETE ON audit_heads
    FOR EACH ROW EXECUTE FUNCTION audit_head_moves_on();
CREATE OR REPLACE TRIGGER audit_heads_stay BEFORE TRUNCATE ON audit_heads
    FOR EACH STATEMENT EXECUTE FUNCTION audit_head_moves_on();

--------------------------------------------------------------------------------------------------------------- linking
GRANT CREATE ON SCHEMA public TO hub_system;
SET LOCAL ROLE hub_system;

-- sha256 over the hash before and the fields, each as its length in bytes, a colon and its text; '-' for NULL; commas
-- between. So no two entries are written alike. db/audit_chain.py computes the same, and has to.
CREATE OR REPLACE FUNCTION audit_digest(seq bigint, prev_hash bytea, entry audit_log) RETURNS bytea
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT sha256(prev_hash || convert_to(
            string_agg(coalesce(octet_length(convert_to(f.field, 'UTF8'))::text || ':' || f.field, '-'), ',' ORDER BY f.n),
            'UTF8'))
        FROM unnest(ARRAY[
            seq::text, entry.id::text, entry.tenant_id::text, (extract(epoch FROM entry.at) * 1000000)::bigint::text,
            entry.actor, entry.action, entry.target_type, entry.target_id, entry.reason, entry.details::text
        ]) WITH ORDINALITY AS f (field, n)
    $$;

CREATE OR REPLACE FUNCTION audit_append(entry audit_log) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    AS $fn$
    DECLARE
        head public.audit_heads;
        made bytea;
    BEGIN
        INSERT INTO public.audit_heads (tenant_id, seq, hash)
            VALUES (entry.tenant_id, 0, decode(repeat('00', 32), 'hex')) ON CONFLICT DO NOTHING;
        SELECT * INTO STRICT head FROM public.audit_heads h WHERE h.tenant_id = entry.tenant_id FOR UPDATE;
        made := public.audit_digest(head.seq + 1, head.hash, entry);
        INSERT INTO public.audit_chain (tenant_id, seq, audit_id, prev_hash, hash)
            VALUES (entry.tenant_id, head.seq + 1, entry.id, head.hash, made);
        UPDATE public.audit_heads h SET seq = head.seq + 1, hash = made WHERE h.tenant_id = entry.tenant_id;
    END
    $fn$;

CREATE OR REPLACE FUNCTION audit_link() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $fn$
    BEGIN
        PERFORM public.audit_append(NEW);
        RETURN NULL;
    END
    $fn$;

-- Every tenant whose log or chain has anything. By jumps through the index, since the log is long and tenants are few.
CREATE OR REPLACE FUNCTION system_audit_tenants() RETURNS TABLE (tenant_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
        WITH RECURSIVE logged AS (
            (SELECT a.tenant_id FROM public.audit_log a ORDER BY a.tenant_id LIMIT 1)
            UNION ALL
            SELECT (SELECT a.tenant_id FROM public.audit_log a WHERE a.tenant_id > l.tenant_id
                    ORDER BY a.tenant_id LIMIT 1)
            FROM logged l WHERE l.tenant_id IS NOT NULL)
        SELECT l.tenant_id FROM logged l WHERE l.tenant_id IS NOT NULL
        UNION SELECT h.tenant_id FROM public.audit_heads h
        ORDER BY 1
    $$;

-- What was written before there was a chain, in the order it was written.
DO $$
DECLARE
    entry public.audit_log;
BEGIN
    FOR entry IN SELECT a.* FROM public.audit_log a
                 WHERE NOT EXISTS (SELECT FROM public.audit_chain c WHERE c.audit_id = a.id) ORDER BY a.id LOOP
        PERFORM public.audit_append(entry);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION audit_link(), system_audit_tenants(), audit_append(audit_log) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_link(), system_audit_tenants() TO hub_app;
-- Whoever migrates makes the trigger.
GRANT EXECUTE ON FUNCTION audit_link() TO SESSION_USER;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hub_system;

DROP TRIGGER IF EXISTS audit_link ON audit_log;
CREATE CONSTRAINT TRIGGER audit_link AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION audit_link();

COMMIT;
