-- A spare that failed is replaced, and nobody can retry it: it counts for
-- nothing in the wave of its service, least of all for stopping it.
CREATE OR REPLACE VIEW service_migrations AS
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
LEFT JOIN database_migrations AS m
    ON m.service = n.service AND NOT (m.purpose = 'spare' AND m.state = 4)
GROUP BY n.service, n.target_version;
