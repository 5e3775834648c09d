-- The registry's transaction that takes slug, id and database. The database is
-- a new row here, where the registry claims a spare's, and none of a tenant, so
-- that counting those takes as long as it does for the registry.
\set n random(1, 1000000000000000)
BEGIN;
SELECT c.cluster
FROM clusters AS c
CROSS JOIN LATERAL (
    SELECT count(*) AS tenants
    FROM databases AS d
    WHERE d.cluster = c.cluster AND d.purpose = 'tenant'
) AS held
WHERE c.state = 1 AND is_current(c.template_id)
ORDER BY held.tenants, c.create_time
LIMIT 1;
INSERT INTO databases (database_id, cluster, name, purpose, step, template_id, create_time)
SELECT md5(:n)::uuid, c.cluster, 'planned_' || md5(:n), 'template', 'ready', c.template_id, now()
FROM clusters AS c
ORDER BY c.create_time
LIMIT 1;
INSERT INTO tenants (tenant_id, slug, display_name, kind, state, labels, create_time, update_time)
VALUES (md5(:n)::uuid, 'planned-' || md5(:n), 'Bench', 2, 2, '{}', now(), now())
ON CONFLICT ON CONSTRAINT tenants_slug_key DO NOTHING;
COMMIT;
