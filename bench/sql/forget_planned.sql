-- Removes what plan_tenant.sql left.
WITH gone AS (
    DELETE FROM tenants AS t
    USING databases AS d
    WHERE d.database_id = t.tenant_id AND d.name LIKE 'bench\_%'
)
SELECT 1;
DELETE FROM databases WHERE name LIKE 'bench\_%';
