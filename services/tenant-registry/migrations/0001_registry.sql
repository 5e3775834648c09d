-- The PostgreSQL clusters that hold tenant databases.
CREATE TABLE clusters (
    cluster text PRIMARY KEY CHECK (cluster ~ '^[a-z][a-z0-9-]{0,62}$'),
    host text NOT NULL,
    port integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    -- The template that new tenants are cloned from.
    template_id uuid,
    create_time timestamptz NOT NULL
);

-- The services that own a schema in every tenant database.
CREATE TABLE services (
    service text PRIMARY KEY CHECK (service ~ '^[a-z]{1,20}$')
);
INSERT INTO services (service) VALUES ('platform'), ('contacts'), ('messaging');

-- Their migrations, append-only.
CREATE TABLE migrations (
    service text NOT NULL REFERENCES services,
    version integer NOT NULL CHECK (version >= 1),
    description text NOT NULL,
    checksum bytea NOT NULL,
    sql text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (service, version)
);

-- Every database that the registry made: a template, or a tenant's.
CREATE TABLE databases (
    database_id uuid PRIMARY KEY,
    cluster text NOT NULL REFERENCES clusters,
    name text NOT NULL,
    purpose text NOT NULL CHECK (purpose IN ('template', 'tenant')),
    -- The last step of its making that is known to be done.
    step text NOT NULL CHECK (step IN ('planned', 'created', 'locked', 'granted', 'ready')),
    -- The template that it is a clone of.
    template_id uuid REFERENCES databases,
    create_time timestamptz NOT NULL,
    UNIQUE (cluster, name)
);
ALTER TABLE clusters ADD FOREIGN KEY (template_id) REFERENCES databases;
CREATE SEQUENCE template_numbers AS integer;

-- Which version each schema in a database has.
CREATE TABLE schema_versions (
    database_id uuid NOT NULL REFERENCES databases ON DELETE CASCADE,
    service text NOT NULL REFERENCES services,
    version integer NOT NULL,
    PRIMARY KEY (database_id, service)
);

CREATE TABLE tenants (
    tenant_id uuid PRIMARY KEY REFERENCES databases,
    slug text NOT NULL CONSTRAINT tenants_slug_key UNIQUE,
    display_name text NOT NULL,
    -- crm.registry.v1.Tenant.Kind and .State
    kind smallint NOT NULL,
    state smallint NOT NULL,
    labels jsonb NOT NULL,
    -- Tokens of another generation, or of an older access version, are void.
    generation integer NOT NULL DEFAULT 1,
    access_version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    delete_time timestamptz,
    purge_time timestamptz,
    revision bigint NOT NULL DEFAULT 1
);
CREATE INDEX tenants_provisioning_idx ON tenants (create_time) WHERE state = 1;

-- The login roles of services in tenant databases.
CREATE TABLE logins (
    tenant_id uuid NOT NULL REFERENCES databases ON DELETE CASCADE,
    service text NOT NULL REFERENCES services,
    generation integer NOT NULL,
    -- The password, sealed.
    secret bytea NOT NULL,
    -- Whether the role is known to exist.
    is_ready boolean NOT NULL DEFAULT false,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, service, generation)
);

-- Repeated requests (AIP-155).
CREATE TABLE requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    hash bytea NOT NULL,
    tenant_id uuid NOT NULL REFERENCES databases ON DELETE CASCADE,
    -- The answer, once there is one.
    response bytea,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (caller, method, request_id)
);
CREATE INDEX requests_tenant_idx ON requests (tenant_id);
CREATE INDEX requests_expire_time_idx ON requests (expire_time);

-- Who may exchange a secret for a token.
CREATE TABLE service_accounts (
    name text PRIMARY KEY,
    display_name text NOT NULL,
    roles text[] NOT NULL,
    -- SHA-256: the secret is 256 random bits, which no dictionary has.
    secret_hash bytea NOT NULL,
    update_time timestamptz NOT NULL
);

-- The keys that sign tokens.
CREATE TABLE signing_keys (
    kid text PRIMARY KEY,
    -- PKCS#8, sealed.
    private_key bytea NOT NULL,
    create_time timestamptz NOT NULL
);
