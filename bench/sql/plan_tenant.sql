-- The registry's transaction that plans a tenant. Here it is marked as ready,
-- lest the registry goes on to make it.
\set n random(1, 1000000000000000)
BEGIN;
INSERT INTO databases (database_id, cluster, name, purpose, step, template_id, create_time)
SELECT md5(:n)::uuid, c.cluster, 'planned_' || md5(:n), 'tenant', 'ready', c.template_id, now()
FROM clusters AS c
WHERE NOT EXISTS (
    SELECT FROM services AS s
    WHERE NOT EXISTS (
        SELECT FROM schema_versions AS v
        WHERE v.database_id = c.template_id AND v.service = s.service
    )
)
ORDER BY c.create_time
LIMIT 1;
INSERT INTO tenants (tenant_id, slug, display_name, kind, state, labels, create_time, update_time)
VALUES (md5(:n)::uuid, 'planned-' || md5(:n), 'Bench', 2, 2, '{}', now(), now())
ON CONFLICT ON CONSTRAINT tenants_slug_key DO NOTHING;
COMMIT;
