-- What everything else stands on: the roles, the reading of the tenant context, tenants, and the users seen in tokens.
--
-- Every file here runs under `auralink-hub migrate up` (which puts it in a transaction together with its entry in
-- schema_migrations) and under plain `psql -v ON_ERROR_STOP=1 -f`. It may be run again: nothing is made twice.
BEGIN;

-- Roles belong to the whole server: another database of it may have made them, also at this very moment.
DO $$
DECLARE
    wanted text;
BEGIN
    -- hub_app runs the hub. It gets LOGIN and a password from whoever sets the server up, never from a file.
    -- hub_system owns the few look-ups that cross tenants and can never log in.
    FOREACH wanted IN ARRAY ARRAY['hub_app', 'hub_system'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END
$$;

-- 003 makes functions as hub_system, so the migrating role must be allowed to become it. A superuser always is; a role
-- with CREATEROLE is, from PostgreSQL 16 on, only once it has granted that to itself. Becoming is enough: with
-- inheritance it would also see every tenant's rows.
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
       AND NOT EXISTS (
           SELECT FROM pg_auth_members m
           WHERE m.roleid = 'hub_system'::regrole AND m.member = current_user::regrole AND NOT m.admin_option)
    THEN
        EXECUTE format('GRANT hub_system TO %I', current_user)
            || CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT FALSE' ELSE '' END;
    END IF;
END
$$;

GRANT USAGE ON SCHEMA public TO hub_app, hub_system;

-- The context of a transaction, set by set_config(…, true). After a transaction the setting is '' and not NULL, and
-- ''::uuid would be an error: hence nullif. Not set means no tenant, and no tenant means no rows.
CREATE OR REPLACE FUNCTION app_tenant_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(pg_catalog.current_setting('app.tenant_id', true), '')::uuid $$;

CREATE OR REPLACE FUNCTION app_user_id() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(pg_catalog.current_setting('app.user_id', true), '') $$;

CREATE TABLE IF NOT EXISTS tenants (
    id         uuid PRIMARY KEY,
    name       text CHECK (length(name) <= 200),
    settings   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- People as their tokens name them. The hub keeps no passwords and owns no identities: a row is made the first time a
-- token is seen. Other people's calls and lists hang on it, so it can be deleted only when nothing refers to it.
CREATE TABLE IF NOT EXISTS users (
    tenant_id    uuid NOT NULL DEFAULT app_tenant_id() REFERENCES tenants ON DELETE RESTRICT,
    id           text NOT NULL CHECK (length(id) BETWEEN 1 AND 128),
    is_guest     boolean NOT NULL GENERATED ALWAYS AS (id LIKE 'guest:%') STORED,
    display_name text CHECK (length(display_name) <= 200),
    avatar_url   text CHECK (length(avatar_url) <= 2048),
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS tenants_of_tenant ON tenants;
CREATE POLICY tenants_of_tenant ON tenants USING (id = app_tenant_id()) WITH CHECK (id = app_tenant_id());
DROP POLICY IF EXISTS users_of_tenant ON users;
CREATE POLICY users_of_tenant ON users USING (tenant_id = app_tenant_id()) WITH CHECK (tenant_id = app_tenant_id());

GRANT SELECT, INSERT, UPDATE ON tenants TO hub_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON users TO hub_app;

COMMIT;
