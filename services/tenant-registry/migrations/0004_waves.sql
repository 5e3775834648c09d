-- Beside the version that a schema has: how far raising it to the newest one
-- has come.
ALTER TABLE schema_versions
    -- crm.registry.v1.TenantMigration.State. It says nothing where the version
    -- is the newest: then it is current.
    ADD COLUMN state smallint NOT NULL DEFAULT 2,
    -- Since it was last raised or retried.
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN last_error text,
    -- Not before; NULL: at once.
    ADD COLUMN retry_time timestamptz,
    ADD COLUMN update_time timestamptz;

-- The oldest version of the service that works with the schema from then on.
ALTER TABLE migrations ADD COLUMN oldest_service_version integer NOT NULL DEFAULT 0;

-- The password of the login that migrates, sealed; the same in every replica.
ALTER TABLE services ADD COLUMN migrator_secret bytea;

-- Every schema in every database that can be used, and the version it is to
-- have. The states are 1 current, 2 pending, 3 running, 4 failed.
CREATE VIEW database_migrations AS
SELECT d.database_id
     , d.purpose
     , n.service
     , coalesce(v.version, 0) AS current_version
     , n.target_version
     , CASE
           WHEN coalesce(v.version, 0) >= n.target_version THEN 1
           ELSE coalesce(v.state, 2)
       END AS state
     , coalesce(v.attempts, 0) AS attempts
     , v.last_error
     , v.retry_time
     , coalesce(v.update_time, d.create_time) AS update_time
FROM databases AS d
CROSS JOIN (
    SELECT service, max(version) AS target_version FROM migrations GROUP BY service
) AS n
LEFT JOIN schema_versions AS v ON v.database_id = d.database_id AND v.service = n.service
WHERE d.purpose <> 'template' AND d.step = 'ready';

-- The wave of each service. It stops where more have failed than chance
-- explains.
CREATE VIEW service_migrations AS
SELECT n.service
     , n.target_version
     , count(m.database_id) AS total
     , count(*) FILTER (WHERE m.state = 1) AS current
     , count(*) FILTER (WHERE m.state = 2) AS pending
     , count(*) FILTER (WHERE m.state = 3) AS running
     , count(*) FILTER (WHERE m.state = 4) AS failed
     , count(*) FILTER (WHERE m.state = 4) > greatest(5, count(m.database_id) / 100) AS stopped
FROM (
    SELECT service, max(version) AS target_version FROM migrations GROUP BY service
) AS n
LEFT JOIN database_migrations AS m ON m.service = n.service
GROUP BY n.service, n.target_version;

-- What is to be raised. The platform's schema comes first in each database:
-- the others use its functions.
CREATE VIEW due_migrations AS
SELECT m.database_id, m.purpose, m.service, m.current_version, m.retry_time
FROM database_migrations AS m
JOIN service_migrations AS s ON s.service = m.service
WHERE m.state IN (2, 3)
    AND NOT s.stopped
    AND (m.service = 'platform' OR NOT EXISTS (
        SELECT FROM database_migrations AS p
        WHERE p.database_id = m.database_id AND p.service = 'platform' AND p.state <> 1
    ));
