-- Clusters beyond the first, and databases that wait for a tenant.
ALTER TABLE clusters
    ADD COLUMN display_name text NOT NULL DEFAULT '',
    -- crm.registry.v1.Cluster.TlsMode and .State
    ADD COLUMN tls_mode smallint NOT NULL DEFAULT 1,
    ADD COLUMN state smallint NOT NULL DEFAULT 1,
    -- The password of the registry's login there, sealed. That of the first
    -- cluster is in the registry's configuration.
    ADD COLUMN secret bytea,
    -- What PostgreSQL calls itself: one server is one cluster.
    ADD COLUMN system_identifier bigint CONSTRAINT clusters_system_identifier_key UNIQUE,
    ADD COLUMN tenant_capacity integer NOT NULL DEFAULT 1000 CHECK (tenant_capacity >= 0),
    ADD COLUMN spare_target integer NOT NULL DEFAULT 4 CHECK (spare_target >= 0),
    -- Not before this is another spare made.
    ADD COLUMN refill_time timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN spares_made bigint NOT NULL DEFAULT 0,
    ADD COLUMN update_time timestamptz,
    ADD COLUMN revision bigint NOT NULL DEFAULT 1;
UPDATE clusters SET update_time = create_time;
ALTER TABLE clusters ALTER COLUMN update_time SET NOT NULL;

-- A spare has all that a tenant's database has, but no tenant.
ALTER TABLE databases
    DROP CONSTRAINT databases_purpose_check,
    ADD CONSTRAINT databases_purpose_check CHECK (purpose IN ('template', 'spare', 'tenant'));
CREATE INDEX databases_spare_idx ON databases (cluster, create_time) WHERE purpose = 'spare';
CREATE INDEX databases_tenant_idx ON databases (cluster) WHERE purpose = 'tenant';

-- Whether a database has the newest schema of every service. Before all
-- services have registered theirs, none has.
CREATE FUNCTION is_current(id uuid) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM services AS s
        WHERE coalesce((
            SELECT v.version FROM schema_versions AS v
            WHERE v.database_id = id AND v.service = s.service
        ), 0) < coalesce((
            SELECT max(m.version) FROM migrations AS m WHERE m.service = s.service
        ), 1)
    );
END
$$;

-- Repeated requests that made a cluster or changed it (AIP-155).
CREATE TABLE cluster_requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    hash bytea NOT NULL,
    cluster text NOT NULL REFERENCES clusters,
    -- The answer, once there is one.
    response bytea,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (caller, method, request_id)
);
CREATE INDEX cluster_requests_expire_time_idx ON cluster_requests (expire_time);
