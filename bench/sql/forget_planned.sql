-- Removes what plan_tenant.sql left.
DELETE FROM tenants WHERE slug LIKE 'planned-%';
DELETE FROM databases WHERE name LIKE 'planned\_%';
