-- Two looks across tenants that no version ever called.
BEGIN;

-- Theirs to drop who made them.
SET LOCAL ROLE hub_system;
DROP FUNCTION IF EXISTS system_tenant_of_call(uuid);
DROP FUNCTION IF EXISTS system_tenants_seen();
RESET ROLE;

DROP POLICY IF EXISTS tenants_for_system ON tenants;
REVOKE SELECT (id) ON tenants FROM hub_system;

COMMIT;
